//! Calls in flight, and what they count for.

#[cfg(feature = "grpctunnel")]
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Session;
#[cfg(feature = "grpctunnel")]
use super::open::UnderWay;
#[cfg(feature = "grpctunnel")]
use crate::close::Disconnected;
use crate::connector::DialError;
use crate::unread::Unread;

impl Session {
    /// Ties the tunnel to its agent's limits.
    pub(crate) fn set_account(&self, account: Arc<Account>) {
        self.ledger.share(account.unread.clone());
        #[cfg(feature = "grpctunnel")]
        if let Some(caller) = self.caller() {
            caller.share(account.unread.clone());
        }
        let _ = self.account.set(account); // set once, by the hub that admits it
    }

    /// Counts a call, until what is returned is dropped.
    pub(crate) fn begin_call(self: &Arc<Self>) -> Result<Call, DialError> {
        if let Some(account) = self.account.get() {
            let limit = account.max_calls;
            if account.calls.fetch_add(1, Ordering::Relaxed) >= limit {
                account.calls.fetch_sub(1, Ordering::Relaxed);
                return Err(DialError::TooManyCalls { agent: self.agent.clone(), limit });
            }
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(Call(self.clone()))
    }

    /// Where there are no channels: the call has one of its own, which a drain waits for.
    #[cfg(feature = "grpctunnel")]
    pub(crate) fn begin_own(self: &Arc<Self>) -> Result<OwnChannel, DialError> {
        // Before the look at `draining`: a drain that begins after it waits for this call.
        let Some(own) = UnderWay::new(self) else {
            return Err(DialError::TooManyChannels { agent: self.agent.clone(), limit: self.max_channels });
        };
        if let Some(gone) = self.disconnected.borrow().clone() {
            return Err(DialError::Disconnected { agent: self.agent.clone(), gone });
        }
        if let Some(reason) = self.caller().and_then(|caller| caller.ended()) {
            return Err(DialError::Disconnected { agent: self.agent.clone(), gone: Disconnected::now(reason) });
        }
        if self.is_draining() {
            return Err(DialError::Draining { agent: self.agent.clone() });
        }
        Ok(OwnChannel { _counted: own })
    }

    /// How many calls are in flight.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

/// What all tunnels of one agent share on a hub.
#[derive(Debug)]
pub(crate) struct Account {
    calls: AtomicUsize,
    max_calls: usize,
    unread: Arc<Unread>,
}

impl Account {
    /// With a limit on calls in flight, and one on bytes that were received and not read.
    pub(crate) fn new(max_calls: usize, max_unread: usize) -> Self {
        Self { calls: AtomicUsize::new(0), max_calls, unread: Arc::new(Unread::new(max_unread)) }
    }
}

/// A call in flight; dropping it ends the counting.
#[derive(Debug)]
pub(crate) struct Call(Arc<Session>);

impl Call {
    /// The tunnel it takes.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
        if let Some(account) = self.0.account.get() {
            account.calls.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// See [`Session::begin_own`].
#[cfg(feature = "grpctunnel")]
pub(crate) struct OwnChannel {
    _counted: UnderWay,
}

#[cfg(feature = "grpctunnel")]
impl fmt::Debug for OwnChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnChannel").finish_non_exhaustive()
    }
}
