//! Why an agent cannot connect.

use std::io;
use std::time::Duration;

use crate::id::InvalidAgentId;
use crate::labels::InvalidLabel;
use crate::ssh::{AuthError, HostKeyError, LoginError};

/// Why an agent cannot connect. [`is_transient`](ConnectError::is_transient) tells what time may cure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The text is not an agent id.
    #[error(transparent)]
    InvalidAgentId(#[from] InvalidAgentId),
    /// A label cannot be given.
    #[error(transparent)]
    InvalidLabel(#[from] InvalidLabel),
    /// The text names no hub.
    #[error("`{}` is not a hub's address: {why}", .given.escape_debug())]
    InvalidAddress {
        /// What was given, without what may be a secret.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nothing says how to recognise the hub.
    #[error("no host keys are set: call `host_keys(HostKeys::known_hosts(…)?)` or pin a fingerprint")]
    NoHostKeys,
    /// The hub's name has no address.
    #[error("cannot resolve `{host}`: check the hub's name and this machine's DNS")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The hub cannot be reached: refused, no route, or no answer.
    #[error("cannot reach {hub}: is the hub running, and is the port open on the way?")]
    Unreachable {
        /// The hub.
        hub: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The text names no proxy.
    #[error("the proxy that was set is none: {why}")]
    InvalidProxy {
        /// What is wrong with it; it may have a password in it, and is not shown.
        why: &'static str,
    },
    /// The proxy on the way out did not connect to the hub.
    #[error("the proxy {proxy} did not connect to {hub}: {why}")]
    Proxy {
        /// The hub.
        hub: String,
        /// The proxy, without user and password.
        proxy: String,
        /// What it said, or what to do.
        why: String,
        /// Whether trying again may help.
        is_transient: bool,
    },
    /// TLS with the hub, or with what stands before it, failed.
    #[cfg(feature = "websocket")]
    #[error(
        "TLS with {hub} failed: is its certificate valid, and for this name? For an authority of your own, call `tls_roots(file)`"
    )]
    Tls {
        /// The hub.
        hub: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The file with authorities of your own cannot be used.
    #[cfg(feature = "websocket")]
    #[error(transparent)]
    TlsRoots(#[from] crate::tls::TlsError),
    /// The server there opens no WebSocket.
    #[cfg(feature = "websocket")]
    #[error("{hub} opened no WebSocket, {why}: is the path right, and does every proxy before it pass upgrades on?")]
    NotWebSocket {
        /// The hub.
        hub: String,
        /// The HTTP status, if it was HTTP.
        status: Option<u16>,
        /// What was answered.
        why: String,
    },
    /// A step of the login took too long.
    #[error("{hub} did not finish the {step} within {after:?}")]
    TimedOut {
        /// The hub.
        hub: String,
        /// The step.
        step: &'static str,
        /// The deadline for the whole login.
        after: Duration,
    },
    /// Whatever listens there does not speak SSH.
    #[error("{hub} does not speak SSH: is this the hub's port?")]
    NotSsh {
        /// The hub.
        hub: String,
    },
    /// The two sides have no algorithm in common.
    #[error("{hub} shares no algorithm with this agent: {detail}")]
    NoCommonAlgorithm {
        /// The hub.
        hub: String,
        /// Which kind, and who offered what.
        detail: String,
    },
    /// The hub does not know strict key exchange, which keeps a man in the middle from cutting messages out.
    #[error("{hub} does not support strict key exchange (CVE-2023-48795): update its SSH server")]
    NotStrict {
        /// The hub.
        hub: String,
    },
    /// The hub's key is not the one that is expected.
    #[error("the host key of {hub} was not accepted")]
    HostKey {
        /// The hub.
        hub: String,
        /// Who, where, expected and got.
        source: Box<HostKeyError>,
    },
    /// The hub does not let this agent in, or the agent could not sign.
    #[error("{hub} did not let `{user}` in")]
    Auth {
        /// The hub.
        hub: String,
        /// The agent id.
        user: String,
        /// Why.
        source: Box<AuthError>,
    },
    /// The hub let the agent in but does not dial back through `/grpc-tunnel`.
    #[error(
        "{hub} refused the forward request for /grpc-tunnel: if it dials back with channels of type `grpc-tunnel`, set `forward_request(ForwardRequest::Optional)`"
    )]
    ForwardRefused {
        /// The hub.
        hub: String,
    },
    /// The text is nothing that a server could listen on.
    #[error("`{}` is not what a server can listen on: {why}", .given.escape_debug())]
    InvalidRemote {
        /// What was given.
        given: String,
        /// How to write it.
        why: &'static str,
    },
    /// The server let the agent in but does not listen where it was asked to.
    #[error(
        "{hub} refused to listen on {remote}: may this user do that there (sshd: AllowStreamLocalForwarding, AllowTcpForwarding, permitlisten), and is it free? For a socket that an earlier connection left behind, set `StreamLocalBindUnlink yes` in sshd_config"
    )]
    RemoteRefused {
        /// The server.
        hub: String,
        /// What it was asked for.
        remote: String,
    },
    /// The hub ended the connection, and said why.
    #[error("{hub} ended the connection: {message}")]
    Disconnected {
        /// The hub.
        hub: String,
        /// What it said, escaped.
        message: String,
    },
    /// The connection failed during the login.
    #[error("the connection to {hub} failed during the {step}")]
    Failed {
        /// The hub.
        hub: String,
        /// The step.
        step: &'static str,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The agent was shut down meanwhile.
    #[error("the agent was shut down")]
    Stopped,
}

impl ConnectError {
    /// Whether trying again may help with nothing changed on this machine: the network or the hub may come back. What
    /// is misconfigured stays so.
    pub fn is_transient(&self) -> bool {
        #[cfg(feature = "websocket")]
        if let Self::NotWebSocket { status, .. } = self {
            // A proxy whose hub is away, or that has too much to do.
            return status.is_some_and(|status| status >= 500 || status == 429 || status == 408);
        }
        matches!(
            self,
            Self::Resolve { .. }
                | Self::Unreachable { .. }
                | Self::TimedOut { .. }
                | Self::Disconnected { .. }
                | Self::Failed { .. }
                | Self::Proxy { is_transient: true, .. }
                // An earlier connection may still hold it.
                | Self::RemoteRefused { .. }
        )
    }

    pub(crate) fn from_login(error: LoginError, hub: &str, user: &str) -> Self {
        let hub = hub.to_owned();
        match error {
            LoginError::NotSsh => Self::NotSsh { hub },
            LoginError::NoCommonAlgorithm(detail) => Self::NoCommonAlgorithm { hub, detail },
            LoginError::NotStrict => Self::NotStrict { hub },
            LoginError::HostKey(source) => Self::HostKey { hub, source: Box::new(source) },
            LoginError::Auth(source) => Self::Auth { hub, user: user.to_owned(), source: Box::new(source) },
            LoginError::ForwardRefused { remote: None } => Self::ForwardRefused { hub },
            LoginError::ForwardRefused { remote: Some(remote) } => {
                Self::RemoteRefused { hub, remote: remote.to_string() }
            }
            LoginError::Disconnected { message } => Self::Disconnected { hub, message },
            LoginError::TimedOut { step, after } => Self::TimedOut { hub, step, after },
            LoginError::Failed { step, source } => Self::Failed { hub, step, source: Box::new(source) },
        }
    }
}
