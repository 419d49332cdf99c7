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
    /// `None` when the text is not `host:port`. Port 0 is for those who listen.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let valid = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control());
        let port = port.parse().ok()?;
        valid.then(|| Self { host: host.to_owned(), port })
    }
}

impl HostPort {
    /// A name that the user has for a hub: `host:port`, or a host alone.
    pub(crate) fn named(text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|| Self { host: text.to_owned(), port: 22 })
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
    /// `ws://host:port/path`, `wss://host:port/path`.
    #[cfg(feature = "websocket")]
    WebSocket(WebSocketUrl),
}

/// Where a WebSocket is.
#[cfg(feature = "websocket")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebSocketUrl {
    pub(crate) tls: bool,
    pub(crate) at: HostPort,
    /// The path, and the query if there is one.
    pub(crate) target: http::uri::PathAndQuery,
}

#[cfg(feature = "websocket")]
impl WebSocketUrl {
    fn parse(tls: bool, rest: &str) -> Result<Self, &'static str> {
        const URL: &str = "write wss://host/path, or wss://host:port/path";
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("neither the agent's id nor a password is part of it: write wss://host/path");
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let target = if target.contains('#') { Err(URL) } else { target.parse().map_err(|_| URL) }?;
        let has_port = authority.rfind(':').is_some_and(|colon| !authority[colon..].contains(']'));
        let customary = if tls { 443 } else { 80 };
        let at = if has_port { authority.to_owned() } else { format!("{authority}:{customary}") };
        Ok(Self { tls, at: HostPort::parse(&at).ok_or(URL)?, target })
    }

    /// `host` or `host:port`, as the head of a request names it.
    pub(crate) fn authority(&self) -> String {
        let HostPort { host, port } = &self.at;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if *port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{port}") }
    }
}

impl Address {
    /// As [`parse`](Self::parse), for those who dial: port 0 is none.
    pub(crate) fn parse_to_dial(text: &str) -> Result<Self, &'static str> {
        match Self::parse(text)? {
            address if address.name().port == 0 => {
                Err("there is no port 0: write host:port, such as hub.example.com:2222")
            }
            address => Ok(address),
        }
    }

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
            #[cfg(feature = "websocket")]
            Some(("ws", rest)) => return WebSocketUrl::parse(false, rest).map(Self::WebSocket),
            #[cfg(feature = "websocket")]
            Some(("wss", rest)) => return WebSocketUrl::parse(true, rest).map(Self::WebSocket),
            #[cfg(not(feature = "websocket"))]
            Some(("ws" | "wss", _)) => return Err("WebSockets need dialback's feature `websocket`"),
            Some(_) => return Err("the carriers are ssh://host:port, wss://host/path, ws://host/path and unix:/path"),
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

    /// What somebody wrote for a hub, without what may be a secret: for logs and errors.
    pub(crate) fn shown(text: &str) -> String {
        let parsed = Self::parse(text);
        #[cfg(unix)]
        if let Ok(Self::Unix(_)) = parsed {
            return text.to_owned();
        }
        let (before, rest) = text.split_at(text.find("://").map_or(0, |at| at + 3));
        let (user, rest) = match rest.rsplit_once('@') {
            // A password may have any character in it.
            Some((_, host)) if parsed.is_err() => ("***@", host),
            _ => ("", rest),
        };
        let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?…"));
        format!("{before}{user}{rest}{query}")
    }

    /// The name under which `known_hosts` knows the hub.
    pub(crate) fn name(&self) -> HostPort {
        match self {
            Self::Tcp(to) => to.clone(),
            // A socket is of this machine; 22 is what a name without a port has.
            #[cfg(unix)]
            Self::Unix(_) => HostPort { host: "localhost".into(), port: 22 },
            #[cfg(feature = "websocket")]
            Self::WebSocket(url) => url.at.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (given, shown) in [
            ("hub.example.com:2222", "hub.example.com:2222"),
            ("me:secret@hub:22", "***@hub:22"),
            ("wss://u:p/w?x@hub/t?token=s3cret", "wss://***@hub/t?…"),
            #[cfg(unix)]
            ("unix:/run/a?b@c", "unix:/run/a?b@c"),
            #[cfg(feature = "websocket")]
            ("wss://hub/@t?token=s3cret@x", "wss://hub/@t?…"),
        ] {
            assert_eq!(Address::shown(given), shown);
        }
    }

    #[test]
    fn host_and_port_are_taken_apart() {
        let parse = |text| HostPort::parse(text).map(|hp| (hp.host, hp.port));
        assert_eq!(parse("hub.example.com:2222"), Some(("hub.example.com".into(), 2222)));
        assert_eq!(parse("[::1]:22"), Some(("::1".into(), 22)));
        assert_eq!(parse("10.0.0.1:1"), Some(("10.0.0.1".into(), 1)));
        for bad in ["hub", ":22", "hub:", "hub:65536", "::1:22", "[::1:22", "[]:22", "a b:22", "hub:ssh"] {
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
        assert_eq!(Address::parse("hub:0"), tcp("hub", 0));
        assert!(Address::parse_to_dial("hub:0").is_err());
        #[cfg(feature = "websocket")]
        {
            let url = |text| match Address::parse(text) {
                Ok(Address::WebSocket(url)) => Some((url.tls, url.authority(), url.at.port, url.target.to_string())),
                _ => None,
            };
            let parts = |tls, authority: &str, port, target: &str| Some((tls, authority.into(), port, target.into()));
            assert_eq!(url("wss://hub"), parts(true, "hub", 443, "/"));
            assert_eq!(url("wss://hub/tunnel?a=b"), parts(true, "hub", 443, "/tunnel?a=b"));
            assert_eq!(url("ws://hub:8080?a"), parts(false, "hub:8080", 8080, "/?a"));
            assert_eq!(url("ws://[::1]/x"), parts(false, "[::1]", 80, "/x"));
            assert_eq!(url("wss://[::1]:80/x"), parts(true, "[::1]:80", 80, "/x"));
            for bad in
                ["ws://", "wss:///tunnel", "ws://me@hub/", "ws://hub/#a", "ws://hub:x/", "ws://hub/a b", "wss://h h/"]
            {
                assert!(Address::parse(bad).is_err(), "{bad}");
            }
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
