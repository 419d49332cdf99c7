//! What is compared: how each contender is started, and what runs of it then.

mod dialback;
mod direct;
mod go;
mod idle;
mod openssh;
mod python;
mod tool;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::Failure;
use crate::lossy::Link;
use crate::network::{Network, Side};
use crate::process::{self, Process};
use crate::roles::Way;

/// How long a contender may take from its start to its first answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long calls go on when a carrier is cut, if they are answered.
const WINDOW: Duration = Duration::from_millis(500);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    DirectTcp,
    DirectTls,
    Dialback(Way),
    OpenSsh,
    GoSsh,
    GoGrpctunnel,
    PythonGrpctunnel,
    Tool,
}

pub(crate) const ALL: [Contender; 11] = [
    Contender::DirectTcp,
    Contender::DirectTls,
    Contender::Dialback(Way::Ssh),
    Contender::Dialback(Way::Gateway),
    Contender::Dialback(Way::Wss),
    Contender::Dialback(Way::Grpctunnel),
    Contender::OpenSsh,
    Contender::GoSsh,
    Contender::GoGrpctunnel,
    Contender::PythonGrpctunnel,
    Contender::Tool,
];

impl Contender {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::DirectTcp => "direct-tcp",
            Self::DirectTls => "direct-tls",
            Self::Dialback(Way::Ssh) => "dialback-ssh",
            Self::Dialback(Way::Gateway) => "dialback-gateway",
            Self::Dialback(Way::Wss) => "dialback-wss",
            Self::Dialback(Way::Grpctunnel) => "dialback-grpctunnel",
            Self::OpenSsh => "openssh",
            Self::GoSsh => "go-ssh",
            Self::GoGrpctunnel => "go-grpctunnel",
            Self::PythonGrpctunnel => "python-grpctunnel",
            Self::Tool => tool::NAME,
        }
    }

    /// What a reader of the table has to know of it.
    pub(crate) fn told(self) -> &'static str {
        match self {
            Self::DirectTcp => "tonic's `Channel` over TCP, no encryption, no tunnel: what ratios are to",
            Self::DirectTls => "tonic's `Channel` over rustls over TCP, no tunnel",
            Self::Dialback(Way::Ssh) => {
                "`hub.channel(…)`, this crate's own HTTP/2 client with frames of 63 KiB; the agent came by SSH over TCP"
            }
            Self::Dialback(Way::Gateway) => {
                "an ordinary client, tonic's `Channel`, of the hub's gateway; the agent came by SSH over TCP"
            }
            Self::Dialback(Way::Wss) => "`hub.channel(…)`, the agent came by SSH over a WebSocket with TLS",
            Self::Dialback(Way::Grpctunnel) => "`hub.channel(…)`, the agent opened a reverse tunnel, no encryption",
            Self::OpenSsh => {
                "stock `ssh -R` to a stock `sshd`; our client, tonic's `Channel`, dials sshd's port, our server is the target"
            }
            Self::GoSsh => "the article's program: x/crypto/ssh and grpc-go at both ends, the same work in Go",
            Self::GoGrpctunnel => {
                "the Go library's reverse tunnel and grpc-go at both ends, no encryption, the work in Go"
            }
            Self::PythonGrpctunnel => {
                "the Python library's reverse tunnel at both ends, no encryption, the work in Python"
            }
            Self::Tool => tool::TOLD,
        }
    }

    /// Starts its processes in this network. `Err` says why it cannot be had.
    pub(crate) async fn start(self, network: Network, one_thread: bool) -> Result<Running, Failure> {
        let mut start = Start { dir: tempfile::tempdir()?, network, one_thread, dialled: None };
        let parts = match self {
            Self::DirectTcp => direct::tcp(&mut start).await,
            Self::DirectTls => direct::tls(&mut start).await,
            Self::Dialback(way) => dialback::start(&mut start, way).await,
            Self::OpenSsh => openssh::start(&mut start).await,
            Self::GoSsh => go::ssh(&mut start).await,
            Self::GoGrpctunnel => go::grpctunnel(&mut start).await,
            Self::PythonGrpctunnel => python::start(&mut start).await,
            Self::Tool => tool::start(&mut start).await,
        };
        let Parts { caller, others } = parts?;
        let mut running = Running { caller, others, network: start.network, _dir: start.dir, set_up: Duration::ZERO };
        running.order("first", PATIENCE).await?;
        running.set_up = start.dialled.ok_or("nothing has dialled")?.elapsed();
        Ok(running)
    }

    /// Whether it is one of ours, which can run on one thread in each process.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::DirectTcp | Self::DirectTls | Self::Dialback(_))
    }

    /// Whether its caller has the order `mixed`, and its processes can be told where to run.
    pub(crate) fn makes_mixed_calls(self) -> bool {
        self.is_ours() || matches!(self, Self::OpenSsh | Self::Tool)
    }

    /// How many files an agent that does nothing has open on the hub's side, in the process that has most.
    pub(crate) fn files_of_an_idle_agent(self) -> usize {
        match self {
            // Where each service is dialled, what it is told by, and connections in reserve.
            Self::Tool => 10,
            _ => 1,
        }
    }

    /// Whether its caller is an ordinary client, which can dial again.
    pub(crate) fn dials_an_address(self) -> bool {
        matches!(self, Self::DirectTcp | Self::DirectTls | Self::Dialback(Way::Gateway) | Self::OpenSsh | Self::Tool)
    }
}

