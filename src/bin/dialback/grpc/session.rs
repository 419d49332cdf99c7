//! What every command does around its work: read who is asked, dial, watch the clock and Ctrl-C, and close.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::args::{MetadataArgs, SchemaArgs, ServerArgs};
use super::dial::{Connection, dial};
use super::metadata::Metadata;
use super::schema::{Reflection, Schema};
use super::target::Target;
use crate::failure::Failure;

/// A server to be asked, and what is known of its schema.
pub(super) struct Session {
    pub(super) target: Target,
    pub(super) metadata: Metadata,
    pub(super) deadline: Option<Deadline>,
    pub(super) connection: Connection,
}

/// When `-max-time` is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) limit: Duration,
    pub(super) at: Instant,
}

impl Deadline {
    fn of(server: &ServerArgs) -> Option<Self> {
        server.max_time.filter(|limit| !limit.is_zero()).map(|limit| Self { limit, at: Instant::now() + limit })
    }

    /// What the server is told. A little more than what is left: tonic has a clock of its own for it, which must not be
    /// the first, as it gives another status.
    pub(super) fn told(self) -> Duration {
        let left = self.at.saturating_duration_since(Instant::now());
        // It is sent in units that grow with it.
        left + if left < Duration::from_secs(3600) { Duration::from_millis(1) } else { Duration::from_secs(60) }
    }

    /// Waits for a call, or ends it when its time is over. The deadline is looked at first.
    pub(super) async fn or_status<T>(deadline: Option<Self>, work: impl Future<Output = T>) -> Result<T, Status> {
        let Some(Self { limit, at }) = deadline else { return Ok(work.await) };
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(at) => {
                Err(Status::deadline_exceeded(format!("not done within {limit:?} (-max-time)")))
            }
            done = work => Ok(done),
        }
    }
}

impl Session {
    /// Dials a server.
    pub(super) async fn open(target: Target, metadata: &MetadataArgs, server: &ServerArgs) -> Result<Self, Failure> {
        // The environment's token is for hubs, and for no other server that is called from the same shell.
        let is_hub = metadata.agent.is_some() || server.gateway.as_deref() == Some(&*target.text);
        let metadata = Metadata::read(metadata, is_hub)?;
        let deadline = Deadline::of(server);
        let connection = in_time(deadline, dial(&target, server)).await?;
        Ok(Self { target, metadata, deadline, connection })
    }

    /// What the arguments say of the schema, and the server's reflection if they want it.
    pub(super) fn schema(&self, args: &SchemaArgs) -> Result<Schema, Failure> {
        let reflection =
            args.reflection().then(|| Reflection::new(self.connection.channel(), self.metadata.questions.clone()));
        Schema::open(args, reflection)
    }

    /// Waits for what a command does with the session, and closes it. Ctrl-C gives up: what is under way is reset.
    pub(super) async fn during<T>(self, work: impl AsyncFnOnce(&Self) -> Result<T, Failure>) -> Result<T, Failure> {
        let result = or_interrupted(work(&self)).await;
        self.connection.close().await;
        result
    }
}

/// Gives up at Ctrl-C.
pub(super) async fn or_interrupted<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::select! {
        biased;
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
        result = work => result,
    }
}

/// Gives up when the time is over, before there is a call that could have a status.
pub(super) async fn in_time<T>(
    deadline: Option<Deadline>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(deadline) = deadline else { return work.await };
    let late = |_| Err(Failure::new(format!("not done within {:?} (-max-time)", deadline.limit)));
    tokio::time::timeout_at(deadline.at, work).await.unwrap_or_else(late)
}

/// Without a server there are files, or nothing can be known.
pub(super) fn schema_of_files(args: &SchemaArgs) -> Result<Schema, Failure> {
    if !args.has_files() {
        return Err(no_server());
    }
    Schema::open(args, None)
}

pub(super) fn no_server() -> Failure {
    Failure::usage("say where the server is: HOST:PORT before the name, or --gateway")
}
