//! What each channel has received and nobody has read yet.
//!
//! russh hands a channel's messages over in a bounded queue and stops the *whole session* when one queue is full. So
//! the queues are made too long to fill up ([`QUEUE_MESSAGES`]) and bounded here, in bytes: every message is charged
//! when it arrives and refunded when it is read. A tunnel over its bound is paused for at most [`PATIENCE`], so that
//! readers who only lag catch up; then the channel with the longest queue is closed, and the tunnel lives. What the tunnels
//! of one agent have in common is in [`Unread`].

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use russh::ChannelId;
use tokio::sync::Notify;

use crate::unread::{PATIENCE, Unread};

/// What one queued message costs beside its bytes: the queue's slot and the header of its buffer, rounded up.
const MESSAGE_COST: usize = 128;

/// More messages than any bound in bytes lets in at [`MESSAGE_COST`] each, so russh's queue is never full.
pub(super) const QUEUE_MESSAGES: usize = u32::MAX as usize / MESSAGE_COST;

/// What a peer may send in requests on one channel, which no tunnel needs: bytes, all requests together.
const REQUESTS: usize = 16 * 1024;

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const OVERFLOWED: u8 = 2;

/// The account of one channel.
#[derive(Debug)]
pub(super) struct Inbound {
    queued: AtomicUsize,
    /// What was queued when the channel was closed for it; held until its reader drops it.
    abandoned: AtomicUsize,
    requests: AtomicUsize,
    state: AtomicU8,
    /// Nobody will read any more: what arrives is thrown away.
    unread: AtomicBool,
    user: Mutex<Option<Waker>>,
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    queued: AtomicUsize,
    abandoned: AtomicUsize,
    /// The session waits for a refund.
    paused: AtomicBool,
    refunded: Notify,
    /// What the agent's other tunnels add to.
    unread: OnceLock<Arc<Unread>>,
}

impl Totals {
    fn charge(&self, cost: usize) {
        self.queued.fetch_add(cost, Ordering::AcqRel);
        if let Some(unread) = self.unread.get() {
            unread.charge(cost);
        }
    }

    fn refund(&self, cost: usize) {
        self.queued.fetch_sub(cost, Ordering::AcqRel);
        if self.paused.load(Ordering::Acquire) {
            self.refunded.notify_one();
        }
        if let Some(unread) = self.unread.get() {
            unread.refund(cost);
        }
    }
}

impl Inbound {
    /// One message of `len` bytes was read.
    pub(super) fn refund(&self, len: usize) {
        let cost = len + MESSAGE_COST;
        // The message may be read before the session has charged it; both counters wrap and meet again.
        self.queued.fetch_sub(cost, Ordering::AcqRel);
        self.totals.refund(cost);
    }

    /// The channel was closed because its queue was too long.
    pub(super) fn overflowed(&self) -> bool {
        self.state.load(Ordering::Acquire) == OVERFLOWED
    }

    /// Nothing can be sent on the channel any more.
    pub(super) fn closed(&self) -> bool {
        self.state.load(Ordering::Acquire) != OPEN
    }

