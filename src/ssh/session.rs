//! One SSH session as the rest of the crate sees it: opens channels, ends, says why.

mod calls;
mod dial_back;
mod open;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::uri::Authority;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tracing::Span;

pub(crate) use self::calls::{Account, Call};
pub(crate) use self::dial_back::{DialBack, TUNNEL_PATH};
pub(crate) use self::open::Opener;

#[cfg(feature = "grpctunnel")]
pub(crate) use self::calls::OwnChannel;

use self::open::PENDING_OPENS;
use super::ledger::{Ledger, Verdict};
use super::server::Proof;
use super::write_behind::Carrier;
use crate::carrier::CarrierKind;
use crate::close::{CloseReason, Disconnected};
#[cfg(feature = "grpctunnel")]
use crate::grpctunnel::Caller;
use crate::http2::Connections;
use crate::id::AgentId;
use crate::labels::Labels;
use crate::tunnel::TunnelId;

/// How often a tunnel that may be dead is listened to.
const LISTEN: Duration = Duration::from_millis(50);

/// How long a goodbye may take before the connection is dropped.
const GOODBYE: Duration = Duration::from_secs(2);

/// russh keeps about 3.9 kB for each channel that this side closed first, as long as the session lives. A tunnel that
/// has closed this many (4 MB) is due for renewal.
pub(crate) const RENEW_AFTER: u64 = 1024;

/// The hub ends a tunnel that has closed this many channels (16 MB) and was not renewed: a stock SSH client cannot.
pub(crate) const CLOSED_CHANNELS_MAX: u64 = 4 * RENEW_AFTER;

/// Asks the peer something that it has to answer, and waits for that.
async fn ask(opener: &Opener) {
    match opener {
        // A client cannot grant this, and has to say so (RFC 4254 §4); russh has no other request that can be waited for. A
        // refusal is an answer, too.
        Opener::Server(handle) => _ = handle.forward_tcpip(String::new(), 0).await,
        Opener::Client(handle) => _ = handle.send_ping().await, // an error is the session's end
        #[cfg(feature = "grpctunnel")]
        Opener::Calls(caller) => caller.probe().await,
    }
}

/// One live (or just ended) tunnel. The user's handles and every channel share it.
pub(crate) struct Session {
    pub(crate) id: TunnelId,
    /// The name that calls through it give their peer.
    pub(crate) authority: Authority,
    /// On a hub: what the agent has proved.
    proof: Option<Box<Proof>>,
    pub(crate) agent: AgentId,
    pub(crate) kind: CarrierKind,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) since: SystemTime,
    pub(crate) span: Span,
    /// The long-lived HTTP/2 connections for this side's own calls.
    pub(crate) calls_to_peer: Connections,
    pub(crate) carrier: Arc<Carrier>,
    pub(super) ledger: Ledger,
    /// Runs what must outlive its caller, also when that caller has no runtime of its own.
    pub(crate) runtime: Handle,
    opener: OnceLock<Opener>,
    opens: Semaphore,
    pub(crate) open_timeout: Duration,
    max_channels: usize,
    /// How the agent wants to be dialled, if not on [`TUNNEL_PATH`] itself.
    dial_back: OnceLock<DialBack>,
    /// On a hub: what the agent says of itself and what is said of it, once it can be called.
    labels: OnceLock<Arc<Labels>>,
    /// What all tunnels of the agent share on a hub.
    account: OnceLock<Arc<Account>>,
    calls: AtomicUsize,
    /// It may be dead without anybody knowing: an agent that may be the same one has come since it was last heard of.
    suspect: AtomicBool,
    draining: AtomicBool,
    closed_channels: AtomicU64,
    channels: watch::Sender<usize>,
    disconnected: watch::Sender<Option<Disconnected>>,
}

