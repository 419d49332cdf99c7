//! The gRPC work, the same for every path.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, StdError};

use super::Failure;
use super::service::pb::Payload;
use super::service::pb::echo_client::EchoClient;
use super::service::{messages, order};

/// What a client may be made of: in short, a channel.
pub(crate) trait Transport:
    GrpcService<Body, ResponseBody = Self::Answer, Future = Self::Call> + Clone + Send + 'static
{
    type Answer: HttpBody<Data = Bytes, Error = Self::Broken> + Send + 'static;
    type Broken: Into<StdError> + Send;
    type Call: Send;
}

impl<T> Transport for T
where
    T: GrpcService<Body> + Clone + Send + 'static,
    T::Future: Send,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    type Answer = T::ResponseBody;
    type Broken = <T::ResponseBody as HttpBody>::Error;
    type Call = T::Future;
}

/// What a unary call carries: a small message, as most are.
const SMALL: usize = 100;

fn small() -> Payload {
    Payload { data: vec![7; SMALL] }
}

pub(crate) async fn one_call<T: Transport>(client: &mut EchoClient<T>) -> Result<(), Failure> {
    let answer = client.unary(small()).await?.into_inner();
    if answer.data.len() == SMALL { Ok(()) } else { Err("the answer is not what was sent".into()) }
}

/// Runs it as a task, which those are that make calls. The main thread is none of its runtime's workers: it would have to be
/// woken for each answer.
pub(crate) async fn task<R: Send + 'static>(
    work: impl Future<Output = Result<R, Failure>> + Send + 'static,
) -> Result<R, Failure> {
    tokio::spawn(work).await?
}

/// How long calls take, one after the other, shortest first; and the CPU time of each.
pub(crate) async fn latencies<T: Transport>(
    mut client: EchoClient<T>,
    calls: usize,
) -> Result<(Vec<Duration>, Option<Duration>), Failure> {
    let mut times = Vec::with_capacity(calls);
    let cpu = Cpu::start();
    for _ in 0..calls {
        let started = Instant::now();
        one_call(&mut client).await?;
        times.push(started.elapsed());
    }
    let each = cpu.elapsed().map(|cpu| cpu / u32::try_from(calls).unwrap_or(u32::MAX));
    times.sort_unstable();
    Ok((times, each))
}

/// Calls per second with so many callers; and the CPU time of each.
pub(crate) async fn throughput<T: Transport>(
    client: &EchoClient<T>,
    callers: usize,
    duration: Duration,
) -> Result<(f64, Option<Duration>), Failure> {
    let cpu = Cpu::start();
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let mut client = client.clone();
        tasks.spawn(async move {
            let mut calls = 0u32;
            while started.elapsed() < duration {
                one_call(&mut client).await?;
                calls += 1;
            }
            Ok::<_, Failure>(calls)
        });
    }
    let mut calls = 0;
    while let Some(done) = tasks.join_next().await {
        calls += done??;
    }
    Ok((f64::from(calls) / started.elapsed().as_secs_f64(), cpu.elapsed().map(|cpu| cpu / calls)))
}

/// A rate in MB/s (millions of bytes), and the CPU time of each MB.
type Stream = (f64, Option<Duration>);

/// From the server to the client.
pub(crate) async fn download<T: Transport>(
    mut client: EchoClient<T>,
    bytes: u64,
    size: usize,
) -> Result<Stream, Failure> {
    let count = bytes / size as u64;
    let (started, cpu) = (Instant::now(), Cpu::start());
    let mut stream = client.download(order(count, size)).await?.into_inner();
    let mut got = 0;
    while let Some(message) = stream.message().await? {
        got += message.data.len() as u64;
    }
    rate(got, count * size as u64, started, &cpu)
}

/// From the client to the server.
pub(crate) async fn upload<T: Transport>(
    mut client: EchoClient<T>,
    bytes: u64,
    size: usize,
) -> Result<Stream, Failure> {
    let count = bytes / size as u64;
    let (started, cpu) = (Instant::now(), Cpu::start());
    let got = client.upload(messages(count, size)).await?.into_inner().data;
    rate(u64::from_be_bytes(got.as_slice().try_into()?), count * size as u64, started, &cpu)
}

fn rate(got: u64, wanted: u64, started: Instant, cpu: &Cpu) -> Result<Stream, Failure> {
    if got != wanted {
        return Err(format!("{got} bytes arrived instead of {wanted}").into());
    }
    let megabytes = got as f64 / 1e6;
    Ok((megabytes / started.elapsed().as_secs_f64(), cpu.elapsed().map(|cpu| cpu.div_f64(megabytes))))
}

/// The CPU time of this thread, where the system tells it.
struct Cpu(Option<Duration>);

impl Cpu {
    fn start() -> Self {
        Self(Self::now())
    }

    fn now() -> Option<Duration> {
        let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    }

    fn elapsed(&self) -> Option<Duration> {
        Some(Self::now()?.saturating_sub(self.0?))
    }
}
