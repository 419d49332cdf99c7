//! `dialback agents`: who is connected to a hub, as its gateway tells.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use dialback::gateway::proto::watch_agents_response::Event;
use dialback::gateway::proto::{
    Agent, Gone, ListAgentsRequest, Tunnel, WatchAgentsRequest, WatchAgentsResponse, hub_client::HubClient,
};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::args::{MetadataArgs, SchemaArgs, ServerArgs};
use super::output::{printable, say, show};
use super::schema::Schema;
use super::session::{Session, in_time, or_interrupted};
use super::{status, target};
use crate::failure::Failure;
use crate::format::{Format, escape};

/// Where `dialback hub` has its gateway, if nothing else is said.
const GATEWAY: &str = "http://127.0.0.1:8080";

/// How often a table on a terminal is made anew while nothing changes: calls and round trips do.
const AGAIN: Duration = Duration::from_secs(2);

/// Clears a terminal, and goes to its first line (ECMA-48, ED and CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Arguments of `agents`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dialback agents
  dialback agents --watch --gateway https://hub.example.com
  dialback agents -o json | jq -r '.[].id'

The gateway is http://127.0.0.1:8080, if neither --gateway nor DIALBACK_GATEWAY says another.")]
pub(crate) struct AgentsArgs {
    /// Goes on: a table is kept up to date on a terminal; elsewhere each change is a line
    #[arg(long, short)]
    watch: bool,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Form::Table)]
    output: Form,

    #[command(flatten)]
    metadata: MetadataArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

/// Runs `dialback agents`.
pub(crate) async fn agents(mut args: AgentsArgs) -> Result<(), Failure> {
    let gateway = args.server.gateway.get_or_insert_with(|| GATEWAY.into());
    let target = target::parse(gateway, args.server.unix).map_err(Failure::usage)?;
    let session = or_interrupted(Session::open(target, &args.metadata, &args.server)).await?;
    session
        .during(async |session| match in_time(session.deadline, ask(session, &args)).await? {
            Ok(()) => Ok(()),
            Err(status) => Err(told(session, status).await),
        })
        .await
}

/// What the gateway has refused, said.
async fn told(session: &Session, status: Status) -> Failure {
    let status = status::corrected(status, &session.target.text);
    let nothing = SchemaArgs { proto: vec![], import_path: vec![], protoset: vec![], use_reflection: Some(false) };
    if let Ok(mut schema) = Schema::open(&nothing, None) {
        say(status::text(&status, &mut schema, Format::Json).await).await;
    }
    if status.code() == Code::Unimplemented {
        say(format!("dialback: {} is not a hub's gateway\n", session.target.text)).await;
    }
    Failure::call(status.code())
}

