//! The hub's front door for ordinary gRPC clients of any language.

mod accept;
mod builder;
mod call;
mod callers;
mod limits;
mod policy;
mod services;
mod target;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

pub use self::builder::{GatewayBuilder, GatewayError};
pub use self::call::CALLER_METADATA;
pub use self::callers::{PolicyFile, PolicyFileError};
pub use self::policy::{CallerName, Policy, PolicyError};
pub use self::target::AGENT_METADATA;
pub use crate::tls::TlsError;

/// The hub's own API, as the gateway serves it: messages, and a client for any tonic channel. `proto/hub.proto` says what
/// they mean.
#[allow(clippy::missing_errors_doc, clippy::use_self, missing_docs, unreachable_pub)]
pub mod proto {
    include!("../../proto/gen/dialback.v1.rs");
}

/// How far a gateway is with ending; it never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// No new connections and no new calls; those in flight go on.
    Draining,
    Closed,
}

/// The hub's front door for ordinary gRPC clients of any language: calls come in over HTTP/2 and go on to the agent that
/// they name, byte for byte.
///
/// ```no_run
/// # async fn run(hub: dialback::Hub) -> Result<(), Box<dyn std::error::Error>> {
/// use dialback::gateway::{Gateway, PolicyFile};
///
/// let gateway = Gateway::builder(&hub)
///     .suffix("agents.example.com")
///     .policy(PolicyFile::open("policy.toml")?)
///     .tls("gateway.crt", "gateway.key")
///     .bind("0.0.0.0:443")
///     .await?;
/// # Ok(()) }
/// ```
///
/// # Naming an agent
/// A call is for the agent that its metadata `dialback-agent` names ([`AGENT_METADATA`]), or its authority: `<id>.<suffix>`,
/// or the id alone. `localhost`, an address and the suffix itself name no agent, and neither does a name with dots that no
/// agent has. An absent or ambiguous name is answered INVALID_ARGUMENT, an unknown one NOT_FOUND, and an agent that is away
/// UNAVAILABLE with the time since when.
///
/// # What is passed on
/// Everything, in both directions and as it comes: messages, headers, trailers, resets. A deadline holds here too. Removed
/// are headers of one hop, all metadata that begins with `dialback-`, and the `authorization` that proved who the caller
/// is to this gateway. Added is `dialback-caller`, the caller's name by the [`Policy`]. A reader that is slow makes its
/// sender wait, and one that takes nothing for 30 s loses its call, and that alone.
///
/// # The gateway's own services
/// `dialback.v1.Hub` ([`proto`]), and without a target `grpc.health.v1.Health` and `grpc.reflection`. Health is asked of
/// the gateway with an empty service name, and of an agent with its id. With a target, health and reflection are the
/// agent's.
///
/// # Who may call
/// Without a [`PolicyFile`] only a loopback address can be listened on. With one, everything that it does not allow is
/// denied; an agent that a caller may not call looks like one that does not exist.
///
/// # Dropping
/// Closes the listener and cuts off every call. [`Gateway::shutdown`] is the polite way.
pub struct Gateway {
    local_addr: SocketAddr,
    stage: watch::Sender<Stage>,
    listener: Mutex<Option<JoinHandle<()>>>,
    abort: tokio::task::AbortHandle,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The listener's task owns every connection's.
        self.abort.abort();
    }
}

impl Gateway {
    /// The address that the gateway listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Ends the gateway politely: takes no new connections, tells every client to send no more calls (GOAWAY), and waits
    /// for those in flight. The end of `grace`, or a second call, cuts them off. Shut the hub down after it, not before.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the gateway draining; call it again, or drop the gateway, to end it.
    pub async fn shutdown(&self, grace: Duration) {
        self.stage.send_modify(|stage| {
            *stage = if *stage == Stage::Open { Stage::Draining } else { Stage::Closed };
        });
        let mut listener = self.listener.lock().await;
        if let Some(task) = &mut *listener {
            if tokio::time::timeout(grace, &mut *task).await.is_err() {
                self.stage.send_replace(Stage::Closed);
                task.abort();
                let _ = task.await; // it was just aborted
            }
            *listener = None;
        }
        tracing::info!(address = %self.local_addr, "gateway shut down");
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}
