//! The agents of a hub, asked of its gateway when a call to one has failed.

use std::time::Duration;

use dialback::gateway::proto::{ListAgentsRequest, hub_client::HubClient};
use tonic::{Code, Request};

use super::output::{printable, say};
use super::schema::nearest;
use super::session::Session;

/// The advice must not take longer than the failure.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many agents are named: a hub may have thousands.
const MOST: usize = 20;

/// Says on stderr that the agent is not there, and which ones are, if the gateway tells and that is what was wrong. `code`
/// is the call's; there is none if already its schema was not to be had.
pub(super) async fn tell(session: &Session, agent: Option<&str>, code: Option<Code>) {
    if let Some(advice) = advice(session, agent, code).await {
        say(format!("dialback: {advice}\n")).await;
    }
}

async fn advice(session: &Session, agent: Option<&str>, code: Option<Code>) -> Option<String> {
    if !matches!(code, None | Some(Code::NotFound | Code::Unavailable | Code::InvalidArgument)) {
        return None;
    }
    let mut request = Request::new(ListAgentsRequest::default());
    *request.metadata_mut() = session.metadata.for_gateway();
    let mut hub = HubClient::new(session.connection.channel());
    let asked = tokio::time::timeout(PATIENCE, hub.list_agents(request)).await;
    let agents = asked.ok()?.ok()?.into_inner().agents;
    let ids: Vec<_> = agents.into_iter().map(|agent| agent.id).collect();
    let there = there(agent.unwrap_or_default(), &ids);
    match agent {
        Some(agent) if ids.iter().any(|id| id == agent) => None,
        Some(agent) => Some(format!("the gateway has no agent {agent}: {there}")),
        None if matches!(code, None | Some(Code::InvalidArgument)) => {
            Some(format!("this is a hub's gateway; to call an agent pass --agent ID: {there}"))
        }
        None => None,
    }
}

/// Who is there, those first whose names are like the one that was asked for.
fn there(agent: &str, ids: &[String]) -> String {
    let mut named = nearest(agent, ids.iter().cloned());
    let others: Vec<_> = ids.iter().filter(|id| !named.contains(id)).cloned().collect();
    named.extend(others);
    let more = match named.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more: see `dialback agents`"),
    };
    named.truncate(MOST);
    if named.is_empty() {
        return "no agent is connected".into();
    }
    format!("connected are {}{more}", printable(&named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_named_the_likely_ones_first() {
        assert_eq!(there("a", &[]), "no agent is connected");
        assert_eq!(there("b", &["a\u{1b}".into()]), "connected are a\\u{1b}");
        let ids: Vec<_> = (1..=30).map(|number| format!("machine-{number}")).chain(["laptop-1".into()]).collect();
        let text = there("laptp-1", &ids);
        assert!(text.starts_with("connected are laptop-1, machine-1, machine-2, "), "{text}");
        assert!(text.ends_with(", machine-19 and 11 more: see `dialback agents`"), "{text}");
    }
}
