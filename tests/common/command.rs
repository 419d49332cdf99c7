//! The command itself, run as its users run it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How long a run may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run has said.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    /// What it has printed, having ended well.
    #[track_caller]
    pub fn text(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    /// It ended with this code, and said this.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in {}", self.err);
        }
    }
}

/// The command, with nothing of this process's environment that it would read.
pub fn dialback(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dialback"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env_remove("DIALBACK_GATEWAY").env_remove("DIALBACK_TOKEN").env("NO_COLOR", "1");
    command
}

/// Runs the command.
pub async fn run(arguments: &[&str]) -> Answer {
    finish(dialback(arguments), "").await
}

/// Runs the command with something on its stdin.
pub async fn run_with(arguments: &[&str], stdin: &str) -> Answer {
    finish(dialback(arguments), stdin).await
}

/// Runs another program in the same way.
pub async fn run_program(program: &Path, arguments: &[&str], stdin: &str) -> Answer {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    finish(command, stdin).await
}

/// Runs a command to its end.
pub async fn finish(mut command: Command, stdin: &str) -> Answer {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("start");
    let mut pipe = child.stdin.take().expect("stdin is piped");
    let stdin = stdin.to_owned();
    let write = async move {
        let _ = pipe.write_all(stdin.as_bytes()).await; // it need not read all
    };
    let run = async { tokio::join!(write, child.wait_with_output()).1 };
    let output = tokio::time::timeout(PATIENCE, run).await.expect("an end in time").expect("an end");
    Answer {
        code: output.status.code().expect("no signal"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}
