//! Keeps the tunnels that this side has opened standing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataValue;
use tonic::service::Routes;

use super::open::{Life, Opened, PEERS_TURN, Role, Way};
use super::{OpenError, TunnelBuilder};
use crate::agent::{AgentStatus, Backoff, Slot, Standing};
use crate::close::{CloseReason, Disconnected};
use crate::connector::{DialError, Found, Route};
use crate::grpctunnel::AGENT_ID_METADATA;
use crate::grpctunnel::protocol::{NEGOTIATE, ON};
use crate::id::AgentId;
use crate::ssh::Session;
use crate::tunnel::TunnelId;

/// What the user's handle, the drivers and the calls share.
pub(super) struct Shared {
    hub: String,
    way: Way,
    pub(super) standing: Standing<Role>,
    /// Drivers that have not come to their end.
    running: watch::Sender<usize>,
}

impl Shared {
    /// Opens the first tunnel, and has it and the others kept standing as long as the drivers live.
    pub(super) async fn start(
        builder: TunnelBuilder,
        routes: Option<Routes>,
    ) -> Result<(Arc<Self>, JoinSet<()>), OpenError> {
        let TunnelBuilder { id, hub, carrier, mut metadata, settings, backoff, tunnels } = builder;
        let id: AgentId = id.parse()?;
        let slots = if routes.is_some() { tunnels } else { 1 };
        metadata.insert(NEGOTIATE, MetadataValue::from_static(ON));
        if let Ok(value) = id.as_str().parse() {
            metadata.insert(AGENT_ID_METADATA, value);
        }
        let way = Way { id, carrier, metadata, instance: rand::random(), settings, routes };
        let running = watch::Sender::new(usize::from(slots));
        let shared = Arc::new(Self { hub, way, standing: Standing::new(slots), running });
        let mut first = Some(shared.adopt(0, shared.way.open(0).await?));
        let mut drivers = JoinSet::new();
        for slot in 0..slots {
            drivers.spawn(run(shared.clone(), slot, first.take(), backoff.fresh()));
        }
        Ok((shared, drivers))
    }

    /// Makes a tunnel the one of its slot, and says so. One that comes after the stop ends in good order.
    fn adopt(&self, slot: u16, opened: Opened) -> (TunnelId, Life) {
        let Opened { id, role, life } = opened;
        match self.standing.stand(slot, role, id, &self.hub) {
            Ok(_) => tracing::info!(agent = %self.way.id, hub = self.hub, %id, "tunnel opened"),
            Err(late) => late.close(CloseReason::Shutdown),
        }
        (id, life)
    }

    /// Makes a tunnel for a slot, however long that takes; none after the stop.
    async fn open(&self, slot: u16, backoff: &mut Backoff, lost: Option<String>) -> Option<(TunnelId, Life)> {
        let attempt = |attempt| async move {
            self.way.open(slot).await.map_err(|error| {
                tracing::warn!(agent = %self.way.id, slot, attempt, error = &error as &dyn std::error::Error, "cannot open the tunnel");
                error.to_string()
            })
        };
        let opened = self.standing.bring_back(slot, backoff, lost, attempt).await?;
        Some(self.adopt(slot, opened))
    }

    pub(super) async fn shutdown(&self, grace: Duration) {
        let grace = if self.standing.stop() { Duration::ZERO } else { grace };
        let standing: Vec<_> = self.standing.slots().iter().filter_map(Slot::standing).cloned().collect();
        let mut draining = JoinSet::new();
        for role in standing {
            draining.spawn(async move { role.drain_and_close(grace, CloseReason::Shutdown).await });
        }
        draining.join_all().await;
        // The drivers have the last word with the peer.
        let mut running = self.running.subscribe();
        let _ = timeout(PEERS_TURN, running.wait_for(|running| *running == 0)).await;
        self.standing.end();
    }
}

/// Keeps the tunnel of one slot standing, until told to stop.
async fn run(shared: Arc<Shared>, slot: u16, first: Option<(TunnelId, Life)>, backoff: Backoff) {
    keep(&shared, slot, first, backoff).await;
    shared.running.send_modify(|running| *running -= 1);
}

async fn keep(shared: &Shared, slot: u16, mut first: Option<(TunnelId, Life)>, mut backoff: Backoff) {
    let mut lost = None;
    loop {
        let (id, life) = match first.take() {
            Some(standing) => standing,
            None => match shared.open(slot, &mut backoff, lost.take()).await {
                Some(standing) => standing,
                None => return,
            },
        };
        let since = Instant::now();
        let reason = life.await;
        tracing::info!(agent = %shared.way.id, %id, %reason, "tunnel ended");
        if shared.standing.is_stopped() {
            return;
        }
        backoff.lost_after(since.elapsed());
        lost = Some(reason.to_string());
        shared.standing.say(slot, AgentStatus::Disconnected { why: Disconnected::now(reason) });
    }
}

impl Route for Shared {
    fn session(&self) -> Result<Arc<Session>, DialError> {
        if self.standing.is_stopped() {
            return Err(DialError::Shutdown { wanted: format!("the tunnel of `{}`", self.way.id) });
        }
        let slots = self.standing.slots();
        let session = slots.iter().filter_map(Slot::standing).find_map(|role| match role {
            Role::Calls(session) => Some(session.clone()),
            Role::Serves(_) => None,
        });
        session.ok_or_else(|| DialError::NotConnected { agent: self.way.id.clone() })
    }

    fn wait(&self, limit: Duration) -> Found<'_, Result<Arc<Session>, DialError>> {
        let some = self.standing.some_within(limit);
        Box::pin(async move {
            some.await;
            self.session()
        })
    }
}
