//! The examples do what their first lines promise.
#![cfg(unix)]

mod common;

use std::{
    env, fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use common::{child::signal, peers::Peer, rig::soon};
use dialback::PrivateKey;
use tokio::process::Command;

/// An example as `cargo test` has built it, to be run in a directory of its own.
fn example(name: &str, dir: &Path, arguments: &[&str]) -> Peer {
    let test = env::current_exe().expect("this program has a path");
    let profile = test.ancestors().nth(2).expect("a test lies in PROFILE/deps");
    let program = profile.join("examples").join(name);
    assert!(program.is_file(), "{} is missing: `cargo build --examples` makes it", program.display());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).env_remove("RUST_LOG");
    Peer::start(&mut command)
}

fn laptop(dir: &Path, hub: &str) -> Peer {
    example("laptop", dir, &["--hub", hub, "--id", "laptop-1"])
}

/// Starts a cloud on any port, and gives that too.
async fn cloud(dir: &Path) -> (Peer, String) {
    let mut cloud = example("cloud", dir, &["--listen", "127.0.0.1:0"]);
    let listening = soon("the cloud's start", cloud.line("cloud: listening on ")).await;
    let address = listening.split(',').next().expect("an address").to_owned();
    (cloud, address)
}

/// Waits until each has called the other.
async fn have_talked(cloud: &mut Peer, laptop: &mut Peer) {
    for kind in ["unary", "server streaming", "bidirectional"] {
        let answer = soon(kind, cloud.line(&format!("  {kind}"))).await;
        assert!(answer.starts_with("<- Hello "), "{answer}");
    }
    soon("the end of the conversation", cloud.line("cloud: laptop-1 has answered every call")).await;
    let answer = soon("the cloud's answer", laptop.line("  the cloud answers <- ")).await;
    assert!(answer.starts_with("Hello laptop-1, this is the cloud"), "{answer}");
}

/// Sends the signal, and expects a clean end.
async fn end(peer: Peer, by: &str) {
    signal(&peer, by);
    let (status, said) = soon(by, peer.finish()).await;
    assert!(status.success(), "{by}: {status}\n{}", said.join("\n"));
    assert!(said.iter().any(|line| line.ends_with(": stopping")), "{said:#?}");
}

/// Every file below that holds a private key: its name and mode.
fn private_keys(dir: &Path) -> Vec<(String, u32)> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).expect("the directory can be read").map(|entry| entry.expect("an entry")) {
        if entry.file_type().expect("a type").is_dir() {
            found.extend(private_keys(&entry.path()));
        } else if fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("PRIVATE KEY")) {
            let mode = entry.metadata().expect("metadata").permissions().mode() & 0o7777;
            found.push((entry.file_name().to_string_lossy().into_owned(), mode));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn quickstart_tells_its_story_and_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = Instant::now();
    let (status, said) = example("quickstart", dir.path(), &[]).finish().await;
    assert!(status.success(), "{status}\n{}", said.join("\n"));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());

    let mut lines = said.iter();
    for part in [
        "cloud: listening on ",
        "laptop: connected",
        "  unary             <- Hello cloud, this is laptop-1",
        "  server streaming  <- ",
        "  bidirectional     <- ",
        "  tonic's channel   <- ",
        "laptop: calling the cloud back",
        "  unary             <- Hello laptop, this is the cloud",
        "-- cutting the connection --",
        "cloud: tunnel ",
        "cloud: the detector says: disconnected",
        "cloud: laptop-1 is back after ",
        "  unary             <- Hello again, this is laptop-1",
        "laptop: stopped",
    ] {
        assert!(lines.any(|line| line.starts_with(part)), "no {part:?} in its place:\n{}", said.join("\n"));
    }
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "it leaves files behind");
}

