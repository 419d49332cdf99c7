//! Keeps an agent's tunnel standing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::uri::Authority;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::backoff::Backoff;
use super::error::ConnectError;
use super::standing::{Slot, Standing};
use super::status::AgentStatus;
use crate::carrier::race::race;
use crate::carrier::{Carried, DialFailure, Dialer, HostPort, ProxyFailure};
use crate::close::CloseReason;
use crate::connector::{DialError, Found, Route};
use crate::id::AgentId;
use crate::ssh::{self, LoggedIn, Login, Session, SessionParts};
use crate::tunnel::TunnelId;

/// How long a tunnel that was renewed may finish its calls.
const RENEWED_DRAIN: Duration = Duration::from_secs(600);

/// How long such a tunnel, once idle, is left to the hub to close.
const RENEWED_TURN: Duration = Duration::from_secs(10);

/// How long to leave a hub alone that did not take a renewal.
const RENEWAL_RETRY: Duration = Duration::from_secs(10);

/// How long a dial that was refused waits for a new tunnel that may be the reason. The hub has offered it by then, and its
/// word is on its way.
const HANDOVER: Duration = Duration::from_secs(2);

/// How long a hub may take, until it has let the agent in, before the next is tried beside it. A dead first choice costs no
/// more than this.
const HEAD_START: Duration = Duration::from_millis(500);

/// A way to a hub.
pub(super) struct Way {
    /// The hub, as the user wrote it but for secrets.
    pub(super) hub: String,
    /// The name that its host key is looked up by.
    pub(super) name: HostPort,
    pub(super) dialer: Dialer,
}

/// A session that has just been made.
pub(super) struct Connected {
    session: Arc<Session>,
    way: usize,
}

/// What an agent's handle, its drivers and its dials share.
pub(super) struct Shared {
    pub(super) id: AgentId,
    pub(super) login: Login,
    ways: Vec<Way>,
    /// When a tunnel has ended, there can be another.
    can_dial_again: bool,
    /// The way that worked last.
    favourite: AtomicUsize,
    renew_after: u64,
    pub(super) standing: Standing<Arc<Session>>,
    /// Renewed, and finishing their calls. The lock comes before that of the slots.
    draining: Mutex<Vec<Arc<Session>>>,
    /// How many tunnels are being made to take the place of one that stands.
    renewing: watch::Sender<usize>,
}

impl Shared {
    pub(super) fn new(id: AgentId, login: Login, ways: Vec<Way>, renew_after: u64, slots: u16) -> Self {
        let can_dial_again = ways.iter().any(|way| way.dialer.can_dial_again());
        let (renew_after, slots) = if can_dial_again { (renew_after, slots) } else { (u64::MAX, 1) };
        Self {
            id,
            login,
            ways,
            can_dial_again,
            favourite: AtomicUsize::new(0),
            renew_after,
            standing: Standing::new(slots),
            draining: Mutex::default(),
            renewing: watch::Sender::new(0),
        }
    }

