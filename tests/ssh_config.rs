//! Hubs by the names that people have for them in `~/.ssh/config`.

#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::echo::pb::echo_client::EchoClient;
use common::echo::{Echo, payload};
use common::peers::{Peer, require_program, ssh_keygen};
use common::rig::{serve, soon};
use dialback::{AuthorizedKeys, ConnectError, Hub, PrivateKey, SshConfig, SshConfigError, TunnelChannel};
use tokio::process::Command;

/// A hub, and a user's directory with a configuration, a key and a certificate for it.
struct Home {
    dir: tempfile::TempDir,
    hub: Hub,
    key: PathBuf,
}

impl Home {
    /// The key's certificate is what the hub takes. `None` if the test is to be skipped.
    async fn new() -> Option<Self> {
        if !require_program("ssh") || !require_program("ssh-keygen") {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("a home ").tempdir().expect("a directory");
        let (authority, public) = ssh_keygen(dir.path(), "ca", "ed25519");
        let (key, _) = ssh_keygen(dir.path(), "id", "ed25519");
        let certified = std::process::Command::new("ssh-keygen")
            .args(["-q", "-I", "laptop-1", "-n", "laptop-1", "-s"])
            .args([&authority, &key.with_extension("pub")])
            .status();
        assert!(certified.expect("ssh-keygen runs").success());
        let authorized = dir.path().join("authorized_keys");
        fs::write(&authorized, format!("cert-authority {public}\n")).expect("write");
        let authorized = AuthorizedKeys::open(authorized).expect("a file");
        let host_key = PrivateKey::generate();
        let known = host_key.public_key();
        let hub = Hub::builder(host_key).authorizer(authorized).bind("127.0.0.1:0").await.expect("bind");
        let home = Self { dir, hub, key };
        home.write("known_hosts", &format!("[127.0.0.1]:{} {known}\n", home.port()));
        Some(home)
    }

    fn port(&self) -> u16 {
        self.hub.local_addr().port()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        // A path in a configuration is quoted where it has a space.
        fs::write(self.path(name), text.replace("HOME", &self.dir.path().display().to_string())).expect("write");
    }

    async fn read(&self, config: &str, alias: &str) -> Result<SshConfig, SshConfigError> {
        self.write("config", config);
        soon("ssh -G", SshConfig::of_file(self.path("config"), alias)).await
    }

    /// What a whole configuration looks like; each keyword counts where it stands first.
    fn config(&self, before: &str) -> String {
        let port = self.port();
        format!(
            "Host hub\n{before}\n HostName 127.0.0.1\n Port {port}\n User laptop-1\n IdentityAgent none\n \
             IdentityFile \"HOME/id\"\n CertificateFile \"HOME/id-cert.pub\"\n \
             UserKnownHostsFile /nowhere \"HOME/known_hosts\"\n GlobalKnownHostsFile /dev/null\n"
        )
    }

    /// Connects as the configuration says, and is called.
    async fn assert_leads_to_the_hub(&self, config: &SshConfig) {
        let agent = config.agent().expect("an agent").connect(config.hub()).await.expect("connect");
        serve(&Echo::default(), agent.incoming());
        let mut echo = client(&self.hub);
        let answer = soon("an answer", echo.unary(payload("by its alias"))).await.expect("an answer");
        assert_eq!(answer.into_inner().data, b"by its alias");
        agent.shutdown(std::time::Duration::from_secs(2)).await;
    }
}

fn client(hub: &Hub) -> EchoClient<TunnelChannel> {
    EchoClient::new(hub.channel("laptop-1").expect("an id"))
}

#[tokio::test]
async fn an_alias_is_all_that_an_agent_needs() {
    let Some(home) = Home::new().await else { return };
    let config = home.read(&home.config(""), "hub").await.expect("a configuration");
    assert_eq!(config.hub(), format!("127.0.0.1:{}", home.port()));
    assert_eq!(config.user(), "laptop-1");
    home.assert_leads_to_the_hub(&config).await;
}

#[tokio::test]
async fn match_include_and_tokens_mean_what_they_mean_to_ssh() {
    let Some(home) = Home::new().await else { return };
    // For another host: a reader that does not know `Match` would take it for this one.
    home.write("more", "Match originalhost other\n UserKnownHostsFile /dev/null\n HostName 192.0.2.1\n Port 9\n");
    fs::rename(home.path("id"), home.path("key of hub for laptop-1 100%")).expect("rename");
    let key = " IdentityFile \"HOME/key of %n for %r 100%%\"\nInclude \"HOME/more\"\nHost h?b";
    let config = home.read(&home.config(key), "hub").await.expect("a configuration");
    home.assert_leads_to_the_hub(&config).await;
}

#[tokio::test]
async fn command_on_the_way_is_run_and_ends_with_the_tunnel() {
    let Some(home) = Home::new().await else { return };
    if !require_program("bash") {
        return;
    }
    // bash has sockets of its own.
    let script = "exec 3<>/dev/tcp/$1/$2; echo $$ > \"$3\"; cat <&3 & cat >&3; kill %1";
    home.write("connect", script);
    let command = " ProxyCommand bash \"HOME/connect\" %h %p \"HOME/pid of %n\"";
    let config = home.read(&home.config(command), "hub").await.expect("a configuration");
    home.assert_leads_to_the_hub(&config).await;
    let pid = fs::read_to_string(home.path("pid of hub")).expect("the command was run");
    let process = format!("/proc/{}/stat", pid.trim());
    soon("the command's end", async {
        while fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;

    let config = home.read(&home.config(" ProxyCommand echo no tunnel for %r at %h"), "hub").await.expect("one");
    let refused = config.agent().expect("an agent").connect(config.hub()).await.expect_err("it ends at once");
    assert!(matches!(refused, ConnectError::Failed { step: "key exchange", .. }), "{refused:?}");
}

#[tokio::test]
async fn ssh_agent_has_the_keys_that_no_file_has() {
    let Some(home) = Home::new().await else { return };
    if !require_program("ssh-agent") || !require_program("ssh-add") {
        return;
    }
    let socket = home.path("agent.sock");
    let mut ssh_agent = Peer::start(Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket));
    ssh_agent.line("SSH_AUTH_SOCK=").await;
    // The ssh-agent knows nothing of the certificate, and the wrong keys come first, more than a hub looks at.
    fs::rename(home.path("id-cert.pub"), home.path("certificate")).expect("rename");
    for name in ["old", "b", "c", "d"] {
        ssh_keygen(home.dir.path(), name, "ed25519");
        add(&socket, &home.path(name));
        fs::remove_file(home.path(name)).expect("remove");
    }
    add(&socket, &home.key);
    fs::remove_file(&home.key).expect("remove");
    let named = " IdentityAgent \"HOME/agent.sock\"\n CertificateFile \"HOME/certificate\"\n";
    for line in ["", " IdentityFile \"HOME/old\"", " IdentityFile \"HOME/id.pub\"\n IdentitiesOnly yes"] {
        let config = home.read(&home.config(&format!("{named}{line}")), "hub").await.expect("a configuration");
        home.assert_leads_to_the_hub(&config).await;
    }
    // Beside the key it needs no name.
    fs::rename(home.path("certificate"), home.path("id-cert.pub")).expect("rename");
    let config =
        home.config(" IdentityAgent \"HOME/agent.sock\"").replace(" CertificateFile \"HOME/id-cert.pub\"\n", "");
    let config = home.read(&config, "hub").await.expect("a configuration");
    home.assert_leads_to_the_hub(&config).await;
    let config = home.config(" IdentityFile \"HOME/b\"\n IdentitiesOnly yes\n IdentityAgent \"HOME/agent.sock\"");
    let config = home.read(&config.replace(" IdentityFile \"HOME/id\"\n", ""), "hub").await.expect("a configuration");
    let refused = config.agent().expect("an agent").connect(config.hub()).await.expect_err("only another key");
    assert!(matches!(refused, ConnectError::Auth { .. }), "{refused:?}");
}

fn add(socket: &Path, key: &Path) {
    let added = std::process::Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", socket).status();
    assert!(added.expect("ssh-add runs").success());
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let Some(home) = Home::new().await else { return };
    let error = home.read("Host hub\n Port many\n", "hub").await.expect_err("no port");
    assert!(matches!(error, SshConfigError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("many"), "{error}");
    let error = home.read(&home.config(""), "-oProxyCommand=x").await.expect_err("no host");
    assert!(matches!(error, SshConfigError::Refused { .. }), "{error:?}");

    let config =
        home.read(&home.config(" UserKnownHostsFile /nowhere /dev/null"), "hub").await.expect("a configuration");
    let error = config.agent().expect_err("no known hosts");
    assert!(matches!(error, SshConfigError::NoKnownHosts { .. }), "{error:?}");
    assert!(error.to_string().contains("/nowhere"), "{error}");
    for (line, keyword) in [
        (" RevokedHostKeys /etc/ssh/revoked", "RevokedHostKeys"),
        (" ProxyUseFdpass yes", "ProxyUseFdpass"),
        (" UserKnownHostsFile \"HOME/known_hosts\" relative", "UserKnownHostsFile"),
    ] {
        let error = home.read(&home.config(line), "hub").await.expect_err(keyword);
        assert!(matches!(&error, SshConfigError::Unsupported { keyword: is, .. } if *is == keyword), "{error:?}");
    }
    for (line, unknown) in [(" IdentityFile ~/.ssh/id_%k", "%k"), (" IdentityFile ${NOT_SET_HERE}/id", "NOT_SET_HERE")]
    {
        let config = home.read(&home.config(line), "hub").await.expect("a configuration");
        let error = config.agent().expect_err(line);
        assert!(error.to_string().contains(unknown), "{error}");
    }
    let config = home.read(&home.config(" ProxyCommand connect %k"), "hub").await.expect("a configuration");
    let refused = config.agent().expect("an agent").connect(config.hub()).await.expect_err("%k");
    assert!(matches!(refused, ConnectError::InvalidProxy { .. }), "{refused:?}");

    let config = home.read(&home.config(" CertificateFile \"HOME/config\""), "hub").await.expect("a configuration");
    let error = config.agent().expect_err("no certificate");
    assert!(matches!(error, SshConfigError::Certificate(_)), "{error:?}");

    fs::write(&home.key, "no key").expect("write");
    let config = home.read(&home.config(""), "hub").await.expect("a configuration");
    let error = config.agent().expect_err("no key");
    assert!(error.to_string().contains(&home.key.display().to_string()), "{error}");
    fs::remove_file(&home.key).expect("remove");
    let error = config.agent().expect_err("no key");
    assert!(error.to_string().contains("IdentityFile"), "{error}");
}
