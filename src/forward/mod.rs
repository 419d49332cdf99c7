//! At an agent: passes what a hub calls on to local gRPC servers of any language.

mod local;
mod rule;
#[cfg(feature = "grpctunnel")]
mod service;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use http::header::HOST;
use http::request::Parts;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

use self::local::Local;
use self::rule::{Matches, Rule};
use crate::http2::{Exchange, Gathered, Held, Serving, address, refuse, serve, strip_hop_by_hop};
use crate::incoming::Incoming;
use crate::tuning;

/// What may wait for slow readers, in all calls together, in bytes.
const MAX_HELD: usize = 256 << 20;

/// What a hub may do on one connection: as with a server that [`tune_server`](crate::tune_server) has set up.
const SERVING: Serving = Serving {
    max_streams: tuning::HTTP2_MAX_CONCURRENT_STREAMS,
    max_header_list: tuning::HTTP2_MAX_HEADER_LIST,
    max_frame: tuning::HTTP2_MAX_FRAME_SIZE,
    stream_window: tuning::HTTP2_STREAM_WINDOW,
    connection_window: tuning::HTTP2_CONNECTION_WINDOW,
};

/// Local gRPC servers of any language that an agent stands beside: what the hub calls goes on to them, byte for byte, and
/// what they answer goes back. Cloning is cheap; clones are the same.
///
/// ```no_run
/// # async fn run(agent: dialback::Agent) -> Result<(), Box<dyn std::error::Error>> {
/// use dialback::Forwards;
///
/// let forwards = Forwards::new(["127.0.0.1:50051", "metrics.v1.*=unix:/run/metrics.sock"])?;
/// forwards.serve(agent.incoming()).await; // until the agent is shut down
/// # Ok(()) }
/// ```
///
/// # Which server
/// Each rule is an address, or `SERVICE=ADDRESS` for the calls of one service:
///
/// | rule | takes |
/// |---|---|
/// | `127.0.0.1:50051` | what no other rule takes |
/// | `greeter.v1.Greeter=127.0.0.1:50052` | that service |
/// | `greeter.*=unix:/run/greeter.sock` | the services whose names begin with `greeter.` |
///
/// The longest match counts. A call that no rule takes is answered UNIMPLEMENTED. Reflection and health are services like
/// others: where there are several servers, `grpc.reflection` and `grpc.health` go to the one that takes what no other
/// rule takes, unless a rule names them.
///
/// | address | is |
/// |---|---|
/// | `127.0.0.1:50051`, `http://host:port` | HTTP/2 over TCP, without TLS (h2c) |
/// | `unix:/run/app.sock` | the same on a Unix socket |
/// | `https://host:port` | TLS; the server's certificate has to name the host and be by an authority of the system's or of [`ForwardTls::roots`]; one that asks for a certificate is shown [`ForwardTls::client_certificate`] |
///
/// # What is passed on
/// Everything as it comes: messages, headers, trailers, resets, in both directions. Deadlines are the caller's and the
/// server's business. The authority becomes the server's own address (`localhost` on a Unix socket), and headers of one
/// hop are removed. A reader that is slow makes its sender wait; where 256 MiB wait for slow readers altogether, one that
/// takes less than 64 KiB in a second loses its call.
///
/// # Connections
/// The first call connects. Calls share the connections, which stay until the server ends them; the next call connects
/// anew. While a server cannot be reached, calls to it end UNAVAILABLE with its address and the reason, at once or after
/// 10 s.
#[derive(Clone)]
pub struct Forwards(Arc<Shared>);

struct Shared {
    table: RwLock<Arc<Table>>,
    held: Arc<Held>,
}

/// The rules in force.
struct Table {
    rules: Vec<(Matches, Arc<Local>)>,
}

/// What the TLS of local servers goes by, for [`Forwards::with_tls`]. The files are PEM, and read at each connection.
#[derive(Debug, Clone, Default)]
pub struct ForwardTls {
    roots: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl ForwardTls {
    /// The system's authorities, and no certificate of the agent's own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Authorities that the servers may be certified by, beside those that the system trusts.
    #[must_use]
    pub fn roots(mut self, file: impl Into<PathBuf>) -> Self {
        self.roots = Some(file.into());
        self
    }

    /// What the agent shows to servers that ask for a certificate, and the key of it.
    #[must_use]
    pub fn client_certificate(mut self, certificates: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificates.into(), key.into()));
        self
    }
}

/// Why a rule is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The text is no rule.
    #[error("`{}` cannot be forwarded to: {why}", .given.escape_debug())]
    Invalid {
        /// What was given.
        given: String,
        /// How to write it.
        why: &'static str,
    },
    /// Two rules take the same calls.
    #[error("`{first}` and `{second}` take the same calls: which is it?")]
    Twice {
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// There is none.
    #[error("there is nowhere to forward calls to: give an address, such as 127.0.0.1:50051")]
    None,
}

impl Forwards {
    /// Reads the rules. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ForwardError`]: one is not a rule, or two take the same calls, or there is none.
    pub fn new<R: AsRef<str>>(rules: impl IntoIterator<Item = R>) -> Result<Self, ForwardError> {
        Self::with_tls(rules, ForwardTls::default())
    }