    fn draining(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tunnels the agent keeps standing.
    pub(super) fn slots(&self) -> u16 {
        u16::try_from(self.standing.slots().len()).unwrap_or(u16::MAX)
    }

    /// The tunnel to dial, but not `except`: of those that stand the least busy; else one that has ended.
    fn pick(&self, except: Option<TunnelId>) -> Option<Arc<Session>> {
        let slots = self.standing.slots();
        let others = slots.iter().filter_map(Slot::last).filter(|session| Some(session.id) != except);
        others.min_by_key(|session| (session.is_closed(), session.calls())).cloned()
    }

    /// Every session that lives: the current ones, and those they replaced.
    pub(super) fn sessions(&self) -> Vec<Arc<Session>> {
        let mut draining = self.draining();
        draining.retain(|old| !old.is_closed());
        let slots = self.standing.slots();
        draining.iter().chain(slots.iter().filter_map(Slot::last)).cloned().collect()
    }

    /// Makes a session the one to dial in its slot, and says so; the one before, if it lives, is to be drained. A session
    /// that comes after the agent was told to stop is closed.
    pub(super) fn adopt(&self, slot: u16, Connected { session, way }: Connected) -> Arc<Session> {
        let hub = &self.ways[way].hub;
        let mut draining = self.draining();
        match self.standing.stand(slot, session.clone(), session.id, hub) {
            Ok(old) => {
                draining.extend(old);
                draining.retain(|old| !old.is_closed());
                drop(draining);
                session.span.in_scope(|| tracing::info!(hub, "tunnel opened"));
            }
            Err(late) => late.close(CloseReason::Shutdown),
        }
        session
    }

    /// Makes a session for a slot, however long that takes; none if the agent is told to stop.
    async fn connect(self: &Arc<Self>, slot: u16, backoff: &mut Backoff, lost: Option<String>) -> Option<Arc<Session>> {
        let attempt = |attempt| async move {
            self.connect_once(slot).await.map_err(|error| {
                tracing::warn!(agent = %self.id, slot, attempt, error = &error as &dyn std::error::Error, "cannot connect");
                with_causes(&error)
            })
        };
        let connected = self.standing.bring_back(slot, backoff, lost, attempt).await?;
        Some(self.adopt(slot, connected))
    }

    /// One attempt by each way, until one works: the one that worked last comes first, and each has a head start.
    pub(super) async fn connect_once(self: &Arc<Self>, slot: u16) -> Result<Connected, ConnectError> {
        self.connect_any(slot).await.map_err(most_telling)
    }

    /// The same, with what is wrong with each way.
    pub(super) async fn connect_any(self: &Arc<Self>, slot: u16) -> Result<Connected, Vec<ConnectError>> {
        let favourite = self.favourite.load(Ordering::Relaxed);
        let mut ways: Vec<usize> = (0..self.ways.len()).collect();
        ways.sort_by_key(|way| *way != favourite);
        let mut errors = Vec::new();
        while !ways.is_empty() {
            let attempts = ways.iter().map(|&way| {
                let shared = self.clone();
                async move { shared.log_in_by(way, slot).await.map(|logged_in| (logged_in, way)) }
            });
            match race(attempts, HEAD_START).await {
                // Only the first makes the offer: a hub, or a stock server, could take the second's for the agent's return.
                Ok((logged_in, way)) => match logged_in.offer(&self.login).await {
                    Ok(session) => {
                        self.favourite.store(way, Ordering::Relaxed);
                        return Ok(Connected { session, way });
                    }
                    Err(error) => {
                        errors.push(ConnectError::from_login(error, &self.ways[way].hub, self.id.as_str()));
                        ways.retain(|other| *other != way);
                    }
                },
                Err(more) => {
                    errors.extend(more);
                    break;
                }
            }
        }
        Err(errors)
    }

    /// Resolves, dials, logs in.
    async fn log_in_by(&self, way: usize, slot: u16) -> Result<LoggedIn, ConnectError> {
        let Way { hub, name, dialer } = &self.ways[way];
        let timeout = self.login.config.login_timeout;
        let Carried { stream, kind, local, peer } = dialer.dial(timeout).await.map_err(|failure| match failure {
            DialFailure::Resolve { host, source } => ConnectError::Resolve { host, source },
            DialFailure::Connect(source) => ConnectError::Unreachable { hub: hub.clone(), source },
            DialFailure::Proxy(ProxyFailure { proxy, why, is_transient }) => {
                ConnectError::Proxy { hub: hub.clone(), proxy, why, is_transient }
            }
            #[cfg(feature = "websocket")]
            DialFailure::Tls(source) => ConnectError::Tls { hub: hub.clone(), source },
            #[cfg(feature = "websocket")]
            DialFailure::Roots(error) => ConnectError::TlsRoots(error),
            #[cfg(feature = "websocket")]
            DialFailure::NotWebSocket { status, why } => ConnectError::NotWebSocket { hub: hub.clone(), status, why },
            DialFailure::Spent => ConnectError::Stopped,
        })?;
        let id = TunnelId::next();
        let parts = SessionParts {
            id,
            agent: self.id.clone(),
            kind,
            local,
            peer,
            carrier: Arc::default(),
            window: self.login.config.window,
            open_timeout: self.login.config.open_timeout,
            max_channels: self.login.config.max_channels,
            authority: Authority::from_static("hub"),
            proof: None,
            span: tracing::info_span!("tunnel", agent = %self.id, %id, ?peer),
        };
        let logged_in = ssh::connect(stream, parts, &self.login, name, slot).await;
        logged_in.map_err(|error| ConnectError::from_login(error, hub, self.id.as_str()))
    }
}

/// Of what is wrong with each way, what time does not cure: that is what a user wants to know.
pub(super) fn most_telling(mut errors: Vec<ConnectError>) -> ConnectError {
    let lasting = errors.iter().position(|error| !error.is_transient()).unwrap_or(0);
    if errors.is_empty() { ConnectError::Stopped } else { errors.swap_remove(lasting) }
}

impl Shared {
    /// For good: nobody serves or dials any more.
    pub(super) fn end(&self) {
        self.standing.stop();
        self.login.acceptor.close();
        self.standing.end();
    }
}

impl Route for Shared {
    fn session(&self) -> Result<Arc<Session>, DialError> {
        if self.standing.is_stopped() {
            return Err(DialError::Shutdown { wanted: format!("agent `{}`", self.id) });
        }
        self.pick(None).ok_or_else(|| DialError::NotConnected { agent: self.id.clone() })
    }

