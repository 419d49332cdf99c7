//! The agents of a hub, asked of its gateway when a call to one has failed.

use std::time::Duration;

use dialback::gateway::proto::{ListAgentsRequest, hub_client::HubClient};
use tonic::{Code, Request};

use super::output::{printable, say};
use super::session::Session;

/// The advice must not take longer than the failure.
const PATIENCE: Duration = Duration::from_secs(3);

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
    let there = match ids.as_slice() {
        [] => "no agent is connected".to_owned(),
        ids => format!("connected are {}", printable(&ids.join(", "))),
    };
    match agent {
        Some(agent) if ids.iter().any(|id| id == agent) => None,
        Some(agent) => Some(format!("the gateway has no agent {agent}: {there}")),
        None if matches!(code, None | Some(Code::InvalidArgument)) => {
            Some(format!("this is a hub's gateway; to call an agent pass --agent ID: {there}"))
        }
        None => None,
    }
}
