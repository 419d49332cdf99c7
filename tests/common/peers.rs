//! Programs that are not ours: what a test needs is looked for, or built, and started here.
//!
//! A test that cannot run for want of one says so and returns; with `DIALBACK_REQUIRE_PEERS=1`, as CI sets, it fails.
//!
//! ```ignore
//! let Some(hub) = go_peer("hub") else { return };
//! if !require_program("ssh-keygen") { return }
//! ```

use std::{
    env,
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

/// How long a test waits for a line or for the end of a program. The Go hub itself gives up after a minute.
const PATIENCE: Duration = Duration::from_secs(70);

/// Says that the running test is skipped and why, or panics when skipping is not allowed.
pub fn skip(why: &str) {
    assert!(env::var_os("DIALBACK_REQUIRE_PEERS").is_none_or(|v| v != "1"), "DIALBACK_REQUIRE_PEERS=1, but {why}");
    // libtest names the thread after the test, and hides what a passing test prints by macro, so this does not.
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "test {} ... skipped: {why}", thread.name().unwrap_or("?"));
}

/// Whether a program is there to be run; if not, the test is to be skipped.
pub fn require_program(name: &str) -> bool {
    let found = find_program(name).is_some();
    if !found {
        skip(&format!("the program {name} is missing"));
    }
    found
}

/// Where a program is: in `PATH`, or where administrators' programs are.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(name)).find(|file| file.is_file())
}

/// Whether network namespaces can be made and filtered here; if not, the test is to be skipped.
pub fn require_root_netns() -> bool {
    let Err(why) = super::netns::probe() else { return true };
    skip(&format!("network namespaces cannot be used: {why}"));
    false
}

/// A program of `tests/peers/go`, built with the Go toolchain. If it cannot be built, the test is to be skipped; if it does
/// not compile, the test fails.
pub fn go_peer(name: &str) -> Option<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(build_go_peers) {
        Ok(dir) => Some(dir.join(name)),
        Err(why) => {
            skip(why);
            None
        }
    }
}

fn build_go_peers() -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/go");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
    fs::create_dir_all(&dir).expect("target can be written to");
    // Another test binary may be at it at the same time. The lock goes with the file.
    let lock = File::create(dir.join(".lock")).expect("target can be written to");
    lock.lock().expect("a file can be locked");

    let go = |arguments: &[&str]| {
        let mut command = std::process::Command::new("go");
        command.args(arguments).current_dir(&source);
        command.output().map_err(|e| format!("the Go toolchain cannot be run: {e}"))
    };
    let download = go(&["mod", "download"])?;
    if !download.status.success() {
        return Err(format!("the Go modules cannot be had: {}", String::from_utf8_lossy(&download.stderr).trim()));
    }
    let target = format!("{}/", dir.display());
    let programs = ["./caller", "./greeter", "./grpctunnel", "./hub", "./laptop", "./probe"];
    let build = go(&[&["build", "-buildvcs=false", "-o", &target], &programs[..]].concat())?;
    assert!(build.status.success(), "tests/peers/go does not build:\n{}", String::from_utf8_lossy(&build.stderr));
    Ok(dir)
}

/// The real `grpcurl`, built with the Go toolchain from the version that `tests/peers/go` pins. If it cannot be had, the test
/// is to be skipped.
pub fn grpcurl() -> Option<PathBuf> {
    static BUILT: OnceLock<()> = OnceLock::new();
    // The toolchain and all modules are there once this is.
    let dir = go_peer("laptop")?.parent().expect("a directory").to_owned();
    BUILT.get_or_init(|| {
        let lock = File::create(dir.join(".lock")).expect("target can be written to");
        lock.lock().expect("a file can be locked");
        let mut go = std::process::Command::new("go");
        go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/go"));
        go.args(["build", "-buildvcs=false", "-o"]).arg(format!("{}/", dir.display()));
        let built = go.arg("github.com/fullstorydev/grpcurl/cmd/grpcurl").output().expect("go runs");
        assert!(built.status.success(), "grpcurl does not build:\n{}", String::from_utf8_lossy(&built.stderr));
    });
    Some(dir.join("grpcurl"))
}

