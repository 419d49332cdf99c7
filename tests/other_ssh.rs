//! Dropbear's and PuTTY's clients as the laptop: they forward ports, not paths.

mod common;

use std::path::{Path, PathBuf};

use common::echo::{local_service, pattern, payload, pb::echo_client::EchoClient};
use common::peers::{Peer, require_program};
use common::rig::soon;
use dialback::{AllowedKeys, Hub, HubEvent, PrivateKey};
use tokio::process::Command;

/// A key of the laptop's in a file, as OpenSSH writes it.
fn key_file(dir: &Path) -> (PathBuf, PrivateKey) {
    let key = PrivateKey::generate();
    let file = dir.join("key");
    key.write_to(&file).expect("write the key");
    (file, key)
}

fn run(program: &str, arguments: &[&str]) {
    let done = std::process::Command::new(program).args(arguments).output().expect("start");
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Starts the client, calls through it, and sees it leave.
async fn assert_is_an_agent(host_key: PrivateKey, key: &PrivateKey, command: impl FnOnce(u16, &str) -> Command) {
    let allowed = AllowedKeys::new().allow("laptop-1", key.public_key()).expect("an id");
    let hub = Hub::builder(host_key).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let mut events = hub.events();
    let forward = format!("50051:127.0.0.1:{}", local_service().await);
    let laptop = Peer::start(&mut command(hub.local_addr().port(), &forward));
    soon("the laptop", hub.wait_for("laptop-1")).await.expect("an id");

    let mut echo = EchoClient::new(hub.channel("laptop-1").expect("an id")).max_decoding_message_size(8 << 20);
    for size in [0, 100, 4 << 20] {
        let sent = pattern(3, size);
        let answer = soon("an answer", echo.unary(payload(sent.clone()))).await.expect("an answer");
        assert!(answer.into_inner().data == sent, "{size} bytes came back changed");
    }

    drop(laptop);
    soon("the end", async { while !matches!(events.next().await, Ok(HubEvent::Closed { .. })) {} }).await;
    assert!(hub.get("laptop-1").is_none());
}

#[tokio::test]
async fn dropbear() {
    if !require_program("dbclient") || !require_program("dropbearconvert") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (file, key) = key_file(dir.path());
    let converted = dir.path().join("key.dropbear");
    run("dropbearconvert", &["openssh", "dropbear", &file.display().to_string(), &converted.display().to_string()]);
    let host_key = PrivateKey::generate();
    // It takes a comment for part of the key.
    let known = host_key.public_key().to_string().split(' ').take(2).collect::<Vec<_>>().join(" ");
    assert_is_an_agent(host_key, &key, |port, forward| {
        // It looks in its user's home, and the port is no part of a name there.
        let ssh = dir.path().join(".ssh");
        std::fs::create_dir(&ssh).expect("a directory");
        std::fs::write(ssh.join("known_hosts"), format!("127.0.0.1 {known}\n")).expect("write known_hosts");
        let mut command = Command::new("dbclient");
        command.env("HOME", dir.path()).args(["-N", "-T", "-R", forward, "-p", &port.to_string(), "-i"]);
        command.arg(&converted).arg("laptop-1@127.0.0.1");
        command
    })
    .await;
}

#[tokio::test]
async fn putty() {
    if !require_program("plink") || !require_program("puttygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (file, key) = key_file(dir.path());
    let converted = dir.path().join("key.ppk");
    run("puttygen", &[&file.display().to_string(), "-O", "private", "-o", &converted.display().to_string()]);
    let host_key = PrivateKey::generate();
    let known = host_key.public_key().fingerprint();
    assert_is_an_agent(host_key, &key, |port, forward| {
        let mut command = Command::new("plink");
        command.env("HOME", dir.path()).args(["-batch", "-ssh", "-N", "-R", forward, "-P", &port.to_string()]);
        command.args(["-hostkey", &known, "-i"]).arg(&converted).arg("laptop-1@127.0.0.1");
        command
    })
    .await;
}
