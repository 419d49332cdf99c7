//! A key gets the ids it was granted, and no other, however it spells them.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::openssh::Ssh;
use common::peers::{Peer, require_program, ssh_keygen};
use common::raw;
use common::rig::soon;
use dialback::{
    Agent, AllowedKeys, AuthError, AuthorizedKeys, Authorizer, ConnectError, HostKeys, Hub, Identity, PrivateKey,
    PublicKey,
};
use russh::keys::ssh_key::{
    self,
    certificate::{Builder, CertType},
};
use tokio::process::Command;
use tokio::task::JoinSet;

async fn hub(authorizer: impl Authorizer) -> (Hub, HostKeys) {
    let host = PrivateKey::generate();
    let known = HostKeys::public_key(host.public_key());
    let hub = Hub::builder(host).authorizer(authorizer).rejection_time(Duration::from_millis(10));
    (hub.bind("127.0.0.1:0").await.expect("bind"), known)
}

/// Writes a file that only its owner may change.
fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("chmod");
}

/// The three ways to grant laptop-1 to one key and laptop-2 to another.
fn authorizers(dir: &Path, one: &PublicKey, two: &PublicKey) -> Vec<(&'static str, Arc<dyn Authorizer>)> {
    let list = AllowedKeys::new().allow("laptop-1", one.clone()).expect("an id");
    let list = list.allow("laptop-2", two.clone()).expect("an id");
    let single = dir.join("authorized_keys");
    write(&single, &format!("principals=\"laptop-1\" {one}\nprincipals=\"laptop-2\" {two}\n"));
    fs::create_dir(dir.join("agents")).expect("a directory");
    write(&dir.join("agents/laptop-1"), &format!("{one}\n"));
    write(&dir.join("agents/laptop-2"), &format!("{two}\n"));
    vec![
        ("a list", Arc::new(list)),
        ("one file", Arc::new(AuthorizedKeys::open(single).expect("a file"))),
        ("a file each", Arc::new(AuthorizedKeys::open(dir.join("agents/%u")).expect("files"))),
    ]
}

#[tokio::test]
async fn key_gets_no_id_but_its_own() {
    let ((one, ours_one), (_, ours_two)) = (raw::key(), raw::key());
    let dir = tempfile::tempdir().expect("a directory");
    let long = "a".repeat(64 * 1024);
    let almost = "a".repeat(65);
    let others = [
        "laptop-2",
        "Laptop-1",
        "LAPTOP-1",
        "laptop-1.",
        "laptop-1 ",
        " laptop-1",
        "laptop-1\0",
        "laptop-1\n",
        "laptop-1\0laptop-2",
        "l\u{430}ptop-1",
        "\u{ff4c}aptop-1",
        "laptop\u{2010}1",
        "laptop-\u{b9}",
        "laptop-1\u{301}",
        "\u{feff}laptop-1",
        "./laptop-1",
        "../agents/laptop-1",
        "laptop-2/../laptop-1",
        "/laptop-1",
        "%u",
        "*",
        "laptop-*",
        "laptop-1,laptop-2",
        "laptop-1@hub",
        "root",
        "",
        ".",
        "..",
        &almost,
        &long,
    ];
    for (how, authorizer) in authorizers(dir.path(), &ours_one.public_key(), &ours_two.public_key()) {
        let (hub, _) = hub(authorizer).await;
        // As many at once as one source may have under way.
        for some in others.chunks(10) {
            let tries = some.iter().map(|user| {
                let (user, one, address) = ((*user).to_owned(), one.clone(), hub.local_addr());
                async move { (raw::dial(address).await.try_key(&user, &one).await, user) }
            });
            for (let_in, user) in soon("the answers", tries.collect::<JoinSet<_>>().join_all()).await {
                assert!(!let_in, "{how}: was let in as {:?}", user.chars().take(80).collect::<String>());
            }
        }
        assert_eq!(hub.tunnels().len(), 0, "{how}");

        let _in = raw::log_in(hub.local_addr(), "laptop-1", &one).await;
        let tunnels = hub.tunnels();
        assert_eq!(tunnels.len(), 1, "{how}");
        assert_eq!(tunnels[0].agent_id().as_str(), "laptop-1", "{how}");
    }
}

