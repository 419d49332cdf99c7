//! Several attempts at one thing, each with a head start on the next (as in RFC 8305).

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::Instrument;

/// Starts the attempts in turn: the next when the one before has failed, or has not ended within its head start. The
/// first that succeeds ends all others; dropping the future does, too. `Err` has what each said.
pub(crate) async fn race<F, T, E>(attempts: impl IntoIterator<Item = F>, head_start: Duration) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    let mut waiting: VecDeque<F> = attempts.into_iter().collect();
    if waiting.len() == 1
        && let Some(only) = waiting.pop_front()
    {
        return only.await.map_err(|error| vec![error]);
    }
    let mut errors = Vec::new();
    let mut running = JoinSet::new();
    loop {
        if let Some(next) = waiting.pop_front() {
            running.spawn(next.in_current_span());
        }
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(Ok(Ok(value))) => return Ok(value),
                Some(Ok(Err(error))) => errors.push(error),
                // One that did not panic was cancelled, with the runtime.
                Some(Err(ended)) => ended.try_into_panic().map_or((), |panic| std::panic::resume_unwind(panic)),
                None => return Err(errors),
            },
            () = tokio::time::sleep(head_start), if !waiting.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const HEAD_START: Duration = Duration::from_millis(500);

    /// Ends after so many milliseconds, well or badly.
    async fn attempt(under_way: Arc<AtomicUsize>, takes: u64, result: Result<u64, u64>) -> Result<u64, u64> {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(under_way);
        tokio::time::sleep(Duration::from_millis(takes)).await;
        result
    }

    async fn run(attempts: &[(u64, Result<u64, u64>)]) -> (Result<u64, Vec<u64>>, Duration) {
        let under_way = Arc::new(AtomicUsize::new(0));
        let started = tokio::time::Instant::now();
        let attempts = attempts.iter().map(|(takes, result)| attempt(under_way.clone(), *takes, *result));
        let result = race(attempts, HEAD_START).await;
        let took = started.elapsed();
        tokio::task::yield_now().await; // those that were given up are dropped by then
        assert_eq!(under_way.load(Ordering::Relaxed), 0, "one goes on");
        (result, took)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_to_succeed_wins_and_no_other_goes_on() {
        let ms = Duration::from_millis;
        assert_eq!(run(&[(10, Ok(1))]).await, (Ok(1), ms(10)));
        assert_eq!(run(&[(400, Ok(1)), (1, Ok(2))]).await, (Ok(1), ms(400)), "it has its head start");
        assert_eq!(run(&[(9000, Ok(1)), (10, Ok(2))]).await, (Ok(2), ms(510)), "it has no more than that");
        assert_eq!(run(&[(10, Err(1)), (10, Ok(2))]).await, (Ok(2), ms(20)), "a failure is not waited out");
        assert_eq!(run(&[(700, Ok(1)), (9000, Ok(2)), (9000, Ok(3))]).await, (Ok(1), ms(700)));
        assert_eq!(run(&[(700, Err(1)), (10, Err(2)), (10, Err(3))]).await, (Err(vec![2, 3, 1]), ms(700)));
        assert_eq!(run(&[]).await, (Err(vec![]), ms(0)));
    }
}