/// What a session is made of.
pub(crate) struct SessionParts {
    pub(crate) id: TunnelId,
    pub(crate) agent: AgentId,
    pub(crate) kind: CarrierKind,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) carrier: Arc<Carrier>,
    pub(crate) window: u32,
    pub(crate) open_timeout: Duration,
    pub(crate) max_channels: usize,
    pub(crate) authority: Authority,
    pub(crate) proof: Option<Box<Proof>>,
    pub(crate) span: Span,
}

impl Session {
    pub(crate) fn new(parts: SessionParts) -> Arc<Self> {
        let SessionParts {
            agent,
            kind,
            local,
            peer,
            carrier,
            window,
            open_timeout,
            max_channels,
            authority,
            proof,
            id,
            span,
        } = parts;
        Arc::new(Self {
            id,
            authority,
            proof,
            agent,
            kind,
            local,
            peer,
            since: SystemTime::now(),
            span,
            calls_to_peer: Connections::default(),
            carrier,
            ledger: Ledger::new(2 * window as usize),
            runtime: Handle::current(),
            opener: OnceLock::new(),
            opens: Semaphore::new(PENDING_OPENS),
            open_timeout,
            max_channels,
            dial_back: OnceLock::new(),
            labels: OnceLock::new(),
            account: OnceLock::new(),
            calls: AtomicUsize::new(0),
            suspect: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            closed_channels: AtomicU64::new(0),
            channels: watch::Sender::new(0),
            disconnected: watch::Sender::new(None),
        })
    }

    pub(crate) fn set_opener(&self, opener: Opener) {
        let _ = self.opener.set(opener); // set once, by whoever made the session
    }

    /// What makes calls where there are no channels.
    #[cfg(feature = "grpctunnel")]
    pub(crate) fn caller(&self) -> Option<&Arc<Caller>> {
        match self.opener.get() {
            Some(Opener::Calls(caller)) => Some(caller),
            _ => None,
        }
    }

    /// On a hub: what the agent has proved, and what that got it.
    pub(crate) fn proof(&self) -> Option<&Proof> {
        self.proof.as_deref()
    }

    /// How the agent wants to be dialled. The first stands; says whether this is it.
    pub(super) fn set_dial_back(&self, wanted: DialBack) -> bool {
        *self.dial_back.get_or_init(|| wanted.clone()) == wanted
    }

    /// How the agent wants to be dialled, if it does.
    pub(super) fn dial_back(&self) -> Option<&DialBack> {
        self.dial_back.get()
    }

    /// The path that stands for the tunnel's service, with what the agent wrote behind it.
    pub(super) fn path(&self) -> &str {
        match self.dial_back() {
            Some(DialBack::Path(path)) => path,
            _ => TUNNEL_PATH,
        }
    }

    /// The first stand.
    pub(crate) fn set_labels(&self, labels: Arc<Labels>) {
        let _ = self.labels.set(labels);
    }

    #[cfg(feature = "gateway")]
    pub(crate) fn shared_labels(&self) -> Arc<Labels> {
        self.labels.get().cloned().unwrap_or_default()
    }

    pub(crate) fn labels(&self) -> &Labels {
        static NONE: Labels = Labels::new();
        self.labels.get().map_or(&NONE, |labels| labels)
    }