/// What a contender is started with.
struct Start {
    dir: TempDir,
    network: Network,
    one_thread: bool,
    /// When the process that dials was started.
    dialled: Option<Instant>,
}

impl Start {
    /// Where the carrier is to be dialled: at the line, if there is one.
    async fn to(&mut self, target: &str) -> Result<SocketAddr, Failure> {
        let target = target.parse().map_err(|_| format!("not an address: {target}"))?;
        self.network.to(target).await
    }

    fn dials_now(&mut self) {
        self.dialled = Some(Instant::now());
    }

    /// This program in another role.
    fn own(&self, side: Side, arguments: &[&str]) -> Result<Process, Failure> {
        let threads: &[&str] = if self.one_thread { &["--one-thread"] } else { &[] };
        let command = process::own(&[threads, arguments].concat())?;
        Process::start(&mut self.network.inside(side, command))
    }

    /// A program that is not ours, with these arguments.
    fn external<S: AsRef<OsStr>>(
        &self,
        side: Side,
        program: impl AsRef<OsStr>,
        arguments: &[S],
    ) -> Result<Process, Failure> {
        let mut command = process::external(program);
        command.args(arguments);
        Process::start(&mut self.network.inside(side, command))
    }

    fn dir(&self) -> Result<&str, Failure> {
        Ok(self.dir.path().to_str().ok_or("the directory's name is not UTF-8")?)
    }

    /// Our server on the laptop, for those there; and where it listens.
    async fn server(&self) -> Result<(Process, String), Failure> {
        let mut server = self.own(Side::Laptop, &["server"])?;
        let address = server.line("listening ").await?;
        Ok((server, address))
    }
}

/// The processes of a contender.
struct Parts {
    caller: Process,
    others: Vec<Process>,
}

/// A contender that has answered its first call. Dropping it kills all of it.
pub(crate) struct Running {
    caller: Process,
    others: Vec<Process>,
    network: Network,
    _dir: TempDir,
    /// From the start of the process that dials to the first answer.
    pub(crate) set_up: Duration,
}

impl Running {
    /// Has it do this work.
    pub(crate) async fn order(&mut self, order: &str, patience: Duration) -> Result<Value, Failure> {
        self.caller.tell(order).await?;
        self.caller.answer(patience).await
    }

    /// The most milliseconds between two answers when its carrier is cut; `None` if there was none after it.
    pub(crate) async fn gap(&mut self, patience: Duration) -> Result<Option<f64>, Failure> {
        self.order(&format!("gap {} {}", WINDOW.as_millis(), patience.as_millis()), PATIENCE).await?;
        // Some calls come first.
        tokio::time::sleep(WINDOW / 10).await;
        let Network::Line(line) = &mut self.network else { return Err("no line to cut".into()) };
        line.cut().await?;
        let answer = self.caller.answer(patience + PATIENCE).await?;
        Ok(answer["gap"].as_f64())
    }

    /// What its carrier goes over, if it is that.
    pub(crate) fn link(&mut self) -> Result<&mut Link, Failure> {
        match &mut self.network {
            Network::Link(link) => Ok(link),
            _ => Err("it does not go over a link".into()),
        }
    }

    /// Seconds of CPU time that all its processes have used, but for the line's.
    pub(crate) fn cpu(&self) -> f64 {
        let all = std::iter::once(&self.caller).chain(&self.others);
        process::cpu(&all.filter_map(Process::id).collect::<Vec<_>>())
    }
}
