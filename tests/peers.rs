//! The Go peers work with each other: what fails against dialback is then dialback's doing.

mod common;

use common::peers::{Peer, go_peer, require_program, ssh_keygen};
use tokio::process::Command;

#[tokio::test]
async fn go_hub_calls_go_laptop() {
    let Some(hub) = go_peer("hub") else { return };
    let Some(laptop) = go_peer("laptop") else { return };
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (key, public) = ssh_keygen(dir.path(), "laptop-1", "ed25519");

    let mut hub = Peer::start(Command::new(hub).args(["-mode", "streamlocal", "-authorized-key", &public]));
    let host_key = hub.line("host-key ").await;
    let address = hub.line("listening ").await;
    let mut laptop = Peer::start(
        Command::new(laptop).args(["-hub", &address, "-id", "laptop-1", "-host-key", &host_key, "-key"]).arg(key),
    );

    assert_eq!(hub.line("agent ").await, "laptop-1");
    laptop.line("ready").await;
    let (status, said) = hub.finish().await;
    assert!(status.success(), "{said:#?}");
    assert_eq!(said.iter().filter(|line| line.starts_with("ok ")).count(), 22, "{said:#?}");
    laptop.line("closed: ").await;
}

#[tokio::test]
async fn go_laptop_refuses_another_host_key() {
    let Some(hub) = go_peer("hub") else { return };
    let Some(laptop) = go_peer("laptop") else { return };
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (key, public) = ssh_keygen(dir.path(), "laptop-1", "ed25519");
    let mut hub = Peer::start(Command::new(hub).args(["-authorized-key", &public]));
    let address = hub.line("listening ").await;

    let laptop = Peer::start(Command::new(laptop).args(["-hub", &address, "-host-key", &public, "-key"]).arg(key));

    let (status, said) = laptop.finish().await;
    assert!(!status.success());
    assert!(said.iter().any(|line| line.contains("is not the one expected")), "{said:#?}");
}
