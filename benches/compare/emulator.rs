//! A link that loses, delays and reorders packets. It is a process with a network namespace at each end and a TUN device in
//! each of them, and it copies what comes out of one device into the other. What is lost and late is dealt with by the
//! kernel's TCP, as on any path; the kernel's own emulator (netem) is not there on every machine.
//!
//! Each way a packet is lost with a probability of 5 %, or else it arrives after 35 to 65 ms, each packet for itself, so
//! that it may overtake others: a round trip is 100 ms, give or take 30. No bandwidth is set. At most [`MOST`] packets are
//! under way each way; one more is lost, as in a router's queue.
//!
//! Nothing here has a name or stays: the devices go with this process, and the namespaces with the last process inside.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::time::{Instant, sleep_until};
use tokio_tun::Tun;

use crate::common::Failure;
use crate::lossy::ADDRESSES;
use crate::rigs::peers::find_program;

/// The part of packets that is lost each way.
const LOSS: f64 = 0.05;

/// The least that a packet is under way, and what comes on top of it at most.
const DELAY: Duration = Duration::from_millis(35);
const JITTER: Duration = Duration::from_millis(30);

/// Packets under way each way: as many as netem allows when it is told nothing.
const MOST: usize = 1000;

/// The size of packets, as on an Ethernet.
const MTU: u16 = 1500;

/// The process. Ends with its standard input.
pub(crate) async fn run() -> Result<(), Failure> {
    let [cloud, laptop] = ADDRESSES;
    let (cloud, laptop) = (End::new(cloud)?, End::new(laptop)?);
    let seen = RefCell::<Seen>::default();
    let orders = async {
        let mut orders = BufReader::new(stdin()).lines();
        while let Some(order) = orders.next_line().await? {
            match order.as_str() {
                "counts" => println!("{}", seen.take().told()),
                _ => return Err(format!("no such order: {order}").into()),
            }
        }
        Ok(())
    };
    tokio::select! {
        done = orders => done,
        done = carry(&cloud.device, &laptop.device, &seen) => done,
        done = carry(&laptop.device, &cloud.device, &seen) => done,
    }
}

/// One of its two.
struct End {
    device: Tun,
    /// Others enter the namespace by it.
    _namespace: File,
}

impl End {
    /// Leaves this thread in the new namespace. A device stays where it was made.
    fn new(address: &str) -> Result<Self, Failure> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("cannot make a network namespace: {error}"))?;
        let ip = find_program("ip").ok_or("the program ip is missing")?;
        let set = Command::new(ip).args(["link", "set", "lo", "up"]).status()?;
        if !set.success() {
            return Err(format!("ip link set lo up: {set}").into());
        }
        let address: Ipv4Addr = address.parse()?;
        let device = Tun::builder().name("link").address(address).netmask(Ipv4Addr::new(255, 255, 255, 0));
        let device = device.mtu(MTU.into()).up().build();
        let device = device.map_err(|error| format!("cannot make a TUN device: {error}"))?.pop();
        let namespace = File::open("/proc/thread-self/ns/net")?;
        println!("namespace /proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        Ok(Self { device: device.ok_or("no TUN device was made")?, _namespace: namespace })
    }
}

/// One way.
async fn carry(from: &Tun, to: &Tun, seen: &RefCell<Seen>) -> Result<(), Failure> {
    let mut buffer = [0; MTU as usize];
    // The next to arrive is on top.
    let mut under_way = BinaryHeap::<Reverse<(Instant, u64, Vec<u8>)>>::new();
    let (mut number, mut newest) = (0u64, 0u64);
    loop {
        let due = under_way.peek().map(|Reverse((due, ..))| *due);
        tokio::select! {
            got = from.recv(&mut buffer) => {
                let packet = &buffer[..got?];
                // The kernel asks for IPv6 routers, which nobody here is.
                let Some(facts) = Facts::of(packet) else { continue };
                let mut seen = seen.borrow_mut();
                seen.take_note(&facts);
                if rand::random_bool(LOSS) || under_way.len() == MOST {
                    seen.lost += 1;
                    continue;
                }
                number += 1;
                let due = Instant::now() + DELAY + JITTER.mul_f64(rand::random());
                under_way.push(Reverse((due, number, packet.to_vec())));
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let Some(Reverse((_, number, packet))) = under_way.pop() else { continue };
                if number < newest {
                    seen.borrow_mut().overtaken += 1;
                }
                newest = newest.max(number);
                to.send(&packet).await?;
            }
        }
    }
}

/// What has been seen since the last time that this was told.
#[derive(Default)]
struct Seen {
    packets: u64,
    lost: u64,
    overtaken: u64,
    /// The ports of connections that were dialled, and of those that were closed or reset.
    begun: HashSet<[u16; 2]>,
    ended: HashSet<[u16; 2]>,
}

impl Seen {
    /// Of a packet before it may be lost, so that nothing goes unseen.
    fn take_note(&mut self, facts: &Facts) {
        self.packets += 1;
        match facts.what {
            What::Begin => _ = self.begun.insert(facts.ports),
            What::End => _ = self.ended.insert(facts.ports),
            What::Other => {}
        }
    }

    /// Of connections, those that ended or, if there are more, those that began. What is given up while the other end does
    /// not answer may not show an end, since its last packet comes after all that is unanswered; but one takes its place.
    fn told(&self) -> Value {
        let connections = self.begun.len().max(self.ended.len());
        json!({
            "packets": self.packets, "lost": self.lost, "overtaken": self.overtaken, "connections": connections,
        })
    }
}

/// What a packet is.
struct Facts {
    /// The lower one first, so that both ways are the same connection.
    ports: [u16; 2],
    what: What,
}

enum What {
    /// A connection is dialled.
    Begin,
    /// It is closed or reset.
    End,
    Other,
}

impl Facts {
    /// `None` if it is not TCP over IPv4.
    fn of(packet: &[u8]) -> Option<Self> {
        // RFC 791, section 3.1, and RFC 9293, section 3.1.
        const TCP: u8 = 6;
        const FIN: u8 = 1;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        let first = packet.first()?;
        if first >> 4 != 4 || *packet.get(9)? != TCP {
            return None;
        }
        let header = packet.get(usize::from(first & 15) * 4..)?;
        let port = |at: usize| Some(u16::from_be_bytes([*header.get(at)?, *header.get(at + 1)?]));
        let mut ports = [port(0)?, port(2)?];
        ports.sort_unstable();
        let flags = header.get(13)?;
        let what = if flags & (FIN | RST) != 0 {
            What::End
        } else if flags & (SYN | ACK) == SYN {
            What::Begin
        } else {
            What::Other
        };
        Some(Self { ports, what })
    }
}
