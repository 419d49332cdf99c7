//! What peers have sent and nobody has read, counted over all tunnels that share a bound: those of one agent on a hub, and
//! otherwise each alone.
//!
//! A tunnel that goes over the bound is not read for at most [`PATIENCE`], so that readers who only lag catch up; then
//! what holds most is given up, a channel of SSH or a call, and the tunnel lives.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// How long a tunnel over its bound waits for its readers.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// A promise takes no more than this part of what may still be promised, so that there is always something left.
const PART: usize = 8;

/// Who has calls that can be ended for what they hold.
pub(crate) trait Holder: Send + Sync {
    /// What the call holds that holds most.
    fn most(&self) -> usize;
    /// Ends that call.
    fn end_most(&self);
}

/// What was received and not read, and how much that may be.
pub(crate) struct Unread {
    limit: usize,
    queued: AtomicUsize,
    /// What peers may send beyond what each call begins with: half of the limit at most, and the other half is for new
    /// calls.
    promised: AtomicUsize,
    /// Those who wait for a refund.
    waiting: AtomicUsize,
    refunded: Notify,
    holders: Mutex<Vec<Weak<dyn Holder>>>,
}

impl Unread {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            queued: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            refunded: Notify::new(),
            holders: Mutex::default(),
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn charge(&self, bytes: usize) {
        self.queued.fetch_add(bytes, SeqCst);
    }

    /// It may come before its charge: the counter wraps and is right again a moment later.
    pub(crate) fn refund(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.refunded.notify_waiters();
        }
    }

    pub(crate) fn queued(&self) -> usize {
        let queued = self.queued.load(SeqCst);
        if queued > usize::MAX / 2 { 0 } else { queued }
    }

    pub(crate) fn is_within_limit(&self) -> bool {
        self.queued() <= self.limit
    }

    /// From now on refunds are told, until what is returned is dropped.
    pub(crate) fn listen(&self) -> Listening<'_> {
        self.waiting.fetch_add(1, SeqCst);
        Listening(self)
    }

    /// Waits until no more is unread than may be.
    pub(crate) async fn within_limit(&self) {
        let listening = self.listen();
        loop {
            let mut refunded = pin!(listening.refunded());
            refunded.as_mut().enable();
            if self.is_within_limit() {
                return;
            }
            refunded.await;
        }
    }

    /// The calls of this one count here.
    pub(crate) fn join(&self, holder: Weak<dyn Holder>) {
        let mut holders = self.holders();
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(holder);
    }

    /// Ends the calls that hold most, until no more is unread than may be.
    pub(crate) fn relieve(&self) {
        // One at a time, or two would end a call each for the same bytes.
        let holders = self.holders();
        while !self.is_within_limit() {
            let holders = holders.iter().filter_map(Weak::upgrade).map(|holder| (holder.most(), holder));
            match holders.max_by_key(|(most, _)| *most) {
                Some((most, holder)) if most > 0 => holder.end_most(),
                _ => return,
            }
        }
    }

    fn holders(&self) -> MutexGuard<'_, Vec<Weak<dyn Holder>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unread").field("limit", &self.limit).field("queued", &self.queued()).finish_non_exhaustive()
    }
}

/// See [`Unread::listen`].
pub(crate) struct Listening<'a>(&'a Unread);

impl Listening<'_> {
    pub(crate) fn refunded(&self) -> Notified<'_> {
        self.0.refunded.notified()
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

/// What one tunnel has of an [`Unread`]. Dropping it gives all back.
#[derive(Debug)]
pub(crate) struct Share {
    unread: Arc<Unread>,
    held: usize,
    promised: usize,
}

impl Share {
    pub(crate) fn new(unread: Arc<Unread>) -> Self {
        Self { unread, held: 0, promised: 0 }
    }

    pub(crate) fn unread(&self) -> &Arc<Unread> {
        &self.unread
    }

