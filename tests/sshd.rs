//! An agent that dials a stock OpenSSH server: no code of ours in the cloud.

#![cfg(unix)]

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::bulk::{RekeyedBy, assert_numbered, numbered};
use common::echo::{Echo, client, pattern, payload};
use common::faults::alone;
use common::openssh::run_sshd;
use common::peers::{Peer, require_program, ssh_keygen};
use common::rig::{serve, soon};
use dialback::{Agent, AgentBuilder, ConnectError, HostKeys, PrivateKey};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};

/// A cloud with sshd, and an agent's key that it knows.
struct Cloud {
    dir: tempfile::TempDir,
    key: PathBuf,
    user: String,
    port: u16,
    sshd: Peer,
}

impl Cloud {
    /// `None` if the test is to be skipped.
    async fn start(options: &str) -> Option<Self> {
        if !require_program("sshd") || !require_program("ssh-keygen") {
            return None;
        }
        // An sshd of root's wants this, and Debian makes it when its own is started.
        let _ = std::fs::create_dir("/run/sshd"); // it may be there, or this not be root
        let dir = tempfile::tempdir().expect("a directory");
        let (key, public) = ssh_keygen(dir.path(), "id", "ed25519");
        ssh_keygen(dir.path(), "host", "ed25519");
        std::fs::write(dir.path().join("authorized_keys"), public + "\n").expect("write");
        let user = std::process::Command::new("id").arg("-un").output().expect("id runs").stdout;
        let user = String::from_utf8(user).expect("UTF-8").trim().to_owned();
        let (sshd, port) = run_sshd(dir.path(), options).await;
        Some(Self { dir, key, user, port, sshd })
    }

    /// Kills what the server has started for its connections, so that it cleans up nothing.
    fn kill_connections(&self) {
        let mut family = vec![self.sshd.id().expect("it runs")];
        let parent_of = |process: u32| -> Option<u32> {
            let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
        };
        let processes = std::fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let mut processes: Vec<u32> = processes.collect();
        processes.sort_unstable(); // parents come first
        for process in processes {
            if parent_of(process).is_some_and(|parent| family.contains(&parent)) {
                family.push(process);
            }
        }
        assert!(family.len() > 1, "there is no connection");
        let kill = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("kill -9 {}", family[1..].iter().map(u32::to_string).collect::<Vec<_>>().join(" ")))
            .status();
        assert!(kill.expect("kill runs").success());
    }

    fn agent(&self) -> AgentBuilder {
        let host = std::fs::read_to_string(self.dir.path().join("host.pub")).expect("a host key");
        let pause = Duration::from_millis(50);
        Agent::builder(&self.user, PrivateKey::from_file(&self.key).expect("a key"))
            .host_keys(HostKeys::public_key(host.parse().expect("a key")))
            .backoff(pause, pause, Duration::from_secs(60))
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("laptop-1.sock")
    }
}

/// An ordinary gRPC client in the cloud.
async fn dial_socket(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://laptop-1").connect_with_connector(connector).await
}

async fn assert_answers(channel: Channel) {
    let mut echo = client(channel);
    for size in [0, 100, 1 << 20] {
        let sent = pattern(5, size);
        let answer = soon("an answer", echo.unary(payload(sent.clone()))).await.expect("an answer");
        assert!(answer.into_inner().data == sent, "{size} bytes came back changed");
    }
}