    /// Whether it has been offered to be called, and may be.
    #[cfg(feature = "gateway")]
    pub(crate) fn is_ready(&self) -> bool {
        self.labels.get().is_some() && !self.is_draining() && !self.is_closed()
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Asks the peer for a sign of life, and takes no calls until there is one. Without one within `limit` the tunnel is
    /// ended.
    pub(crate) async fn prove_alive(&self, limit: Duration) {
        let opener = match self.opener.get() {
            None | Some(Opener::Client(_)) => return,
            Some(opener) => opener,
        };
        self.suspect.store(true, Ordering::Relaxed);
        let signs_of_life = || match opener {
            #[cfg(feature = "grpctunnel")]
            Opener::Calls(caller) => caller.signs_of_life(),
            _ => self.carrier.signs_of_life(),
        };
        let before = signs_of_life();
        // Behind bulk on a slow path the answer comes late, and the bulk is as good.
        let heard = async {
            while signs_of_life() == before {
                tokio::time::sleep(LISTEN).await;
            }
        };
        tokio::select! {
            () = ask(opener) => {}
            () = heard => {}
            () = tokio::time::sleep(limit) => match opener {
                // It is this side that does not listen: a reader is slow, and nothing else keeps the peer from sending more.
                #[cfg(feature = "grpctunnel")]
                Opener::Calls(caller) if caller.is_overfull() => {}
                _ => return self.kill(CloseReason::KeepaliveTimeout),
            },
            _ = self.closed() => {}
        }
        self.suspect.store(false, Ordering::Relaxed);
    }

    /// How long a question takes to the peer and back, behind whatever is on its way. None if the tunnel ends before.
    pub(crate) async fn round_trip(&self) -> Option<Duration> {
        let opener = self.opener.get()?;
        let asked = Instant::now();
        tokio::select! {
            biased;
            _ = self.closed() => None,
            () = ask(opener) => (!self.is_closed()).then(|| asked.elapsed()),
        }
    }

    /// Ends the tunnel without a goodbye.
    fn kill(&self, reason: CloseReason) {
        match self.opener.get() {
            #[cfg(feature = "grpctunnel")]
            Some(Opener::Calls(caller)) => caller.close(reason),
            _ => self.carrier.kill(reason),
        }
    }

    /// A timer on the session's own runtime: the caller may be outside of any.
    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        let _inside = self.runtime.enter();
        tokio::time::sleep(duration)
    }

    /// A channel exists from here on; [`Session::channel_closed`] ends that.
    pub(crate) fn channel_opened(&self) {
        self.channels.send_modify(|open| *open += 1);
    }

    pub(crate) fn channel_closed(&self) {
        self.channels.send_modify(|open| *open -= 1);
        let closed = self.closed_channels.fetch_add(1, Ordering::Relaxed) + 1;
        if closed == CLOSED_CHANNELS_MAX && matches!(self.opener.get(), Some(Opener::Server(_))) {
            self.close(CloseReason::Refused { reason: "this tunnel has closed too many channels: reconnect".into() });
        }
    }

    /// How many channels are open or being opened by this side, as it changes.
    pub(crate) fn channels(&self) -> watch::Receiver<usize> {
        self.channels.subscribe()
    }

    pub(crate) fn closed_channels(&self) -> u64 {
        self.closed_channels.load(Ordering::Relaxed)
    }

    /// Refuses new channels from now on; those that are open live on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.calls_to_peer.retire();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// On an agent: asks the hub to open no more channels, and waits a moment for its answer.
    pub(crate) async fn take_no_calls(&self, limit: Duration) {
        if let Some(Opener::Client(handle)) = self.opener.get() {
            let cancelled = async {
                match self.dial_back() {
                    Some(DialBack::Port { address, port }) => handle.cancel_tcpip_forward(&**address, *port).await,
                    _ => handle.cancel_streamlocal_forward(self.path()).await,
                }
            };
            // A hub that does not answer learns of it from the channels that are refused.
            let _ = tokio::time::timeout(limit.min(GOODBYE), cancelled).await;
        }
    }

    /// Waits until no channel is open, nor being opened by this side, or the tunnel is gone.
    pub(crate) async fn drained(&self) {
        let mut channels = self.channels.subscribe();
        tokio::select! {
            _ = channels.wait_for(|open| *open == 0) => {}
            _ = self.closed() => {}
        }
    }

