//! Which agent a call is for, and which method it calls: read from the request alone.

use std::net::IpAddr;

use http::HeaderMap;
use http::uri::Authority;

use crate::id::AgentId;

/// The metadata by which a call names its agent.
pub const AGENT_METADATA: &str = "dialback-agent";

/// What a request says of its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// This agent.
    Agent(AgentId),
    /// This agent, if there is one of that name: it may be the gateway's own name just as well.
    Perhaps(AgentId),
    /// None.
    Absent,
}

/// A target that cannot be made out. The text says what is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadTarget {
    #[error("metadata dialback-agent is given {0} times: name one agent")]
    Several(usize),
    #[error("metadata dialback-agent is not an agent id: use 1 to 64 characters of a-z, 0-9, `.`, `_`, `-`")]
    NotAnId,
    #[error("metadata dialback-agent names `{named}` and the authority `{authority}`: name one agent")]
    Contradiction { named: AgentId, authority: AgentId },
}

/// How to name an agent, for those who did not.
pub(super) fn advice(suffix: Option<&str>) -> String {
    match suffix {
        Some(suffix) => format!("set metadata dialback-agent to the agent's id, or use the authority <id>.{suffix}"),
        None => "set metadata dialback-agent to the agent's id, or use the id as the authority".into(),
    }
}

/// Reads the target. What the metadata says counts; the authority `<id>.<suffix>` may not say otherwise.
pub(super) fn target(
    headers: &HeaderMap,
    authority: Option<&Authority>,
    suffix: Option<&str>,
) -> Result<Target, BadTarget> {
    let by_authority = authority.map_or(Target::Absent, |authority| in_authority(authority.host(), suffix));
    let named = headers.get_all(AGENT_METADATA);
    let mut values = named.iter();
    let Some(first) = values.next() else { return Ok(by_authority) };
    let more = values.count();
    if more > 0 {
        return Err(BadTarget::Several(more + 1));
    }
    let named: AgentId = first.to_str().ok().and_then(|id| id.parse().ok()).ok_or(BadTarget::NotAnId)?;
    match by_authority {
        Target::Agent(authority) if authority != named => Err(BadTarget::Contradiction { named, authority }),
        _ => Ok(Target::Agent(named)),
    }
}

fn in_authority(host: &str, suffix: Option<&str>) -> Target {
    let host = host.to_ascii_lowercase();
    let is_address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
    if is_address || host == "localhost" || Some(&*host) == suffix {
        return Target::Absent;
    }
    if let Some(id) = suffix.and_then(|suffix| host.strip_suffix(suffix)?.strip_suffix('.')) {
        return id.parse().map_or(Target::Absent, Target::Agent);
    }
    host.parse().map_or(Target::Absent, Target::Perhaps)
}

/// Whether a path is `/package.Service/Method` and nothing else: no query, no escapes, no empty or further segments. What
/// a policy has looked at must be what the agent's server sees.
pub(super) fn is_method(path: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let segment = |text: &str| !text.is_empty() && !text.starts_with('.') && text.bytes().all(allowed);
    match path.strip_prefix('/').and_then(|rest| rest.split_once('/')) {
        Some((service, method)) => segment(service) && segment(method),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> AgentId {
        text.parse().unwrap()
    }

    fn read(named: &[&str], authority: &str, suffix: Option<&str>) -> Result<Target, BadTarget> {
        let headers = named.iter().map(|value| (AGENT_METADATA.parse().unwrap(), value.parse().unwrap())).collect();
        target(&headers, authority.parse().ok().as_ref(), suffix)
    }

    #[test]
    fn targets_are_read_from_metadata_and_authority() {
        let suffix = Some("agents.example.com");
        let agent = |text: &str| Ok(Target::Agent(id(text)));
        let cases = [
            (&["laptop-1"][..], "hub:8080", None, agent("laptop-1")),
            (&["laptop-1"], "laptop-1.agents.example.com", suffix, agent("laptop-1")),
            (&["laptop-1"], "laptop-2", None, agent("laptop-1")),
            (&[], "laptop-1.agents.example.com:443", suffix, agent("laptop-1")),
            (&[], "Laptop-1.Agents.example.com", suffix, agent("laptop-1")),
            (&[], "a.b.agents.example.com", suffix, agent("a.b")),
            (&[], "laptop-1:8080", None, Ok(Target::Perhaps(id("laptop-1")))),
            (&[], "agents.example.com", suffix, Ok(Target::Absent)),
            (&[], "127.0.0.1:8080", None, Ok(Target::Absent)),
            (&[], "[::1]:8080", None, Ok(Target::Absent)),
            (&[], "localhost:8080", None, Ok(Target::Absent)),
            (&[], "", None, Ok(Target::Absent)),
            (&["a", "b"], "hub", None, Err(BadTarget::Several(2))),
            (&["a", "a"], "hub", None, Err(BadTarget::Several(2))),
            (&["A b"], "hub", None, Err(BadTarget::NotAnId)),
            (&[""], "hub", None, Err(BadTarget::NotAnId)),
            (
                &["a"],
                "b.agents.example.com",
                suffix,
                Err(BadTarget::Contradiction { named: id("a"), authority: id("b") }),
            ),
        ];
        for (named, authority, suffix, expected) in cases {
            assert_eq!(read(named, authority, suffix), expected, "{named:?} {authority}");
        }
    }

    #[test]
    fn only_plain_method_paths_pass() {
        for good in ["/a.B/C", "/Fluentd/Start", "/grpc.health.v1.Health/Check", "/a-b._c/D_1"] {
            assert!(is_method(good), "{good}");
        }
        let bad = ["", "/", "a.B/C", "//a.B/C", "/a.B//C", "/a.B/C/", "/a.B", "/a.B/", "//C", "/a.B/C?x=1", "/a.B/%43"];
        let worse = ["/a.B/..", "/../C", "/./C", "/a.B/C#x", "/a B/C", "/a.B/C\\D", "/a.B/é", "*", "http://x/a.B/C"];
        for bad in bad.into_iter().chain(worse) {
            assert!(!is_method(bad), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_passes_has_two_plain_segments(path in "[/a-zA-Z.%_?#é-]{0,12}") {
            if is_method(&path) {
                proptest::prop_assert_eq!(path.split('/').count(), 3);
                proptest::prop_assert!(!path.contains(['%', '?', '#', 'é']) && !path.contains(".."), "{}", path);
            }
        }
    }
}
