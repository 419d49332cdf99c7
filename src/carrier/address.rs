//! How a hub is named: `host:port`, or a URL that says which carrier leads there.

#[cfg(unix)]
use std::path::PathBuf;

/// `host:port`, taken apart; an IPv6 address stands in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl HostPort {
    /// `None` when the text is not `host:port`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let valid = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control());
        let port = port.parse().ok().filter(|port| *port != 0)?;
        valid.then(|| Self { host: host.to_owned(), port })
    }
}

/// Where a hub is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// `host:port` or `ssh://host:port`.
    Tcp(HostPort),
    /// `unix:/path`.
    #[cfg(unix)]
    Unix(PathBuf),
}

impl Address {
    /// `Err` tells how to write one.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const TCP: &str = "write host:port, such as hub.example.com:2222";
        #[cfg(unix)]
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let valid = !path.is_empty() && !path.contains('\0');
            return if valid { Ok(Self::Unix(path.into())) } else { Err("write unix:/path/to/socket") };
        }
        let rest = match text.split_once("://") {
            Some(("ssh", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some(_) => return Err("the carriers are ssh://host:port and unix:/path/to/socket"),
            None => text,
        };
        if rest.contains('@') {
            return Err("the agent's id is not part of it: write host:port alone");
        }
        if rest.contains('/') {
            return Err(TCP);
        }
        HostPort::parse(rest).map(Self::Tcp).ok_or(TCP)
    }

    /// As [`parse`](Self::parse), where port 0 stands for any.
    pub(crate) fn parse_to_listen(text: &str) -> Result<Self, &'static str> {
        match text.strip_suffix(":0") {
            Some(rest) if !text.starts_with("unix:") => {
                Self::parse(&format!("{rest}:1")).map(|address| match address {
                    Self::Tcp(at) => Self::Tcp(HostPort { port: 0, ..at }),
                    #[cfg(unix)]
                    other => other,
                })
            }
            _ => Self::parse(text),
        }
    }

    /// The name under which `known_hosts` knows the hub.
    pub(crate) fn name(&self) -> HostPort {
        match self {
            Self::Tcp(to) => to.clone(),
            // A socket is of this machine; 22 is what a name without a port has.
            #[cfg(unix)]
            Self::Unix(_) => HostPort { host: "localhost".into(), port: 22 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_taken_apart() {
        let parse = |text| HostPort::parse(text).map(|hp| (hp.host, hp.port));
        assert_eq!(parse("hub.example.com:2222"), Some(("hub.example.com".into(), 2222)));
        assert_eq!(parse("[::1]:22"), Some(("::1".into(), 22)));
        assert_eq!(parse("10.0.0.1:1"), Some(("10.0.0.1".into(), 1)));
        for bad in ["hub", ":22", "hub:", "hub:0", "hub:65536", "::1:22", "[::1:22", "[]:22", "a b:22", "hub:ssh"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_hub_is_named_by_its_carrier() {
        let tcp = |host: &str, port| Ok(Address::Tcp(HostPort { host: host.into(), port }));
        assert_eq!(Address::parse("hub:2222"), tcp("hub", 2222));
        assert_eq!(Address::parse("ssh://hub:2222"), tcp("hub", 2222));
        assert_eq!(Address::parse("ssh://[::1]:2222/"), tcp("::1", 2222));
        for bad in ["hub", "ssh://hub", "ssh://me@hub:1", "ssh://hub:1/path", "http://hub:1", "://hub:1", "", "ssh://"]
        {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        #[cfg(unix)]
        {
            assert_eq!(Address::parse("unix:/run/hub"), Ok(Address::Unix("/run/hub".into())));
            assert_eq!(Address::parse("unix:///run/hub"), Ok(Address::Unix("/run/hub".into())));
            assert_eq!(Address::parse("unix:hub"), Ok(Address::Unix("hub".into())));
            assert!(Address::parse("unix:").is_err());
        }
    }
}
