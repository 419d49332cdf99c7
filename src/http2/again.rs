//! Polls a future that was woken while it ran again on the spot.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use pin_project_lite::pin_project;
use tokio::task::coop::has_budget_remaining;

/// How often a future is polled again before other tasks have their turn.
const AT_ONCE: u32 = 4;

const RUNNING: u8 = 1;
const WOKEN: u8 = 2;

pin_project! {
    /// A future that wakes itself, as an HTTP/2 connection does for each frame that its own calls send, and is polled again
    /// at once. Tokio would put its task at the end of the queue, and wake another thread to fetch it from there: a system
    /// call, and often a move to another core, for each call.
    pub(crate) struct Again<F> {
        #[pin]
        future: F,
        bell: Arc<Bell>,
        waker: Waker,
    }
}

/// What wakes the future.
#[derive(Default)]
struct Bell {
    state: AtomicU8,
    task: Mutex<Option<Waker>>,
}

impl<F> Again<F> {
    pub(crate) fn new(future: F) -> Self {
        let bell = Arc::<Bell>::default();
        Self { future, waker: bell.clone().into(), bell }
    }
}

impl<F: Future> Future for Again<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        this.bell.is_for(cx.waker());
        for _ in 0..AT_ONCE {
            this.bell.state.swap(RUNNING, Ordering::AcqRel);
            if let Poll::Ready(output) = this.future.as_mut().poll(&mut Context::from_waker(this.waker)) {
                return Poll::Ready(output);
            }
            let rests = this.bell.state.compare_exchange(RUNNING, 0, Ordering::AcqRel, Ordering::Acquire);
            if rests.is_ok() {
                return Poll::Pending;
            }
            if !has_budget_remaining() {
                break;
            }
        }
        // It stays woken until then.
        this.bell.state.swap(WOKEN, Ordering::AcqRel);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Bell {
    fn is_for(&self, waker: &Waker) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *task {
            Some(task) => task.clone_from(waker),
            None => *task = Some(waker.clone()),
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Who runs, or is woken already, will look by itself.
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) == 0 {
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.iter().for_each(Waker::wake_by_ref);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// How often a future that wakes itself so many times is polled, and how often its task is woken, in one poll of it.
    fn one_poll(wakes: u32) -> (u32, usize) {
        let count = Arc::new(Count::default());
        let waker = count.clone().into();
        let polled = std::cell::Cell::new(0);
        let future = poll_fn(|cx| {
            polled.set(polled.get() + 1);
            if polled.get() <= wakes {
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        let mut again = std::pin::pin!(Again::new(future));
        assert!(again.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        (polled.get(), count.0.load(Ordering::SeqCst))
    }

    #[test]
    fn future_that_wakes_itself_is_polled_again_without_its_task() {
        assert_eq!(one_poll(0), (1, 0));
        assert_eq!(one_poll(1), (2, 0));
        assert_eq!(one_poll(AT_ONCE - 1), (AT_ONCE, 0));
    }

    #[test]
    fn future_that_wakes_itself_for_ever_gives_others_their_turn() {
        assert_eq!(one_poll(u32::MAX), (AT_ONCE, 1));
    }

    #[test]
    fn task_is_woken_once_and_again_after_each_poll() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let kept = Mutex::new(None);
        let future = poll_fn(|cx| {
            *kept.lock().unwrap() = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        let mut again = std::pin::pin!(Again::new(future));
        for woken in 1..4 {
            assert!(again.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            let bell: Waker = kept.lock().unwrap().clone().unwrap();
            bell.wake_by_ref();
            bell.wake();
            assert_eq!(count.0.load(Ordering::SeqCst), woken);
        }
        // The one that polls last is woken, as with any future.
        let other = Arc::new(Count::default());
        assert!(again.as_mut().poll(&mut Context::from_waker(&other.clone().into())).is_pending());
        kept.lock().unwrap().take().unwrap().wake();
        assert_eq!((count.0.load(Ordering::SeqCst), other.0.load(Ordering::SeqCst)), (3, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_message_of_another_thread_is_missed() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let sending = std::thread::spawn(move || (0..100_000u32).for_each(|n| sender.blocking_send(n).unwrap()));
        let receiving = tokio::spawn(Again::new(async move {
            let mut next = 0;
            while let Some(n) = receiver.recv().await {
                assert_eq!(n, next);
                next += 1;
            }
            next
        }));
        let received = tokio::time::timeout(Duration::from_secs(60), receiving).await.expect("a message was missed");
        assert_eq!(received.unwrap(), 100_000);
        sending.join().unwrap();
    }
}