    /// From now on it is one of another.
    pub(crate) fn move_to(&mut self, unread: Arc<Unread>) {
        unread.charge(self.held);
        unread.promised.fetch_add(self.promised, SeqCst);
        *self = Self { unread, ..*self }; // what it was is dropped
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    #[cfg(test)]
    pub(crate) fn promised(&self) -> usize {
        self.promised
    }

    /// Of the tunnel's calls, one holds `now` and held `before`.
    pub(crate) fn update(&mut self, before: usize, now: usize) {
        if now > before {
            self.held += now - before;
            self.unread.charge(now - before);
        } else if now < before {
            self.held -= before - now;
            self.unread.refund(before - now);
        }
    }

    /// How much of `wanted` a call's peer may be allowed to send beyond what the call began with.
    pub(crate) fn promise(&mut self, wanted: u32) -> u32 {
        let most = self.unread.limit / 2;
        let part = |promised: usize| (most.saturating_sub(promised) / PART).min(wanted as usize);
        let took = |promised| Some(promised + part(promised)).filter(|now| *now > promised);
        let before = self.unread.promised.fetch_update(SeqCst, SeqCst, took);
        let given = before.map_or(0, part);
        self.promised += given;
        given as u32 // no more than is wanted
    }

    /// So much of what was promised is no longer.
    pub(crate) fn take_back(&mut self, bytes: usize) {
        if bytes > 0 {
            self.promised -= bytes;
            self.unread.promised.fetch_sub(bytes, SeqCst);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.update(self.held, 0);
        self.take_back(self.promised);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_that_is_dropped_gives_all_back() {
        let unread = Arc::new(Unread::new(1000));
        let mut share = Share::new(unread.clone());
        share.update(0, 300);
        share.update(300, 200);
        assert_eq!((share.promise(50), share.promise(1000)), (50, 56), "an eighth of what is left of a half");
        assert_eq!((unread.queued(), unread.promised.load(SeqCst)), (200, 106));
        drop(share);
        assert_eq!((unread.queued(), unread.promised.load(SeqCst)), (0, 0));
    }

    #[test]
    fn no_more_than_half_is_promised_to_all_together() {
        let unread = Arc::new(Unread::new(10_000));
        let mut shares = [Share::new(unread.clone()), Share::new(unread.clone())];
        let given: u32 = (0..200).map(|n| shares[n % 2].promise(u32::MAX)).sum();
        assert!((4900..=5000).contains(&given), "{given}");
        drop(shares);
        assert_eq!(unread.promised.load(SeqCst), 0);
    }

    struct Calls(Mutex<(Share, Vec<usize>)>);

    impl Holder for Calls {
        fn most(&self) -> usize {
            self.0.lock().unwrap().1.iter().copied().max().unwrap_or_default()
        }

        fn end_most(&self) {
            let (share, calls) = &mut *self.0.lock().unwrap();
            let (n, _) = calls.iter().enumerate().max_by_key(|(_, held)| **held).unwrap();
            share.update(calls.remove(n), 0);
        }
    }

    #[test]
    fn those_that_hold_most_of_all_tunnels_are_ended() {
        let unread = Arc::new(Unread::new(1000));
        let tunnels = [vec![500, 90], vec![400, 300, 10], vec![]].map(|calls| {
            let mut share = Share::new(unread.clone());
            share.update(0, calls.iter().sum());
            let tunnel = Arc::new(Calls(Mutex::new((share, calls))));
            let weak: Weak<Calls> = Arc::downgrade(&tunnel);
            unread.join(weak);
            tunnel
        });
        unread.relieve();
        let left = tunnels.each_ref().map(|tunnel| tunnel.0.lock().unwrap().1.clone());
        assert_eq!(left, [vec![90], vec![400, 300, 10], vec![]]);
        unread.charge(5000); // of an SSH tunnel: nothing that is ended here helps, and all is tried
        unread.relieve();
        assert!(tunnels.iter().all(|tunnel| tunnel.0.lock().unwrap().1.is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn refund_wakes_who_waits() {
        let unread = Arc::new(Unread::new(1000));
        unread.charge(1500);
        let waiting = tokio::spawn({
            let unread = unread.clone();
            async move { unread.within_limit().await }
        });
        tokio::task::yield_now().await;
        unread.refund(100);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        unread.refund(400);
        waiting.await.unwrap();
        assert_eq!(unread.waiting.load(SeqCst), 0);
    }
}
