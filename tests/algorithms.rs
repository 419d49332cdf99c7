//! Only what is on the list is negotiated.

mod common;

use std::time::Duration;

use common::peers::{Peer, require_program, ssh_keygen};
use common::raw::{self, FakeHub, KexInit, read_id, read_packet};
use common::rig::soon;
use dialback::{Agent, AllowedKeys, ConnectError, HostKeys, Hub, PrivateKey};
use russh::{Preferred, kex, server};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

const CIPHERS: [&str; 2] = ["aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"];
const MACS: &str = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com";

async fn hub() -> Hub {
    Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()).bind("127.0.0.1:0").await.expect("bind")
}

/// Everything of a KEXINIT but the kex and the host key algorithms.
fn assert_common_lists(offer: &KexInit) {
    let [first, second] = CIPHERS;
    let either = [format!("{first},{second}"), format!("{second},{first}")];
    assert!(either.contains(&offer.ciphers[0]), "{offer:?}");
    assert_eq!(offer.ciphers[0], offer.ciphers[1]);
    assert_eq!(offer.macs, [MACS, MACS]);
    assert_eq!(offer.compression, ["none", "none"]);
    assert_eq!(offer.languages, ["", ""]);
}

#[tokio::test]
async fn hub_offers_the_list_and_nothing_else() {
    let hub = hub().await;
    let mut stream = TcpStream::connect(hub.local_addr()).await.expect("dial");
    stream.write_all(b"SSH-2.0-test\r\n").await.expect("send");
    let id = soon("the id", read_id(&mut stream)).await.expect("an id line");
    assert!(id.starts_with("SSH-2.0-dialback_"), "{id}");

    let offer = KexInit::parse(&soon("KEXINIT", read_packet(&mut stream)).await.expect("a packet"));

    assert_eq!(
        offer.kex,
        "mlkem768x25519-sha256,curve25519-sha256,curve25519-sha256@libssh.org,ext-info-s,kex-strict-s-v00@openssh.com"
    );
    assert_eq!(offer.host_key, "ssh-ed25519");
    assert_common_lists(&offer);
}

#[tokio::test]
async fn agent_offers_the_list_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address").to_string();
    let agent = Agent::builder("laptop-1", PrivateKey::generate()).host_keys(HostKeys::dangerous_accept_any());
    let connecting = tokio::spawn(async move { agent.connect(address).await.map(|_| ()) });

    let (mut stream, _) = soon("a dial", listener.accept()).await.expect("accept");
    stream.write_all(b"SSH-2.0-test\r\n").await.expect("send");
    let id = soon("the id", read_id(&mut stream)).await.expect("an id line");
    assert!(id.starts_with("SSH-2.0-dialback_"), "{id}");
    let offer = KexInit::parse(&soon("KEXINIT", read_packet(&mut stream)).await.expect("a packet"));

    assert_eq!(
        offer.kex,
        "mlkem768x25519-sha256,curve25519-sha256,curve25519-sha256@libssh.org,ext-info-c,kex-strict-c-v00@openssh.com"
    );
    let rsa = if cfg!(feature = "rsa") { ",rsa-sha2-512,rsa-sha2-256" } else { "" };
    assert_eq!(offer.host_key, format!("ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521{rsa}"));
    assert_common_lists(&offer);
    connecting.abort();
}

#[tokio::test]
async fn hub_hangs_up_on_a_peer_with_only_weak_algorithms() {
    let hub = hub().await;
    let good = KexInit {
        kex: "curve25519-sha256,kex-strict-c-v00@openssh.com".into(),
        host_key: "ssh-ed25519".into(),
        ciphers: CIPHERS.map(String::from),
        macs: ["hmac-sha2-256-etm@openssh.com"; 2].map(String::from),
        compression: ["none"; 2].map(String::from),
        languages: ["", ""].map(String::from),
    };
    let both = |list: &str| [list.to_owned(), list.to_owned()];
    let with_kex = |kex: &str| KexInit { kex: kex.into(), ..good.clone() };
    let weak = [
        with_kex("diffie-hellman-group1-sha1"),
        with_kex("diffie-hellman-group14-sha1"),
        with_kex("diffie-hellman-group14-sha256"),
        with_kex("diffie-hellman-group-exchange-sha256"),
        with_kex("ecdh-sha2-nistp256"),
        with_kex("none"),
        KexInit { host_key: "ssh-rsa".into(), ..good.clone() },
        KexInit { host_key: "ssh-dss".into(), ..good.clone() },
        KexInit { ciphers: both("aes128-cbc,3des-cbc,arcfour"), ..good.clone() },
        KexInit { ciphers: both("aes256-ctr"), ..good.clone() },
        KexInit { ciphers: both("none,clear"), ..good.clone() },
        KexInit { compression: both("zlib"), ..good.clone() },
        KexInit { compression: both("zlib@openssh.com"), ..good.clone() },
    ];
    for offer in weak {
        let mut stream = TcpStream::connect(hub.local_addr()).await.expect("dial");
        let hello = [b"SSH-2.0-test\r\n", raw::packet(&offer.payload()).as_slice()].concat();
        let took = soon("the end", raw::until_closed(&mut stream, &hello)).await;
        assert!(took < Duration::from_secs(1), "{offer:?} kept the connection for {took:?}");
    }

    // The same with nothing weak in it is answered: the hub waits for the exchange to go on.
    let mut stream = TcpStream::connect(hub.local_addr()).await.expect("dial");
    let hello = [b"SSH-2.0-test\r\n", raw::packet(&good.payload()).as_slice()].concat();
    let closed = tokio::time::timeout(Duration::from_secs(1), raw::until_closed(&mut stream, &hello)).await;
    assert!(closed.is_err(), "a good offer was refused");
}

