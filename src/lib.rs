//! Call gRPC services behind NAT.

mod agent;
mod carrier;
mod channel;
mod close;
mod connector;
mod hub;
mod id;
mod incoming;
mod ssh;
pub mod stats;
pub mod tuning;
mod tunnel;

pub use agent::{Agent, AgentBuilder, AgentStatus, ConnectError};
pub use channel::{ResponseBody, TunnelChannel};
pub use close::{CloseReason, Disconnected};
pub use connector::{Connector, DialError};
pub use hub::{BindError, EventsError, Hub, HubBuilder, HubEvent, HubEvents, Tunnel, WaitError};
pub use id::{AgentId, InvalidAgentId};
pub use incoming::Incoming;
pub use ssh::{
    AllowedKeys, AuthError, AuthorizedKeys, AuthorizedKeysError, Authorizer, Certificate, CertificateProblem, Claim,
    Credential, Denied, FileLine, ForwardRequest, Grant, HostKeyError, HostKeys, HostKeysError, Identity,
    InvalidCertificate, InvalidPublicKey, KeyError, KnownHostsProblem, LineProblem, OfferedHostKey, PinnedKey,
    PrivateKey, PublicKey, TunnelIo,
};
pub use tuning::{tune_endpoint, tune_server};
pub use tunnel::{TunnelConnectInfo, TunnelId};
