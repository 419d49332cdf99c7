//! The tunnel beside what a user would pick instead: the same gRPC work over each, in turns, in one run.
//!
//! ```sh
//! cargo bench --all-features --bench compare                   # all of it, about an hour and a quarter
//! cargo bench --all-features --bench compare -- --quick        # a look, about three minutes
//! cargo bench --all-features --bench compare -- --only openssh --only unary
//! cargo bench --all-features --bench compare -- --json rows.json --markdown table.md --charts charts
//! cargo bench --all-features --bench compare -- --soak 30      # half an hour of calls, for failures and for memory that grows
//! ```
//!
//! Every contender is processes of its own: one calls, one serves, and what carries them is in between. A contender that
//! cannot be had here, or does not have a case, is listed with the reason, and so is one that fails: what it had in that
//! case before is taken out. If one of ours fails, the run ends with an error after all else is written; without
//! `--all-features` that is what needs a feature.
//!
//! | contender | what it is |
//! |---|---|
//! | `direct-tcp` | tonic over TCP, without encryption and without a tunnel; ratios are to this |
//! | `direct-tls` | tonic over rustls over TCP |
//! | `dialback-ssh` | `hub.channel(…)` to an agent that came by SSH over TCP |
//! | `dialback-gateway` | an ordinary client of the hub's gateway, in a process of its own |
//! | `dialback-wss` | `hub.channel(…)` to an agent that came by SSH over a WebSocket with TLS |
//! | `dialback-grpctunnel` | `hub.channel(…)` to an agent that opened a reverse tunnel of grpctunnel |
//! | `openssh` | a stock `ssh -R` to a stock `sshd`, whose port our client dials |
//! | `go-ssh` | the article's program: x/crypto/ssh and grpc-go at both ends |
//! | `go-grpctunnel` | the Go library's reverse tunnel |
//! | `python-grpctunnel` | the Python library's reverse tunnel |
//! | `rathole` | a general tunnel in wide use, whose port our client dials |
//!
//! Client and server are the same code with this crate's HTTP/2 settings wherever the contender carries a byte stream. The
//! server is tonic's. What the client's calls go into is what a user types in each case: `hub.channel(…)` is this crate's
//! own HTTP/2 client, with frames of 63 KiB; `direct-tcp`, `direct-tls`, `openssh`, `rathole` and the caller of
//! `dialback-gateway` use tonic's `Channel`. So a tunnel may cost less than no tunnel. `go-*` and `python-*` have a gRPC of their own at both ends: there the same work is done in that language, by
//! `tests/peers/go/bench` and `tests/peers/python/bench.py`.
//!
//! # Settings
//! `loopback`: everything on this machine, each process on its language's default runtime. `one-thread`: the same with
//! every process of ours on one thread. `path-20ms`, `path-100ms`: the contender's carrier goes through a relay of ours
//! (`line.rs`) with that round-trip time and 100 Mbit/s each way.
//!
//! `lossy-link`: cloud and laptop are two network namespaces, and the link between them loses 5 % of the packets each way and
//! delays the others by 100 ms of round trip, give or take 30, so that they come out of order (`lossy.rs`, `emulator.rs`).
//! `mixed-calls` is a minute of calls of every kind, some with a deadline: no other may fail, and no connection may be lost.
//! Our tunnels and OpenSSH have a short keepalive there; the others have none that can be set. It needs root, and of
//! Debian's packages `iproute2` and `util-linux`.
//!
//! `fleet-1000`, `fleet-5000`, `fleet-10000`: so many agents on one hub (`fleet.rs`). `idle` is of their coming and of what
//! they cost then: CPU time is that of 20 s, which is two keepalives of each, and not told by `--quick`. The other
//! contenders have the memory alone, once each, with 1,000 and with 10,000 (`idle.rs`): of `direct-*` it is that of an idle
//! connection where it is dialled, of all others that of the processes of the hub's side, which for `openssh` are one or
//! two for each agent. `herd` is of their return after the hub was killed, while eight callers call those that are back. A
//! call that is not answered within a second has failed. Of an agent's tries there are two figures. The goal is about those
//! from when the new hub listens; how many came before, while there was nothing to reach, is only how long that took. The
//! hub's process needs an open file for each agent: see `ulimit -n`.
//!
//! # Figures
//! Every case runs in rounds, each contender once in each; which is first changes. One more round comes before them, to
//! warm up and to find out how many bytes make a turn. The values are medians over the rounds, a ratio is one median over
//! the other, and the spread is what the rounds' lowest and highest value are apart. A percentile is told if the calls of
//! all these rounds are so many that about ten took longer: `p90` from 100 calls on, `p99` from 1,000, `p99.9` from 10,000.
//! `p90` is told over paths alone, where calls are few, and not of `go-*` and `python-*`. CPU time is that of all processes
//! of a contender, in user mode and in the kernel, as the scheduler counts it. MB/s are millions of bytes; those of `bidi`
//! streams are counted one way.
//!
//! `set-up` is from the start of the process that dials to the first answer: loading a program, and Python's modules, is
//! part of it. `connections` is from one dial to the next in a process that runs.
//!
//! A goal of a case that was to be measured and has no value was not reached.