#[tokio::test]
async fn any_client_in_the_cloud_dials_a_socket_of_sshds() {
    let Some(cloud) = Cloud::start("StreamLocalBindUnlink yes").await else { return };
    let socket = cloud.socket();
    let agent = cloud.agent().remote(format!("unix:{}", socket.display())).tunnels(4);
    let agent = agent.connect(cloud.address()).await.expect("connect");
    serve(&Echo::default(), agent.incoming());
    assert_answers(dial_socket(socket.clone()).await.expect("dial")).await;
    assert_answers(dial_socket(socket.clone()).await.expect("dial again")).await;

    // The server's processes for this connection die, and its socket stays.
    let mut status = agent.status();
    cloud.kill_connections();
    soon("the loss", status.wait_for(|status| !status.is_connected())).await.expect("an agent");
    assert!(socket.exists(), "nothing stale to replace");
    soon("the return", status.wait_for(dialback::AgentStatus::is_connected)).await.expect("an agent");
    assert_answers(dial_socket(socket.clone()).await.expect("dial")).await;

    agent.shutdown(Duration::from_secs(2)).await;
    soon("the socket's end", async {
        while dial_socket(socket.clone()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let Some(careful) = Cloud::start("").await else { return };
    let in_the_way = careful.dir.path().join("host.pub");
    let refused = careful.agent().remote(format!("unix:{}", in_the_way.display()));
    let error = refused.connect(careful.address()).await.expect_err("a file is in the way");
    assert!(matches!(error, ConnectError::RemoteRefused { .. }), "{error:?}");
    assert!(error.to_string().contains("StreamLocalBindUnlink"), "{error}");
}

#[tokio::test]
async fn any_client_in_the_cloud_dials_a_port_of_sshds() {
    let Some(cloud) = Cloud::start("").await else { return };
    let free = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    for remote in [format!("tcp:{port}"), format!("tcp:127.0.0.1:{port}")] {
        let agent = cloud.agent().remote(&remote).connect(cloud.address()).await.expect("connect");
        serve(&Echo::default(), agent.incoming());
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL");
        assert_answers(endpoint.connect().await.expect("dial")).await;
        agent.shutdown(Duration::from_secs(2)).await;
        soon("the port's end", async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn what_sshd_refuses_is_told_with_what_to_do() {
    let Some(cloud) = Cloud::start("AllowStreamLocalForwarding no\nAllowTcpForwarding no").await else { return };
    for remote in [format!("unix:{}", cloud.socket().display()), "tcp:50051".into()] {
        let error = cloud.agent().remote(&remote).connect(cloud.address()).await.expect_err("refused");
        assert!(matches!(error, ConnectError::RemoteRefused { .. }), "{error:?}");
        assert!(error.to_string().contains("AllowStreamLocalForwarding"), "{error}");
    }
    // Not a hub, and not told to be anything else.
    let error = cloud.agent().connect(cloud.address()).await.expect_err("refused");
    assert!(matches!(error, ConnectError::ForwardRefused { .. }), "{error:?}");
    for bad in ["", "50051", "unix:", "unix:relative", "tcp:", "tcp:x", "tcp:0", "tcp:1:2:x", "/run/socket"] {
        let error = cloud.agent().remote(bad).connect(cloud.address()).await.expect_err(bad);
        assert!(matches!(&error, ConnectError::InvalidRemote { given, .. } if given == bad), "{bad}: {error:?}");
    }
}

/// russh keeps something of each channel, so an agent renews its connection; here it has to give way to itself.
#[tokio::test]
async fn an_agent_of_sshds_renews_its_connection() {
    let Some(cloud) = Cloud::start("").await else { return };
    let free = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let agent = cloud.agent().remote(format!("tcp:{port}")).renew_after(3);
    let agent = agent.connect(cloud.address()).await.expect("connect");
    serve(&Echo::default(), agent.incoming());
    let tunnel = |status: &dialback::AgentStatus| match status {
        dialback::AgentStatus::Connected { tunnel_id, .. } => Some(*tunnel_id),
        _ => None,
    };
    let first = tunnel(&agent.status().borrow()).expect("connected");
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL");
    for _ in 0..10 {
        // There is a gap while one connection gives way to the next.
        let answered = async {
            loop {
                if let Ok(channel) = endpoint.connect().await
                    && client(channel).unary(payload("ping")).await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("an answer", answered).await;
    }
    let last = tunnel(&agent.status().borrow()).expect("connected");
    assert_ne!(first, last, "it was not renewed");
}

/// A hub that only the cloud reaches, as far as the agent's configuration says.
#[tokio::test]
async fn hub_is_reached_by_way_of_a_jump_host() {
    let Some(cloud) = Cloud::start("").await else { return };
    if !require_program("ssh") {
        return;
    }
    let (dir, host_key) = (cloud.dir.path(), PrivateKey::generate());
    let allowed = dialback::AllowedKeys::new();
    let allowed = allowed.allow("laptop-1", PrivateKey::from_file(&cloud.key).expect("a key").public_key());
    let hub = dialback::Hub::builder(host_key.clone()).authorizer(allowed.expect("an id"));
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let jump = std::fs::read_to_string(dir.join("host.pub")).expect("a host key");
    let hub_port = hub.local_addr().port();
    let known = format!("[127.0.0.1]:{} {jump}[127.0.0.1]:{hub_port} {}\n", cloud.port, host_key.public_key());
    std::fs::write(dir.join("known_hosts"), known).expect("write");
    let config = format!(
        "Host jump\n HostName 127.0.0.1\n Port {}\n User {}\n\
         Host hub\n HostName 127.0.0.1\n Port {hub_port}\n User laptop-1\n ProxyJump jump\n\
         Host *\n IdentityFile {dir}/id\n IdentityAgent none\n BatchMode yes\n UserKnownHostsFile {dir}/known_hosts\n",
        cloud.port,
        cloud.user,
        dir = dir.display(),
    );
    std::fs::write(dir.join("config"), config).expect("write");
    let config = dialback::SshConfig::of_file(dir.join("config"), "hub").await.expect("a configuration");
    let agent = config.agent().expect("an agent").connect(config.hub()).await.expect("connect");
    serve(&Echo::default(), agent.incoming());
    let mut echo = common::echo::pb::echo_client::EchoClient::new(hub.channel("laptop-1").expect("an id"));
    let answer = soon("an answer", echo.unary(payload("by a jump"))).await.expect("an answer");
    assert_eq!(answer.into_inner().data, b"by a jump");

    let mut status = agent.status();
    cloud.kill_connections();
    soon("the loss", status.wait_for(|status| !status.is_connected())).await.expect("an agent");
    soon("the return", status.wait_for(dialback::AgentStatus::is_connected)).await.expect("an agent");
    let answer = soon("an answer", echo.unary(payload("again"))).await.expect("an answer");
    assert_eq!(answer.into_inner().data, b"again");
}

/// G6: sshd renews its keys after each MiB, and so does the agent if it is told to. The larger its packets, the sooner
/// it does: it takes the length of the next one for a number of cipher blocks, and so renews for each of 64 KiB.
async fn rekeys_under_bulk(mib: usize, by: RekeyedBy) {
    let _alone = alone().await;
    let Some(mut cloud) = Cloud::start("RekeyLimit 1M\nLogLevel DEBUG1").await else { return };
    let remote = format!("unix:{}", cloud.socket().display());
    let (bytes, interval) = by.own();
    let agent = cloud.agent().rekey(bytes, interval).remote(remote);
    let agent = agent.connect(cloud.address()).await.expect("connect");
    serve(&Echo::default(), agent.incoming());
    let mut echo = client(dial_socket(cloud.socket()).await.expect("dial"));
    let begun = Instant::now();

    let answers = soon("a chat", echo.chat(numbered(mib))).await.expect("a chat");
    assert_numbered(answers.into_inner(), mib).await;

    let took = begun.elapsed();
    assert!(agent.status().borrow().is_connected());
    agent.shutdown(Duration::from_secs(2)).await;
    let said = cloud.sshd.until("debug1: do_cleanup").await;
    let rekeys = said.iter().filter(|line| line.contains("SSH2_MSG_NEWKEYS received")).count() - 1;
    eprintln!("G6 sshd, {by:?}: {mib} MiB each way in {took:?}, {rekeys} rekeys");
    assert!(rekeys >= mib, "only {rekeys} rekeys: {said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sshd_renews_its_keys_under_bulk() {
    rekeys_under_bulk(8, RekeyedBy::Peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sshd_and_the_agent_renew_their_keys_under_bulk() {
    rekeys_under_bulk(8, RekeyedBy::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: cargo test --release -- --ignored"]
async fn sshd_renews_its_keys_under_a_gigabyte() {
    for by in [RekeyedBy::Peer, RekeyedBy::Both] {
        rekeys_under_bulk(1024, by).await;
    }
}
