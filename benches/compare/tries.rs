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
    /// An agent's try counts that comes next or is under way, and so many of one that is connected. What others tried before
    /// does not.
    pub(crate) fn from_now_on<'a>(agents: impl IntoIterator<Item = &'a Agent>, of_connected: u64) -> Self {
        let mut tries = Self::default();
        for agent in agents {
            let mut status = agent.status();
            let now = status.borrow_and_update().clone();
            let count = Arc::new(AtomicU64::new(if now.is_connected() { of_connected } else { 0 }));
            tries.counts.push(count.clone());
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
