//! The layer, and the handlers behind it.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tower_layer::Layer;

use super::{ConnStats, RpcStats};

/// Is told what connections and calls do.
///
/// Both methods run inline, in whatever task the event happens in: they must return quickly and must not block; hand
/// work that takes time to a task, through a bounded channel. Several threads call at the same time.
///
/// A handler that panics harms nobody: the panic is caught and logged as an error, other handlers are still told, and
/// the connection or call goes on. (Not if the program is built with `panic = "abort"`.)
pub trait StatsHandler: Send + Sync + 'static {
    /// Something happened to a connection. Does nothing by default.
    fn conn(&self, event: &ConnStats) {
        let _ = event; // named for the docs
    }

    /// Something happened to a call. Does nothing by default.
    fn rpc(&self, event: &RpcStats) {
        let _ = event; // named for the docs
    }

    /// Whether [`rpc`](Self::rpc) is of use; asked once, when the handler is given to a [`StatsLayer`].
    ///
    /// `true` by default. If no handler of a layer wants calls, the layer adds nothing to a call.
    fn wants_rpc(&self) -> bool {
        true
    }
}

impl<H: StatsHandler + ?Sized> StatsHandler for Arc<H> {
    fn conn(&self, event: &ConnStats) {
        (**self).conn(event);
    }

    fn rpc(&self, event: &RpcStats) {
        (**self).rpc(event);
    }

    fn wants_rpc(&self) -> bool {
        (**self).wants_rpc()
    }
}

/// Tells handlers what the connector, channel or server that it wraps does.
///
/// [`wrap`](Self::wrap) or [`Layer::layer`] wrap; clones are cheap and share the handlers, so one layer can go around
/// a connector and also around the channel that is built on it.
#[derive(Clone, Debug)]
pub struct StatsLayer {
    handlers: Handlers,
}

impl StatsLayer {
    /// A layer that tells `handler`. An `Arc<impl StatsHandler>` or `Arc<dyn StatsHandler>` is a handler too.
    pub fn new(handler: impl StatsHandler) -> Self {
        let none = Handlers { conn: Arc::new([]), rpc: Arc::new([]) };
        Self { handlers: none }.and(handler)
    }

    /// A layer that tells `handler` also, after those it has.
    #[must_use]
    pub fn and(self, handler: impl StatsHandler) -> Self {
        Self { handlers: self.handlers.and(Arc::new(handler)) }
    }

    /// `inner`, watched: the same as [`Layer::layer`], without a `use`.
    ///
    /// Around a `Service<Uri>` (a connector) it reports connections; around a `Service<http::Request>` (a channel)
    /// calls. To watch a server, pass the layer itself to `Server::builder().layer(…)`.
    pub fn wrap<S>(&self, inner: S) -> Stats<S> {
        Stats { inner, handlers: self.handlers.clone() }
    }
}

impl<S> Layer<S> for StatsLayer {
    type Service = Stats<S>;

    fn layer(&self, inner: S) -> Stats<S> {
        self.wrap(inner)
    }
}

/// A connector, channel or server that a [`StatsLayer`] watches.
///
/// It is ready when the inner service is, and buffers nothing. Around a channel its error type is
/// [`tonic::Status`], made by tonic's own rules, so that handlers and the caller agree on the code.
#[derive(Clone, Debug)]
pub struct Stats<S> {
    pub(super) inner: S,
    pub(super) handlers: Handlers,
}

/// All handlers of one layer; those that want calls are in both lists.
#[derive(Clone)]
pub(super) struct Handlers {
    conn: Arc<[Arc<dyn StatsHandler>]>,
    rpc: Arc<[Arc<dyn StatsHandler>]>,
}

impl Handlers {
    fn and(self, handler: Arc<dyn StatsHandler>) -> Self {
        let extend = |list: &[Arc<dyn StatsHandler>]| list.iter().chain([&handler]).cloned().collect();
        let wants_rpc = isolated(|| handler.wants_rpc()).unwrap_or(false);
        Self { conn: extend(&self.conn), rpc: if wants_rpc { extend(&self.rpc) } else { self.rpc } }
    }

    pub(super) fn want_rpc(&self) -> bool {
        !self.rpc.is_empty()
    }

    pub(super) fn conn(&self, event: &ConnStats) {
        for handler in self.conn.iter() {
            isolated(|| handler.conn(event));
        }
    }

    pub(super) fn rpc(&self, event: &RpcStats) {
        for handler in self.rpc.iter() {
            isolated(|| handler.rpc(event));
        }
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} handlers, {} of them for calls", self.conn.len(), self.rpc.len())
    }
}

/// Runs a handler so that its panic ends there: a connection's task, or a `drop`, must not unwind because of it.
fn isolated<T>(run: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(run))
        .map_err(|panic| tracing::error!("a stats handler panicked: {}", text(&*panic)))
        .ok()
}

fn text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
