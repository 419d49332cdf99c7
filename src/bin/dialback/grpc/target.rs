//! Which server a command is for, read from its arguments alone.

use std::path::PathBuf;

use super::args::ServerArgs;
use crate::failure::Failure;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A host, without the brackets of an address, and a port.
    Tcp(String, u16),
    Unix(PathBuf),
}

/// A server that an argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) place: Place,
    /// As it was written.
    pub(super) text: String,
    /// What a URL says of it.
    pub(super) tls: Option<bool>,
}

/// Which of the two positional arguments is the address, and which the other. An address has a colon; a method, a service
/// or a symbol has none.
pub(super) fn sort(
    first: Option<String>,
    second: Option<String>,
    server: &ServerArgs,
    has_files: bool,
) -> Result<(Option<Target>, Option<String>), Failure> {
    let (address, other) = match (first, second) {
        (Some(first), Some(second)) => (Some(first), Some(second)),
        (Some(only), None) if only.contains(':') || (server.unix && server.gateway.is_none()) => (Some(only), None),
        (Some(only), None) if server.gateway.is_some() || has_files => (None, Some(only)),
        (only, _) => (only, None),
    };
    let address = match (address, &server.gateway) {
        (Some(address), Some(gateway)) if std::env::var("DIALBACK_GATEWAY").ok().as_ref() != Some(gateway) => {
            let text = format!("both the address {address} and --gateway {gateway} are given: leave out one");
            return Err(Failure::usage(text));
        }
        (Some(address), _) => Some(address),
        (None, gateway) => gateway.clone(),
    };
    let target = address.map(|address| parse(&address, server.unix).map_err(Failure::usage)).transpose()?;
    // Nothing is named by an empty name, as with grpcurl.
    Ok((target, other.filter(|name| !name.is_empty())))
}

/// Reads an address.
pub(super) fn parse(text: &str, unix: bool) -> Result<Target, String> {
    let target = |place, tls| Ok(Target { place, text: text.to_owned(), tls });
    if let Some(path) = text.strip_prefix("unix:") {
        // unix:path, unix:/path and unix:///path, as gRPC has them.
        return target(Place::Unix(path.strip_prefix("//").unwrap_or(path).into()), None);
    }
    if unix {
        return target(Place::Unix(text.into()), None);
    }
    let (tls, rest) = match text.split_once("://") {
        Some(("http", rest)) => (Some(false), rest),
        Some(("https", rest)) => (Some(true), rest),
        Some(("dns" | "passthrough", rest)) => (None, rest),
        Some((scheme, _)) => return Err(format!("{text}: {scheme}:// is not known here; give HOST:PORT")),
        None => (None, text),
    };
    let authority = rest.trim_start_matches('/').trim_end_matches('/');
    let parsed: Option<http::uri::Authority> = authority.parse().ok();
    let Some(authority) = parsed.filter(|authority| !authority.as_str().contains('@')) else {
        return Err(format!("{text} is no address: give HOST:PORT, a URL or unix:PATH"));
    };
    let port = match (authority.port_u16(), tls) {
        (Some(port), _) => port,
        (None, Some(true)) => 443,
        (None, Some(false)) => 80,
        (None, None) => return Err(format!("{text} has no port: give HOST:PORT, a URL or unix:PATH")),
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(format!("{text} has no host: give HOST:PORT, a URL or unix:PATH"));
    }
    target(Place::Tcp(host.to_owned(), port), tls)
}

/// What `:authority` is if nothing else is said: the address, or `localhost` for a Unix socket.
pub(super) fn authority(target: &Target) -> String {
    match &target.place {
        Place::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
        Place::Tcp(host, port) => format!("{host}:{port}"),
        Place::Unix(_) => "localhost".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let tcp = |host: &str, port| Place::Tcp(host.into(), port);
        let cases = [
            ("localhost:50051", tcp("localhost", 50051), None),
            ("[::1]:1", tcp("::1", 1), None),
            ("http://hub:8080", tcp("hub", 8080), Some(false)),
            ("http://hub/", tcp("hub", 80), Some(false)),
            ("https://hub.example.com", tcp("hub.example.com", 443), Some(true)),
            ("dns:///hub:1", tcp("hub", 1), None),
            ("unix:a/b", Place::Unix("a/b".into()), None),
            ("unix:/a/b", Place::Unix("/a/b".into()), None),
            ("unix:///a/b", Place::Unix("/a/b".into()), None),
        ];
        for (text, place, tls) in cases {
            assert_eq!(parse(text, false), Ok(Target { place, text: text.into(), tls }), "{text}");
        }
        assert_eq!(parse("/a:b", true).unwrap().place, Place::Unix("/a:b".into()));
        for bad in ["", "hub", ":1", "hub:", "hub:70000", "a b:1", "xds:///x:1", "u@hub:1", "::1"] {
            assert!(parse(bad, false).is_err(), "{bad}");
        }
    }
}
