//! HTTP/2 calls through a tunnel, on h2 itself: who owns each stream's queue decides what a slow reader costs.

mod awaited;
mod body;
mod connection;
mod given;
mod headers;
mod held;
mod keep_alive;
mod placed;
#[cfg(feature = "gateway")]
mod relay;
mod upload;

pub(crate) use self::body::ReceivedBody;
pub(crate) use self::connection::{Connections, Lease};
pub(crate) use self::given::Given;
pub(crate) use self::headers::{strip_hop_by_hop, timeout_of};
#[cfg(feature = "gateway")]
pub(crate) use self::held::Held;
#[cfg(feature = "gateway")]
pub(crate) use self::keep_alive::keep_alive;
pub(crate) use self::placed::{Placed, Way, address, failed};
#[cfg(feature = "gateway")]
pub(crate) use self::relay::{Gathered, Relay, Relayed};
#[cfg(all(feature = "gateway", feature = "grpctunnel"))]
pub(crate) use self::relay::{Shared as SharedSource, SharedBody};
pub(crate) use self::upload::Upload;
