//! What bad input gets: an error of its own kind that names the thing. Host keys, the keys of agents and kinds of
//! channels have files of their own.

mod common;

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use common::echo::{client, payload};
use common::peers::require_program;
use common::raw;
use common::rig::{AGENT, Rig, soon};
use dialback::{
    Agent, AgentBuilder, AllowedKeys, BindError, CloseReason, ConnectError, DialError, HostKeys, Hub, KeyError,
    PrivateKey,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tonic::{Code, Status, transport::Endpoint};

/// An agent with nothing wrong with it.
fn agent() -> AgentBuilder {
    let known = HostKeys::public_key(PrivateKey::generate().public_key());
    Agent::builder(AGENT, PrivateKey::generate()).host_keys(known)
}

/// What an agent says that should not get to a hub there.
async fn refusal(agent: AgentBuilder, hub: &str) -> ConnectError {
    soon("the refusal", agent.connect(hub)).await.expect_err("there is no hub to connect to")
}

#[track_caller]
fn assert_names(error: &dyn Error, things: &[&str]) {
    let text = error.to_string();
    for thing in things {
        assert!(text.contains(thing), "{thing:?} is not named: {text}");
    }
}

/// A listener whose every guest gets these bytes, and then silence, or the end.
async fn listener(greeting: &'static [u8], stay: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        let mut guests = Vec::new();
        while let Ok((mut guest, _)) = listener.accept().await {
            let _ = guest.write_all(greeting).await; // a guest may be gone already
            if stay {
                guests.push(guest);
            } else {
                // What it has sent is read first: unread, it would turn the end into a reset.
                let _ = guest.shutdown().await;
                tokio::spawn(async move { tokio::io::copy(&mut guest, &mut tokio::io::sink()).await });
            }
        }
    });
    address
}

#[tokio::test]
async fn unresolvable_hub_is_named() {
    let error = refusal(agent(), "nonexistent.invalid:2222").await;
    assert!(matches!(&error, ConnectError::Resolve { host, .. } if host == "nonexistent.invalid"), "{error:?}");
    assert_names(&error, &["nonexistent.invalid"]);
    assert!(error.is_transient(), "DNS may come back");
}

#[tokio::test]
async fn hub_that_refuses_the_connection_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = free.local_addr().expect("an address").to_string();
    drop(free);

    let error = refusal(agent(), &address).await;

    assert!(matches!(&error, ConnectError::Unreachable { hub, .. } if *hub == address), "{error:?}");
    assert_names(&error, &[&address]);
    assert!(error.is_transient(), "the hub may come back");
}

#[tokio::test]
async fn hub_that_never_answers_is_given_up_at_the_deadline() {
    let address = listener(b"", true).await;
    let limit = Duration::from_millis(200);

    let error = refusal(agent().login_timeout(limit), &address).await;

    assert!(
        matches!(&error, ConnectError::TimedOut { hub, after, .. } if *hub == address && *after == limit),
        "{error:?}"
    );
    assert_names(&error, &[&address, "key exchange", "200ms"]);
    assert!(error.is_transient(), "the hub may wake up");
}

#[tokio::test]
async fn peer_that_is_no_ssh_server_is_named() {
    let web: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for stay in [false, true] {
        let address = listener(web, stay).await;

        let error = refusal(agent().login_timeout(Duration::from_secs(2)), &address).await;

        assert!(matches!(&error, ConnectError::NotSsh { hub } if *hub == address), "stays: {stay}: {error:?}");
        assert_names(&error, &[&address, "SSH"]);
        assert!(!error.is_transient(), "a web server stays one");
    }
}

#[tokio::test]
async fn text_that_is_no_address_is_named() {
    for text in ["", "hub", "hub:", ":2222", "hub:0", "hub:65536", "hub:ssh", "a b:2222", "::1:2222", "[::1:2222"] {
        let error = refusal(agent(), text).await;
        assert!(matches!(&error, ConnectError::InvalidAddress { given, .. } if given == text), "{text:?}: {error:?}");
        assert_names(&error, &[&format!("`{text}`"), "host:port"]);
        assert!(!error.is_transient());
    }
    let error = refusal(agent(), "hub\x1b[31m:2222").await;
    assert!(!error.to_string().contains('\x1b'), "control characters are escaped");
}

#[tokio::test]
async fn agent_without_host_keys_connects_to_nobody() {
    let address = listener(b"", true).await;
    let error = refusal(Agent::builder(AGENT, PrivateKey::generate()), &address).await;
    assert!(matches!(error, ConnectError::NoHostKeys), "{error:?}");
    assert_names(&error, &["host_keys("]);
}