mod chart;
#[path = "../common/mod.rs"]
mod common;
mod contenders;
#[cfg(target_os = "linux")]
mod emulator;
mod figures;
mod fleet;
mod goals;
mod herd;
mod idle;
mod line;
mod lossy;
mod mixed;
mod network;
mod orders;
mod plan;
mod process;
mod rigs;
mod roles;
mod rounds;
mod soak;
#[cfg(any(feature = "gateway", feature = "websocket"))]
mod tls;
mod tries;
mod work;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Parser;

use common::Failure;
use common::report::Report;
use common::system::machine;
use contenders::Contender;
use plan::Plan;
use roles::Role;
use rounds::LeftOut;

/// Compares gRPC over the tunnel with gRPC over what else there is.
#[derive(Parser)]
struct Args {
    /// Fewer and shorter rounds: about three minutes.
    #[arg(long)]
    quick: bool,
    /// Only the contenders, or the cases, whose name contains this; may be repeated. direct-tcp is always there.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Writes the results to a file as a JSON array of rows.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes what is printed, tables in Markdown, to a file.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Instead of all else: calls to a hundred agents, ten a second to each, for so many minutes.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<u64>,
    /// Writes charts into a directory, as SVG.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    /// Cargo passes this to every benchmark; it means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
    /// A role's process has one thread.
    #[arg(long, hide = true)]
    one_thread: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let threads = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let one_thread = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Some(role) = args.role {
        // It ends with its standard input, too, but not while it does some work.
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        let runtime = if args.one_thread { one_thread() } else { threads() }?;
        let ended = runtime.block_on(role.run());
        // Standard input is read by a thread that would be waited for.
        runtime.shutdown_background();
        return ended;
    }

    // On this thread, which lives as long as the process: what is killed with its parent goes by the parent's thread.
    one_thread()?.block_on(async {
        tokio::select! {
            done = compare(&args) => done,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    })
}

async fn compare(args: &Args) -> Result<(), Failure> {
    let plan = Plan::new(args.quick, args.soak, args.only.clone())?;
    let mut report = Report::new(Contender::DirectTcp.name());
    let mut left_out = LeftOut::default();
    match args.soak {
        Some(minutes) => soak::measure(minutes, &mut report, &mut left_out).await,
        None => {
            for setting in plan::SETTINGS {
                rounds::run(&plan, setting, &mut report, &mut left_out).await;
            }
            rounds::waits(&plan, &mut report, &mut left_out).await;
            lossy::measure(&plan, &mut report, &mut left_out).await;
            for agents in plan.fleet_sizes() {
                fleet::measure(&plan, *agents, &mut report, &mut left_out).await;
                idle::measure(&plan, *agents, &mut report, &mut left_out).await;
            }
        }
    }

    let text = tables(&plan, &report, &left_out);
    println!("{text}");
    if let Some(path) = &args.markdown {
        write(path, &text)?;
    }
    if let Some(path) = &args.json {
        write(path, &report.json()?)?;
    }
    if let Some(dir) = &args.charts {
        let files = chart::write(&report, &contenders::ALL.map(Contender::name), dir)?;
        eprintln!("charts in {}: {}", dir.display(), files.join(", "));
    }
    match left_out.ours_failed {
        0 => Ok(()),
        failed => Err(format!("{failed} cases of ours have failed: see what is left out").into()),
    }
}

/// All there is to tell, in Markdown.
fn tables(plan: &Plan, report: &Report, left_out: &LeftOut) -> String {
    let mut text = format!("{}\n\n| contender | what it is |\n|---|---|\n", machine());
    for contender in contenders::ALL {
        let _ = writeln!(text, "| {} | {} |", contender.name(), contender.told()); // a String takes it
    }
    let names = contenders::ALL.map(Contender::name);
    let _ = writeln!(text, "\n{}\n{}", figures::table(report, &names), goals::table(plan, report));
    let _ = writeln!(text, "{}", report.matrix(&names));
    if !left_out.all.is_empty() {
        text.push_str("| left out | of | why |\n|---|---|---|\n");
        for (case, contender, why) in &left_out.all {
            let why = why.replace('|', "/").replace('\n', " ");
            let _ = writeln!(text, "| {contender} | {case} | {why} |");
        }
        text.push('\n');
    }
    text + &report.table()
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    Ok(std::fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?)
}
