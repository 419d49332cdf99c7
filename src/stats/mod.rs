//! See what connections and calls do: how many, how long, how they ended.
//!
//! This is gRPC-Go's `stats.Handler`, in the terms of tower and tonic. A [`StatsHandler`] is told about every
//! connection and every call; a [`StatsLayer`] is what tells it. The layer wraps a **connector** (what
//! `Endpoint::connect_with_connector` takes) and then reports [`ConnStats`], or a **channel** or a whole tonic
//! **server** and then reports [`RpcStats`]. A [`DisconnectDetector`] is a ready-made handler that says on a
//! `tokio::sync::watch` channel that the other side is gone, why and when.
//!
//! ```no_run
//! # use tower::service_fn;
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! # let connector = service_fn(|_: http::Uri| async {
//! #     tokio::net::TcpStream::connect("127.0.0.1:50051").await.map(hyper_util::rt::TokioIo::new)
//! # });
//! use dialback::stats::{ConnState, DisconnectDetector, StatsLayer};
//!
//! let detector = DisconnectDetector::new();
//! let mut state = detector.subscribe();
//! let stats = StatsLayer::new(detector);
//!
//! let endpoint = tonic::transport::Endpoint::from_static("http://laptop-1");
//! let channel = endpoint.connect_with_connector(stats.wrap(connector)).await?;
//! // … make calls on `channel`; elsewhere:
//! let gone = state.wait_for(|state| matches!(state, ConnState::Disconnected { .. })).await?;
//! println!("{}", *gone);
//! # Ok(())
//! # }
//! ```
//!
//! # From gRPC-Go
//!
//! | gRPC-Go | here |
//! |---|---|
//! | `grpc.WithStatsHandler(h)` | `StatsLayer::new(h)`, wrapped around the connector, and around the channel |
//! | `grpc.StatsHandler(h)` | `Server::builder().layer(StatsLayer::new(h))` |
//! | `HandleConn`, `ConnBegin`, `ConnEnd` | [`StatsHandler::conn`], [`ConnStats::Begin`], [`ConnStats::End`] |
//! | `HandleRPC`, `Begin`, `End` | [`StatsHandler::rpc`], [`RpcStats::Begin`], [`RpcStats::End`] |
//! | `OutPayload` of a client, `InPayload` of a server | [`RpcStats::RequestMessage`] |
//! | `InHeader` of a client, `OutHeader` of a server | [`RpcStats::ResponseHeaders`] |
//! | `InPayload` of a client, `OutPayload` of a server | [`RpcStats::ResponseMessage`] |
//! | `TagConn`, `TagRPC` | [`ConnId`], [`RpcId`]: keep what you know about one under its id |
//!
//! Events carry no headers, because headers carry credentials and events end up in logs.
//!
//! # Cost
//!
//! A connection costs nothing per read or write but two additions. A call costs nothing while no handler
//! [wants](StatsHandler::wants_rpc) calls; otherwise two allocations, and whatever the handlers do.

mod conn;
mod detector;
mod event;
mod layer;
mod messages;
mod rpc;

#[cfg(test)]
mod tests;

pub use conn::{StatsDial, StatsIo};
pub use detector::{ConnState, DisconnectDetector};
pub use event::{ConnEnd, ConnId, ConnStats, RpcId, RpcStats, Traffic};
pub use layer::{Stats, StatsHandler, StatsLayer};
#[cfg(feature = "gateway")]
pub(crate) use messages::Messages;
#[cfg(feature = "grpctunnel")]
pub(crate) use rpc::code_of_http;
pub use rpc::{StatsBody, StatsCall};