async fn ask(session: &Session, args: &AgentsArgs) -> Result<Result<(), Status>, Failure> {
    let mut hub = HubClient::new(session.connection.channel());
    if !args.watch {
        return match list(session, &mut hub).await {
            Ok(agents) => show(shown(&agents, args.output)).await.map(|_| Ok(())),
            Err(status) => Ok(Err(status)),
        };
    }
    let mut request = Request::new(WatchAgentsRequest {});
    *request.metadata_mut() = session.metadata.call.clone();
    let changes = match hub.watch_agents(request).await {
        Ok(changes) => changes.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    if args.output == Form::Table && std::io::stdout().is_terminal() {
        keep_table(session, &mut hub, changes).await
    } else {
        tell_changes(changes, args.output).await
    }
}

async fn list(session: &Session, hub: &mut HubClient<Channel>) -> Result<Vec<Agent>, Status> {
    let mut request = Request::new(ListAgentsRequest { round_trips: true });
    *request.metadata_mut() = session.metadata.call.clone();
    Ok(hub.list_agents(request).await?.into_inner().agents)
}

/// A table that is made anew whenever something has changed, and now and then.
async fn keep_table(
    session: &Session,
    hub: &mut HubClient<Channel>,
    mut changes: Streaming<WatchAgentsResponse>,
) -> Result<Result<(), Status>, Failure> {
    loop {
        match list(session, hub).await {
            Ok(agents) => {
                if !show(format!("{CLEAR}{}", shown(&agents, Form::Table))).await? {
                    return Ok(Ok(()));
                }
            }
            Err(status) => return Ok(Err(status)),
        }
        match tokio::time::timeout(AGAIN, changes.message()).await {
            Ok(Ok(Some(_))) | Err(_) => {}
            Ok(Ok(None)) => return Ok(Err(Status::unavailable("the gateway has ended"))),
            Ok(Err(status)) => return Ok(Err(status)),
        }
    }
}

/// A line for each agent that is there, and then for each change.
async fn tell_changes(mut changes: Streaming<WatchAgentsResponse>, form: Form) -> Result<Result<(), Status>, Failure> {
    // Agents that were told of, to tell those that come from those that change.
    let mut known: BTreeMap<String, ()> = BTreeMap::new();
    loop {
        let event = match changes.message().await {
            Ok(Some(WatchAgentsResponse { event: Some(event) })) => event,
            Ok(Some(WatchAgentsResponse { event: None })) => continue, // of a newer hub
            Ok(None) => return Ok(Err(Status::unavailable("the gateway has ended"))),
            Err(status) => return Ok(Err(status)),
        };
        let mut lines = String::new();
        match event {
            Event::Snapshot(all) => {
                let there: BTreeMap<_, _> = all.agents.iter().map(|agent| (agent.id.clone(), ())).collect();
                for id in known.keys().filter(|id| !there.contains_key(*id)) {
                    lines += &gone(&Gone { id: id.clone(), reason: String::new(), at: None }, form);
                }
                for agent in &all.agents {
                    lines += &changed(agent, known.contains_key(&agent.id), form);
                }
                known = there;
            }
            Event::Changed(agent) => {
                let before = known.insert(agent.id.clone(), ()).is_some();
                lines += &changed(&agent, before, form);
            }
            Event::Gone(agent) => {
                known.remove(&agent.id);
                lines += &gone(&agent, form);
            }
        }
        if !show(lines).await? {
            return Ok(Ok(()));
        }
    }
}

fn changed(agent: &Agent, before: bool, form: Form) -> String {
    let what = if before { "changed" } else { "connected" };
    match form {
        Form::Json => on_terminal(&format!("{}\n", json!({ "event": what, "agent": as_json(agent) }))),
        Form::Table => {
            let carriers = joined(agent, |tunnel| tunnel.carrier.clone());
            let from = joined(agent, |tunnel| tunnel.peer_address.clone());
            let count = agent.tunnels.len();
            let tunnels = if count == 1 { "1 tunnel".into() } else { format!("{count} tunnels") };
            format!("{} {what}: {tunnels}, {carriers} from {from}\n", printable(&agent.id))
        }
    }
}

fn gone(gone: &Gone, form: Form) -> String {
    match form {
        Form::Json => {
            let at = gone.at.as_ref().map(ToString::to_string);
            on_terminal(&format!("{}\n", json!({ "event": "gone", "id": gone.id, "reason": gone.reason, "at": at })))
        }
        Form::Table if gone.reason.is_empty() => format!("{} is gone\n", printable(&gone.id)),
        Form::Table => format!("{} is gone: {}\n", printable(&gone.id), printable(&gone.reason)),
    }
}

fn shown(agents: &[Agent], form: Form) -> String {
    match form {
        Form::Json => {
            let agents: Vec<_> = agents.iter().map(as_json).collect();
            on_terminal(&format!("{:#}\n", Value::from(agents)))
        }
        Form::Table if agents.is_empty() => "no agent is connected that you may see\n".into(),
        Form::Table => table(agents, SystemTime::now()),
    }
}

fn table(agents: &[Agent], now: SystemTime) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["AGENT", "SINCE", "FROM", "CARRIER", "TUNNELS", "CALLS", "ROUND TRIP"]);
    for agent in agents {
        let since = agent.tunnels.iter().filter_map(|tunnel| SystemTime::try_from(tunnel.since?).ok()).min();
        let calls: u64 = agent.tunnels.iter().map(|tunnel| tunnel.calls).sum();
        let trip = agent.tunnels.iter().filter_map(|tunnel| Duration::try_from(tunnel.round_trip?).ok()).min();
        table.add_row([
            printable(&agent.id),
            since.map_or("?".into(), |since| ago(now.duration_since(since).unwrap_or_default())),
            joined(agent, |tunnel| tunnel.peer_address.clone()),
            joined(agent, |tunnel| tunnel.carrier.clone()),
            agent.tunnels.len().to_string(),
            calls.to_string(),
            trip.map_or("no answer".into(), |trip| format!("{:.1} ms", trip.as_secs_f64() * 1000.0)),
        ]);
    }
    for column in [4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text += line.trim();
        text.push('\n');
    }
    text
}

/// JSON as it is, unless it goes to a terminal: labels are what agents say of themselves.
fn on_terminal(json: &str) -> String {
    if std::io::stdout().is_terminal() { escape(json, Format::Json) } else { json.to_owned() }
}

/// What the tunnels of an agent have, each once.
fn joined(agent: &Agent, of: impl Fn(&Tunnel) -> String) -> String {
    let mut all: Vec<_> = agent.tunnels.iter().map(of).filter(|one| !one.is_empty()).collect();
    all.dedup();
    if all.is_empty() { "-".into() } else { printable(&all.join(", ")) }
}

/// A time that has passed, in its largest unit.
fn ago(passed: Duration) -> String {
    match passed.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

fn as_json(agent: &Agent) -> Value {
    let tunnels = agent.tunnels.iter().map(|tunnel| {
        let trip = tunnel.round_trip.and_then(|trip| Duration::try_from(trip).ok());
        json!({
            "id": tunnel.id,
            "since": tunnel.since.map(|since| since.to_string()),
            "from": tunnel.peer_address,
            "carrier": tunnel.carrier,
            "calls": tunnel.calls,
            "ready": tunnel.ready,
            "labels": tunnel.labels.iter().collect::<BTreeMap<_, _>>(),
            "roundTripMs": trip.map(|trip| trip.as_secs_f64() * 1000.0),
        })
    });
    json!({ "id": agent.id, "tunnels": tunnels.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(id: &str, ms: Option<u64>, calls: u64) -> Agent {
        let tunnel = Tunnel {
            id: 1,
            peer_address: "192.0.2.7:50000".into(),
            since: Some(SystemTime::UNIX_EPOCH.into()),
            carrier: "WebSocket".into(),
            calls,
            round_trip: ms.and_then(|ms| Duration::from_millis(ms).try_into().ok()),
            ..Tunnel::default()
        };
        Agent { id: id.into(), tunnels: vec![tunnel.clone(), tunnel] }
    }

    #[test]
    fn table_has_a_row_for_each_agent() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(7300);
        let text = table(&[agent("a", Some(12), 5), agent("laptop-1\x1b[2J", None, 0)], now);
        let expected = "\
AGENT              SINCE  FROM             CARRIER    TUNNELS  CALLS  ROUND TRIP
a                  2h     192.0.2.7:50000  WebSocket        2     10     12.0 ms
laptop-1\\u{1b}[2J  2h     192.0.2.7:50000  WebSocket        2      0   no answer
";
        assert_eq!(text, expected);
    }
}