#[tokio::test]
async fn text_that_is_no_id_is_named_wherever_it_is_given() {
    let rig = Rig::start().await;
    for id in ["", "Laptop", "../laptop-1", "laptop 1"] {
        let known = HostKeys::public_key(PrivateKey::generate().public_key());
        let agent = Agent::builder(id, PrivateKey::generate()).host_keys(known);
        let error = refusal(agent, &rig.hub.local_addr().to_string()).await;
        assert!(matches!(&error, ConnectError::InvalidAgentId(e) if e.given == id), "{id:?}: {error:?}");
        assert_names(&error, &[&format!("`{id}`")]);

        let named = format!("`{id}`");
        assert_names(&rig.hub.channel(id).expect_err("no id"), &[&named]);
        assert_names(&rig.hub.connector(id).expect_err("no id"), &[&named]);
        assert_names(&soon("the refusal", rig.hub.wait_for(id)).await.expect_err("no id"), &[&named]);
        let key = PrivateKey::generate().public_key();
        assert_names(&AllowedKeys::new().allow(id, key).expect_err("no id"), &[&named]);
    }
}

#[tokio::test]
async fn hub_without_an_authorizer_does_not_start() {
    let error = Hub::builder(PrivateKey::generate()).bind("127.0.0.1:0").await.expect_err("who may come in?");
    assert!(matches!(error, BindError::NoAuthorizer), "{error:?}");
    assert_names(&error, &["authorizer("]);
}

#[tokio::test]
async fn hub_whose_port_is_taken_names_it_and_leaves_the_other_alone() {
    let rig = Rig::start().await;
    let address = rig.hub.local_addr().to_string();

    let second = Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()).bind(&address).await;

    let error = second.expect_err("the port is taken");
    let BindError::Listen { address: named, source } = &error else { panic!("{error:?}") };
    assert_eq!((named, source.kind()), (&address, std::io::ErrorKind::AddrInUse));
    assert_names(&error, &[&address]);
    soon("an answer", rig.client().unary(payload(""))).await.expect("the first hub works");
}

fn write_key(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
    fs::write(path, text).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn key_files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("laptop-1");
    let name = path.display().to_string();
    let load = || PrivateKey::from_file(&path).expect_err("no usable key");

    let error = load();
    assert!(
        matches!(&error, KeyError::Unreadable { path: p, source } if *p == path && source.kind() == std::io::ErrorKind::NotFound),
        "{error:?}"
    );
    assert_names(&error, &[&name]);

    write_key(&path, "garbage", 0o600);
    let error = load();
    assert!(matches!(&error, KeyError::Malformed { path: Some(p), .. } if *p == path), "{error:?}");
    assert_names(&error, &[&name, "BEGIN OPENSSH PRIVATE KEY"]);

    write_key(&path, PrivateKey::generate().public_key().to_string(), 0o600);
    let error = load();
    assert!(matches!(&error, KeyError::Malformed { path: Some(p), .. } if *p == path), "{error:?}");
    assert_names(&error, &[&name, "public key"]);

    fs::remove_file(&path).expect("remove");
    PrivateKey::generate().write_to(&path).expect("write");
    PrivateKey::from_file(&path).expect("nothing is wrong with it yet");
    for mode in [0o644, 0o640, 0o602] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        let error = load();
        assert!(matches!(&error, KeyError::TooOpen { path: p, mode: m } if *p == path && *m == mode), "{error:?}");
        assert_names(&error, &[&name, &format!("{mode:04o}"), "chmod 600"]);
    }
}

#[test]
fn encrypted_key_file_is_named_and_opens_with_its_passphrase_only() {
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("laptop-1");
    let mut keygen = std::process::Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-a", "1", "-N", "a secret", "-f"]).arg(&path);
    assert!(keygen.status().expect("ssh-keygen runs").success());
    let name = path.display().to_string();

    let error = PrivateKey::from_file(&path).expect_err("no passphrase");
    assert!(matches!(&error, KeyError::Encrypted { path: Some(p) } if *p == path), "{error:?}");
    assert_names(&error, &[&name, "encrypted"]);
    let error = PrivateKey::from_file_with_passphrase(&path, |_| Some("another".into())).expect_err("a wrong one");
    assert!(matches!(&error, KeyError::WrongPassphrase { path: p } if *p == path), "{error:?}");
    assert_names(&error, &[&name]);
    PrivateKey::from_file_with_passphrase(&path, |_| Some("a secret".into())).expect("the right one");
}

