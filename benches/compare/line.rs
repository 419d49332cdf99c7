//! A network of our own between two processes: a relay in user space that delays, limits and cuts. The kernel's own
//! (netem) is not there on every machine, and this one is the same everywhere.
//!
//! What a TCP connection does about lost packets does not happen here: each half of it ends at the relay, on the loopback.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

use crate::common::Failure;
use crate::process::Process;
use crate::rigs::proxy::{Cut, Proxy, Way};

/// What a link buffers beyond what is on its way at its rate, as routers do.
const QUEUE: usize = 128 << 10;

/// Socket buffers of the relay: what a sender is ahead of the link is in its own.
const BUFFERS: u32 = 64 << 10;

/// What the network is like.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// The round-trip time in milliseconds.
    #[arg(long, default_value_t = 0)]
    round_trip: u64,
    /// The most bytes per second each way; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

impl Limits {
    pub(crate) fn new(round_trip: u64, rate: u64) -> Self {
        Self { round_trip, rate }
    }
}

/// The relay's process. Cuts every connection when told `cut`.
pub(crate) async fn run(target: SocketAddr, limits: &Limits) -> Result<(), Failure> {
    let delay = Duration::from_millis(limits.round_trip) / 2;
    let rate = (limits.rate > 0).then_some(limits.rate);
    let proxy = if rate.is_some() { Proxy::with_buffers(target, BUFFERS).await } else { Proxy::to(target).await };
    proxy.set(Way::Both, |link| {
        link.delay = delay;
        link.rate = rate;
        link.queue = rate.map(|rate| QUEUE + (rate as f64 * delay.as_secs_f64()) as usize);
    });
    println!("listening {}", proxy.address());
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        if order == "cut" {
            proxy.cut(Cut::Reset);
        }
    }
    Ok(())
}

/// The network that a contender's carrier goes through.
pub(crate) struct Line {
    limits: Limits,
    relay: Option<Process>,
}

impl Line {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, relay: None }
    }

    /// Where to dial instead of `target`.
    pub(crate) async fn to(&mut self, target: SocketAddr) -> Result<SocketAddr, Failure> {
        let Limits { round_trip, rate } = self.limits;
        let [target, round_trip, rate] = [target.to_string(), round_trip.to_string(), rate.to_string()];
        let mut relay = Process::own(&["line", &target, "--round-trip", &round_trip, "--rate", &rate])?;
        let address = relay.line("listening ").await?.parse()?;
        self.relay = Some(relay);
        Ok(address)
    }

    /// Resets what goes through it.
    pub(crate) async fn cut(&mut self) -> Result<(), Failure> {
        self.relay.as_mut().ok_or("nothing goes through this line")?.tell("cut").await
    }
}
