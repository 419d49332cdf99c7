//! [`Incoming`]: the channels that the peer opens, as a stream for tonic.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc;

use crate::ssh::TunnelIo;

/// Channels that were accepted and not yet taken; more are refused with "resource shortage".
const BACKLOG: usize = 128;

/// The channels that the peer opens, for tonic's `serve_with_incoming_shutdown`.
///
/// Outlives reconnects; ends when its agent or hub shuts down (tonic then finishes the calls in flight) and when a
/// later call of `incoming()` takes over. It never yields an error.
///
/// # Dropping
/// Refuses channels from then on.
///
/// # Cancel safety
/// Like every stream: a channel is only taken by the poll that returns it.
pub struct Incoming(mpsc::Receiver<TunnelIo>);

impl Stream for Incoming {
    type Item = io::Result<TunnelIo>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|io| io.map(Ok))
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

/// Why a channel cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Nobody serves.
    NoServer,
    /// The server is behind.
    Full,
}

/// Where sessions put the channels that were opened by the peer.
pub(crate) struct Acceptor(Mutex<State>);

struct State {
    sender: Option<mpsc::Sender<TunnelIo>>,
    /// The first `Incoming`, until it is asked for: channels may arrive before.
    first: Option<Incoming>,
}

impl Acceptor {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        Self(Mutex::new(State { sender: Some(sender), first: Some(Incoming(receiver)) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream of channels from now on; an older one ends. After [`Acceptor::close`] it is empty.
    pub(crate) fn incoming(&self) -> Incoming {
        let mut state = self.state();
        if let Some(first) = state.first.take() {
            return first;
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        if state.sender.is_some() {
            state.sender = Some(sender);
        }
        Incoming(receiver)
    }

    /// Ends the stream. Channels that wait for a stream nobody has asked for are closed.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.sender = None;
        state.first = None;
    }

    /// Reserves the place for one channel.
    pub(crate) fn reserve(&self) -> Result<mpsc::OwnedPermit<TunnelIo>, NotTaken> {
        let sender = self.state().sender.clone().ok_or(NotTaken::NoServer)?;
        sender.try_reserve_owned().map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Full,
            mpsc::error::TrySendError::Closed(_) => NotTaken::NoServer,
        })
    }
}