/// What a call ends with that cannot be made.
async fn unavailable(channel: dialback::TunnelChannel) -> Status {
    let mut echo = common::echo::pb::echo_client::EchoClient::new(channel);
    let status = soon("the refusal", echo.unary(payload(""))).await.expect_err("nobody to call");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_names(&status, &[AGENT]);
    status
}

#[tokio::test]
async fn agent_that_never_asks_to_be_called_is_named() {
    let (key, ours) = raw::key();
    let allowed = AllowedKeys::new().allow(AGENT, ours.public_key()).expect("an id");
    let hub = Hub::builder(PrivateKey::generate()).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let mut events = hub.events();
    let dialled = raw::log_in(hub.local_addr(), AGENT, &key).await;
    let opened = soon("the tunnel", events.next()).await.expect("none is missed");
    assert!(matches!(opened, dialback::HubEvent::Opened { .. }), "{opened:?}");

    let status = unavailable(hub.channel(AGENT).expect("an id")).await;
    let error = soon("the refusal", hub.connector(AGENT).expect("an id").dial()).await.expect_err("not ready");

    assert_names(&status, &["no forward request"]);
    assert!(matches!(&error, DialError::NotReady { agent } if agent.as_str() == AGENT), "{error:?}");
    assert_names(&error, &[AGENT, "/grpc-tunnel"]);

    // Late is not never.
    dialled.handle.streamlocal_forward("/grpc-tunnel").await.expect("granted");
    soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
}

#[tokio::test]
async fn dial_on_a_tunnel_that_just_closed_says_why_it_did() {
    let rig = Rig::start().await;
    let tunnel = rig.hub.get(AGENT).expect("connected");
    rig.agent.shutdown(Duration::ZERO).await;
    let gone = soon("the end", tunnel.closed()).await;
    let reason = gone.to_string();

    // By the tunnel that is gone, and by the agent that it was of.
    for connector in [tunnel.connector(), rig.hub.connector(AGENT).expect("an id")] {
        let error = soon("the refusal", connector.dial()).await.expect_err("it is closed");
        let DialError::Disconnected { agent, gone: named } = &error else { panic!("{error:?}") };
        assert_eq!((agent.as_str(), named), (AGENT, &gone));
        assert_names(&error, &[AGENT, &reason]);
    }
    for channel in [tunnel.channel(), rig.hub.channel(AGENT).expect("an id")] {
        assert_names(&unavailable(channel).await, &[&reason]);
    }
}

#[tokio::test]
async fn tunnel_closed_here_says_so() {
    let rig = Rig::start().await;
    let tunnel = rig.hub.get(AGENT).expect("connected");
    tunnel.close();
    let error = soon("the refusal", tunnel.connector().dial()).await.expect_err("it is closed");
    assert!(
        matches!(&error, DialError::Disconnected { gone, .. } if gone.reason == CloseReason::ClosedLocally),
        "{error:?}"
    );
    assert_names(&error, &[AGENT, "closed on this side"]);
}

#[track_caller]
fn assert_shutdown(error: &DialError) {
    assert!(matches!(error, DialError::Shutdown { .. }), "{error:?}");
    assert_names(error, &[AGENT, "shut down"]);
}

#[tokio::test]
async fn agents_connector_and_channel_say_that_it_was_shut_down() {
    let rig = Rig::start().await;
    let (connector, channel) = (rig.agent.connector(), rig.agent.channel());
    soon("a dial", connector.dial()).await.expect("it works before");

    soon("the end", rig.agent.shutdown(Duration::ZERO)).await;

    assert_shutdown(&soon("the refusal", connector.dial()).await.expect_err("shut down"));
    assert_shutdown(&soon("the refusal", rig.agent.connector().dial()).await.expect_err("shut down"));
    assert_names(&unavailable(channel).await, &["shut down"]);
}

#[tokio::test]
async fn hubs_connector_and_channel_say_that_it_was_shut_down() {
    let rig = Rig::start().await;
    let (connector, channel) = (rig.hub.connector(AGENT).expect("an id"), rig.hub.channel(AGENT).expect("an id"));
    let endpoint = dialback::tune_endpoint(Endpoint::from_static("http://laptop-1"));
    let lazy = endpoint.connect_with_connector_lazy(connector.clone());
    soon("a dial", connector.dial()).await.expect("it works before");

    soon("the end", rig.hub.shutdown(Duration::ZERO)).await;

    assert_shutdown(&soon("the refusal", connector.dial()).await.expect_err("shut down"));
    assert_shutdown(&soon("it", rig.hub.connector(AGENT).expect("an id").dial()).await.expect_err("shut down"));
    assert_names(&unavailable(channel).await, &["shut down"]);
    let status = soon("the refusal", client(lazy).unary(payload(""))).await.expect_err("shut down");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}
