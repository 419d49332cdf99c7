//! The tunnels that an agent keeps standing: which there are, what is said of them, and how one comes back.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::status::AgentStatus;
use crate::tunnel::TunnelId;

/// Each tunnel has a slot, where it takes the place of the one before.
pub(crate) struct Standing<T> {
    slots: Mutex<Vec<Slot<T>>>,
    status: watch::Sender<AgentStatus>,
    stop: watch::Sender<bool>,
    /// For timers of callers that have no runtime of their own.
    runtime: Handle,
}

/// One of the tunnels that are to stand.
pub(crate) struct Slot<T> {
    tunnel: Option<T>,
    /// Set while it stands.
    status: Option<AgentStatus>,
}

impl<T> Slot<T> {
    /// The tunnel that stands, or the last that did.
    pub(crate) fn last(&self) -> Option<&T> {
        self.tunnel.as_ref()
    }

    /// The tunnel that stands.
    #[cfg(feature = "grpctunnel")]
    pub(crate) fn standing(&self) -> Option<&T> {
        self.tunnel.as_ref().filter(|_| self.status.is_some())
    }
}

impl<T> Standing<T> {
    pub(crate) fn new(slots: u16) -> Self {
        let first = AgentStatus::Connecting { attempt: 1, next_try: Duration::ZERO, last_error: None };
        let slots = (0..slots).map(|_| Slot { tunnel: None, status: None });
        Self {
            slots: Mutex::new(slots.collect()),
            status: watch::Sender::new(first),
            stop: watch::Sender::new(false),
            runtime: Handle::current(),
        }
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, Vec<Slot<T>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the user is told.
    pub(crate) fn status(&self) -> watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    /// A tunnel stands; the one that it takes the place of is handed over. One that comes after the agent was told to stop
    /// is handed back.
    pub(crate) fn stand(&self, slot: u16, tunnel: T, id: TunnelId, hub: &str) -> Result<Option<T>, T> {
        let mut slots = self.slots();
        // Whoever stops the agent says so first, and then takes this lock.
        if self.is_stopped() {
            return Err(tunnel);
        }
        let slot = &mut slots[usize::from(slot)];
        let before = slot.tunnel.replace(tunnel);
        let (since, hub) = (SystemTime::now(), hub.to_owned());
        slot.status = Some(AgentStatus::Connected { since, hub, tunnel_id: id, tunnels: 1 });
        if let Some(status) = first_of(&slots) {
            self.publish(status);
        }
        Ok(before)
    }

    /// Tells the user how it is with a tunnel that does not stand; what stands is told first.
    pub(crate) fn say(&self, slot: u16, status: AgentStatus) {
        let mut slots = self.slots();
        let stood = slots[usize::from(slot)].status.take().is_some();
        match first_of(&slots) {
            Some(first) if stood => self.publish(first),
            Some(_) => {}
            None => self.publish(status),
        }
    }

    /// Unless the last word has been said.
    fn publish(&self, status: AgentStatus) {
        self.status.send_if_modified(|now| {
            let stopped = matches!(now, AgentStatus::Stopped);
            if !stopped {
                *now = status;
            }
            !stopped
        });
    }

    /// Makes a tunnel for a slot, however many attempts that takes; `attempt` gets their number, and says what went wrong.
    /// None when the agent is told to stop.
    ///
    /// A watch shows only its last value, so why the tunnel before was `lost` is told again with the first attempt. Where
    /// there was none, that one is made at once.
    pub(crate) async fn bring_back<N, F>(
        &self,
        slot: u16,
        backoff: &mut Backoff,
        lost: Option<String>,
        attempt: impl Fn(u64) -> F,
    ) -> Option<N>
    where
        F: Future<Output = Result<N, String>>,
    {
        let (mut number, mut last_error) = (1, lost);
        let made = async {
            loop {
                let wait =
                    if last_error.is_some() { backoff.next(Instant::now(), rand::random()) } else { Duration::ZERO };
                let status =
                    |next_try| AgentStatus::Connecting { attempt: number, next_try, last_error: last_error.clone() };
                self.say(slot, status(wait));
                tokio::time::sleep(wait).await;
                self.say(slot, status(Duration::ZERO));
                match attempt(number).await {
                    Ok(made) => return made,
                    Err(error) => (number, last_error) = (number + 1, Some(error)),
                }
            }
        };
        tokio::select! {
            biased;
            () = self.stopped() => None,
            made = made => Some(made),
        }
    }

    /// Waits until a tunnel stands or none will again, but no longer than so. The caller may be outside of any runtime.
    pub(crate) fn some_within(&self, limit: Duration) -> impl Future<Output = ()> + Send {
        let limit = {
            let _inside = self.runtime.enter();
            tokio::time::sleep(limit)
        };
        let mut status = self.status();
        async move {
            tokio::select! {
                // An error means that the agent is gone.
                _ = status.wait_for(|status| matches!(status, AgentStatus::Connected { .. } | AgentStatus::Stopped)) => {}
                () = limit => {}
            }
        }
    }

    /// No more tunnels are made. Says whether that is nothing new.
    pub(crate) fn stop(&self) -> bool {
        self.stop.send_replace(true)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits until the agent is told to stop.
    pub(crate) async fn stopped(&self) {
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await; // the sender lives in `self`
    }

    /// Stops for good: the last word.
    pub(crate) fn end(&self) {
        self.stop();
        self.status.send_replace(AgentStatus::Stopped);
    }
}

/// The status of the first tunnel that stands, and how many do.
fn first_of<T>(slots: &[Slot<T>]) -> Option<AgentStatus> {
    let mut standing = slots.iter().filter_map(|slot| slot.status.clone());
    let mut first = standing.next()?;
    if let AgentStatus::Connected { tunnels, .. } = &mut first {
        *tunnels = 1 + standing.count();
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::{CloseReason, Disconnected};

    fn lost() -> AgentStatus {
        AgentStatus::Disconnected { why: Disconnected::now(CloseReason::Replaced) }
    }

    /// Which tunnel is told of, and how many.
    fn told(standing: &Standing<&str>) -> Option<(TunnelId, usize)> {
        match *standing.status().borrow() {
            AgentStatus::Connected { tunnel_id, tunnels, .. } => Some((tunnel_id, tunnels)),
            _ => None,
        }
    }

    #[tokio::test]
    async fn what_stands_is_told_first() {
        let standing = Standing::new(2);
        let (one, two) = (TunnelId::next(), TunnelId::next());
        assert_eq!(standing.stand(1, "two", two, "hub"), Ok(None));
        assert_eq!(told(&standing), Some((two, 1)));
        assert_eq!(standing.stand(0, "one", one, "hub"), Ok(None));
        assert_eq!(told(&standing), Some((one, 2)));

        standing.say(0, lost());
        assert_eq!(told(&standing), Some((two, 1)));
        let mut status = standing.status();
        standing.say(0, AgentStatus::Connecting { attempt: 1, next_try: Duration::ZERO, last_error: None });
        assert!(!status.has_changed().expect("it lives"), "nothing new about what stands");
        standing.say(1, lost());
        assert!(matches!(*status.borrow_and_update(), AgentStatus::Disconnected { .. }));

        let last: Vec<_> = standing.slots().iter().filter_map(Slot::last).copied().collect();
        assert_eq!(last, ["one", "two"]);
        assert_eq!(standing.stand(0, "three", TunnelId::next(), "hub"), Ok(Some("one")));
    }

    /// Whoever stops an agent closes what it finds in the slots, so nothing may get in there afterwards.
    #[tokio::test]
    async fn tunnel_that_comes_after_the_stop_is_handed_back() {
        let standing = Standing::new(1);
        assert!(!standing.stop());
        assert!(standing.stop(), "for the second time");
        assert_eq!(standing.stand(0, "late", TunnelId::next(), "hub"), Err("late"));
        assert!(standing.slots().iter().all(|slot| slot.last().is_none()));
        assert_eq!(told(&standing), None);
    }

    #[tokio::test]
    async fn stopped_is_the_last_word() {
        let standing = Standing::new(1);
        standing.end();
        standing.say(0, lost());
        let _ = standing.stand(0, "late", TunnelId::next(), "hub"); // it is handed back
        assert!(matches!(*standing.status().borrow(), AgentStatus::Stopped));
        standing.some_within(Duration::MAX).await;
        let made = standing.bring_back(0, &mut Backoff::default(), None, async |_| Ok::<(), _>(())).await;
        assert_eq!(made, None);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_counted_and_the_last_error_is_told() {
        let standing = Standing::<&str>::new(1);
        let seen = Mutex::new(Vec::new());
        let attempt = |number| {
            if let AgentStatus::Connecting { attempt, last_error, next_try: Duration::ZERO } =
                &*standing.status().borrow()
            {
                seen.lock().expect("sound").push((*attempt, last_error.clone()));
            }
            async move { if number == 3 { Ok(number) } else { Err(format!("no {number}")) } }
        };
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second, second);
        let made = standing.bring_back(0, &mut backoff, Some("cut".into()), attempt).await;
        assert_eq!(made, Some(3));
        let expected = [(1, Some("cut".into())), (2, Some("no 1".into())), (3, Some("no 2".into()))];
        assert_eq!(*seen.lock().expect("sound"), expected);
    }
}