    /// Remembers whom to wake when the channel closes: russh wakes neither a writer that waits for the window nor, when
    /// this side closes, a reader.
    pub(super) fn register(&self, waker: &Waker) {
        let mut user = self.user.lock().unwrap_or_else(PoisonError::into_inner);
        if !user.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *user = Some(waker.clone());
        }
    }

    /// Waits until nothing can be sent on the channel any more.
    pub(super) async fn until_closed(&self) {
        poll_fn(|cx| {
            self.register(cx.waker());
            if self.closed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The reader has left, and with it what was queued.
    pub(super) fn stop_reading(&self) {
        self.unread.store(true, Ordering::Release);
        self.totals.refund(self.queued.swap(0, Ordering::AcqRel));
    }

    /// Closes; says whether it was open before.
    fn close(&self, state: u8) -> bool {
        // The first state stands.
        let first = self.state.compare_exchange(OPEN, state, Ordering::AcqRel, Ordering::Acquire).is_ok();
        self.wake();
        first
    }

    fn wake(&self) {
        let user = self.user.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = user {
            waker.wake();
        }
    }

    fn balance(&self) -> usize {
        signed(self.queued.load(Ordering::Acquire))
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        // What was never read is gone with its channel.
        self.totals.abandoned.fetch_sub(*self.abandoned.get_mut(), Ordering::AcqRel);
        self.totals.refund(*self.queued.get_mut());
    }
}

/// A counter that is refunded before it is charged is briefly below zero.
fn signed(counter: usize) -> usize {
    if counter > usize::MAX / 2 { 0 } else { counter }
}

/// What the session has to do after a message was charged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// Close this channel.
    Close(ChannelId),
    /// The queue of this channel was given up. The peer had closed it before.
    Drop(ChannelId),
    /// End the tunnel: closing channels does not free enough.
    End,
}

/// The accounts of one tunnel's channels.
#[derive(Debug)]
pub(super) struct Ledger {
    channels: Mutex<HashMap<ChannelId, Arc<Inbound>>>,
    totals: Arc<Totals>,
    limit: usize,
}

impl Ledger {
    /// A ledger for a tunnel whose channels may hold `limit` bytes unread, all together.
    pub(super) fn new(limit: usize) -> Self {
        Self { channels: Mutex::default(), totals: Arc::default(), limit }
    }

    /// Counts what is unread together with that of the agent's other tunnels. Before the first channel.
    pub(super) fn share(&self, unread: Arc<Unread>) {
        let _ = self.totals.unread.set(unread); // set once
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<ChannelId, Arc<Inbound>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the account of a channel; the second opening finds the first, closed or not (russh counts its channels up and
    /// uses no number twice).
    pub(super) fn open(&self, id: ChannelId) -> Arc<Inbound> {
        let inbound = || Inbound {
            queued: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            state: AtomicU8::new(OPEN),
            unread: AtomicBool::new(false),
            user: Mutex::new(None),
            totals: self.totals.clone(),
        };
        self.channels().entry(id).or_insert_with(|| Arc::new(inbound())).clone()
    }

    /// How many channels are open, those included that still have something to send for a user who has left.
    pub(super) fn open_channels(&self) -> usize {
        self.channels().values().filter(|inbound| !inbound.closed()).count()
    }

    /// A message of `len` bytes was queued for a channel. Call it for every kind of message that is queued.
    pub(super) async fn charge(&self, id: ChannelId, len: usize) -> Verdict {
        let Some(inbound) = self.channels().get(&id).cloned() else { return Verdict::Fine };
        if inbound.unread.load(Ordering::Acquire) {
            return Verdict::Fine;
        }
        let cost = len + MESSAGE_COST;
        inbound.queued.fetch_add(cost, Ordering::AcqRel);
        self.totals.charge(cost);
        if self.within_limit() {
            return Verdict::Fine;
        }
        drop(inbound);
        self.wait_for_readers().await;
        if self.within_limit() { Verdict::Fine } else { self.close_longest() }
    }

    /// A request of `len` bytes arrived on a channel, or the peer's word that it is open. They are never refunded.
    pub(super) fn charge_request(&self, id: ChannelId, len: usize) -> Verdict {
        let Some(inbound) = self.channels().get(&id).cloned() else { return Verdict::Fine };
        let cost = len + MESSAGE_COST;
        let over = inbound.requests.fetch_add(cost, Ordering::AcqRel) + cost > REQUESTS;
        if over && inbound.close(OVERFLOWED) { Verdict::Close(id) } else { Verdict::Fine }
    }

    fn within_limit(&self) -> bool {
        signed(self.totals.queued.load(Ordering::Acquire)) <= self.limit
            && self.totals.unread.get().is_none_or(|unread| unread.is_within_limit())
    }

    async fn wait_for_readers(&self) {
        let own = Unread::new(usize::MAX);
        let unread = self.totals.unread.get().map_or(&own, |unread| unread);
        self.totals.paused.store(true, Ordering::Release);
        let listening = unread.listen();
        let caught_up = async {
            loop {
                let refunded = listening.refunded();
                tokio::pin!(refunded);
                refunded.as_mut().enable();
                if self.within_limit() {
                    return;
                }
                tokio::select! {
                    () = refunded => {}
                    () = self.totals.refunded.notified() => {}
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, caught_up).await; // the caller looks at the balance again
        self.totals.paused.store(false, Ordering::Release);
    }

    fn close_longest(&self) -> Verdict {
        let longest = {
            let channels = self.channels();
            let longest = channels.iter().max_by_key(|(_, inbound)| inbound.balance());
            longest.map(|(id, inbound)| (*id, inbound.clone()))
        };
        let Some((id, inbound)) = longest else { return Verdict::Fine };
        // What it holds no longer counts as queued: the next message must not find the tunnel over its bound again. It is
        // memory all the same until the reader lets go of it. More may come while russh still has something to send there.
        let held = signed(inbound.queued.swap(0, Ordering::AcqRel));
        inbound.abandoned.fetch_add(held, Ordering::AcqRel);
        self.totals.refund(held);
        let was_open = inbound.state.swap(OVERFLOWED, Ordering::AcqRel) == OPEN;
        inbound.wake();
        if self.totals.abandoned.fetch_add(held, Ordering::AcqRel) + held > self.limit.saturating_mul(2) {
            return Verdict::End;
        }
        if was_open { Verdict::Close(id) } else { Verdict::Drop(id) }
    }

    /// The peer closed the channel. What it sent before that counts until it is read.
    pub(super) fn closed_by_peer(&self, id: ChannelId) {
        let inbound = self.channels().get(&id).cloned();
        if let Some(inbound) = inbound {
            inbound.close(CLOSED);
        }
    }

    /// Nobody on this side has anything to do with the channel any more.
    pub(super) fn forget(&self, id: ChannelId, inbound: &Arc<Inbound>) {
        let mut channels = self.channels();
        // The id may have been used again since.
        if channels.get(&id).is_some_and(|known| Arc::ptr_eq(known, inbound)) {
            channels.remove(&id);
        }
        // Whoever is woken must find the lock free.
        drop(channels);
        inbound.close(CLOSED);
    }

    /// The tunnel ended.
    pub(super) fn close_all(&self) {
        let channels = std::mem::take(&mut *self.channels());
        for inbound in channels.values() {
            inbound.close(CLOSED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids as russh makes them; their constructor is private, their wire form is not.
    fn id(n: u32) -> ChannelId {
        use russh::keys::ssh_key::encoding::Decode;
        ChannelId::decode(&mut &n.to_be_bytes()[..]).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn longest_queue_is_closed_and_the_others_live() {
        let ledger = Ledger::new(1000);
        let (a, b) = (ledger.open(id(1)), ledger.open(id(2)));
        assert_eq!(ledger.charge(id(1), 500).await, Verdict::Fine);
        assert_eq!(ledger.charge(id(2), 600).await, Verdict::Close(id(2)));
        assert!(b.overflowed() && !a.closed());
        assert_eq!(ledger.charge(id(1), 100).await, Verdict::Fine);
    }

    #[tokio::test(start_paused = true)]
    async fn reader_that_catches_up_keeps_its_channel() {
        let ledger = Arc::new(Ledger::new(1000));
        let a = ledger.open(id(1));
        assert_eq!(ledger.charge(id(1), 800).await, Verdict::Fine);
        let charging = tokio::spawn({
            let ledger = ledger.clone();
            async move { ledger.charge(id(1), 800).await }
        });
        tokio::task::yield_now().await;
        assert!(!charging.is_finished());
        a.refund(800);
        assert_eq!(charging.await.unwrap(), Verdict::Fine);
        assert!(!a.closed());
    }

    #[tokio::test(start_paused = true)]
    async fn abandoned_queues_end_the_tunnel() {
        let ledger = Ledger::new(1000);
        let mut kept = Vec::new();
        let mut verdicts = Vec::new();
        for n in 1..=2 {
            kept.push(ledger.open(id(n)));
            verdicts.push(ledger.charge(id(n), 900).await);
        }
        assert_eq!(verdicts, [Verdict::Close(id(1)), Verdict::End]);
        ledger.close_all();
        drop(kept);
        assert_eq!(ledger.totals.abandoned.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn channel_that_the_peer_closed_pays_for_what_it_holds() {
        let ledger = Ledger::new(1000);
        let (hog, other) = (ledger.open(id(1)), ledger.open(id(2)));
        assert_eq!(ledger.charge(id(1), 800).await, Verdict::Fine);
        ledger.closed_by_peer(id(1));
        assert!(hog.closed() && !hog.overflowed());
        assert_eq!(ledger.charge(id(2), 100).await, Verdict::Drop(id(1)));
        assert!(hog.overflowed() && !other.closed());
        assert_eq!(ledger.charge(id(2), 100).await, Verdict::Fine);
    }

    #[tokio::test(start_paused = true)]
    async fn account_that_was_given_up_is_found_again_and_still_counts() {
        let ledger = Ledger::new(1000);
        let first = ledger.open(id(1));
        assert_eq!(ledger.charge(id(1), 900).await, Verdict::Close(id(1)));
        assert!(ledger.open(id(1)).overflowed());
        // As long as russh has something to send on a channel that this side closed, it takes what arrives there.
        assert_eq!(ledger.charge(id(1), 900).await, Verdict::End);
        ledger.forget(id(1), &first);
        drop(first);
        assert_eq!(ledger.totals.abandoned.load(Ordering::Relaxed), 0);
        assert_eq!(ledger.totals.queued.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn channel_without_a_reader_costs_nothing_and_is_still_counted() {
        let ledger = Ledger::new(1000);
        let a = ledger.open(id(1));
        assert_eq!(ledger.charge(id(1), 800).await, Verdict::Fine);
        a.stop_reading();
        assert_eq!(ledger.charge(id(1), 10_000).await, Verdict::Fine);
        assert_eq!((ledger.totals.queued.load(Ordering::Relaxed), ledger.open_channels()), (0, 1));
        let closed = a.until_closed();
        ledger.closed_by_peer(id(1));
        closed.await;
    }

    #[tokio::test]
    async fn account_opened_after_its_channel_was_closed_is_closed() {
        let ledger = Ledger::new(1000);
        ledger.open(id(1));
        ledger.closed_by_peer(id(1));
        assert!(ledger.open(id(1)).closed());
    }

    #[tokio::test]
    async fn dropped_channel_is_refunded() {
        let ledger = Ledger::new(1000);
        let a = ledger.open(id(1));
        assert_eq!(ledger.charge(id(1), 800).await, Verdict::Fine);
        ledger.forget(id(1), &a);
        drop(a);
        assert_eq!(ledger.totals.queued.load(Ordering::Relaxed), 0);
        assert_eq!(ledger.open_channels(), 0);
    }

    #[tokio::test]
    async fn message_may_be_read_before_it_is_charged() {
        let ledger = Ledger::new(1000);
        let a = ledger.open(id(1));
        a.refund(300);
        assert_eq!(ledger.charge(id(1), 300).await, Verdict::Fine);
        assert_eq!(a.balance(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn tunnels_of_one_agent_share_a_bound() {
        let unread = Arc::new(Unread::new(1000));
        let ledgers = [Ledger::new(10_000), Ledger::new(10_000)];
        let [a, b] = ledgers.each_ref().map(|ledger| {
            ledger.share(unread.clone());
            ledger.open(id(1))
        });
        assert_eq!(ledgers[0].charge(id(1), 700).await, Verdict::Fine);
        let charging = tokio::spawn(async move {
            let verdict = ledgers[1].charge(id(1), 700).await;
            (ledgers, verdict)
        });
        tokio::task::yield_now().await;
        assert!(!charging.is_finished());
        a.refund(700);
        let (ledgers, verdict) = charging.await.unwrap();
        assert_eq!(verdict, Verdict::Fine);
        assert_eq!(ledgers[0].charge(id(1), 700).await, Verdict::Close(id(1)));
        assert!(a.overflowed() && !b.closed());
        drop((a, b, ledgers));
        assert_eq!(unread.queued(), 0);
    }

    #[test]
    fn requests_are_bounded() {
        let ledger = Ledger::new(1000);
        let a = ledger.open(id(1));
        assert_eq!(ledger.charge_request(id(1), 1000), Verdict::Fine);
        assert_eq!(ledger.charge_request(id(1), REQUESTS), Verdict::Close(id(1)));
        assert!(a.overflowed());
    }
}
