//! The hub's tunnels, shared: the [`Roster`] under a lock, its events told in order, and those who wait for an agent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast};

use super::events::HubEvent;
use super::roster::{Balance, Candidate, Contest, Newcomer, Offer, Roster, Seat, Selector, TunnelPolicy};
use super::tunnel::TunnelInfo;
use crate::close::{CloseReason, Disconnected};
use crate::connector::{DialError, Found, Route, next_after};
use crate::id::AgentId;
use crate::labels::Labels;
use crate::ssh::{Account, Gate, Proof, Session, Welcome, seat_in};
use crate::tunnel::TunnelId;

/// Events that a slow listener may be behind before it is told that it missed some.
const EVENTS: usize = 1024;

/// How long a tunnel that may be dead has to show that it is not, once its agent seems to have come back.
const PROOF_OF_LIFE: Duration = Duration::from_secs(5);

/// What a user groups tunnels by.
pub(crate) type AffinityKey = Arc<dyn Fn(&TunnelInfo) -> String + Send + Sync>;

/// How a hub treats its agents.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) policy: TunnelPolicy,
    pub(crate) balance: Balance,
    pub(crate) affinity_key: Option<AffinityKey>,
    pub(crate) drain_timeout: Duration,
    pub(crate) max_calls: usize,
    pub(crate) max_unread: usize,
    /// Agents may call, and are not called.
    pub(crate) no_reverse: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            policy: TunnelPolicy::default(),
            balance: Balance::default(),
            affinity_key: None,
            drain_timeout: Duration::from_secs(600),
            max_calls: 10_000,
            max_unread: 2 * crate::tuning::SSH_WINDOW as usize,
            no_reverse: false,
        }
    }
}

/// The tunnels of one hub.
pub(crate) struct Registry {
    rules: Rules,
    state: Mutex<State>,
    events: broadcast::Sender<HubEvent>,
    /// For timers of callers that have no runtime of their own.
    runtime: Handle,
}

struct State {
    roster: Roster<Arc<Session>>,
    /// What the tunnels of one agent share, as long as there is one.
    accounts: HashMap<AgentId, Weak<Account>>,
    /// Those who wait for something to be called.
    waiting: HashMap<Selector, Arc<Notify>>,
}

impl Candidate for Arc<Session> {
    fn is_closed(&self) -> bool {
        Session::is_closed(self)
    }

    fn gone(&self) -> Option<Disconnected> {
        self.disconnected().borrow().clone()
    }

    fn is_draining(&self) -> bool {
        Session::is_draining(self)
    }

    fn is_suspect(&self) -> bool {
        #[cfg(feature = "grpctunnel")]
        if self.caller().is_some_and(|caller| caller.is_refused()) {
            return true;
        }
        Session::is_suspect(self)
    }

    fn load(&self) -> usize {
        self.calls()
    }

    #[cfg(feature = "gateway")]
    fn labels(&self) -> Arc<Labels> {
        self.shared_labels()
    }
}

