//! `dialback check`, through the real program: what is well, and which step is not.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use common::{rig::soon, tls::Certificates};
use dialback::{AuthorizedKeys, Hub, PrivateKey};
use tokio::{net::TcpListener, process::Command};

/// A hub, and the files of an agent that it lets in.
struct Site {
    hub: Hub,
    directory: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
        let hub = Hub::builder(host.clone());
        let line = key.public_key().authorized_keys_line(&"laptop-1".parse().unwrap());
        fs::write(path("authorized_keys"), line).unwrap();
        key.write_to(path("id")).unwrap();
        host.write_to(path("hub_key")).unwrap();
        let hub = hub.authorizer(AuthorizedKeys::open(path("authorized_keys")).unwrap());
        let hub = hub.bind("127.0.0.1:0").await.unwrap();
        let line = host.public_key().known_hosts_line(&hub.local_addr().to_string()).unwrap();
        fs::write(path("known_hosts"), line).unwrap();
        Self { hub, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Checks the way to `hub`; exit code and what was printed.
    async fn check(&self, hub: &str, more: &[&str]) -> (i32, String) {
        let known_hosts = if more.contains(&"--known-hosts") { "" } else { "--known-hosts known_hosts" };
        let mut command = Command::new(env!("CARGO_BIN_EXE_dialback"));
        command.current_dir(self.directory.path()).kill_on_drop(true);
        command.args(["check", "--hub", hub, "--id", "laptop-1", "--identity", "id"]);
        command.args(known_hosts.split_whitespace()).args(more);
        let Output { status, stdout, stderr } = soon("the end", command.output()).await.unwrap();
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(!text.contains('\x1b'), "no colours in a pipe: {text}");
        (status.code().unwrap(), text)
    }
}

fn ticks(text: &str) -> Vec<String> {
    let ticked = |line: &str| line.strip_prefix("✓ ").map(|rest| rest.split("  ").next().unwrap().trim().to_owned());
    text.lines().filter_map(ticked).collect()
}

/// The step that failed, and what is said of it.
fn cross(text: &str) -> (String, String) {
    let (_, rest) = text.split_once("✗ ").unwrap_or_else(|| panic!("nothing failed: {text}"));
    (rest.split("  ").next().unwrap().trim().to_owned(), rest.to_owned())
}

#[tokio::test]
async fn every_step_of_a_good_way_is_ticked() {
    let site = Site::start().await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let forward = server.local_addr().unwrap().to_string();
    let address = site.hub.local_addr().to_string();
    let (code, text) = site.check(&address, &["--forward", &forward]).await;
    assert_eq!(code, 0, "{text}");
    let steps = ["config", "name", "connection", "SSH", "host key", "login", "forward", "round trip", &forward];
    assert_eq!(ticks(&text), steps, "{text}");
    assert!(site.hub.tunnels().is_empty(), "nothing stays");

    let websocket = site.hub.listen("ws://127.0.0.1:0/tunnel").await.unwrap();

    let line = PrivateKey::from_file(site.path("hub_key")).unwrap().public_key().known_hosts_line(&websocket).unwrap();
    fs::write(site.path("known_hosts"), line).unwrap();
    let (code, text) = site.check(&websocket, &[]).await;
    assert_eq!(code, 0, "{text}");
    assert!(ticks(&text).contains(&"WebSocket".to_owned()), "{text}");
}

#[tokio::test]
async fn first_step_that_fails_is_named_with_what_to_do() {
    let site = Site::start().await;
    let address = site.hub.local_addr().to_string();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dumb = silent.local_addr().unwrap().to_string();
    let http = common::rig::Rig::start().await; // speaks SSH, and no HTTP
    let not_http = format!("ws://{}/tunnel", http.hub.local_addr());
    let certificates = Certificates::of(site.directory.path(), &["127.0.0.1"]);
    let tls =
        site.hub.listen_tls("wss://127.0.0.1:0/tunnel", certificates.certificate, certificates.key).await.unwrap();
    fs::write(site.path("nobody"), "").unwrap();
    let stranger = PrivateKey::generate();
    stranger.write_to(site.path("stranger")).unwrap();

    let closed = closed.to_string();
    for (hub, more, step, advice) in [
        (&*closed, &[][..], "connection", "is the hub running"),
        (&dumb, &["--login-timeout", "1s"], "SSH", "within 1s"),
        (&not_http, &[], "WebSocket", "is the path right"),
        (&tls, &[], "TLS", "certificate"),
        (&address, &["--known-hosts", "nobody"], "host key", "--known-hosts"),
        (&address, &["--proxy", "http://127.0.0.1:1"], "proxy", "127.0.0.1:1"),
        ("hub.invalid:22", &[], "name", "DNS"),
    ] {
        let (code, text) = site.check(hub, more).await;
        let (failed, said) = cross(&text);
        assert!(code == 1 && failed == step && said.contains(advice), "{hub}: {code} {text}");
    }
    fs::rename(site.path("stranger"), site.path("id")).unwrap();
    let (code, text) = site.check(&address, &[]).await;
    let (failed, said) = cross(&text);
    assert!(code == 1 && failed == "login" && said.contains("authorized-keys"), "{text}");
    assert!(ticks(&text).contains(&"host key".to_owned()), "{text}");
}

#[tokio::test]
async fn several_hubs_are_checked_each_and_local_servers_too() {
    let site = Site::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let address = site.hub.local_addr().to_string();
    let (code, text) = site.check(&closed, &["--hub", &address, "--forward", &closed]).await;
    assert_eq!(code, 1, "{text}");
    assert!(ticks(&text).contains(&"round trip".to_owned()) && text.matches("✗ ").count() == 2, "{text}");
    assert!(text.contains("start the server"), "{text}");
}

#[tokio::test]
async fn wrong_configuration_is_told_before_anything_is_dialled() {
    let site = Site::start().await;
    let file = Path::new("dialback.toml");
    fs::write(site.path("dialback.toml"), "[agent]\nhubs = \"a:1\"\n").unwrap();
    let (code, text) = site.check("127.0.0.1:1", &["--config", file.to_str().unwrap()]).await;
    assert!(code == 64 && text.contains("dialback.toml:2") && text.contains("hub"), "{code} {text}");
    let (code, text) = site.check("127.0.0.1:1", &["--proxy", "me:secret@a:1", "--print-config"]).await;
    assert!(code == 0 && text.contains("[agent]") && !text.contains("secret"), "{code} {text}");
    let (code, text) = site.check("127.0.0.1:1", &["--proxy", "http://a:1", "--no-proxy"]).await;
    assert!(code == 64 && text.contains("--no-proxy"), "{code} {text}");
}