    /// A hub that has been offered a new tunnel refuses channels on the old one, before this side knows of its answer.
    fn successor<'a>(&'a self, of: &'a Session) -> Found<'a, Option<Arc<Session>>> {
        Box::pin(async move {
            let mut renewing = self.renewing.subscribe();
            let other = || self.pick(Some(of.id)).filter(|other| !other.is_closed());
            // Most dials that fail have another reason, and some callers have no runtime any more to wait in.
            while other().is_none() && *renewing.borrow_and_update() > 0 {
                tokio::select! {
                    biased;
                    () = self.standing.stopped() => break,
                    _ = renewing.changed() => {}
                    () = of.sleep(HANDOVER) => break, // what there is then has to do
                }
            }
            let current = if self.standing.is_stopped() { None } else { self.pick(Some(of.id)) };
            current.filter(|other| !other.is_closed())
        })
    }

    fn wait(&self, limit: Duration) -> Found<'_, Result<Arc<Session>, DialError>> {
        let some = self.standing.some_within(limit);
        Box::pin(async move {
            some.await;
            self.session()
        })
    }
}

/// Keeps the tunnel of one slot standing, until told to stop; the first agent's slot begins with a session.
pub(super) async fn run(shared: Arc<Shared>, slot: u16, first: Option<Arc<Session>>, mut backoff: Backoff) {
    let mut session = match first {
        Some(session) => session,
        None => match shared.connect(slot, &mut backoff, None).await {
            Some(session) => session,
            None => return,
        },
    };
    let mut draining = JoinSet::new();
    let mut renew_at = shared.renew_after;
    // A renewal leaves no gap, so that the time goes on.
    let mut stands_since = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shared.standing.stopped() => return,
            gone = session.closed() => {
                let lost = gone.to_string();
                shared.standing.say(slot, AgentStatus::Disconnected { why: gone });
                if !shared.can_dial_again {
                    return shared.end();
                }
                backoff.lost_after(stands_since.elapsed());
                let Some(new) = shared.connect(slot, &mut backoff, Some(lost)).await else { return };
                session = new;
                stands_since = tokio::time::Instant::now();
                renew_at = shared.renew_after;
            }
            () = worn_out(&session, renew_at) => {
                let under_way = Renewing::begin(&shared.renewing);
                // A stock server listens for one at a time, so there is a gap.
                let gives_way = shared.login.remote.is_some();
                if gives_way {
                    session.take_no_calls(RENEWED_TURN).await;
                }
                let renewed = tokio::select! {
                    () = shared.standing.stopped() => return,
                    // Not given up when the old one ends meanwhile: the hub ends it as soon as it has the new one.
                    renewed = shared.connect_once(slot) => renewed,
                };
                let renewed = renewed.map(|new| shared.adopt(slot, new));
                drop(under_way);
                match renewed {
                    Ok(new) => {
                        tracing::info!(agent = %shared.id, old = %session.id, new = %new.id, "tunnel renewed");
                        let old = std::mem::replace(&mut session, new);
                        renew_at = shared.renew_after;
                        // When the agent stops, this ends, and what is still being drained is the agent's to close.
                        draining.spawn(async move {
                            // Another hub than the new one's does not know.
                            old.take_no_calls(RENEWED_TURN).await;
                            old.drain_and_be_closed(RENEWED_DRAIN, RENEWED_TURN, CloseReason::Replaced).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(agent = %shared.id, error = &error as &dyn std::error::Error, "tunnel not renewed");
                        if gives_way {
                            // Nobody can dial it any more.
                            session.close(CloseReason::Replaced);
                            continue;
                        }
                        // The old one still works; ask again after as many channels, and not at once.
                        renew_at = session.closed_channels() + shared.renew_after;
                        // A tunnel that is lost meanwhile is not made to wait.
                        let _ = tokio::time::timeout(RENEWAL_RETRY, session.closed()).await;
                    }
                }
            }
        }
        while draining.try_join_next().is_some() {}
    }
}

/// Says that a renewal is under way, until it is dropped.
struct Renewing<'a>(&'a watch::Sender<usize>);

impl<'a> Renewing<'a> {
    fn begin(renewing: &'a watch::Sender<usize>) -> Self {
        renewing.send_modify(|n| *n += 1);
        Self(renewing)
    }
}

impl Drop for Renewing<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// Waits until a session has closed so many channels that it holds more memory than it should.
async fn worn_out(session: &Session, limit: u64) {
    let mut channels = session.channels();
    while session.closed_channels() < limit {
        // The sender lives in the session.
        let _ = channels.changed().await;
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