    /// Drains, and leaves the closing to the peer, whose opens may still be on their way; closes only when the peer does
    /// not within its `turn`, and at the latest after `limit`.
    pub(crate) async fn drain_and_be_closed(&self, limit: Duration, turn: Duration, reason: CloseReason) {
        self.drain();
        let idle = async {
            loop {
                self.drained().await;
                // A peer that does not close idle tunnels must not keep this one for long.
                let peer_closed = tokio::time::timeout(turn, self.closed()).await.is_ok();
                if peer_closed || *self.channels.borrow() == 0 {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limit, idle).await; // what is still open then is cut off
        self.close(reason);
        self.closed().await;
    }

    /// Drains, then closes: at once when nothing is open, at the latest after `limit`.
    pub(crate) async fn drain_and_close(&self, limit: Duration, reason: CloseReason) {
        self.drain();
        let _ = tokio::time::timeout(limit, self.drained()).await; // what is still open then is cut off
        self.close(reason);
        self.closed().await;
    }

    /// Ends the tunnel: says goodbye, and drops the connection when that takes too long. Returns at once.
    pub(crate) fn close(&self, reason: CloseReason) {
        if self.disconnected.borrow().is_some() {
            return;
        }
        self.carrier.blame(reason.clone());
        let farewell = match self.opener.get() {
            Some(Opener::Client(handle)) => Opener::Client(handle.clone()),
            Some(Opener::Server(handle)) => Opener::Server(handle.clone()),
            #[cfg(feature = "grpctunnel")]
            Some(Opener::Calls(_)) => return self.kill(reason),
            None => return self.kill(reason),
        };
        let carrier = self.carrier.clone();
        let mut ended = self.disconnected.subscribe();
        self.runtime.spawn(async move {
            let text = reason.farewell();
            let goodbye = async {
                // A session that is already gone needs no goodbye.
                let _ = match &farewell {
                    Opener::Client(h) => h.disconnect(russh::Disconnect::ByApplication, &text, "en").await,
                    Opener::Server(h) => {
                        h.disconnect(russh::Disconnect::ByApplication, text.clone(), "en".into()).await
                    }
                    #[cfg(feature = "grpctunnel")]
                    Opener::Calls(_) => Ok(()),
                };
                let _ = ended.wait_for(Option::is_some).await; // an error means the session is gone altogether
            };
            let _ = tokio::time::timeout(GOODBYE, goodbye).await;
            carrier.kill(reason);
        });
    }

    /// The tunnel has ended: tells everybody. The first call stands.
    pub(crate) fn finish(&self, reason: CloseReason) {
        let first = self.disconnected.send_if_modified(|gone| {
            let first = gone.is_none();
            gone.get_or_insert_with(|| Disconnected::now(reason.clone()));
            first
        });
        if first {
            self.span.in_scope(|| match &reason {
                CloseReason::ClosedLocally | CloseReason::Shutdown | CloseReason::Replaced => {
                    tracing::info!(%reason, "tunnel closed");
                }
                _ => tracing::warn!(%reason, "tunnel lost"),
            });
            self.ledger.close_all();
        }
    }

    /// Why and when the tunnel ended, as soon as it does.
    pub(crate) fn disconnected(&self) -> watch::Receiver<Option<Disconnected>> {
        self.disconnected.subscribe()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.disconnected.borrow().is_some()
    }

    /// Waits for the end.
    pub(crate) async fn closed(&self) -> Disconnected {
        let mut gone = self.disconnected.subscribe();
        let gone = gone.wait_for(Option::is_some).await.map(|gone| gone.clone());
        match gone {
            Ok(Some(gone)) => gone,
            // The sender lives as long as `self`.
            Ok(None) | Err(_) => Disconnected::now(CloseReason::ClosedLocally),
        }
    }

    /// What both handlers do with the ledger's word on a message.
    pub(super) fn obey(
        &self,
        verdict: Verdict,
        close: impl FnOnce(russh::ChannelId) -> Result<(), russh::Error>,
    ) -> Result<(), russh::Error> {
        match verdict {
            Verdict::Fine => Ok(()),
            Verdict::Close(id) => {
                self.span.in_scope(|| tracing::warn!(channel = id.number(), "channel closed: its queue grew too long"));
                close(id)
            }
            Verdict::Drop(id) => {
                self.span.in_scope(|| tracing::warn!(channel = id.number(), "queue dropped: nobody read it"));
                Ok(())
            }
            Verdict::End => {
                self.carrier.kill(CloseReason::Protocol { error: "more unread data than the tunnel's bound".into() });
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("agent", &self.agent)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