impl Registry {
    pub(crate) fn new(rules: Rules) -> Self {
        let roster = Roster::new(rules.policy, rules.balance);
        let state = State { roster, accounts: HashMap::new(), waiting: HashMap::new() };
        Self { rules, state: Mutex::new(state), events: broadcast::Sender::new(EVENTS), runtime: Handle::current() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the roster, and tells what came of it in the order in which it happened.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        let mut woken = Vec::new();
        for event in state.roster.take_events() {
            if matches!(event, HubEvent::Ready { .. }) && !state.waiting.is_empty() {
                woken.extend(state.take_waiting());
            }
            let _ = self.events.send(event); // fails only when nobody listens
        }
        drop(state);
        woken.iter().for_each(|waiting| waiting.notify_waiters());
        result
    }

    #[cfg(feature = "grpctunnel")]
    pub(crate) fn is_no_reverse(&self) -> bool {
        self.rules.no_reverse
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<HubEvent> {
        self.events.subscribe()
    }

    /// What finds the tunnels with a key; without a key of the user's own that is the agent's id.
    pub(crate) fn by_key(&self, key: &str) -> Selector {
        match key.parse() {
            Ok(agent) if self.rules.affinity_key.is_none() => Selector::Agent(agent),
            _ => Selector::Key(key.into()),
        }
    }

    /// The tunnel for a call, or why there is none.
    pub(crate) fn find(&self, wanted: &Selector) -> Result<Arc<Session>, DialError> {
        self.lock().roster.pick(wanted, None, rand::random(), &|_| true)
    }

    /// Waits until there is a tunnel for a call.
    pub(crate) async fn wait_for(&self, wanted: &Selector) -> Result<Arc<Session>, DialError> {
        loop {
            let waiting = Waiting::new(self, wanted);
            let ready = waiting.notify.notified();
            tokio::pin!(ready);
            // From here on nothing is missed.
            ready.as_mut().enable();
            match self.find(wanted) {
                Err(error) if error.may_pass() => ready.await,
                found => return found,
            }
        }
    }

    /// Every tunnel.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().roster.handles().cloned().collect()
    }

    /// The tunnels of one agent, oldest first.
    #[cfg(feature = "gateway")]
    pub(crate) fn sessions_of(&self, agent: &AgentId) -> Vec<Arc<Session>> {
        self.lock().roster.handles_of(agent).cloned().collect()
    }

    /// The labels of an agent's tunnels, and of its last one, if it is away or just coming back. None if nobody knows it.
    #[cfg(feature = "gateway")]
    pub(crate) fn labels_of(&self, agent: &AgentId) -> Vec<Arc<Labels>> {
        self.lock().roster.labels_of(agent)
    }

    /// Refuses everything from now on, and hands over what there is to be drained.
    pub(crate) fn close(&self) -> Vec<Arc<Session>> {
        let mut state = self.lock();
        let sessions = state.roster.close();
        let waiting: Vec<_> = state.waiting.drain().map(|(_, waiting)| waiting).collect();
        drop(state);
        waiting.iter().for_each(|waiting| waiting.notify_waiters());
        sessions
    }

    /// A tunnel has ended.
    fn forget(&self, session: &Session, gone: Disconnected) {
        self.change(|state| {
            state.roster.leave(session.id, gone);
            // The session may have been the last to hold it; what it holds is dropped a moment later.
            if !state.roster.has_tunnels(&session.agent) {
                state.accounts.remove(&session.agent);
            }
        });
    }

    fn offer(&self, session: &Session, key: Option<&str>) -> Result<Offer<Arc<Session>>, String> {
        self.change(|state| {
            let offered = state.roster.offer(session.id, session.labels(), key);
            if let Err(reason) = &offered {
                state.roster.reject(session.id, reason);
            }
            offered
        })
    }
}

impl State {
    /// Those who wait for something that there is now.
    fn take_waiting(&mut self) -> Vec<Arc<Notify>> {
        let roster = &self.roster;
        self.waiting.extract_if(|wanted, _| roster.has(wanted)).map(|(_, waiting)| waiting).collect()
    }
}

/// One of those who wait for the same; the last one leaves nothing behind.
struct Waiting<'a> {
    registry: &'a Registry,
    wanted: &'a Selector,
    notify: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    fn new(registry: &'a Registry, wanted: &'a Selector) -> Self {
        let notify = registry.lock().waiting.entry(wanted.clone()).or_default().clone();
        Self { registry, wanted, notify }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        let known = state.waiting.get(self.wanted);
        let is_known = known.is_some_and(|known| Arc::ptr_eq(known, &self.notify));
        // Under the lock, or two that leave at once would each take the other for one who stays.
        self.notify = Arc::default();
        if is_known && state.waiting.get(self.wanted).is_some_and(|known| Arc::strong_count(known) == 1) {
            state.waiting.remove(self.wanted);
        }
    }
}

/// The registry as sessions see it; it needs to be owned to watch over them.
pub(crate) struct RegistryGate(pub(crate) Arc<Registry>);

impl RegistryGate {
    fn drain(&self, old: Arc<Session>, by: TunnelId) {
        old.span.in_scope(|| tracing::info!(%by, "tunnel replaced"));
        let limit = self.0.rules.drain_timeout;
        // Ends with its limit at the latest.
        tokio::spawn(async move { old.drain_and_close(limit, CloseReason::Replaced).await });
    }
}

#[async_trait::async_trait]
impl Gate for RegistryGate {
    fn admit(&self, session: &Arc<Session>, greeting: &str) -> Result<(), String> {
        let registry = &self.0;
        let newcomer = Newcomer {
            id: session.id,
            agent: session.agent.clone(),
            holder: session.proof().map(|proof| proof.holder.clone()).unwrap_or_default(),
            seat: seat_in(greeting).map(|(instance, slot)| Seat { instance, slot }),
            peer: session.peer,
            handle: session.clone(),
        };
        registry.change(|state| {
            state.roster.admit(newcomer)?;
            let known = state.accounts.get(&session.agent).and_then(Weak::upgrade);
            let account =
                known.unwrap_or_else(|| Arc::new(Account::new(registry.rules.max_calls, registry.rules.max_unread)));
            state.accounts.insert(session.agent.clone(), Arc::downgrade(&account));
            session.set_account(account);
            Ok::<_, String>(())
        })?;
        session.span.in_scope(|| tracing::info!("tunnel opened"));
        let (registry, session) = (registry.clone(), session.clone());
        // Ends with the session, whose end is certain: it is dropped with its connection.
        tokio::spawn(async move {
            let gone = session.closed().await;
            registry.forget(&session, gone);
        });
        Ok(())
    }

