//! The only place that names russh.

mod allowed_keys;
mod authorized_keys;
mod authorizer;
mod client;
mod config;
mod greeting;
mod host_keys;
mod identity;
mod io;
mod key;
mod known_hosts;
mod ledger;
mod read_ahead;
mod server;
mod session;
mod write_behind;

pub use self::allowed_keys::AllowedKeys;
pub use self::authorized_keys::certificate::{Certificate, InvalidCertificate};
pub use self::authorized_keys::{AuthorizedKeys, AuthorizedKeysError, LineProblem};
pub use self::authorizer::{Authorizer, Claim, Credential, Denied, Grant, Revocation};
pub use self::client::ForwardRequest;
pub use self::host_keys::{
    CertificateProblem, FileLine, HostKeyError, HostKeys, HostKeysError, KnownHostsProblem, OfferedHostKey, PinnedKey,
};
pub use self::identity::{AuthError, Identity};
pub use self::io::TunnelIo;
pub use self::key::{InvalidPublicKey, KeyError, PrivateKey, PublicKey};

pub(crate) use self::authorized_keys::sources::Sources;
pub(crate) use self::client::{LoggedIn, Login, LoginError, connect};
pub(crate) use self::config::{LoginConfig, TunnelConfig, seat_in, server as server_config};
pub(crate) use self::server::{Door, Gate, Progress, Proof, Turned, Welcome, serve};
pub(crate) use self::session::{Account, Call, DialBack, RENEW_AFTER, Session, SessionParts};
#[cfg(feature = "grpctunnel")]
pub(crate) use self::session::{Opener, OwnChannel};
