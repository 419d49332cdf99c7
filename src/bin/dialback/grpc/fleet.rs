//! The agents of a hub, asked of its gateway when a call to one has failed.

use std::time::Duration;

use dialback::gateway::proto::{ListAgentsRequest, hub_client::HubClient};
use tonic::{Request, Status};

use super::output::{printable, say};
use super::schema::nearest;
use super::session::Session;
use crate::failure::Failure;

/// The advice must not take longer than the failure.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many agents are named: a hub may have thousands.
const MOST: usize = 20;

/// What has failed.
pub(super) enum Failed<'a> {
    /// The schema of the call was not to be had.
    Schema(&'a Failure),
    Call(&'a Status),
}

impl Failed<'_> {
    /// Whether the gateway has said these words, which no application has a reason for.
    fn says(&self, words: &str) -> bool {
        match self {
            Self::Schema(failure) => failure.to_string().contains(words),
            Self::Call(status) => status.message().starts_with(words),
        }
    }
}

/// Says on stderr that the agent is not there, and which ones are, if that is what the gateway has said.
pub(super) async fn tell(session: &Session, agent: Option<&str>, failed: Failed<'_>) {
    if let Some(advice) = advice(session, agent, failed).await {
        say(format!("dialback: {advice}\n")).await;
    }
}

async fn advice(session: &Session, agent: Option<&str>, failed: Failed<'_>) -> Option<String> {
    let what = match agent {
        Some(agent)
            if failed.says(&format!("there is no agent `{agent}`"))
                || failed.says(&format!("agent `{agent}` is away")) =>
        {
            format!("the gateway has no agent {agent}")
        }
        // The gateway has a schema of its own.
        None if matches!(failed, Failed::Schema(_)) || failed.says("no agent is named") => {
            "this is a hub's gateway; to call an agent pass --agent ID".into()
        }
        _ => return None,
    };
    let mut request = Request::new(ListAgentsRequest::default());
    *request.metadata_mut() = session.metadata.for_gateway();
    let mut hub = HubClient::new(session.connection.channel());
    let asked = tokio::time::timeout(PATIENCE, hub.list_agents(request)).await;
    let agents = asked.ok()?.ok()?.into_inner().agents;
    let ids: Vec<_> = agents.into_iter().map(|agent| agent.id).collect();
    // It may have come since.
    let is_there = ids.iter().any(|id| Some(id.as_str()) == agent);
    (!is_there).then(|| format!("{what}: {}", there(agent.unwrap_or_default(), &ids)))
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
        // A policy may hide some, or all.
        return "no agent is connected that you may see".into();
    }
    format!("connected are {}{more}", printable(&named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_named_the_likely_ones_first() {
        assert_eq!(there("a", &[]), "no agent is connected that you may see");
        assert_eq!(there("b", &["a\u{1b}".into()]), "connected are a\\u{1b}");
        let ids: Vec<_> = (1..=30).map(|number| format!("machine-{number}")).chain(["laptop-1".into()]).collect();
        let text = there("laptp-1", &ids);
        assert!(text.starts_with("connected are laptop-1, machine-1, machine-2, "), "{text}");
        assert!(text.ends_with(", machine-19 and 11 more: see `dialback agents`"), "{text}");
    }
}
