//! A stock OpenSSH client, with a key of its own, that knows one hub.

use std::path::{Path, PathBuf};

use dialback::{AllowedKeys, Hub, HubBuilder, PrivateKey, PublicKey};
use tokio::process::Command;

use super::peers::{require_program, ssh_keygen};

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
