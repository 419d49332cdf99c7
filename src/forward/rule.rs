//! What a rule says: which calls, and where to.

#[cfg(unix)]
use std::path::PathBuf;

use crate::carrier::HostPort;

/// Which services a rule takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Matches {
    All,
    /// Those whose names begin so; it ends in a dot.
    Below(String),
    One(String),
}

impl Matches {
    pub(super) fn takes(&self, service: &str) -> bool {
        match self {
            Self::All => true,
            Self::Below(package) => service.starts_with(package.as_str()),
            Self::One(name) => service == name,
        }
    }

    /// What is greater counts first.
    pub(super) fn weight(&self) -> (bool, usize) {
        match self {
            Self::All => (false, 0),
            Self::Below(package) => (false, package.len()),
            Self::One(name) => (true, name.len()),
        }
    }
}

/// Where a local server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tcp {
        at: HostPort,
        tls: bool,
    },
    #[cfg(unix)]
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) matches: Matches,
    pub(super) place: Place,
}

impl Rule {
    /// `Err` tells how to write one.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        // A path may have an equals sign, too; but an address has a colon before it.
        let (matches, place) = match text.split_once('=') {
            Some((service, place)) if !service.contains(':') => (Matches::parse(service.trim())?, place),
            _ => (Matches::All, text),
        };
        Ok(Self { matches, place: Place::parse(place.trim())? })
    }
}

impl Matches {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const HOW: &str =
            "before the equals sign stands a service, such as greeter.v1.Greeter, or greeter.* for all below";
        let (name, below) = match text.strip_suffix(".*") {
            Some(package) => (package, true),
            None => (text, false),
        };
        let is_word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        match (text, name.split('.').all(is_word)) {
            ("*", _) => Ok(Self::All),
            (_, true) if below => Ok(Self::Below(format!("{name}."))),
            (_, true) => Ok(Self::One(name.to_owned())),
            (_, false) => Err(HOW),
        }
    }
}

impl Place {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const HOW: &str = "write host:port, unix:/path/to/socket, or https://host:port for a server that speaks TLS";
        #[cfg(unix)]
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() || path.contains('\0') { Err(HOW) } else { Ok(Self::Unix(path.into())) };
        }
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(HOW),
            None => (false, text),
        };
        let at = HostPort::parse(rest.strip_suffix('/').unwrap_or(rest)).ok_or(HOW)?;
        let has_name = at.host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte));
        if at.port == 0 || !has_name { Err(HOW) } else { Ok(Self::Tcp { at, tls }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, tls: bool) -> Place {
        Place::Tcp { at: HostPort { host: host.into(), port }, tls }
    }

    #[test]
    fn rules_name_a_service_and_a_server() {
        let parse = |text| Rule::parse(text).map(|rule| (rule.matches, rule.place));
        let all = [
            ("127.0.0.1:50051", Matches::All, tcp("127.0.0.1", 50051, false)),
            ("*=127.0.0.1:50051", Matches::All, tcp("127.0.0.1", 50051, false)),
            ("http://[::1]:1/", Matches::All, tcp("::1", 1, false)),
            ("https://app.internal:443", Matches::All, tcp("app.internal", 443, true)),
            ("a.v1.B=https://app:1", Matches::One("a.v1.B".into()), tcp("app", 1, true)),
            ("Bare = app:1", Matches::One("Bare".into()), tcp("app", 1, false)),
            ("a.v1.*=app:1", Matches::Below("a.v1.".into()), tcp("app", 1, false)),
        ];
        for (text, matches, place) in all {
            assert_eq!(parse(text), Ok((matches, place)), "{text}");
        }
        #[cfg(unix)]
        {
            assert_eq!(parse("unix:/run/a=b"), Ok((Matches::All, Place::Unix("/run/a=b".into()))));
            assert_eq!(parse("a.B=unix:///run/a"), Ok((Matches::One("a.B".into()), Place::Unix("/run/a".into()))));
            assert!(parse("unix:").is_err());
        }
        for bad in [
            "",
            "host",
            "host:0",
            "ftp://h:1",
            "a b:1",
            "h/x:1",
            "=h:1",
            "a.=h:1",
            "a..B=h:1",
            "*.B=h:1",
            "a*=h:1",
            "1a=h:1",
            "https://",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_match_counts_most() {
        let one = Matches::One("a.B".into());
        let below = Matches::Below("a.".into());
        let further = Matches::Below("a.b.c.d.".into());
        assert!(one.weight() > further.weight() && further.weight() > below.weight());
        assert!(below.weight() > Matches::All.weight());
        assert!(one.takes("a.B") && !one.takes("a.BC") && !one.takes("a.B.c"));
        assert!(below.takes("a.B") && below.takes("a.b.C") && !below.takes("ab.C") && !below.takes("a"));
    }
}
