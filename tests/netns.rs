//! The network the NAT test runs in is what it claims to be.
#![cfg(target_os = "linux")]

mod common;

use common::{
    netns::{CLOUD, LAPTOP, Namespace, Nat, ROUTER},
    peers::{Peer, go_peer, require_program, require_root_netns, ssh_keygen},
    proxy::Way,
};
use tokio::process::Command;

fn start(inside: &Namespace, program: &std::path::Path, arguments: &[&str]) -> Peer {
    let mut command = inside.command(program);
    command.args(arguments);
    Peer::start(&mut Command::from(command))
}

#[tokio::test]
async fn the_laptop_can_dial_the_cloud_but_not_the_other_way() {
    if !(require_root_netns() && require_program("ssh-keygen")) {
        return;
    }
    let Some(hub) = go_peer("hub") else { return };
    let Some(laptop) = go_peer("laptop") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (key, public) = ssh_keygen(dir.path(), "laptop-1", "ed25519");
    let key = key.to_str().unwrap();
    let nat = Nat::new();

    // Here a hub is just a program that listens.
    let mut listener = start(&nat.laptop, &hub, &["-listen", "0.0.0.0:2222", "-authorized-key", &public]);
    listener.line("listening ").await;
    assert!(!nat.cloud.can_dial(LAPTOP, 2222), "the router lets strangers in");
    assert!(!nat.cloud.can_dial(ROUTER[1], 2222), "the router forwards a port");
    assert!(nat.router.can_dial(LAPTOP, 2222), "nothing listens, so that a failed dial proves nothing");

    let arguments = ["-listen", "0.0.0.0:2222", "-mode", "streamlocal", "-authorized-key", &public];
    let mut hub = start(&nat.cloud, &hub, &arguments);
    let host_key = hub.line("host-key ").await;
    hub.line("listening ").await;
    let address = format!("{CLOUD}:2222");
    let mut laptop = start(&nat.laptop, &laptop, &["-hub", &address, "-host-key", &host_key, "-key", key]);
    laptop.line("ready").await;
    let (status, said) = hub.finish().await;
    assert!(status.success(), "{said:#?}");
}

#[tokio::test]
async fn a_black_hole_lets_nothing_pass_until_healed() {
    if !require_root_netns() {
        return;
    }
    let Some(hub) = go_peer("hub") else { return };
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, public) = ssh_keygen(dir.path(), "laptop-1", "ed25519");
    let nat = Nat::new();
    for way in [Way::Up, Way::Down, Way::Both] {
        let mut hub = start(&nat.cloud, &hub, &["-listen", "0.0.0.0:2222", "-authorized-key", &public]);
        hub.line("listening ").await;
        nat.black_hole(way);
        assert!(!nat.laptop.can_dial(CLOUD, 2222), "{way:?}");
        nat.heal();
        assert!(nat.laptop.can_dial(CLOUD, 2222), "{way:?}");
    }
}
