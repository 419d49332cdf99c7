//! A process of a contender, from outside: started, told, read, counted and killed.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::common::Failure;
use crate::rigs::peers::find_program;

/// How long a process may take to say what it says at its start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lines that a failure repeats.
const LAST: usize = 5;

/// Lines that wait to be read.
const LINES: usize = 256;

/// Dropping it kills the process.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    said: VecDeque<String>,
}

impl Process {
    /// This program in another role.
    pub(crate) fn own<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Self, Failure> {
        Self::start(&mut own(arguments)?)
    }

    pub(crate) fn start(command: &mut Command) -> Result<Self, Failure> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let told = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|error| format!("{told} cannot be started: {error}"))?;
        let (send, lines) = mpsc::channel(LINES);
        if let Some(stdout) = child.stdout.take() {
            collect(stdout, send.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            collect(stderr, send);
        }
        Ok(Self { stdin: child.stdin.take(), child, lines, said: VecDeque::new() })
    }

    /// The rest of the next line that begins so.
    pub(crate) async fn line(&mut self, start: &str) -> Result<String, Failure> {
        self.find(PATIENCE, |line| line.strip_prefix(start).map(str::to_owned)).await
    }

    /// Waits for a line with these words in it.
    pub(crate) async fn says(&mut self, words: &str) -> Result<(), Failure> {
        self.find(PATIENCE, |line| line.contains(words).then_some(())).await
    }

    async fn find<T>(&mut self, patience: Duration, look: impl Fn(&str) -> Option<T>) -> Result<T, Failure> {
        let reading = async {
            while let Some(line) = self.lines.recv().await {
                if let Some(found) = look(&line) {
                    return Some(found);
                }
                if self.said.len() == LAST {
                    self.said.pop_front();
                }
                self.said.push_back(line);
            }
            None
        };
        let why = match timeout(patience, reading).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => "it has ended".to_owned(),
            Err(_) => format!("nothing for {patience:?}"),
        };
        let said: Vec<&str> = self.said.iter().map(String::as_str).collect();
        Err(format!("{why}; it said: {}", said.join(" / ")).into())
    }

    pub(crate) async fn tell(&mut self, order: &str) -> Result<(), Failure> {
        let stdin = self.stdin.as_mut().ok_or("no standard input")?;
        Ok(stdin.write_all(format!("{order}\n").as_bytes()).await?)
    }

    /// The JSON that answers an order.
    pub(crate) async fn answer(&mut self, patience: Duration) -> Result<Value, Failure> {
        let answer = self.find(patience, |line| line.starts_with('{').then(|| line.to_owned())).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Kills it, and returns once it is gone.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }
}

fn collect(from: impl AsyncRead + Send + Unpin + 'static, to: mpsc::Sender<String>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // One that finds no room is lost: a process must not wait for somebody to read what it tells nobody.
            let _ = to.try_send(line);
        }
    });
}

/// Seconds of CPU time that the threads of these processes, and of those that they have started, have used so far. Those
/// of threads that have ended are not in it: between two readings this has to be of processes that stay as they are.
pub(crate) fn cpu(roots: &[u32]) -> f64 {
    family(roots).into_iter().filter_map(on_cpu).sum::<u64>() as f64 / 1e9
}

/// Bytes that a process, and those that it has started, have in memory: what is theirs alone, and of what they share with
/// others a part. What the kernel keeps for them is not in it.
pub(crate) fn memory(root: u32) -> Result<f64, Failure> {
    let mut sum = share(root)?;
    for process in family(&[root]).into_iter().filter(|process| *process != root) {
        match share(process) {
            Ok(share) => sum += share,
            // One that has ended meanwhile has none.
            Err(_) if !Path::new(&format!("/proc/{process}")).exists() => {}
            Err(why) => return Err(why),
        }
    }
    Ok(1024.0 * sum as f64)
}

fn family(roots: &[u32]) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // Those that are gone by now have none.
    let parents: HashMap<u32, u32> = processes.filter_map(|process| Some((process, parent(process)?))).collect();
    let is_theirs = |process: &u32| {
        let line = std::iter::successors(Some(*process), |process| parents.get(process).copied());
        line.take(GENERATIONS).any(|process| roots.contains(&process))
    };
    parents.keys().copied().filter(is_theirs).collect()
}

/// What was read of processes at different times may be a circle.
const GENERATIONS: usize = 64;

fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Nanoseconds that the threads of a process have run. The times in its `stat` are in steps of 10 ms, which is too coarse.
fn on_cpu(process: u32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let of = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Some(threads.filter_map(|thread| of(thread.ok()?)).sum())
}

/// KiB of a process in memory: its own, and its part of what it shares.
fn share(process: u32) -> Result<u64, Failure> {
    let file = format!("/proc/{process}/smaps_rollup");
    let rollup = fs::read_to_string(&file).map_err(|error| format!("cannot read {file}: {error}"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or_else(|| format!("no `Pss:` in {file}"))?.parse()?)
}

/// This program in another role. It ends with its standard input, and is killed if this one is.
pub(crate) fn own<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

/// A program that is not ours and does not end with its standard input: it is killed if this one is.
pub(crate) fn external(program: impl AsRef<OsStr>) -> Command {
    match find_program("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}