#[tokio::test]
async fn laptop_started_second_is_called_and_both_end_on_interrupt() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut cloud, address) = cloud(dir.path()).await;
    let mut laptop = laptop(dir.path(), &address);
    have_talked(&mut cloud, &mut laptop).await;

    end(laptop, "INT").await;
    let why = soon("the laptop's going", cloud.line("cloud: laptop-1 is gone, ")).await;
    assert!(why.ends_with(": the peer closed the connection"), "{why}");
    end(cloud, "INT").await;
    assert_eq!(private_keys(dir.path()), [("hub_key".to_owned(), 0o600), ("laptop-1".to_owned(), 0o600)]);
}

#[tokio::test]
async fn laptop_started_first_waits_and_comes_back_to_a_new_cloud() {
    let dir = tempfile::tempdir().expect("a directory");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let address = free.to_string();
    let mut laptop = laptop(dir.path(), &address);
    soon("the laptop's start", laptop.line("laptop: waiting for keys/hub_key.pub")).await;
    assert_eq!(private_keys(dir.path()), [("laptop-1".to_owned(), 0o600)], "a laptop makes no key for the cloud");

    let mut first = example("cloud", dir.path(), &["--listen", &address]);
    have_talked(&mut first, &mut laptop).await;
    end(first, "TERM").await;
    soon("the loss", laptop.line("laptop: attempt 1 to connect in ")).await;

    let mut second = example("cloud", dir.path(), &["--listen", &address]);
    soon("the conversation", second.line("cloud: laptop-1 has answered every call")).await;
    soon("the return", laptop.line("laptop: connected to ")).await;
    end(second, "INT").await;
    end(laptop, "TERM").await;
    assert_eq!(private_keys(dir.path()), [("hub_key".to_owned(), 0o600), ("laptop-1".to_owned(), 0o600)]);
}

#[tokio::test]
async fn laptop_that_still_waits_ends_on_interrupt() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut laptop = laptop(dir.path(), "127.0.0.1:2222");
    soon("the laptop's start", laptop.line("laptop: waiting for ")).await;
    signal(&laptop, "INT");
    let (status, said) = soon("its end", laptop.finish()).await;
    assert!(status.success(), "{status}: {said:#?}");
}

#[tokio::test]
async fn laptop_does_not_believe_a_cloud_with_another_key() {
    let (of_cloud, of_laptop) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (_cloud, address) = cloud(of_cloud.path()).await;
    let (keys, other) = (of_laptop.path().join("keys"), PrivateKey::generate().public_key());
    fs::create_dir(&keys).and_then(|()| fs::write(keys.join("hub_key.pub"), other.to_openssh())).expect("written");

    let (status, said) = soon("its end", laptop(of_laptop.path(), &address).finish()).await;

    assert_eq!(status.code(), Some(1), "{said:#?}");
    assert!(said.iter().any(|line| line.contains(&other.fingerprint())), "{said:#?}");
}

#[tokio::test]
async fn cloud_lets_no_laptop_in_whose_key_it_has_not() {
    let (of_cloud, of_laptop) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (_cloud, address) = cloud(of_cloud.path()).await;
    fs::create_dir(of_laptop.path().join("keys")).expect("created");
    let copied = fs::copy(of_cloud.path().join("keys/hub_key.pub"), of_laptop.path().join("keys/hub_key.pub"));
    copied.expect("the cloud's public key can be copied");

    let (status, said) = soon("its end", laptop(of_laptop.path(), &address).finish()).await;

    assert_eq!(status.code(), Some(1), "{said:#?}");
    assert!(said.iter().any(|line| line.starts_with("hint: ") && line.contains("laptop-1.pub")), "{said:#?}");
}

#[tokio::test]
async fn options_are_explained() {
    for (name, option) in [("cloud", "--listen <ADDRESS>"), ("laptop", "--hub <HOST:PORT>")] {
        let (status, said) = example(name, Path::new("/"), &["--help"]).finish().await;
        assert!(status.success() && said.iter().any(|line| line.contains(option)), "{said:#?}");
    }
}
