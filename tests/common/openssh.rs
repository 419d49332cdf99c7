//! A stock OpenSSH client, with a key of its own, that knows one hub; and a stock server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dialback::{AllowedKeys, Hub, HubBuilder, PrivateKey, PublicKey};
use tokio::net::TcpListener;
use tokio::process::Command;

use super::peers::{Peer, find_program, require_program, ssh_keygen};

/// See the module's text. Its directory goes with it.
pub struct Ssh {
    pub dir: tempfile::TempDir,
    pub key: PathBuf,
    pub public: PublicKey,
    host: PrivateKey,
}

impl Ssh {
    /// `None` if the test is to be skipped.
    pub fn new() -> Option<Self> {
        if !require_program("ssh") || !require_program("ssh-keygen") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (key, public) = ssh_keygen(dir.path(), "id", "ed25519");
        let public = public.parse().expect("a public key");
        Some(Self { dir, key, public, host: PrivateKey::generate() })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A hub that it will know, and that lets it be laptop-1.
    pub fn hub(&self) -> HubBuilder {
        let allowed = AllowedKeys::new().allow("laptop-1", self.public.clone()).expect("an id");
        Hub::builder(self.host.clone()).authorizer(allowed).rejection_time(std::time::Duration::from_millis(10))
    }

    /// `ssh … USER@HUB`; what follows the destination may be added as further arguments.
    pub fn command(&self, hub: &Hub, user: &str, options: &[&str]) -> Command {
        let known_hosts = self.path().join("known_hosts");
        let port = hub.local_addr().port();
        std::fs::write(&known_hosts, format!("[127.0.0.1]:{port} {}\n", self.host.public_key()))
            .expect("write known_hosts");
        let mut command = Command::new("ssh");
        command.env_remove("SSH_AUTH_SOCK").args(["-F", "none", "-v", "-p", &port.to_string(), "-i"]).arg(&self.key);
        let known_hosts = format!("UserKnownHostsFile={}", known_hosts.display());
        for option in ["BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", &known_hosts] {
            command.args(["-o", option]);
        }
        command.args(options).arg(format!("{user}@127.0.0.1"));
        command
    }
}

/// An sshd with the files `host` and `authorized_keys` of a directory, on a port that was free a moment ago.
pub async fn run_sshd(dir: &Path, options: &str) -> (Peer, u16) {
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("an address").port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
             PidFile none\n{options}\n",
            dir = dir.display()
        );
        std::fs::write(dir.join("sshd_config"), config).expect("write");
        let mut command = Command::new(find_program("sshd").expect("it is there"));
        let mut peer = Peer::start(command.arg("-D").arg("-e").arg("-f").arg(dir.join("sshd_config")));
        let listening = tokio::time::timeout(Duration::from_secs(5), peer.line("Server listening on"));
        if listening.await.is_ok() {
            return (peer, port);
        }
    }
    panic!("sshd does not start");
}
