//! Which tunnels a hub has, and which of them a call takes. Decisions only: no socket, no clock, no lock.
//!
//! ```text
//!   admit ──▶ known ──offer──▶ ready ──withdraw, or replaced──▶ draining
//!               │                │                                  │
//!               └───────────── leave ───────────────────────────────┘──▶ gone
//! ```

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;

use super::events::HubEvent;
use crate::close::Disconnected;
use crate::connector::DialError;
use crate::id::AgentId;
use crate::labels::Labels;
use crate::tunnel::TunnelId;

/// Tunnels that one agent may have at once.
const TUNNELS_PER_AGENT: usize = 16;

/// The same, with those that are being drained.
const TUNNELS_IN_ALL: usize = 4 * TUNNELS_PER_AGENT;

/// Agents whose last goodbye is remembered, to say since when they are gone.
const REMEMBERED: usize = 65_536;

/// What becomes of several live tunnels of one agent id, all opened with the same key, under the same authority or for the
/// same [holder](crate::Grant::holder). What another opens is refused, whatever the policy.
///
/// Connections of one [`Agent`](crate::Agent) count as one ([`AgentBuilder::tunnels`](crate::AgentBuilder::tunnels)), and
/// one that comes back takes the place of the connection it lost, even if the hub has not noticed the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TunnelPolicy {
    /// All are called, in turn with their load: replicas of one service. One that was there before a newcomer is not
    /// called again until it has shown that it is still alive.
    #[default]
    Pool,
    /// The newest is called; the others finish their calls, and are closed.
    Replace,
    /// The first is called, and a newcomer is told why it is not wanted, unless the first turns out to be dead.
    Reject,
}

/// Which of several tunnels a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Balance {
    /// Of two random ones the one with fewer calls in flight.
    #[default]
    LeastBusy,
    /// One after the other.
    RoundRobin,
}

/// What a call asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Selector {
    Agent(AgentId),
    Key(Arc<str>),
    Label(Arc<str>, Arc<str>),
    Any,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(id) => write!(f, "agent `{id}`"),
            Self::Key(key) => write!(f, "an agent with the key `{}`", key.escape_debug()),
            Self::Label(name, value) => {
                write!(f, "an agent with the label `{}={}`", name.escape_debug(), value.escape_debug())
            }
            Self::Any => f.write_str("any agent"),
        }
    }
}

/// Which of an agent's connections this is: the agent process, and the number of the connection in it. It comes from the
/// peer, so it means nothing beyond the tunnels that the same key has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    pub(crate) instance: u64,
    pub(crate) slot: u16,
}

/// A tunnel, as far as a choice among several depends on it.
pub(crate) trait Candidate: Clone {
    fn is_closed(&self) -> bool;
    /// Why and when it ended, if it has.
    fn gone(&self) -> Option<Disconnected>;
    fn is_draining(&self) -> bool;
    /// It may be dead without anybody knowing, or on its way out.
    fn is_suspect(&self) -> bool;
    /// Its calls in flight.
    fn load(&self) -> usize;
    /// What a policy knows it by.
    #[cfg(feature = "gateway")]
    fn labels(&self) -> Arc<Labels>;
}

/// A tunnel that has just been authenticated.
#[derive(Debug, Clone)]
pub(crate) struct Newcomer<T> {
    pub(crate) id: TunnelId,
    pub(crate) agent: AgentId,
    /// Who holds the id while the tunnel lives: the key, for example, or the certificate's authority.
    pub(crate) holder: Arc<str>,
    pub(crate) seat: Option<Seat>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) handle: T,
}

struct Member<T> {
    newcomer: Newcomer<T>,
    /// What it can be found by; none until it is ready.
    groups: Vec<Selector>,
}

/// What an offer to be called has led to.
#[derive(Debug)]
pub(crate) enum Offer<T> {
    /// It can be called.
    Ready {
        /// Those whose place it took.
        replaced: Vec<T>,
        /// Those that may be dead: they were there before, and may be the same agent's.
        suspects: Vec<T>,
    },
    /// It could be called before.
    Repeated,
    /// Others are in its way.
    Contested(Contest<T>),
}

/// Who keeps a tunnel from being called, if they live, and why.
#[derive(Debug)]
pub(crate) struct Contest<T> {
    pub(crate) rivals: Vec<T>,
    pub(crate) reason: String,
}

/// The others that can be called, where they are not in a newcomer's way.
struct Others<T> {
    /// Those whose place it takes.
    replaced: Vec<Newcomer<T>>,
    /// Those that may be dead.
    suspects: Vec<Newcomer<T>>,
}

