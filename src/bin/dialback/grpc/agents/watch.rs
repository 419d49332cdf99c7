//! `dialback agents --watch`: who comes and goes, through restarts of the hub.

use std::collections::{BTreeSet, HashMap};
use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime};

use dialback::gateway::proto::watch_agents_response::Event;
use dialback::gateway::proto::{Agent, Gone, WatchAgentsRequest, WatchAgentsResponse};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};
use tonic::{Code, Request, Status, Streaming};

use super::super::output::{printable, say, show};
use super::super::session::{Session, in_time, or_interrupted};
use super::super::status;
use super::{AgentsArgs, Form, as_json, hub, joined, list, on_terminal, table, told};
use crate::failure::Failure;

/// How often a table on a terminal is made anew while nothing changes: calls and round trips do.
const AGAIN: Duration = Duration::from_secs(2);

/// How soon a table can follow another, whatever changes.
const SOONEST: Duration = Duration::from_secs(1);

/// How long a gateway that is lost is left alone before it is tried again: at first, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Clears a terminal, and goes to its first line (ECMA-48, ED and CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Goes on until Ctrl-C, until nobody reads any more or the time is over, or until the gateway refuses.
pub(super) async fn watch(session: Session, args: &AgentsArgs) -> Result<(), Failure> {
    let watch = Watch { args, known: BTreeSet::new(), heard: false, pause: PAUSE };
    or_interrupted(in_time(session.deadline, watch.run(session))).await
}

struct Watch<'a> {
    args: &'a AgentsArgs,
    /// Agents that were told of, to tell those that come from those that change.
    known: BTreeSet<String>,
    /// Whether the gateway has ever told anything.
    heard: bool,
    pause: Duration,
}

impl Watch<'_> {
    async fn run(mut self, mut session: Session) -> Result<(), Failure> {
        let target = session.target.clone();
        loop {
            let work = async |session: &Session| match self.look(session).await? {
                Ok(()) => Ok(None),
                // Waiting mends what has worked before, unless this caller is refused now.
                Err(status) if !self.heard || is_refusal(status.code()) => Err(told(session, status).await),
                Err(status) => Ok(Some(status::corrected(status, &target.text))),
            };
            let Some(lost) = session.during(work).await? else { return Ok(()) };
            let mut why = lost.message().to_owned();
            say(printable(&format!("dialback: {}: {why}: trying again", target.text)) + "\n").await;
            session = loop {
                sleep(self.pause).await;
                self.pause = (2 * self.pause).min(LONGEST_PAUSE);
                match Session::open(target.clone(), &self.args.metadata, &self.args.server).await {
                    Ok(session) => break session,
                    Err(failure) => {
                        let now = failure.to_string();
                        // The same is not said twice.
                        if now != why {
                            say(printable(&format!("dialback: {now}: trying again")) + "\n").await;
                            why = now;
                        }
                    }
                }
            };
        }
    }

    async fn look(&mut self, session: &Session) -> Result<Result<(), Status>, Failure> {
        let mut hub = hub(session);
        let mut request = Request::new(WatchAgentsRequest {});
        *request.metadata_mut() = session.metadata.call.clone();
        let changes = match hub.watch_agents(request).await {
            Ok(changes) => changes.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        if self.args.output == Form::Table && std::io::stdout().is_terminal() {
            self.keep_table(session, changes).await
        } else {
            self.tell_changes(changes).await
        }
    }

    /// The next event. None is one of a newer hub.
    async fn event(&mut self, changes: &mut Streaming<WatchAgentsResponse>) -> Result<Option<Event>, Status> {
        let message = changes.message().await?.ok_or_else(|| Status::unavailable("the gateway has ended"))?;
        self.heard = true;
        self.pause = PAUSE;
        Ok(message.event)
    }

    /// A table that is made anew when something has changed, and now and then. Only then agents are asked for round trips:
    /// of many one comes or goes all the time.
    async fn keep_table(
        &mut self,
        session: &Session,
        mut changes: Streaming<WatchAgentsResponse>,
    ) -> Result<Result<(), Status>, Failure> {
        let mut ticks = interval_at(Instant::now() + AGAIN, AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_due, mut ask, mut soonest) = (true, true, Instant::now());
        let mut trips = HashMap::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => (is_due, ask) = (true, true),
                event = self.event(&mut changes) => match event {
                    Ok(_) => is_due = true,
                    Err(status) => return Ok(Err(status)),
                },
                () = sleep_until(soonest), if is_due => {
                    let mut agents = match list(session, ask).await {
                        Ok(agents) => agents,
                        Err(status) => return Ok(Err(status)),
                    };
                    let tunnels = agents.iter_mut().flat_map(|agent| &mut agent.tunnels);
                    if ask {
                        trips = tunnels.map(|tunnel| (tunnel.id, tunnel.round_trip)).collect();
                    } else {
                        tunnels.for_each(|tunnel| tunnel.round_trip = trips.get(&tunnel.id).copied().flatten());
                    }
                    let table = table(&agents, SystemTime::now(), |tunnel| trips.contains_key(&tunnel.id));
                    if !show(format!("{CLEAR}{table}")).await? {
                        return Ok(Ok(()));
                    }
                    (is_due, ask, soonest) = (false, false, Instant::now() + SOONEST);
                }
            }
        }
    }

    /// A line for each agent that is there, and then for each change.
    async fn tell_changes(
        &mut self,
        mut changes: Streaming<WatchAgentsResponse>,
    ) -> Result<Result<(), Status>, Failure> {
        let form = self.args.output;
        loop {
            let event = match self.event(&mut changes).await {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(status) => return Ok(Err(status)),
            };
            let mut lines = String::new();
            match event {
                // The first, or after what was missed.
                Event::Snapshot(all) => {
                    let there: BTreeSet<_> = all.agents.iter().map(|agent| agent.id.clone()).collect();
                    for id in self.known.difference(&there) {
                        lines += &gone(&Gone { id: id.clone(), reason: String::new(), at: None }, form);
                    }
                    for agent in &all.agents {
                        lines += &changed(agent, self.known.contains(&agent.id), form);
                    }
                    self.known = there;
                }
                Event::Changed(agent) => {
                    let before = !self.known.insert(agent.id.clone());
                    lines += &changed(&agent, before, form);
                }
                Event::Gone(agent) => {
                    self.known.remove(&agent.id);
                    lines += &gone(&agent, form);
                }
            }
            if !show(lines).await? {
                return Ok(Ok(()));
            }
        }
    }
}

/// What waiting does not mend.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented)
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
