//! How long a call may take, and how long it may be silent.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tonic::Status;

/// A call's deadline, and how long it may be silent.
pub(super) struct Clock {
    deadline: Option<Instant>,
    idle: Option<Duration>,
    silent_at: Option<Instant>,
    /// What had moved when it was last looked at.
    pub(super) moved: u64,
}

pub(super) enum Rings {
    Deadline,
    Idle,
}

impl Rings {
    pub(super) fn status(self) -> Status {
        match self {
            Self::Deadline => expired(),
            Self::Idle => idled(),
        }
    }
}

impl Clock {
    pub(super) fn new(deadline: Option<Instant>, idle: Option<Duration>) -> Self {
        let mut clock = Self { deadline, idle, silent_at: None, moved: 0 };
        clock.again(0);
        clock
    }

    pub(super) fn again(&mut self, moved: u64) {
        self.moved = moved;
        self.silent_at = self.idle.and_then(|idle| Instant::now().checked_add(idle));
    }

    pub(super) async fn rings(&self) -> Rings {
        match (self.deadline, self.silent_at) {
            (None, None) => pending().await,
            (Some(at), silent) if silent.is_none_or(|silent| at <= silent) => {
                sleep_until(at).await;
                Rings::Deadline
            }
            (_, silent) => {
                reached(silent).await;
                Rings::Idle
            }
        }
    }
}

/// Waits for a deadline, if there is one.
pub(super) async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

pub(super) fn expired() -> Status {
    Status::deadline_exceeded("the call's deadline passed at the gateway")
}

fn idled() -> Status {
    Status::unavailable("the call was silent for too long")
}
