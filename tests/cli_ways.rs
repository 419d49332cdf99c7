//! The ways that `dialback agent` gets out and proves itself, and those that clients get in, with programs that are not ours.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::net::SocketAddr;

use common::{
    command::{Answer, run},
    daemon::{Daemon, Files, dialback},
    egress::{PROXYS, microsocks, tinyproxy},
    forward::Beside,
    gateway::call_through,
    openssh::run_sshd,
    peers::{Peer, require_program, ssh_keygen},
    rig::AGENT,
    tls::Certificates,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::process::Command;

/// What `dialback agents` knows of the one agent.
async fn tunnels(gateway: SocketAddr) -> Vec<Value> {
    let gateway = format!("http://{gateway}");
    let agents = run(&["agents", "--gateway", &gateway, "-o", "json"]).await.text();
    let agents: Value = serde_json::from_str(&agents).expect("JSON");
    agents[0]["tunnels"].as_array().expect("tunnels").clone()
}

/// Calls the echo with `more`, which says where and how.
async fn call(more: &[&str]) -> Answer {
    let fixed = ["call", "-import-path", "proto", "-proto", "echo.proto", "-d", r#"{"data":"aGk="}"#];
    run(&[&fixed[..], more, &["dialback.echo.v1.Echo/Unary"]].concat()).await
}

fn assert_echoed(answer: Answer) {
    assert_eq!(answer.text().replace(['\n', ' '], ""), r#"{"data":"aGk="}"#);
}

#[tokio::test]
async fn agent_gets_out_by_proxies_and_commands() {
    if !require_program("tinyproxy") || !require_program("microsocks") || !require_program("bash") {
        return;
    }
    let (files, beside) = (Files::new(), Beside::start());
    let (_hub, ports) = files.hub(&[]).await;
    let (_connect, connect) = tinyproxy(files.dir.path(), "BasicAuth me secret").await;
    let (_socks, socks) = microsocks(&[]).await;
    let (connect, socks) = (format!("http://me:secret@127.0.0.1:{connect}"), format!("socks5://127.0.0.1:{socks}"));
    // bash has sockets of its own.
    files.write("connect", "exec 3<>/dev/tcp/$1/$2; cat <&3 & cat >&3; kill %1");
    let command = format!("bash {} %h %p", files.path("connect"));
    let (hub, forward) = (ports.hub.to_string(), beside.address.to_string());
    for (more, variable, from) in [
        (vec!["--proxy", &*connect], "", PROXYS),
        (vec!["--proxy", &*socks], "", PROXYS),
        (vec![], &*socks, PROXYS),
        (vec!["--no-proxy"], &*socks, "127.0.0.1"),
        (vec!["--proxy-command", &*command], "", "127.0.0.1"),
    ] {
        let arguments = files.agent_arguments(&hub, &forward);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let mut start = dialback(&arguments);
        start.args(["--log-format", "json"]).env("NO_PROXY", "").env("ALL_PROXY", variable);
        let mut agent = Daemon(Peer::start(&mut start));
        agent.logs("agent ready").await;
        call_through(ports.gateway).await;
        let peer = tunnels(ports.gateway).await[0]["from"].as_str().expect("an address").to_owned();
        assert!(peer.starts_with(&format!("{from}:")), "{more:?} {variable}: {peer}");
        agent.signal("TERM");
        let (status, said) = agent.ended().await;
        assert!(status.success() && !said.join("\n").contains("secret"), "{said:?}");
    }
}

#[tokio::test]
async fn hub_is_found_in_the_ssh_configuration() {
    if !require_program("ssh") {
        return;
    }
    let (files, beside) = (Files::new(), Beside::start());
    let (_hub, ports) = files.hub(&[]).await;
    let host = dialback::PrivateKey::from_file(files.path("host")).expect("a key").public_key();
    files.write("known_hosts", &format!("{}\n", host.known_hosts_line(&ports.hub.to_string()).expect("a line")));
    let config = format!(
        "Host hub\n HostName 127.0.0.1\n Port {}\n User {AGENT}\n IdentityAgent none\n IdentityFile \"{}\"\n \
         UserKnownHostsFile \"{}\"\n GlobalKnownHostsFile /dev/null\n",
        ports.hub.port(),
        files.path("agent"),
        files.path("known_hosts")
    );
    files.write("config", &config);
    let (config, forward) = (files.path("config"), beside.address.to_string());
    let arguments = ["agent", "--ssh-config", "hub", "--ssh-config-file", &config, "--forward", &forward];
    let mut agent = Daemon::start(&arguments);
    agent.logs("agent ready").await;
    call_through(ports.gateway).await;
    let (status, said) = Peer::start(&mut dialback(&[&arguments[..], &["--id", "x"]].concat())).finish().await;
    assert!(status.code() == Some(64) && said.join("\n").contains("leave out --id"), "{said:?}");
}

#[tokio::test]
async fn stock_sshd_stands_in_for_a_hub() {
    if !require_program("sshd") || !require_program("ssh-keygen") {
        return;
    }
    // An sshd of root's wants this, and Debian makes it when its own is started.
    let _ = std::fs::create_dir("/run/sshd"); // it may be there, or this not be root
    let (files, beside) = (Files::new(), Beside::start());
    let (_, public) = ssh_keygen(files.dir.path(), "id", "ed25519");
    let (_, host) = ssh_keygen(files.dir.path(), "sshd_host", "ed25519");
    std::fs::rename(files.path("sshd_host"), files.path("host")).expect("rename");
    files.write("authorized_keys", &format!("{public}\n"));
    let (_sshd, port) = run_sshd(files.dir.path(), "StreamLocalBindUnlink yes").await;
    files.write("known_hosts", &format!("[127.0.0.1]:{port} {host}\n"));
    let user = std::process::Command::new("id").arg("-un").output().expect("id runs").stdout;
    let user = String::from_utf8(user).expect("UTF-8");
    let (hub, socket) = (format!("127.0.0.1:{port}"), format!("unix:{}", files.path("laptop.sock")));
    let (key, known, forward) = (files.path("id"), files.path("known_hosts"), beside.address.to_string());
    let arguments = ["agent", "--hub", &hub, "--id", user.trim(), "--identity", &key, "--known-hosts", &known];
    let mut agent = Daemon::start(&[&arguments[..], &["--remote", &socket, "--forward", &forward]].concat());
    agent.logs("agent ready").await;
    assert_echoed(call(&["-plaintext", &socket]).await);
}

#[tokio::test]
async fn agent_has_as_many_tunnels_as_it_was_told() {
    let (files, beside) = (Files::new(), Beside::start());
    let (_hub, ports) = files.hub(&[]).await;
    let forward = beside.address.to_string();
    let _agent = files.agent(&ports.hub.to_string(), &forward, &["--tunnels", "3"]).await;
    call_through(ports.gateway).await;
    common::rig::soon("three tunnels", async {
        while tunnels(ports.gateway).await.len() != 3 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn keys_are_those_of_an_ssh_agent() {
    if !require_program("ssh-agent") || !require_program("ssh-add") {
        return;
    }
    let (files, beside) = (Files::new(), Beside::start());
    let (_hub, ports) = files.hub(&[]).await;
    let socket = files.path("socket");
    let mut ssh_agent = Peer::start(Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket));
    ssh_agent.line("SSH_AUTH_SOCK=").await;
    let public = dialback::PrivateKey::from_file(files.path("agent")).expect("a key").public_key();
    for name in ["agent", "host"] {
        let mut add = Command::new("ssh-add");
        add.arg("-q").arg(files.path(name)).env("SSH_AUTH_SOCK", &socket);
        assert!(Peer::start(&mut add).finish().await.0.success(), "ssh-add failed");
    }
    std::fs::remove_file(files.path("agent")).expect("remove");
    files.write("id.pub", &format!("{public}\n"));
    let (named, at) = (files.path("id.pub"), format!("ssh-agent:{socket}"));
    for identity in [vec![&*at], vec!["ssh-agent"], vec!["ssh-agent", &*named]] {
        let (hub, forward) = (ports.hub.to_string(), beside.address.to_string());
        let mut arguments = vec!["agent", "--hub", &*hub, "--id", AGENT, "--host-key-fingerprint", &*files.fingerprint];
        arguments.extend(["--forward", &*forward]);
        arguments.extend(identity.iter().flat_map(|name| ["--identity", *name]));
        let mut start = dialback(&arguments);
        start.args(["--log-format", "json"]).env("SSH_AUTH_SOCK", &socket);
        let mut agent = Daemon(Peer::start(&mut start));
        agent.logs("agent ready").await;
        call_through(ports.gateway).await;
        agent.signal("TERM");
        assert!(agent.ended().await.0.success());
    }
}

#[tokio::test]
async fn gateway_lets_in_whom_its_policy_names() {
    let (files, beside) = (Files::new(), Beside::start());
    let certificates = Certificates::of(files.dir.path(), &["127.0.0.1", "billing.example.com"]);
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (authority, certificate) = (text(&certificates.authority), text(&certificates.certificate));
    let key = text(&certificates.key);
    let hash: String = Sha256::digest("a token").iter().map(|byte| format!("{byte:02x}")).collect();
    let policy = format!(
        "[[caller]]\nname = \"billing\"\ncertificate = [\"billing.example.com\"]\n\
         [[caller]]\nname = \"ops\"\ntoken-sha256 = [\"{hash}\"]\n\
         [[allow]]\ncallers = [\"billing\"]\nagents = [\"*\"]\nmethods = [\"/dialback.echo.v1.Echo/Unary\"]\n"
    );
    files.write("policy.toml", &policy);
    let policy = files.path("policy.toml");
    let (host, keys) = (files.path("host"), files.path("authorized_keys"));
    let hub = ["hub", "--listen", "127.0.0.1:0", "--host-key", &host, "--authorized-keys", &keys];
    let gateway = ["--gateway", "127.0.0.1:0", "--gateway-tls-cert", &certificate, "--gateway-tls-key", &key];
    let mut hub =
        Daemon::start(&[&hub[..], &gateway[..], &["--gateway-client-ca", &authority, "--policy", &policy]].concat());
    let ready = hub.logs("hub ready").await;
    let listen = ready["listen"].as_str().expect("an address").to_owned();
    let _agent = files.agent(&listen, &beside.address.to_string(), &[]).await;
    let gateway = format!("https://{}", ready["gateway"].as_str().expect("an address"));
    let with = ["-cacert", &*authority, "--agent", AGENT, "--gateway", &*gateway];
    let shown = [&with[..], &["-cert", &certificate, "-key", &key]].concat();
    assert_echoed(call(&shown).await);
    // Without either, with a token that may not, and with another certificate authority in mind.
    let unauthenticated = call(&with).await;
    assert_eq!(unauthenticated.code, 64 + 16, "{unauthenticated:?}");
    let denied = call(&[&with[..], &["-H", "authorization: Bearer a token"]].concat()).await;
    assert_eq!(denied.code, 64 + 7, "{denied:?}");
    let distrusting = call(&["--agent", AGENT, "--gateway", &gateway]).await;
    assert!(distrusting.code == 1 && distrusting.err.contains("-cacert"), "{distrusting:?}");
}
