//! HTTP/2 calls through a tunnel, on h2 itself: who owns each stream's queue decides what a slow reader costs.

mod ask;
mod awaited;
mod body;
mod connection;
#[cfg(feature = "gateway")]
mod exchange;
mod given;
mod headers;
mod held;
mod keep_alive;
mod placed;
#[cfg(feature = "gateway")]
mod relay;
#[cfg(feature = "gateway")]
mod serve;
mod upload;

pub(crate) use self::ask::{Hold, ask};
pub(crate) use self::body::ReceivedBody;
pub(crate) use self::connection::{Connections, Lease};
#[cfg(feature = "gateway")]
pub(crate) use self::connection::{Unconnected, Usage, begin};
#[cfg(feature = "gateway")]
pub(crate) use self::exchange::{Clock, Exchange, Rings, end, expired, reached, refuse};
#[cfg(all(feature = "gateway", feature = "grpctunnel"))]
pub(crate) use self::exchange::{headers_of, stalled};
pub(crate) use self::headers::{strip_hop_by_hop, timeout_of};
#[cfg(feature = "gateway")]
pub(crate) use self::held::Held;
pub(crate) use self::placed::{Placed, Way, address, failed};
#[cfg(feature = "gateway")]
pub(crate) use self::relay::Gathered;
#[cfg(all(feature = "gateway", feature = "grpctunnel"))]
pub(crate) use self::relay::{Relayed, Shared as SharedSource, SharedBody};
#[cfg(feature = "gateway")]
pub(crate) use self::serve::{Ended, Serving, serve};
#[cfg(feature = "gateway")]
pub(crate) use self::upload::Upload;