/// The tunnels of one hub.
pub(crate) struct Roster<T> {
    policy: TunnelPolicy,
    balance: Balance,
    members: HashMap<TunnelId, Box<Member<T>>>,
    /// The tunnels of each agent that has any, oldest first.
    agents: HashMap<AgentId, Vec<TunnelId>>,
    /// Those that can be called.
    groups: HashMap<Selector, Group<T>>,
    gone: HashMap<AgentId, Departed>,
    closing: bool,
    /// What has happened and was not told yet.
    events: Vec<HubEvent>,
}

/// What is remembered of an agent that is away.
struct Departed {
    why: Disconnected,
    /// Of its last tunnel.
    #[cfg(feature = "gateway")]
    labels: Arc<Labels>,
}

struct Group<T> {
    members: Vec<(TunnelId, T)>,
    /// The next in turn.
    turn: usize,
}

impl<T: Candidate> Roster<T> {
    pub(crate) fn new(policy: TunnelPolicy, balance: Balance) -> Self {
        Self {
            policy,
            balance,
            members: HashMap::new(),
            agents: HashMap::new(),
            groups: HashMap::new(),
            gone: HashMap::new(),
            closing: false,
            events: Vec::new(),
        }
    }

    /// What has happened since the last time, in order.
    pub(crate) fn take_events(&mut self) -> Vec<HubEvent> {
        std::mem::take(&mut self.events)
    }

    /// A tunnel has been authenticated.
    pub(crate) fn admit(&mut self, newcomer: Newcomer<T>) -> Result<(), String> {
        let Newcomer { id, ref agent, peer, .. } = newcomer;
        if self.closing {
            return Err("the hub is shutting down".into());
        }
        let of_agent = self.agents.get(agent).map(Vec::as_slice).unwrap_or_default();
        let live = |id: &&TunnelId| self.members.get(id).is_some_and(|member| is_usable(&member.newcomer.handle));
        if of_agent.iter().filter(live).count() >= TUNNELS_PER_AGENT || of_agent.len() >= TUNNELS_IN_ALL {
            let reason = format!("agent `{agent}` has {TUNNELS_PER_AGENT} tunnels already");
            self.events.push(HubEvent::Rejected { agent_id: agent.clone(), peer, reason: reason.clone() });
            return Err(reason);
        }
        let of_agent = self.agents.entry(agent.clone()).or_default();
        of_agent.push(id);
        self.events.push(HubEvent::Opened { agent_id: agent.clone(), tunnel_id: id, peer });
        self.members.insert(id, Box::new(Member { newcomer, groups: Vec::new() }));
        Ok(())
    }

    /// A tunnel offers to be called; `key` is what the user groups it by, if at all.
    pub(crate) fn offer(&mut self, id: TunnelId, labels: &Labels, key: Option<&str>) -> Result<Offer<T>, String> {
        if self.closing {
            return Err("the hub is shutting down".into());
        }
        let Some(member) = self.members.get(&id) else { return Err("the tunnel has ended".into()) };
        // An agent that repeats itself must not flood the log, nor push other agents' events out.
        if !member.groups.is_empty() {
            return Ok(Offer::Repeated);
        }
        let newcomer = member.newcomer.clone();
        if newcomer.handle.is_draining() || newcomer.handle.is_closed() {
            return Err("the tunnel is closing: open a new one".into());
        }
        let Others { replaced, suspects } = match self.weigh(&newcomer) {
            Ok(others) => others,
            Err(contest) => return Ok(Offer::Contested(contest)),
        };
        let Newcomer { agent, handle, .. } = newcomer;
        for old in &replaced {
            self.withdraw(old.id);
        }
        self.join_groups(id, &agent, labels, key, &handle);
        self.gone.remove(&agent);
        self.events.push(HubEvent::Ready { agent_id: agent, tunnel_id: id });
        Ok(Offer::Ready { replaced: handles(replaced), suspects: handles(suspects) })
    }

    /// What an offer of a tunnel would be told, if others are in its way.
    #[cfg(feature = "grpctunnel")]
    pub(crate) fn contest(&self, id: TunnelId) -> Option<Contest<T>> {
        self.weigh(&self.members.get(&id)?.newcomer).err()
    }

