//! The ways to open a channel.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use russh::{ChannelOpenFailure, client, server};
use tokio::sync::oneshot;

use super::{DialBack, Session, TUNNEL_PATH};
use crate::connector::DialError;
#[cfg(feature = "grpctunnel")]
use crate::grpctunnel::Caller;
use crate::ssh::client::ClientHandler;
use crate::ssh::io::TunnelIo;

/// Channel opens that may wait for the peer's answer at once; more wait in line.
pub(super) const PENDING_OPENS: usize = 64;

/// How a session's channels are opened, by side.
pub(crate) enum Opener {
    Client(Arc<client::Handle<ClientHandler>>),
    Server(server::Handle),
    /// It is none of SSH: it has no channels, and carries calls alone.
    #[cfg(feature = "grpctunnel")]
    Calls(Arc<Caller>),
}

impl Session {
    /// Opens a channel to the peer's tunnel service.
    ///
    /// The open itself runs in a task of its own: a cancelled open would harm the peer's session. Dropping this future
    /// leaves that task to finish, and the channel, if it comes, is closed.
    pub(crate) async fn open(self: &Arc<Self>) -> Result<TunnelIo, DialError> {
        // Before the look at `draining`: a drain that begins after it waits for this open.
        let Some(under_way) = UnderWay::new(self) else {
            return Err(DialError::TooManyChannels { agent: self.agent.clone(), limit: self.max_channels });
        };
        if let Some(gone) = self.disconnected.borrow().clone() {
            return Err(DialError::Disconnected { agent: self.agent.clone(), gone });
        }
        if self.draining.load(Ordering::Acquire) {
            return Err(DialError::Draining { agent: self.agent.clone() });
        }
        let (mut answer, opened) = oneshot::channel();
        let session = self.clone();
        self.runtime.spawn(async move {
            // Until the open is under way it may be given up, and is when the caller has left.
            let turn = tokio::select! {
                turn = session.opens.acquire() => turn,
                _ = session.closed() => return,
                () = answer.closed() => return,
            };
            let result = session.open_to_the_end(under_way).await;
            drop(turn);
            // Nobody may be waiting any more: then the channel is dropped here, which closes it.
            let _ = answer.send(result);
        });
        let limit = self.sleep(self.open_timeout);
        tokio::select! {
            biased;
            opened = opened => match opened {
                Ok(result) => result,
                Err(_) => Err(self.gone().await),
            },
            () = limit => Err(DialError::TimedOut { agent: self.agent.clone(), after: self.open_timeout }),
        }
    }

    async fn open_to_the_end(self: &Arc<Self>, under_way: UnderWay) -> Result<TunnelIo, DialError> {
        let Some(opener) = self.opener.get() else { return Err(self.gone().await) };
        let opened = match opener {
            Opener::Client(handle) => {
                let channel = handle.channel_open_direct_streamlocal(TUNNEL_PATH).await;
                channel.map(|channel| TunnelIo::from_client(self.clone(), channel))
            }
            Opener::Server(handle) => {
                let channel = match self.dial_back() {
                    Some(DialBack::Port { address, port }) => {
                        // Nobody dialled a port of this machine, so there is no originator to name.
                        handle.channel_open_forwarded_tcpip(&**address, *port, "127.0.0.1", 0).await
                    }
                    _ => handle.channel_open_forwarded_streamlocal(self.path()).await,
                };
                channel.map(|channel| TunnelIo::from_server(self.clone(), channel))
            }
            #[cfg(feature = "grpctunnel")]
            Opener::Calls(_) => {
                let reason = "it came by grpctunnel, which carries calls alone: use a channel, not a connector".into();
                return Err(DialError::Rejected { agent: self.agent.clone(), reason });
            }
        };
        // From here on the channel itself counts.
        drop(under_way);
        match opened {
            Ok(io) => Ok(io.holding()),
            Err(russh::Error::ChannelOpenFailure(reason)) => {
                Err(DialError::Rejected { agent: self.agent.clone(), reason: rejection(&reason) })
            }
            Err(_) => Err(self.gone().await),
        }
    }

    /// Waits until the tunnel has ended, then says so as a failed dial.
    async fn gone(&self) -> DialError {
        DialError::Disconnected { agent: self.agent.clone(), gone: self.closed().await }
    }
}

/// An open that is under way counts as a channel: a tunnel that is being drained must not end beneath it.
pub(super) struct UnderWay(Arc<Session>);

impl UnderWay {
    /// None when there are as many channels as there may be.
    pub(super) fn new(session: &Arc<Session>) -> Option<Self> {
        let below = session.channels.send_if_modified(|open| {
            let below = *open < session.max_channels;
            *open += usize::from(below);
            below
        });
        below.then(|| Self(session.clone()))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.channels.send_modify(|open| *open -= 1);
    }
}

/// An RFC 4254 §5.1 reason in words. Texts of the peer do not reach us here; codes do.
fn rejection(reason: &ChannelOpenFailure) -> String {
    match reason {
        ChannelOpenFailure::AdministrativelyProhibited => "administratively prohibited".into(),
        ChannelOpenFailure::ConnectFailed => "connect failed: is the service behind the agent running?".into(),
        ChannelOpenFailure::UnknownChannelType => "unknown channel type".into(),
        ChannelOpenFailure::ResourceShortage => {
            "resource shortage: too many channels are open or waiting, or the tunnel is closing".into()
        }
        ChannelOpenFailure::Other { code, .. } => format!("reason code {code}"),
    }
}