#[tokio::test]
async fn stock_ssh_connects_with_the_list_only() {
    if !require_program("ssh") || !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (key, public) = ssh_keygen(dir.path(), "laptop-1", "ed25519");
    let allowed = AllowedKeys::new().allow("laptop-1", public.parse().expect("a key")).expect("an id");
    let hub = Hub::builder(PrivateKey::generate()).authorizer(allowed).rejection_time(Duration::from_millis(10));
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let ssh = async |options: &[&str]| {
        let port = hub.local_addr().port().to_string();
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-N", "-v", "-p", &port, "-i"]).arg(&key);
        for option in
            ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"].iter().chain(options)
        {
            command.args(["-o", option]);
        }
        Peer::start(command.arg("laptop-1@127.0.0.1"))
    };

    let weak: [(&str, &[&str]); 6] = [
        ("key exchange", &["KexAlgorithms=diffie-hellman-group14-sha256"]),
        ("key exchange", &["KexAlgorithms=ecdh-sha2-nistp256,diffie-hellman-group-exchange-sha256"]),
        ("cipher", &["Ciphers=aes256-ctr,aes128-gcm@openssh.com"]),
        ("cipher", &["Ciphers=aes128-cbc,3des-cbc"]),
        ("host key", &["HostKeyAlgorithms=ssh-rsa,rsa-sha2-512"]),
        ("host key", &["HostKeyAlgorithms=ecdsa-sha2-nistp256"]),
    ];
    for (what, options) in weak {
        let (status, said) = ssh(options).await.finish().await;
        assert_eq!(status.code(), Some(255), "{options:?}: {said:#?}");
        let complaint = format!("no matching {what}");
        assert!(said.iter().any(|line| line.contains(&complaint)), "{options:?}: {said:#?}");
    }

    let good: [&[&str]; 5] = [
        &[],
        &["KexAlgorithms=curve25519-sha256", "Ciphers=aes256-gcm@openssh.com"],
        &["KexAlgorithms=curve25519-sha256@libssh.org", "Ciphers=chacha20-poly1305@openssh.com"],
        &["HostKeyAlgorithms=ssh-ed25519"],
        // Asked for; not given, and done without.
        &["Compression=yes"],
    ];
    for options in good {
        let mut ssh = ssh(options).await;
        if options == ["Compression=yes"] {
            let negotiated = ssh.line("debug1: kex: server->client").await;
            assert!(negotiated.ends_with("compression: none"), "{negotiated}");
        }
        ssh.line("Authenticated to 127.0.0.1").await;
    }
}

fn strict_removed(config: &Preferred) -> Preferred {
    let is_strict = |name: &&kex::Name| {
        ![kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER].contains(name)
    };
    Preferred { kex: config.kex.iter().filter(is_strict).copied().collect(), ..config.clone() }
}

#[tokio::test]
async fn agent_refuses_a_hub_without_strict_kex() {
    let (host, _) = raw::key();
    for (strict, preferred) in [(false, strict_removed(&Preferred::default())), (true, Preferred::default())] {
        let config = server::Config { keys: vec![(*host).clone()], preferred, ..Default::default() };
        let fake = FakeHub::start(config).await;
        let agent = Agent::builder("laptop-1", PrivateKey::generate()).host_keys(HostKeys::dangerous_accept_any());

        let connected = soon("an answer", agent.connect(fake.address.to_string())).await;

        match connected {
            Ok(_) => assert!(strict, "let a hub without strict kex pass"),
            Err(error) => {
                assert!(!strict && matches!(error, ConnectError::NotStrict { .. }), "{error:?}");
                assert_eq!(fake.userauth(), 0, "it asked to authenticate");
            }
        }
    }
}

/// A signature with SHA-1 proves nothing, even where RSA keys are welcome.
#[cfg(feature = "rsa")]
#[tokio::test]
async fn hub_refuses_rsa_with_sha1() {
    use russh::keys::{HashAlg, PrivateKeyWithHashAlg, ssh_key};
    use std::sync::Arc;

    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (file, public) = ssh_keygen(dir.path(), "laptop-1", "rsa");
    let key = Arc::new(ssh_key::PrivateKey::read_openssh_file(&file).expect("a key"));
    let allowed = AllowedKeys::new().allow("laptop-1", public.parse().expect("a key")).expect("an id");
    let hub = Hub::builder(PrivateKey::generate()).authorizer(allowed).rejection_time(Duration::from_millis(10));
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");

    for (hash, welcome) in [(None, false), (Some(HashAlg::Sha256), true), (Some(HashAlg::Sha512), true)] {
        let mut dialled = raw::dial(hub.local_addr()).await;
        let key = PrivateKeyWithHashAlg::new(key.clone(), hash);
        let answer = dialled.handle.authenticate_publickey("laptop-1", key).await.expect("an answer");
        assert_eq!(answer.success(), welcome, "{hash:?}");
    }
}
