//! `dialback agents`: who is connected to a hub, as its gateway tells.

mod watch;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use dialback::gateway::proto::{Agent, ListAgentsRequest, Tunnel, hub_client::HubClient};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::args::{MetadataArgs, SchemaArgs, ServerArgs};
use super::output::{printable, say, show};
use super::schema::Schema;
use super::session::{Session, in_time, or_interrupted};
use super::{status, target};
use crate::failure::Failure;
use crate::format::{Format, escape};

/// Where `dialback hub` has its gateway, if nothing else is said.
const GATEWAY: &str = "http://127.0.0.1:8080";

/// The longest list of agents that is taken, in bytes.
const LONGEST: usize = 64 << 20;

/// Arguments of `agents`.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "\
Examples:
  dialback agents
  dialback agents --watch --gateway https://hub.example.com
  dialback agents -o json | jq -r '.[].id'

The gateway is http://127.0.0.1:8080, if neither --gateway nor DIALBACK_GATEWAY says another."
)]
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
    if args.watch {
        return watch::watch(session, &args).await;
    }
    let work = async |session: &Session| {
        let listed = async { Ok(list(session, true).await) };
        match in_time(session.deadline, listed).await? {
            Ok(agents) => show(shown(&agents, args.output)).await.map(|_| ()),
            Err(status) => Err(told(session, status).await),
        }
    };
    session.during(work).await
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

/// The gateway's service.
fn hub(session: &Session) -> HubClient<Channel> {
    HubClient::new(session.connection.channel()).max_decoding_message_size(LONGEST)
}

async fn list(session: &Session, round_trips: bool) -> Result<Vec<Agent>, Status> {
    let mut hub = hub(session);
    let mut request = Request::new(ListAgentsRequest { round_trips });
    *request.metadata_mut() = session.metadata.call.clone();
    Ok(hub.list_agents(request).await?.into_inner().agents)
}

fn shown(agents: &[Agent], form: Form) -> String {
    match form {
        Form::Json => {
            let agents: Vec<_> = agents.iter().map(as_json).collect();
            on_terminal(&format!("{:#}\n", Value::from(agents)))
        }
        Form::Table => table(agents, SystemTime::now(), |_| true),
    }
}

/// Tunnels that were not `asked` how long a round trip takes have not failed to answer.
fn table(agents: &[Agent], now: SystemTime, asked: impl Fn(&Tunnel) -> bool) -> String {
    if agents.is_empty() {
        return "no agent is connected that you may see\n".into();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["AGENT", "SINCE", "FROM", "CARRIER", "TUNNELS", "CALLS", "ROUND TRIP"]);
    for agent in agents {
        let since = agent.tunnels.iter().filter_map(|tunnel| SystemTime::try_from(tunnel.since?).ok()).min();
        let calls: u64 = agent.tunnels.iter().fold(0, |sum, tunnel| sum.saturating_add(tunnel.calls));
        let silent = if agent.tunnels.iter().any(&asked) { "no answer" } else { "-" };
        let trip = agent.tunnels.iter().filter_map(|tunnel| Duration::try_from(tunnel.round_trip?).ok()).min();
        table.add_row([
            printable(&agent.id),
            since.map_or("?".into(), |since| ago(now.duration_since(since).unwrap_or_default())),
            joined(agent, |tunnel| tunnel.peer_address.clone()),
            joined(agent, |tunnel| tunnel.carrier.clone()),
            agent.tunnels.len().to_string(),
            calls.to_string(),
            trip.map_or(silent.into(), |trip| format!("{:.1} ms", trip.as_secs_f64() * 1000.0)),
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
        let all = [agent("a", Some(12), 5), agent("laptop-1\x1b[2J", None, u64::MAX), agent("new", None, 0)];
        let text = table(&all, now, |tunnel| tunnel.calls > 0);
        let expected = "\
AGENT              SINCE  FROM             CARRIER    TUNNELS                 CALLS  ROUND TRIP
a                  2h     192.0.2.7:50000  WebSocket        2                    10     12.0 ms
laptop-1\\u{1b}[2J  2h     192.0.2.7:50000  WebSocket        2  18446744073709551615   no answer
new                2h     192.0.2.7:50000  WebSocket        2                     0           -
";
        assert_eq!(text, expected);
    }
}
