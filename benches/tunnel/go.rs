//! The Go library grpctunnel, at the same work: its processes, and how they are steered.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::Failure;

/// How long the program may take to build, and then to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// A hub and an agent of grpc-go, with a reverse tunnel between them. Dropping it ends both.
pub(crate) struct GoTunnel {
    _hub: Child,
    _agent: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl GoTunnel {
    /// Builds `tests/peers/go/grpctunnel` and starts it twice. `Err` says why there are no rows of it.
    pub(crate) async fn start() -> Result<Self, Failure> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/go");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers-bench").join("grpctunnel");
        let mut build = Command::new("go");
        build.args(["build", "-buildvcs=false", "-o"]).arg(&program).arg("./grpctunnel").current_dir(&source);
        let built = timeout(PATIENCE, build.kill_on_drop(true).output()).await??;
        if !built.status.success() {
            return Err(String::from_utf8_lossy(&built.stderr).trim().to_owned().into());
        }
        let start = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()
        };
        let mut hub = start(&["bench-hub", "-timeout", "3600"])?;
        let (orders, said) = (hub.stdin.take(), hub.stdout.take());
        let (orders, said) = (orders.ok_or("no standard input")?, said.ok_or("no standard output")?);
        let mut answers = BufReader::new(said).lines();
        let address = line(&mut answers, "listening ").await?;
        let agent = start(&["bench-agent", "-timeout", "3600", "-server", &address])?;
        line(&mut answers, "tunnel ").await?;
        Ok(Self { _hub: hub, _agent: agent, orders, answers })
    }

    /// Has the hub do this, and takes the figures from its answer.
    pub(crate) async fn figures(&mut self, order: &str) -> Result<serde_json::Value, Failure> {
        self.orders.write_all(format!("{order}\n").as_bytes()).await?;
        let answer = line(&mut self.answers, "{").await?;
        Ok(serde_json::from_str(&format!("{{{answer}"))?)
    }
}

/// The rest of the next line that begins so.
async fn line(answers: &mut Lines<BufReader<ChildStdout>>, start: &str) -> Result<String, Failure> {
    loop {
        let line = timeout(PATIENCE, answers.next_line()).await??.ok_or("the Go program has ended")?;
        if let Some(rest) = line.strip_prefix(start) {
            return Ok(rest.to_owned());
        }
    }
}