    /// What a newcomer means for those that can be called.
    fn weigh(&self, newcomer: &Newcomer<T>) -> Result<Others<T>, Contest<T>> {
        let Newcomer { agent, holder, seat, .. } = newcomer;
        let others: Vec<Newcomer<T>> =
            self.ready_of(agent).filter(|other| !other.handle.is_closed()).cloned().collect();
        let strangers: Vec<_> = others.iter().filter(|other| other.holder != *holder).cloned().collect();
        if !strangers.is_empty() {
            let reason = format!("agent `{agent}` has a live tunnel that was opened with another key or token");
            return Err(Contest { rivals: handles(strangers), reason });
        }
        let same_seat = |other: &Newcomer<T>| seat.is_some() && other.seat == *seat;
        let same_agent =
            |other: &Newcomer<T>| seat.is_some_and(|ours| other.seat.is_some_and(|s| s.instance == ours.instance));
        let (mut replaced, others): (Vec<_>, Vec<_>) = others.into_iter().partition(same_seat);
        let mut rivals: Vec<_> = others.into_iter().filter(|other| !same_agent(other)).collect();
        match self.policy {
            TunnelPolicy::Pool => {}
            TunnelPolicy::Replace => replaced.append(&mut rivals),
            TunnelPolicy::Reject if rivals.is_empty() => {}
            TunnelPolicy::Reject => {
                let reason = format!("agent `{agent}` has a live tunnel, and this hub allows one");
                return Err(Contest { rivals: handles(rivals), reason });
            }
        }
        Ok(Others { replaced, suspects: rivals })
    }

    /// A tunnel was turned away after it had authenticated.
    pub(crate) fn reject(&mut self, id: TunnelId, reason: &str) {
        let Some(newcomer) = self.members.get(&id).map(|member| &member.newcomer) else { return };
        self.events.push(HubEvent::Rejected {
            agent_id: newcomer.agent.clone(),
            peer: newcomer.peer,
            reason: reason.into(),
        });
    }

    /// A tunnel takes no more calls.
    pub(crate) fn withdraw(&mut self, id: TunnelId) {
        if self.leave_groups(id)
            && let Some(newcomer) = self.members.get(&id).map(|member| &member.newcomer)
        {
            self.events.push(HubEvent::Draining { agent_id: newcomer.agent.clone(), tunnel_id: id });
        }
    }

    /// A tunnel has ended.
    pub(crate) fn leave(&mut self, id: TunnelId, why: Disconnected) {
        let was_ready = self.leave_groups(id);
        let Some(newcomer) = self.members.remove(&id).map(|member| member.newcomer) else { return };
        let agent = newcomer.agent;
        let mut last = false;
        if let Some(others) = self.agents.get_mut(&agent) {
            others.retain(|other| *other != id);
            last = others.is_empty();
            if last {
                self.agents.remove(&agent);
            }
        }
        // An agent that shuts down politely is not ready any more when it leaves. A late goodbye harms no successor.
        let is_away = !self.groups.contains_key(&Selector::Agent(agent.clone()));
        if is_away && (was_ready || (last && !self.gone.contains_key(&agent))) {
            if self.gone.len() >= REMEMBERED && !self.gone.contains_key(&agent) {
                self.gone.clear();
            }
            let departed = Departed {
                why: why.clone(),
                #[cfg(feature = "gateway")]
                labels: newcomer.handle.labels(),
            };
            self.gone.insert(agent.clone(), departed);
        }
        self.events.push(HubEvent::Closed { agent_id: agent, tunnel_id: id, why });
    }

    /// Refuses everything from now on, and says what there is.
    pub(crate) fn close(&mut self) -> Vec<T> {
        self.closing = true;
        self.members.values().map(|member| member.newcomer.handle.clone()).collect()
    }

    /// Chooses the tunnel for a call among those that `admits` lets through, but not `except`; `random` are two random
    /// numbers.
    pub(crate) fn pick(
        &mut self,
        wanted: &Selector,
        except: Option<TunnelId>,
        random: (u32, u32),
        admits: &dyn Fn(&T) -> bool,
    ) -> Result<T, DialError> {
        if self.closing {
            return Err(DialError::Shutdown { wanted: wanted.to_string() });
        }
        let found = self.groups.get_mut(wanted).and_then(|group| group.pick(self.balance, except, random, admits));
        found.ok_or_else(|| self.absence(wanted))
    }

    /// Why there is no tunnel to call.
    fn absence(&self, wanted: &Selector) -> DialError {
        let Selector::Agent(agent) = wanted else { return DialError::NoneMatches { wanted: wanted.to_string() } };
        let agent = agent.clone();
        let ids = self.agents.get(&agent).map(Vec::as_slice).unwrap_or_default();
        let of_agent = || ids.iter().filter_map(|id| self.members.get(id)).map(|member| &member.newcomer.handle);
        if of_agent().any(|handle| is_usable(handle)) {
            return DialError::NotReady { agent };
        }
        if of_agent().any(|handle| !handle.is_closed()) {
            return DialError::Draining { agent };
        }
        match of_agent()
            .find_map(Candidate::gone)
            .or_else(|| self.gone.get(&agent).map(|departed| departed.why.clone()))
        {
            Some(gone) => DialError::Disconnected { agent, gone },
            None => DialError::NotConnected { agent },
        }
    }

