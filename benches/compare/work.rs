//! The work that only this benchmark does; the rest is in `benches/common/work.rs`. `tests/peers/go/bench` and
//! `tests/peers/python/bench.py` have the same for contenders with a gRPC of their own.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::common::Failure;
use crate::common::service::messages;
use crate::common::service::pb::echo_client::EchoClient;
use crate::common::work::{Transport, download, one_call};

/// How long calls took, and how many there were in a second.
pub(crate) struct Calls {
    /// Shortest first.
    times: Vec<Duration>,
    pub(crate) rate: f64,
}

impl Calls {
    pub(crate) fn count(&self) -> usize {
        self.times.len()
    }

    /// So many thousandths of the calls took no longer, in microseconds.
    pub(crate) fn micros(&self, thousandths: usize) -> f64 {
        let time = self.times.get(self.times.len() * thousandths / 1000);
        time.copied().unwrap_or_default().as_nanos() as f64 / 1000.0
    }
}

/// So many callers, each with one call after the other, for so long.
pub(crate) async fn callers<T: Transport>(
    client: &EchoClient<T>,
    callers: u64,
    duration: Duration,
) -> Result<Calls, Failure> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let mut client = client.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while started.elapsed() < duration {
                let begun = Instant::now();
                one_call(&mut client).await?;
                times.push(begun.elapsed());
            }
            Ok::<_, Failure>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    Ok(Calls { times, rate })
}

/// Both ways at once: what goes comes back. The rate is that of one way, in MB/s.
pub(crate) async fn chat<T: Transport>(mut client: EchoClient<T>, bytes: u64, size: usize) -> Result<f64, Failure> {
    let count = bytes / size as u64;
    let started = Instant::now();
    let mut stream = client.chat(messages(count, size)).await?.into_inner();
    let mut got = 0;
    while let Some(message) = stream.message().await? {
        got += message.data.len() as u64;
    }
    if got != count * size as u64 {
        return Err(format!("{got} bytes came back of {}", count * size as u64).into());
    }
    Ok(got as f64 / 1e6 / started.elapsed().as_secs_f64())
}

/// Several server streams at once, of so many bytes together.
pub(crate) async fn downloads<T: Transport>(
    client: &EchoClient<T>,
    streams: u64,
    bytes: u64,
    size: usize,
) -> Result<f64, Failure> {
    let each = (bytes / streams).max(size as u64);
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        tasks.spawn(download(client.clone(), each, size));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let got = each / size as u64 * size as u64 * streams;
    Ok(got as f64 / 1e6 / started.elapsed().as_secs_f64())
}

/// One caller beside a server stream, which begins anew whenever its bytes are there. The stream's rate is in MB/s.
pub(crate) async fn beside<T: Transport>(
    client: &EchoClient<T>,
    duration: Duration,
    bytes: u64,
    size: usize,
) -> Result<(Calls, f64), Failure> {
    let started = Instant::now();
    let bulk = client.clone();
    let bulk = tokio::spawn(async move {
        let mut streams = 0;
        while started.elapsed() < duration {
            download(bulk.clone(), bytes, size).await?;
            streams += 1;
        }
        let got = (bytes / size as u64 * size as u64 * streams) as f64;
        Ok::<_, Failure>(got / 1e6 / started.elapsed().as_secs_f64())
    });
    let calls = callers(client, 1, duration).await?;
    Ok((calls, bulk.await??))
}

/// How long one call may take where the path may be down.
const ATTEMPT: Duration = Duration::from_secs(1);

async fn attempt<T: Transport>(client: &mut EchoClient<T>) -> bool {
    timeout(ATTEMPT, one_call(client)).await.is_ok_and(|call| call.is_ok())
}

/// Returns once a call has been answered.
pub(crate) async fn first<T: Transport>(client: &mut EchoClient<T>) {
    while !attempt(client).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Calls for `least`, and then until one is answered: the longest time between two answers. `None` when there is none for
/// `most`.
pub(crate) async fn gap<T: Transport>(client: &mut EchoClient<T>, least: Duration, most: Duration) -> Option<Duration> {
    let started = Instant::now();
    let (mut answered, mut longest) = (started, Duration::ZERO);
    while answered.elapsed() < most {
        if attempt(client).await {
            longest = longest.max(answered.elapsed());
            answered = Instant::now();
            if started.elapsed() >= least {
                return Some(longest);
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    None
}
