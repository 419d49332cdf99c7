//! How often agents that have lost their hub try to come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dialback::{Agent, AgentStatus};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Counts from when it is made until it is dropped.
#[derive(Default)]
pub(crate) struct Tries {
    counts: Vec<Arc<AtomicU64>>,
    watching: JoinSet<()>,
}

impl Tries {
    /// An agent's try counts that comes next or is under way. What it tried before does not.
    pub(crate) fn from_now_on<'a>(agents: impl IntoIterator<Item = &'a Agent>) -> Self {
        let mut tries = Self::default();
        for agent in agents {
            let count = Arc::<AtomicU64>::default();
            tries.counts.push(count.clone());
            let mut status = agent.status();
            let now = status.borrow_and_update().clone();
            tries.watching.spawn(watch(status, now, count));
        }
        tries
    }

    /// The most of an agent.
    pub(crate) fn most(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).max().unwrap_or_default()
    }
}

async fn watch(mut status: watch::Receiver<AgentStatus>, mut now: AgentStatus, count: Arc<AtomicU64>) {
    let mut last = match now {
        AgentStatus::Connecting { attempt, .. } => attempt - 1,
        _ => 0,
    };
    // One that is back already has needed one.
    count.store(now.is_connected().into(), Ordering::Relaxed);
    loop {
        match now {
            // A watch shows its last value only, so that some numbers may be skipped.
            AgentStatus::Connecting { attempt, .. } => {
                count.fetch_add(attempt.saturating_sub(last), Ordering::Relaxed);
                last = attempt;
            }
            AgentStatus::Stopped => return,
            // From here on its tries are numbered anew.
            _ => last = 0,
        }
        if status.changed().await.is_err() {
            return;
        }
        now = status.borrow_and_update().clone();
    }
}