    /// Every tunnel.
    pub(crate) fn handles(&self) -> impl Iterator<Item = &T> {
        self.members.values().map(|member| &member.newcomer.handle)
    }

    /// The tunnels of one agent, oldest first.
    #[cfg(feature = "gateway")]
    pub(crate) fn handles_of(&self, agent: &AgentId) -> impl Iterator<Item = &T> {
        let ids = self.agents.get(agent).into_iter().flatten();
        ids.filter_map(|id| self.members.get(id)).map(|member| &member.newcomer.handle)
    }

    /// Whether there is something to call.
    pub(crate) fn has(&self, wanted: &Selector) -> bool {
        self.groups.contains_key(wanted)
    }

    pub(crate) fn has_tunnels(&self, agent: &AgentId) -> bool {
        self.agents.contains_key(agent)
    }

    /// The labels of an agent's tunnels, and of its last one, if it is away or just coming back. None if nobody knows it.
    #[cfg(feature = "gateway")]
    pub(crate) fn labels_of(&self, agent: &AgentId) -> Vec<Arc<Labels>> {
        let departed = self.gone.get(agent).map(|departed| departed.labels.clone());
        self.handles_of(agent).map(Candidate::labels).chain(departed).collect()
    }

    fn ready_of(&self, agent: &AgentId) -> impl Iterator<Item = &Newcomer<T>> {
        let group = self.groups.get(&Selector::Agent(agent.clone()));
        let ids = group.into_iter().flat_map(|group| &group.members);
        ids.filter_map(|(id, _)| self.members.get(id).map(|member| &member.newcomer))
    }

    fn join_groups(&mut self, id: TunnelId, agent: &AgentId, labels: &Labels, key: Option<&str>, handle: &T) {
        let by_label = labels.iter().map(|(name, value)| Selector::Label((**name).into(), (**value).into()));
        let by_key = key.map(|key| Selector::Key(key.into()));
        let mut groups: Vec<_> =
            [Selector::Agent(agent.clone()), Selector::Any].into_iter().chain(by_key).chain(by_label).collect();
        groups.shrink_to_fit();
        for selector in &groups {
            let group = self
                .groups
                .entry(selector.clone())
                .or_insert_with(|| Group { members: Vec::with_capacity(1), turn: 0 });
            group.members.push((id, handle.clone()));
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.groups = groups;
        }
    }

    /// Whether it was in any.
    fn leave_groups(&mut self, id: TunnelId) -> bool {
        let groups = self.members.get_mut(&id).map(|member| std::mem::take(&mut member.groups)).unwrap_or_default();
        for selector in &groups {
            let Some(group) = self.groups.get_mut(selector) else { continue };
            if let Some(at) = group.members.iter().position(|(member, _)| *member == id) {
                group.members.swap_remove(at);
            }
            if group.members.is_empty() {
                self.groups.remove(selector);
            }
        }
        !groups.is_empty()
    }
}

fn handles<T>(members: Vec<Newcomer<T>>) -> Vec<T> {
    members.into_iter().map(|member| member.handle).collect()
}

impl<T: Candidate> Group<T> {
    fn pick(
        &mut self,
        balance: Balance,
        except: Option<TunnelId>,
        random: (u32, u32),
        admits: &dyn Fn(&T) -> bool,
    ) -> Option<T> {
        let len = self.members.len();
        let suits = |(id, handle): &&(TunnelId, T)| Some(*id) != except && admits(handle);
        let at = |n: usize| self.members.get(n % len).filter(suits).map(|(_, handle)| handle);
        let is_good = |handle: &&T| is_usable(*handle) && !handle.is_suspect();
        let first = match balance {
            Balance::LeastBusy => {
                let a = random.0 as usize % len;
                // Another one than the first, if there is.
                let b = (a + 1 + random.1 as usize % (len - 1).max(1)) % len;
                let candidates = [at(a), at(b)].into_iter().flatten().filter(is_good);
                if let Some(best) = candidates.min_by_key(|handle| handle.load()) {
                    return Some(best.clone());
                }
                a
            }
            Balance::RoundRobin => {
                self.turn = self.turn.wrapping_add(1) % len;
                self.turn
            }
        };
        // The first good one from there; a suspect only where there is nobody else.
        let from_there = || (first..first + len).filter_map(at);
        let found = from_there().find(is_good).or_else(|| from_there().find(|handle| is_usable(*handle)));
        found.cloned()
    }
}

fn is_usable<T: Candidate>(handle: &T) -> bool {
    !handle.is_closed() && !handle.is_draining()
}

#[cfg(test)]
mod tests;
