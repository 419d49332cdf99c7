//! Programs that speak grpctunnel.v1, with the Echo service or its caller behind it: on the Go library, and on its Python
//! port in a virtual environment under `target`.
//!
//! ```ignore
//! let Some(mut hub) = Library::Python.command("reverse-hub").await else { return };
//! let mut hub = Peer::start(hub.args(["--checks", "unary"]));
//! let address = hub.line("listening ").await;
//! ```
//!
//! `tests/peers/go/grpctunnel` lists the roles and what they print, and its flags are those of both.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{process::Command, sync::OnceCell, time::timeout};

use super::peers::{go_peer, skip};

/// A library that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// github.com/jhump/grpctunnel
    Go,
    /// grpctunnel-py
    Python,
}

impl Library {
    /// Its program in a role, to be given options and started. If it cannot be had, the test is to be skipped.
    pub async fn command(self, role: &str) -> Option<Command> {
        let mut command = match self {
            Self::Go => Command::new(go_peer("grpctunnel")?),
            Self::Python => python("peer.py").await?,
        };
        command.arg(role);
        Some(command)
    }

    /// Every check that its caller has, but for `spread` of several tunnels, which is the Go library's.
    pub fn checks(self) -> &'static [&'static str] {
        match self {
            Self::Go => &[
                "unary",
                "empty",
                "metadata-text",
                "metadata-large",
                "status-tunnelled",
                "refused",
                "deadline",
                "deadline-stream",
                "cancel",
                "sizes",
                "sizes-streamed",
                "large-download",
                "download",
                "upload",
                "chat",
                "early-headers",
                "half-close",
                "early-status-tunnelled",
                "early-status-large",
                "concurrent",
                "crowd",
            ],
            Self::Python => &[
                "unary",
                "empty-answers",
                "metadata",
                "status",
                "sizes",
                "sizes-streamed",
                "large-download",
                "download",
                "upload",
                "chat",
                "half-close",
                "concurrent",
            ],
        }
    }
}

/// What its programs serve and call.
const PROTOS: [&str; 2] = ["echo.proto", "greeter.proto"];

/// How long the virtual environment may take to be made, beside a test run.
const BUILD: Duration = Duration::from_secs(240);

/// A program of `tests/peers/python`. If it cannot be had, the test is to be skipped.
pub async fn python(program: &str) -> Option<Command> {
    static BUILT: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
    let build = async { timeout(BUILD, build()).await.unwrap_or_else(|_| Err(format!("not made within {BUILD:?}"))) };
    match BUILT.get_or_init(|| build).await {
        Ok(dir) => {
            let mut python = Command::new(dir.join("venv/bin/python"));
            // The sources' directory stays as it is, and a line is there once it is printed.
            python.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONPATH", dir.join("gen")).arg("-u");
            python.arg(sources().join(program));
            Some(python)
        }
        Err(why) => {
            skip(&format!("Python's libraries cannot be had: {why}"));
            None
        }
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/python")
}

/// Makes what is not there yet, and gives its directory: `venv` with the library, and `gen` with the code of the protos.
async fn build() -> Result<PathBuf, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers-python");
    fs::create_dir_all(&dir).expect("target can be written to");
    // Another test binary may be at it at the same time. The lock goes with the file.
    let lock = File::create(dir.join(".lock")).expect("target can be written to");
    let waiting = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
    let _lock = waiting.await.expect("no panic").expect("a file can be locked");

    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let requirements = sources().join("requirements.txt");
    let interpreter =
        run(Command::new("python3").args(["-c", "import sys; print(sys.executable, sys.version)"])).await?;
    let read = |file: &Path| fs::read_to_string(file).expect("a source file");
    let protos = PROTOS.map(|name| read(&proto.join(name))).concat();
    let wanted = [interpreter, read(&requirements), protos].concat();
    let made_of = dir.join("made-of");
    if fs::read_to_string(&made_of).is_ok_and(|found| found == wanted) {
        return Ok(dir);
    }

    for part in ["venv", "gen"] {
        if let Err(error) = fs::remove_dir_all(dir.join(part)) {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{}: {error}", dir.join(part).display());
        }
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(dir.join("venv"))).await?;
    let python = || Command::new(dir.join("venv/bin/python"));
    let options = ["-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:", "--requirement"];
    run(python().args(options).arg(&requirements)).await?;
    fs::create_dir_all(dir.join("gen")).expect("target can be written to");
    let mut protoc = python();
    protoc.args(["-m", "grpc_tools.protoc"]).args(PROTOS).arg("--proto_path").arg(proto);
    for option in ["--python_out", "--grpc_python_out"] {
        protoc.arg(option).arg(dir.join("gen"));
    }
    run(&mut protoc).await?;
    fs::write(&made_of, wanted).expect("target can be written to");
    Ok(dir)
}

/// What a command prints, or why it failed.
async fn run(command: &mut Command) -> Result<String, String> {
    let told = format!("{:?}", command.as_std());
    let output = command.kill_on_drop(true).output().await.map_err(|error| format!("{told}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{told}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