/// A key made by `ssh-keygen` in `dir`: the private key's file, and the public key as an OpenSSH line.
pub fn ssh_keygen(dir: &Path, name: &str, kind: &str) -> (PathBuf, String) {
    let file = dir.join(name);
    let mut command = std::process::Command::new("ssh-keygen");
    command.args(["-q", "-N", "", "-C", name, "-t", kind, "-f"]).arg(&file);
    let output = command.output().expect("ssh-keygen runs");
    assert!(output.status.success(), "ssh-keygen failed: {}", String::from_utf8_lossy(&output.stderr));
    let public = fs::read_to_string(file.with_extension("pub")).expect("ssh-keygen has written the public key");
    (file, public.trim().to_owned())
}

/// The public key of `key` signed by `ssh-keygen`, with `options` such as `-n PRINCIPALS`; the certificate's file, which the
/// next one for the same key overwrites.
pub fn ssh_keygen_sign(authority: &Path, key: &Path, options: &[&str]) -> PathBuf {
    let mut command = std::process::Command::new("ssh-keygen");
    command.args(["-q", "-I", "test"]).args(options).arg("-s").arg(authority);
    let output = command.arg(key.with_extension("pub")).output().expect("ssh-keygen runs");
    assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
    let name = key.file_name().expect("a file").to_str().expect("UTF-8");
    key.with_file_name(format!("{name}-cert.pub"))
}

/// Puts a list of what is revoked, made by `ssh-keygen -k` from `spec`, in place of `list`.
pub fn ssh_keygen_revoke(list: &Path, options: &[&str], spec: &str) {
    let (draft, spec_file) = (list.with_extension("draft"), list.with_extension("spec"));
    fs::write(&spec_file, spec).expect("write");
    let mut command = std::process::Command::new("ssh-keygen");
    command.args(["-q", "-k", "-f"]).arg(&draft).args(options).arg(spec_file);
    let output = command.output().expect("ssh-keygen runs");
    assert!(output.status.success(), "{spec}: {}", String::from_utf8_lossy(&output.stderr));
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o644)).expect("chmod");
    fs::rename(draft, list).expect("rename");
}

/// A running program whose output lines a test waits for. Dropping it kills the program.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    seen: Vec<String>,
}

impl Peer {
    /// Starts a program.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let (send, lines) = mpsc::unbounded_channel();
        collect(child.stdout.take().expect("stdout is piped"), send.clone());
        collect(child.stderr.take().expect("stderr is piped"), send);
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line that begins with `prefix`, and gives the rest of it. Lines before it are passed over. Panics with all
    /// the program has said when it ends first, or after 70 s.
    pub async fn line(&mut self, prefix: &str) -> String {
        let rest = |line: &str| line.strip_prefix(prefix).map(|rest| rest.trim().to_owned());
        self.find(&format!("a line {prefix:?}"), rest).await
    }

    /// The same for a line that `look` finds something in.
    pub async fn find<T>(&mut self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        loop {
            let line = match timeout(PATIENCE, self.lines.recv()).await {
                Ok(Some(line)) => line,
                Ok(None) => panic!("the program ended without {what}; it said:\n{}", self.seen.join("\n")),
                Err(_) => panic!("no sign of {what} after {PATIENCE:?}; the program said:\n{}", self.seen.join("\n")),
            };
            self.seen.push(line.clone());
            if let Some(found) = look(&line) {
                return found;
            }
        }
    }

    /// Waits for a line that begins with `prefix`, and gives all lines up to it.
    pub async fn until(&mut self, prefix: &str) -> &[String] {
        self.line(prefix).await;
        &self.seen
    }

    /// Waits for its end, and gives all the lines it has written, of both kinds. Panics after 70 s.
    pub async fn finish(mut self) -> (ExitStatus, Vec<String>) {
        let rest = async {
            while let Some(line) = self.lines.recv().await {
                self.seen.push(line);
            }
            self.child.wait().await.expect("the program can be waited for")
        };
        match timeout(PATIENCE, rest).await {
            Ok(status) => (status, self.seen),
            Err(_) => panic!("the program still runs after {PATIENCE:?}; it said:\n{}", self.seen.join("\n")),
        }
    }

    /// Its process id, for signals. None once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }
}

fn collect(from: impl AsyncRead + Send + Unpin + 'static, to: mpsc::UnboundedSender<String>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if to.send(line).is_err() {
                break;
            }
        }
    });
}
