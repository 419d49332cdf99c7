//! The command `dialback` as a daemon: a hub, an agent, and what they log.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use dialback::PrivateKey;
use serde_json::Value;
use tokio::process::Command;

use super::peers::Peer;
use super::rig::AGENT;

/// A running daemon that logs JSON. Dropping it kills it.
pub struct Daemon(pub Peer);

/// The command, without what this process's environment says of it.
pub fn dialback(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dialback"));
    command.args(arguments);
    let ours = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| name.starts_with("DIALBACK_") || ["RUST_LOG", "NOTIFY_SOCKET"].contains(&name))
    });
    for (name, _) in ours {
        command.env_remove(name);
    }
    // No proxy of whoever runs the tests.
    command.env("NO_PROXY", "*");
    command
}

impl Daemon {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = dialback(arguments);
        command.args(["--log-format", "json"]);
        Self(Peer::start(&mut command))
    }

    /// Waits for a line of the log that has this message, and gives the line.
    pub async fn logs(&mut self, message: &str) -> Value {
        let is_it = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            line["message"].as_str().is_some_and(|is| is.contains(message)).then_some(line)
        };
        self.0.find(&format!("the message {message:?}"), is_it).await
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        super::child::signal(&self.0, name);
    }

    /// Waits for its end.
    pub async fn ended(self) -> (ExitStatus, Vec<String>) {
        self.0.finish().await
    }
}

/// Keys in files: of a hub, and of its one agent.
pub struct Files {
    pub dir: tempfile::TempDir,
    pub fingerprint: String,
}

/// Where a hub is.
pub struct Ports {
    pub hub: SocketAddr,
    pub gateway: SocketAddr,
    pub admin: Option<SocketAddr>,
}

impl Files {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let host = PrivateKey::generate();
        host.write_to(dir.path().join("host")).expect("write a key");
        let agent = PrivateKey::generate();
        agent.write_to(dir.path().join("agent")).expect("write a key");
        let files = Self { dir, fingerprint: host.public_key().fingerprint() };
        files.write("authorized_keys", &format!("principals=\"{AGENT}\" {}\n", agent.public_key()));
        files
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("write");
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        path
    }

    /// What a hub needs; it listens on ports of the system's choice.
    pub fn hub_arguments(&self) -> Vec<String> {
        let all = ["hub", "--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--host-key"];
        let mut all: Vec<_> = all.map(str::to_owned).into();
        all.extend([self.path("host"), "--authorized-keys".into(), self.path("authorized_keys")]);
        all
    }

    /// What an agent needs.
    pub fn agent_arguments(&self, hub: &str, forward: &str) -> Vec<String> {
        let all = [
            "agent",
            "--hub",
            hub,
            "--id",
            AGENT,
            "--identity",
            &self.path("agent"),
            "--host-key-fingerprint",
            &self.fingerprint,
            "--forward",
            forward,
            "--backoff-max",
            "500ms",
        ];
        all.map(str::to_owned).into()
    }

    /// A hub that is ready.
    pub async fn hub(&self, more: &[&str]) -> (Daemon, Ports) {
        let arguments = self.hub_arguments();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let mut hub = Daemon::start(&arguments);
        let ready = hub.logs("hub ready").await;
        let ports = ports(&ready);
        (hub, ports)
    }

    /// An agent that is ready.
    pub async fn agent(&self, hub: &str, forward: &str, more: &[&str]) -> Daemon {
        let arguments = self.agent_arguments(hub, forward);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let mut agent = Daemon::start(&arguments);
        agent.logs("agent ready").await;
        agent
    }
}

/// The addresses in a hub's line of readiness.
pub fn ports(ready: &Value) -> Ports {
    let text = |name: &str| ready[name].as_str().map(str::to_owned);
    let listen = text("listen").expect("where it listens");
    let hub = listen.split(',').find_map(|address| address.strip_prefix("ssh://")?.parse().ok());
    Ports {
        hub: hub.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 1))),
        gateway: text("gateway").expect("a gateway").parse().expect("an address"),
        admin: text("admin").map(|address| address.parse().expect("an address")),
    }
}

/// What stands in a directory beside the tests and in the repository.
pub fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The status and the text of an answer over plain HTTP/1.1.
pub async fn http_get(address: SocketAddr, request: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let talk = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = super::rig::soon("an answer", talk).await.expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}