#[tokio::test]
async fn agent_is_told_that_its_key_was_refused_and_not_why() {
    let (_, key) = raw::key();
    let (_, other) = raw::key();
    let list = AllowedKeys::new().allow("laptop-1", key.public_key()).expect("an id");
    let (hub, known) = hub(list).await;
    // A known key for another id, and an unknown key: the same answer.
    for (id, key) in [("laptop-2", &key), ("laptop-1", &other)] {
        let agent = Agent::builder(id, key.clone()).host_keys(known.clone());
        let error = soon("an answer", agent.connect(hub.local_addr().to_string())).await.map(|_| ());
        let error = error.expect_err("refused");
        let ConnectError::Auth { user, source, .. } = &error else { panic!("{error:?}") };
        let AuthError::Refused { id: said, .. } = &**source else { panic!("{error:?}") };
        assert_eq!((user.as_str(), said.as_str()), (id, id));
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn authorized_keys_are_read_again_when_they_change() {
    let dir = tempfile::tempdir().expect("a directory");
    let ((old, ours_old), (new, ours_new)) = (raw::key(), raw::key());
    let line = |key: &PublicKey| format!("principals=\"laptop-1\" {key}\n");
    for layout in ["authorized_keys", "%u"] {
        let file = dir.path().join(layout.replace("%u", "laptop-1"));
        write(&file, &line(&ours_old.public_key()));
        let (hub, _) = hub(AuthorizedKeys::open(dir.path().join(layout)).expect("a file")).await;
        let let_in = async |key| raw::dial(hub.local_addr()).await.try_key("laptop-1", key).await;
        assert!(let_in(&old).await && !let_in(&new).await, "{layout}: as written first");

        // Replaced, as an editor does.
        let draft = dir.path().join("draft");
        write(&draft, &line(&ours_new.public_key()));
        fs::rename(&draft, &file).expect("rename");
        assert!(!let_in(&old).await && let_in(&new).await, "{layout}: replaced");

        // Written in place.
        write(&file, &format!("{}{}", line(&ours_old.public_key()), line(&ours_new.public_key())));
        assert!(let_in(&old).await && let_in(&new).await, "{layout}: added to");

        // Gone: nobody is let in.
        fs::remove_file(&file).expect("remove");
        assert!(!let_in(&old).await && !let_in(&new).await, "{layout}: removed");
    }
}

/// A certificate for `key`, changed by `change`.
fn certify(
    kind: CertType,
    key: &ssh_key::PrivateKey,
    authority: &ssh_key::PrivateKey,
    times: (u64, u64),
    change: impl FnOnce(&mut Builder),
) -> ssh_key::Certificate {
    let mut builder = Builder::new(*b"0123456789abcdef", key.public_key().clone(), times.0, times.1).expect("times");
    builder.cert_type(kind).expect("a type").key_id("test").expect("an id");
    change(&mut builder);
    builder.sign(authority).expect("a signature")
}

fn for_laptop_1(builder: &mut Builder) {
    builder.valid_principal("laptop-1").expect("a principal");
}

const ALWAYS: (u64, u64) = (0, u64::MAX);

#[tokio::test]
async fn certificate_gets_the_ids_that_its_authority_wrote_into_it() {
    let ((key, _), (authority, trusted), (stranger, _)) = (raw::key(), raw::key(), raw::key());
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("authorized_keys");
    write(&file, &format!("cert-authority,principals=\"laptop-1,laptop-2\" {}\n", trusted.public_key()));
    let (hub, _) = hub(AuthorizedKeys::open(file).expect("a file")).await;
    let certify = |authority, times, change: fn(&mut Builder)| certify(CertType::User, &key, authority, times, change);
    let option = |name: &'static str, value: &'static str| {
        self::certify(CertType::User, &key, &authority, ALWAYS, |builder| {
            for_laptop_1(builder);
            builder.critical_option(name, value).expect("an option");
        })
    };
    let host_type = self::certify(CertType::Host, &key, &authority, ALWAYS, for_laptop_1);
    let for_all = certify(&authority, ALWAYS, |builder| {
        builder.all_principals_valid().expect("all");
    });
    let cases = [
        ("good", "laptop-1", certify(&authority, ALWAYS, for_laptop_1), true),
        ("good, from here", "laptop-1", option("source-address", "127.0.0.0/8"), true),
        ("another id", "laptop-2", certify(&authority, ALWAYS, for_laptop_1), false),
        (
            "an id the line does not give",
            "laptop-3",
            {
                certify(&authority, ALWAYS, |builder| {
                    builder.valid_principal("laptop-3").expect("a principal");
                })
            },
            false,
        ),
        ("no principals", "laptop-1", for_all, false),
        ("another authority", "laptop-1", certify(&stranger, ALWAYS, for_laptop_1), false),
        ("signed by itself", "laptop-1", certify(&key, ALWAYS, for_laptop_1), false),
        ("expired", "laptop-1", certify(&authority, (1, 2), for_laptop_1), false),
        ("future", "laptop-1", certify(&authority, (u64::MAX / 4, u64::MAX / 2), for_laptop_1), false),
        ("host certificate", "laptop-1", host_type, false),
        ("unknown critical option", "laptop-1", option("no-such-option", ""), false),
        ("from elsewhere", "laptop-1", option("source-address", "192.0.2.0/24"), false),
    ];
    for (what, user, certificate, welcome) in cases {
        let mut dialled = raw::dial(hub.local_addr()).await;
        let answer = dialled.handle.authenticate_openssh_cert(user, key.clone(), certificate);
        let let_in = soon("an answer", answer).await.is_ok_and(|answer| answer.success());
        assert_eq!(let_in, welcome, "{what}");
    }
    // Neither the certified key by itself nor the authority's own is anybody.
    for bare in [&key, &authority] {
        assert!(!raw::dial(hub.local_addr()).await.try_key("laptop-1", bare).await);
    }
}

/// Signs `ID.pub` with stock ssh-keygen.
fn sign(authority: &Path, key: &Path, principal: &str, validity: &str) {
    let mut command = std::process::Command::new("ssh-keygen");
    command.args(["-q", "-I", "test", "-n", principal, "-V", validity, "-s"]).arg(authority);
    let output = command.arg(key.with_extension("pub")).output().expect("ssh-keygen runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn stock_certificates_work_with_stock_ssh_and_with_our_agent() {
    let Some(ssh) = Ssh::new() else { return };
    let (authority, trusted) = ssh_keygen(ssh.path(), "authority", "ed25519");
    let file = ssh.path().join("authorized_keys");
    write(&file, &format!("cert-authority {trusted}\n"));
    let hub =
        ssh.hub().authorizer(AuthorizedKeys::open(file).expect("a file")).bind("127.0.0.1:0").await.expect("bind");

    for (principal, validity, welcome) in
        [("laptop-1", "always:forever", true), ("laptop-2", "always:forever", false), ("laptop-1", "-2d:-1d", false)]
    {
        sign(&authority, &ssh.key, principal, validity);

        let mut stock = Peer::start(&mut ssh.command(&hub, "laptop-1", &["-N"]));
        if welcome {
            soon("the login", stock.line("Authenticated to")).await;
        } else {
            let (status, said) = soon("the refusal", stock.finish()).await;
            assert_eq!(status.code(), Some(255), "{principal} {validity}");
            assert!(said.iter().any(|line| line.contains("Permission denied (publickey)")), "{said:#?}");
        }

        let key = PrivateKey::from_file(&ssh.key).expect("a key");
        let certificate = ssh.path().join("id-cert.pub");
        let key = key.with_certificate_file(certificate).expect("its certificate");
        let agent = Agent::builder("laptop-1", key).host_keys(HostKeys::dangerous_accept_any());
        let connected = soon("an answer", agent.connect(hub.local_addr().to_string())).await;
        assert_eq!(connected.is_ok(), welcome, "{principal} {validity}: {:?}", connected.err());
    }
}

#[tokio::test]
async fn agent_signs_with_a_running_ssh_agent() {
    if !require_program("ssh-agent") || !require_program("ssh-add") || !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("socket");
    let mut ssh_agent = Peer::start(Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket));
    ssh_agent.line("SSH_AUTH_SOCK=").await;
    let (file, public) = ssh_keygen(dir.path(), "id", "ed25519");
    let list = AllowedKeys::new().allow("laptop-1", public.parse().expect("a key")).expect("an id");
    let (hub, known) = hub(list).await;
    let connect = async || {
        let agent = Agent::builder("laptop-1", Identity::ssh_agent_at(&socket)).host_keys(known.clone());
        soon("an answer", agent.connect(hub.local_addr().to_string())).await
    };

    let empty = connect().await.map(|_| ()).expect_err("it holds no key");
    assert!(
        matches!(&empty, ConnectError::Auth { source, .. } if matches!(**source, AuthError::NoKeyInSshAgent { .. })),
        "{empty:?}"
    );
    let mut add = Command::new("ssh-add");
    add.arg("-q").arg(file).env("SSH_AUTH_SOCK", &socket);
    assert!(Peer::start(&mut add).finish().await.0.success(), "ssh-add failed");
    let agent = connect().await.expect("it holds the key");
    drop(agent);
    drop(ssh_agent);
    let mut gone = connect().await;
    soon("the ssh-agent's end", async {
        while gone.is_ok() {
            gone = connect().await;
        }
    })
    .await;
    let gone = gone.map(|_| ()).expect_err("it is gone");
    assert!(
        matches!(&gone, ConnectError::Auth { source, .. } if matches!(**source, AuthError::SshAgentUnreachable { .. })),
        "{gone:?}"
    );
}
