//! Which tunnels a hub has, and which of them is its agent's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch};

use super::events::HubEvent;
use crate::close::{CloseReason, Disconnected};
use crate::connector::{DialError, Route};
use crate::id::AgentId;
use crate::ssh::{Gate, Proof, Session};
use crate::tunnel::TunnelId;

/// Events that a slow listener may be behind before it is told that it missed some.
const EVENTS: usize = 1024;

/// Tunnels that one agent may have at once, those that are being drained included.
const TUNNELS_PER_AGENT: usize = 16;

/// Agents whose last goodbye is remembered, to say since when they are gone.
const REMEMBERED: usize = 65_536;

/// The tunnels of one hub.
pub(crate) struct Registry {
    state: Mutex<State>,
    /// Counts changes of what can be dialled.
    changed: watch::Sender<u64>,
    events: broadcast::Sender<HubEvent>,
    drain_timeout: Duration,
}

#[derive(Default)]
struct State {
    tunnels: HashMap<TunnelId, Entry>,
    /// The tunnels of each agent that has any, oldest first.
    by_agent: HashMap<AgentId, Vec<TunnelId>>,
    /// The tunnel on which each agent is dialled: at most one.
    ready: HashMap<AgentId, TunnelId>,
    gone: HashMap<AgentId, Disconnected>,
    closing: bool,
}

struct Entry {
    session: Arc<Session>,
    proof: Proof,
}

impl Registry {
    pub(crate) fn new(drain_timeout: Duration) -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS),
            drain_timeout,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: HubEvent) {
        let _ = self.events.send(event); // fails only when nobody listens
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<HubEvent> {
        self.events.subscribe()
    }

    /// Notices every change of what [`Registry::find`] answers.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The tunnel on which an agent is dialled, or why there is none.
    pub(crate) fn find(&self, agent: &AgentId) -> Result<Arc<Session>, DialError> {
        let state = self.state();
        let agent = agent.clone();
        if state.closing {
            return Err(DialError::Shutdown { agent });
        }
        if let Some(entry) = state.ready.get(&agent).and_then(|id| state.tunnels.get(id)) {
            return Ok(entry.session.clone());
        }
        if let Some(others) = state.by_agent.get(&agent) {
            let draining = |id| state.tunnels.get(id).is_none_or(|entry| entry.session.is_draining());
            return Err(match others.iter().all(draining) {
                true => DialError::Draining { agent },
                false => DialError::NotReady { agent },
            });
        }
        match state.gone.get(&agent).cloned() {
            Some(gone) => Err(DialError::Disconnected { agent, gone }),
            None => Err(DialError::NotConnected { agent }),
        }
    }

    /// Every tunnel that is not being drained, with its grant's labels.
    pub(crate) fn tunnels(&self) -> Vec<(Arc<Session>, Proof)> {
        let state = self.state();
        let live = state.tunnels.values().filter(|entry| !entry.session.is_draining());
        live.map(|entry| (entry.session.clone(), entry.proof.clone())).collect()
    }

    pub(crate) fn proof(&self, id: TunnelId) -> Option<Proof> {
        self.state().tunnels.get(&id).map(|entry| entry.proof.clone())
    }

    /// Refuses everything from now on, and hands over what there is to be drained.
    pub(crate) fn close(&self) -> Vec<Arc<Session>> {
        let mut state = self.state();
        state.closing = true;
        let sessions = state.tunnels.values().map(|entry| entry.session.clone()).collect();
        drop(state);
        self.changed.send_modify(|n| *n += 1);
        sessions
    }

    /// A tunnel has ended.
    fn forget(&self, session: &Session, gone: Disconnected) {
        let mut state = self.state();
        state.tunnels.remove(&session.id);
        let mut last = false;
        if let Some(others) = state.by_agent.get_mut(&session.agent) {
            others.retain(|id| *id != session.id);
            last = others.is_empty();
            if last {
                state.by_agent.remove(&session.agent);
            }
        }
        // A late goodbye must not evict a successor.
        let ready = state.ready.get(&session.agent) == Some(&session.id);
        if ready {
            state.ready.remove(&session.agent);
        }
        // An agent that shuts down politely is not ready any more when it leaves.
        if ready || (last && !state.gone.contains_key(&session.agent)) {
            if state.gone.len() >= REMEMBERED && !state.gone.contains_key(&session.agent) {
                state.gone.clear();
            }
            state.gone.insert(session.agent.clone(), gone.clone());
        }
        drop(state);
        self.tell(HubEvent::Closed { agent_id: session.agent.clone(), tunnel_id: session.id, why: gone });
    }

    fn is_ready(&self, session: &Session) -> bool {
        self.state().ready.get(&session.agent) == Some(&session.id)
    }

    /// Gives the agent's place to a tunnel. Returns the one that had it.
    fn take_over(&self, session: &Arc<Session>) -> Result<Option<Arc<Session>>, String> {
        let mut state = self.state();
        if state.closing {
            return Err("the hub is shutting down".into());
        }
        let Some(holder) = state.tunnels.get(&session.id).map(|entry| entry.proof.holder.clone()) else {
            return Err("the tunnel has ended".into());
        };
        if session.is_draining() {
            return Err("the tunnel is closing: open a new one".into());
        }
        let old = state.ready.get(&session.agent).and_then(|id| state.tunnels.get(id));
        let old = old.filter(|old| old.session.id != session.id && !old.session.is_closed());
        if let Some(old) = old
            && old.proof.holder != holder
        {
            return Err(format!("agent `{}` has a live tunnel that was opened with another key", session.agent));
        }
        let old = old.map(|old| old.session.clone());
        state.ready.insert(session.agent.clone(), session.id);
        state.gone.remove(&session.agent);
        Ok(old)
    }
}