    #[cfg(feature = "grpctunnel")]
    async fn contest(&self, session: &Arc<Session>) -> Result<(), String> {
        let registry = &self.0;
        let contested = || registry.lock().roster.contest(session.id);
        if let Some(Contest { rivals, .. }) = contested() {
            all_prove_alive(rivals).await;
        }
        let Some(Contest { reason, .. }) = contested() else { return Ok(()) };
        registry.change(|state| state.roster.reject(session.id, &reason));
        Err(reason)
    }

    async fn ready(&self, session: &Arc<Session>, labels: Labels) -> Result<Welcome, String> {
        let registry = &self.0;
        if registry.rules.no_reverse {
            session.span.in_scope(|| tracing::debug!("agent is not to be called: this hub takes no reverse tunnels"));
            return Ok(Welcome::NotCalled);
        }
        session.set_labels(Arc::new(settle_labels(session, labels)));
        // The user's code, so without a lock.
        let key = registry.rules.affinity_key.as_ref().map(|key| key(&TunnelInfo::new(session)));
        let mut offered = registry.offer(session, key.as_deref())?;
        if let Offer::Contested(Contest { rivals, .. }) = offered {
            all_prove_alive(rivals).await;
            offered = registry.offer(session, key.as_deref())?;
        }
        match offered {
            Offer::Repeated => {}
            Offer::Ready { replaced, suspects } => {
                session.span.in_scope(|| tracing::info!("agent can be called"));
                replaced.into_iter().for_each(|old| self.drain(old, session.id));
                for suspect in suspects {
                    tokio::spawn(prove_alive(suspect)); // ends with its deadline at the latest
                }
            }
            Offer::Contested(Contest { reason, .. }) => {
                registry.change(|state| state.roster.reject(session.id, &reason));
                return Err(reason);
            }
        }
        Ok(Welcome::Wanted)
    }

    fn unready(&self, session: &Arc<Session>) {
        if session.is_draining() {
            return;
        }
        self.0.change(|state| state.roster.withdraw(session.id));
        session.span.in_scope(|| tracing::info!("agent does not want new calls"));
        session.drain();
        // The agent is leaving, and leaves the closing to this side, which knows when the last answer has arrived.
        let (session, limit) = (session.clone(), self.0.rules.drain_timeout);
        tokio::spawn(async move { session.drain_and_close(limit, CloseReason::ClosedByPeer { message: None }).await });
    }
}

/// What an agent says of itself, as far as it may, under what is said of it.
fn settle_labels(session: &Session, given: Labels) -> Labels {
    let Some(Proof { grant, .. }) = session.proof() else { return given };
    let (mut labels, refused): (Labels, Labels) =
        given.into_iter().partition(|(name, _)| grant.accepted_labels.contains(name));
    if !refused.is_empty() {
        let refused: Vec<_> = refused.keys().collect();
        session.span.in_scope(|| tracing::warn!(?refused, "labels ignored: the grant does not accept them"));
    }
    labels.extend(grant.labels.clone());
    labels
}

/// If the newcomer that waits for it leaves, it goes on all the same, to its deadline at the latest: none stays suspect who
/// lives, and none stays who is dead.
async fn all_prove_alive(sessions: Vec<Arc<Session>>) {
    let proofs: Vec<_> = sessions.into_iter().map(|session| tokio::spawn(prove_alive(session))).collect();
    for proof in proofs {
        let _ = proof.await; // it fails at the end of the runtime alone
    }
}

async fn prove_alive(session: Arc<Session>) {
    session.prove_alive(PROOF_OF_LIFE).await;
    // One that is still suspect is being ended.
    if session.is_suspect() {
        session.closed().await;
    }
}

/// Whom a call may reach.
pub(crate) type Admits = Box<dyn Fn(&Session) -> bool + Send + Sync>;

/// Dials whatever tunnel there is at the moment.
pub(crate) struct ToAgents {
    pub(crate) registry: Arc<Registry>,
    pub(crate) wanted: Selector,
    /// Others are not dialled.
    pub(crate) admits: Option<Admits>,
}

impl ToAgents {
    fn pick(&self, except: Option<TunnelId>) -> Result<Arc<Session>, DialError> {
        let admits = |session: &Arc<Session>| self.admits.as_ref().is_none_or(|admits| admits(session));
        self.registry.lock().roster.pick(&self.wanted, except, rand::random(), &admits)
    }
}

impl Route for ToAgents {
    fn session(&self) -> Result<Arc<Session>, DialError> {
        self.pick(None)
    }

    fn successor<'a>(&'a self, of: &'a Session) -> Found<'a, Option<Arc<Session>>> {
        Box::pin(std::future::ready(next_after(of, self.pick(Some(of.id)))))
    }

    fn wait(&self, limit: Duration) -> Found<'_, Result<Arc<Session>, DialError>> {
        // The caller may be outside of any runtime.
        let limit = {
            let _inside = self.registry.runtime.enter();
            tokio::time::sleep(limit)
        };
        Box::pin(async move {
            tokio::select! {
                biased;
                found = self.registry.wait_for(&self.wanted) => found,
                () = limit => self.session(),
            }
        })
    }
}