    /// As [`new`](Self::new), with more said of servers at `https://`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_tls<R: AsRef<str>>(rules: impl IntoIterator<Item = R>, tls: ForwardTls) -> Result<Self, ForwardError> {
        let mut table: Vec<(Matches, Arc<Local>)> = Vec::new();
        for given in rules {
            let given = given.as_ref().to_owned();
            let rule = Rule::parse(&given).map_err(|why| ForwardError::Invalid { given: given.clone(), why })?;
            if let Some((_, other)) = table.iter().find(|(matches, _)| *matches == rule.matches) {
                return Err(ForwardError::Twice { first: other.given.clone(), second: given });
            }
            let local = Local::new(given, rule.place, tls.clone());
            table.push((rule.matches, Arc::new(local)));
        }
        if table.is_empty() {
            return Err(ForwardError::None);
        }
        // The longest match first.
        table.sort_by_key(|(matches, _)| std::cmp::Reverse(matches.weight()));
        let table = RwLock::new(Arc::new(Table { rules: table }));
        Ok(Self(Arc::new(Shared { table, held: Arc::new(Held::new(MAX_HELD)) })))
    }

    fn table(&self) -> Arc<Table> {
        self.0.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over the rules of another, for the calls that come from now on; those in flight stay where they are.
    pub fn replace(&self, with: &Self) {
        *self.0.table.write().unwrap_or_else(PoisonError::into_inner) = with.table();
    }

    /// Connects to each server once, to see whether one can, and speaks to none: each rule, and what is in the way.
    ///
    /// # Cancel safety
    /// Safe: dropping the future drops the connections.
    pub async fn check(&self, limit: Duration) -> Vec<(String, io::Result<()>)> {
        let table = self.table();
        let checks = table.rules.iter().map(|(_, local)| async {
            let reached = local.dial(limit).await.map(drop);
            (local.given.clone(), reached)
        });
        futures_util::future::join_all(checks).await
    }

    /// Serves the channels that a hub opens, until the agent shuts down: then it takes no more calls, and returns when those
    /// in flight have ended.
    ///
    /// # Cancel safety
    /// Dropping the future ends every call at once.
    pub async fn serve(&self, mut incoming: Incoming) {
        let draining = watch::Sender::new(false);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(_) = connections.join_next() => {}
                accepted = incoming.next() => match accepted {
                    Some(Ok(io)) => {
                        let (this, mut draining) = (self.clone(), draining.subscribe());
                        connections.spawn(async move {
                            let call = |request, respond| this.clone().pass_on(request, respond);
                            let told = async { _ = draining.wait_for(|draining| *draining).await };
                            if let Err(error) = serve(io, &SERVING, call, told, std::future::pending()).await {
                                tracing::debug!(error, "a hub's connection ended");
                            }
                        });
                    }
                    Some(Err(error)) => tracing::debug!(%error, "a channel could not be taken"),
                    None => break,
                },
            }
        }
        draining.send_replace(true);
        while connections.join_next().await.is_some() {}
    }

    /// The server for a call, whose head is made ready for it.
    fn find(&self, head: &mut Parts) -> Result<Arc<Local>, Status> {
        // One slash and no more, as the gateway's policies have it.
        let path = head.uri.path();
        let service = path.strip_prefix('/').and_then(|name| name.split('/').next()).unwrap_or_default();
        let table = self.table();
        let Some((_, local)) = table.rules.iter().find(|(matches, _)| matches.takes(service)) else {
            let text = format!("this agent forwards no service `{}`", service.escape_debug());
            return Err(Status::unimplemented(text));
        };
        strip_hop_by_hop(&mut head.headers);
        // The authority says it.
        head.headers.remove(HOST);
        head.uri = address(std::mem::take(&mut head.uri), local.scheme.clone(), &local.authority);
        Ok(local.clone())
    }

    async fn pass_on(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (mut head, body) = request.into_parts();
        let local = match self.find(&mut head) {
            Ok(local) => local,
            Err(status) => return refuse(status, &mut respond),
        };
        let mut body = Gathered::new(body, vec![self.0.held.clone()]);
        let placed = tokio::select! {
            biased;
            placed = local.place() => placed,
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
            // The way to the server may take its time.
            _ = body.gather() => return,
        };
        match placed {
            Ok((sender, lease)) => {
                let exchange = Exchange {
                    lease,
                    sender,
                    callee: "the local server",
                    deadline: None,
                    idle: None,
                    // As long as it likes: a handler may stop to think.
                    stall: Duration::MAX,
                    held: &self.0.held,
                    trailers: |_| {},
                    failed: |error| local.failed(error),
                };
                exchange.run(head, body, respond).await;
            }
            Err(error) => {
                tracing::warn!(to = %local.given, error = %error, "call not forwarded");
                refuse(Status::unavailable(error), &mut respond);
            }
        }
    }
}

impl fmt::Debug for Forwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.table().rules.iter().map(|(_, local)| &local.given)).finish()
    }
}