/// The registry as sessions see it; it needs to be owned to watch over them.
pub(crate) struct RegistryGate(pub(crate) Arc<Registry>);

impl Gate for RegistryGate {
    fn admit(&self, session: &Arc<Session>, proof: Proof) -> Result<(), String> {
        let registry = &self.0;
        {
            let mut state = registry.state();
            if state.closing {
                return Err("the hub is shutting down".into());
            }
            let of_agent = state.by_agent.entry(session.agent.clone()).or_default();
            if of_agent.len() >= TUNNELS_PER_AGENT {
                return Err(format!("agent `{}` has {TUNNELS_PER_AGENT} tunnels already", session.agent));
            }
            of_agent.push(session.id);
            state.tunnels.insert(session.id, Entry { session: session.clone(), proof });
        }
        session.span.in_scope(|| tracing::info!("tunnel opened"));
        registry.tell(HubEvent::Opened { agent_id: session.agent.clone(), tunnel_id: session.id, peer: session.peer });
        let (registry, session) = (registry.clone(), session.clone());
        // Ends with the session, whose end is certain: it is dropped with its connection.
        tokio::spawn(async move {
            let gone = session.closed().await;
            registry.forget(&session, gone);
        });
        Ok(())
    }

    fn ready(&self, session: &Arc<Session>) -> Result<(), String> {
        // An agent that repeats itself must not flood the log, nor push other agents' events out.
        if self.0.is_ready(session) {
            return Ok(());
        }
        let old = match self.0.take_over(session) {
            Ok(old) => old,
            Err(reason) => {
                self.0.tell(HubEvent::Rejected {
                    agent_id: session.agent.clone(),
                    peer: session.peer,
                    reason: reason.clone(),
                });
                return Err(reason);
            }
        };
        session.span.in_scope(|| tracing::info!("agent can be called"));
        self.0.tell(HubEvent::Ready { agent_id: session.agent.clone(), tunnel_id: session.id });
        if let Some(old) = old {
            old.span.in_scope(|| tracing::info!(by = %session.id, "tunnel replaced"));
            let limit = self.0.drain_timeout;
            tokio::spawn(async move { old.drain_and_close(limit, CloseReason::Replaced).await });
        }
        Ok(())
    }

    fn unready(&self, session: &Arc<Session>) {
        if session.is_draining() {
            return;
        }
        {
            let mut state = self.0.state();
            if state.ready.get(&session.agent) == Some(&session.id) {
                state.ready.remove(&session.agent);
            }
        }
        session.span.in_scope(|| tracing::info!("agent does not want new calls"));
        session.drain();
        self.0.changed.send_modify(|n| *n += 1);
        // The agent is leaving, and leaves the closing to this side, which knows when the last answer has arrived.
        let (session, limit) = (session.clone(), self.0.drain_timeout);
        tokio::spawn(async move { session.drain_and_close(limit, CloseReason::ClosedByPeer { message: None }).await });
    }
}

/// Dials whatever tunnel an agent has at the moment.
pub(crate) struct ToAgent {
    pub(crate) registry: Arc<Registry>,
    pub(crate) agent: AgentId,
}

impl Route for ToAgent {
    fn session(&self) -> Result<Arc<Session>, DialError> {
        self.registry.find(&self.agent)
    }
}
