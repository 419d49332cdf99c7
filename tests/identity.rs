//! A key gets the ids it was granted, and no other, however it spells them.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::openssh::Ssh;
use common::peers::{Peer, require_program, ssh_keygen, ssh_keygen_revoke, ssh_keygen_sign};
use common::raw;
use common::rig::soon;
use dialback::{
    Agent, AllowedKeys, AuthError, AuthorizedKeys, Authorizer, Claim, CloseReason, ConnectError, Credential, Denied,
    Grant, HostKeys, Hub, Identity, PrivateKey, PublicKey,
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

/// Remembers why certificates were refused, which their holders are not told.
struct Recorder {
    keys: AuthorizedKeys,
    refusals: Arc<Mutex<Vec<String>>>,
}

#[async_trait::async_trait]
impl Authorizer for Recorder {
    async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
        let answer = self.keys.authorize(claim).await;
        if let (Err(denied), Credential::Certificate(_)) = (&answer, &claim.credential) {
            self.refusals.lock().expect("no panic").push(denied.to_string());
        }
        answer
    }

    fn recheck_every(&self) -> Option<Duration> {
        self.keys.recheck_every()
    }
}

/// I2. Keys, certificates and the list of what is revoked are made by stock ssh-keygen.
#[tokio::test]
async fn each_bad_certificate_is_refused_with_a_reason_of_its_own() {
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let make = |name: &str| ssh_keygen(dir.path(), name, "ed25519");
    let ((ca, ca_public), (stolen_ca, stolen_ca_public), (other_ca, _)) =
        (make("ca"), make("stolen-ca"), make("other-ca"));
    let ((laptop, _), (stolen, stolen_public)) = (make("laptop"), make("stolen"));
    let revoked = path("revoked");
    let spec = format!("serial: 666\nserial: 700-800\nid: lost\nkey: {stolen_public}\nsha1: {stolen_ca_public}\n");
    ssh_keygen_revoke(&revoked, &["-s", &path("ca.pub").display().to_string()], &spec);
    let print = |public: &str| public.parse::<PublicKey>().expect("a key").fingerprint();

    let certificates = [
        ("good", &ca, &laptop, &["-n", "laptop-1"][..], None),
        ("another principal too", &ca, &laptop, &["-n", "laptop-2,laptop-1"], None),
        ("valid now", &ca, &laptop, &["-n", "laptop-1", "-V", "-5m:+1h", "-z", "665"], None),
        ("from here", &ca, &laptop, &["-n", "laptop-1", "-O", "source-address=127.0.0.0/8"], None),
        ("an extension", &ca, &laptop, &["-n", "laptop-1", "-O", "extension:x@example.com=y"], None),
        (
            "expired",
            &ca,
            &laptop,
            &["-n", "laptop-1", "-V", "-2d:-1d"],
            Some("with certificate `test` (it expired at ".into()),
        ),
        (
            "future",
            &ca,
            &laptop,
            &["-n", "laptop-1", "-V", "+1d:+2d"],
            Some("with certificate `test` (it is not valid before ".into()),
        ),
        ("other CA", &other_ca, &laptop, &["-n", "laptop-1"], Some("is not a trusted CA".into())),
        ("signed by itself", &laptop, &laptop, &["-n", "laptop-1"], Some("is not a trusted CA".into())),
        ("host type", &ca, &laptop, &["-n", "laptop-1", "-h"], Some("it is a host certificate".into())),
        ("wrong principal", &ca, &laptop, &["-n", "laptop-2"], Some("it was granted laptop-2".into())),
        ("pattern", &ca, &laptop, &["-n", "laptop-*"], Some("it was granted laptop-*".into())),
        ("no principals", &ca, &laptop, &[], Some("it was granted no id".into())),
        (
            "unknown critical option",
            &ca,
            &laptop,
            &["-n", "laptop-1", "-O", "critical:x@example.com=y"],
            Some("the critical option `x@example.com`".into()),
        ),
        (
            "forced command",
            &ca,
            &laptop,
            &["-n", "laptop-1", "-O", "force-command=true"],
            Some("the critical option `force-command`".into()),
        ),
        (
            "from elsewhere",
            &ca,
            &laptop,
            &["-n", "laptop-1", "-O", "source-address=192.0.2.0/24"],
            Some("is not allowed from 127.0.0.1: only from 192.0.2.0/24".into()),
        ),
        (
            "revoked serial",
            &ca,
            &laptop,
            &["-n", "laptop-1", "-z", "666"],
            Some(format!("revoked lists serial 666 of the CA {}", print(&ca_public))),
        ),
        (
            "revoked range",
            &ca,
            &laptop,
            &["-n", "laptop-1", "-z", "777"],
            Some(format!("revoked lists serial 777 of the CA {}", print(&ca_public))),
        ),
        (
            "revoked key id",
            &ca,
            &laptop,
            &["-n", "laptop-1", "-I", "lost"],
            Some(format!("revoked lists the key id `lost` of the CA {}", print(&ca_public))),
        ),
        (
            "revoked key",
            &ca,
            &stolen,
            &["-n", "laptop-1"],
            Some(format!("revoked lists the key {}", print(&stolen_public))),
        ),
        (
            "revoked CA",
            &stolen_ca,
            &laptop,
            &["-n", "laptop-1"],
            Some("the CA of certificate `test` (serial 0) is revoked".into()),
        ),
    ];

    // Trusted by lines, and by a list of its own.
    let (lines, list) = (path("authorized_keys"), path("user_ca"));
    write(&lines, &format!("cert-authority {ca_public}\ncert-authority {stolen_ca_public}\n"));
    write(&list, &format!("# CAs\n{ca_public}\n{stolen_ca_public}\n"));
    let by_lines = AuthorizedKeys::open(lines).expect("a file");
    let by_list = AuthorizedKeys::none().trusted_user_ca_keys(list).expect("a list");
    for (how, keys) in [("lines", by_lines), ("a list", by_list)] {
        let refusals = Arc::default();
        let keys = keys.revoked_keys(&revoked).expect("a list");
        let (hub, known) = hub(Recorder { keys, refusals: Arc::clone(&refusals) }).await;
        for (what, authority, key, options, why) in &certificates {
            let certificate = ssh_keygen_sign(authority, key, options);
            let key = PrivateKey::from_file(key).expect("a key").with_certificate_file(certificate);
            let agent = Agent::builder("laptop-1", key.expect("its certificate")).host_keys(known.clone());

            let connected = soon("an answer", agent.connect(hub.local_addr().to_string())).await;

            let refusals = std::mem::take(&mut *refusals.lock().expect("no panic"));
            let Some(why) = why else {
                assert!(connected.is_ok() && refusals.is_empty(), "{how}: {what}: {refusals:?}");
                continue;
            };
            let error = connected.map(|_| ()).expect_err(what);
            let ConnectError::Auth { source, .. } = error else { panic!("{how}: {what}: {error:?}") };
            assert!(matches!(*source, AuthError::Refused { .. }), "{how}: {what}: {source:?}");
            // A certificate that is out of date does not get as far as the authorizer. The agent knows why.
            let said = match what {
                &"expired" | &"future" => source.to_string(),
                _ => refusals.concat(),
            };
            assert!(refusals.len() <= 1 && said.contains(why), "{how}: {what}: {said}");
            // And no other certificate's reason.
            let others = certificates.iter().filter_map(|(.., other)| other.as_ref()).filter(|other| *other != why);
            for other in others {
                assert!(!said.contains(other), "{how}: {what}: {said} is also {other:?}");
            }
        }
    }
}

#[tokio::test]
async fn certificate_that_expires_takes_its_tunnel_with_it() {
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (ca, ca_public) = ssh_keygen(dir.path(), "ca", "ed25519");
    let list = dir.path().join("user_ca");
    write(&list, &ca_public);
    let (hub, known) = hub(AuthorizedKeys::none().trusted_user_ca_keys(&list).expect("a list")).await;
    let (key, _) = ssh_keygen(dir.path(), "laptop", "ed25519");
    let certificate = ssh_keygen_sign(&ca, &key, &["-n", "laptop-1", "-V", "-1m:+5s"]);
    let key = PrivateKey::from_file(&key).expect("a key").with_certificate_file(certificate).expect("its certificate");
    let agent = Agent::builder("laptop-1", key).host_keys(known).connect(hub.local_addr().to_string());
    let _agent = soon("an answer", agent).await.expect("still valid");
    let tunnel = soon("the tunnel", hub.wait_for("laptop-1")).await.expect("an id");

    let gone = tokio::time::timeout(Duration::from_secs(20), tunnel.closed()).await.expect("it expires");

    let expected = "certificate `test` (serial 0) expired at 20";
    assert!(matches!(&gone.reason, CloseReason::Revoked { reason } if reason.starts_with(expected)), "{gone}");
}

#[tokio::test]
async fn certificate_that_is_revoked_by_its_serial_loses_its_tunnel_and_is_refused() {
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (ca, _) = ssh_keygen(dir.path(), "ca", "ed25519");
    let ca_public = ca.with_extension("pub");
    fs::set_permissions(&ca_public, fs::Permissions::from_mode(0o644)).expect("chmod");
    let options = ["-s", &ca_public.display().to_string()];
    let list = dir.path().join("revoked");
    ssh_keygen_revoke(&list, &options, "serial: 6\n");
    let keys = AuthorizedKeys::none().trusted_user_ca_keys(&ca_public).expect("a list");
    let (hub, known) = hub(keys.revoked_keys(&list).expect("a list")).await;
    let agent = |id: &str, serial: &str| {
        let (key, _) = ssh_keygen(dir.path(), &format!("{id}-{serial}"), "ed25519");
        let certificate = ssh_keygen_sign(&ca, &key, &["-n", id, "-z", serial]);
        let key = PrivateKey::from_file(&key).expect("a key").with_certificate_file(certificate);
        let agent = Agent::builder(id, key.expect("its certificate")).host_keys(known.clone());
        soon("an answer", agent.connect(hub.local_addr().to_string()))
    };
    let _stays = agent("laptop-1", "5").await.expect("a good certificate");
    let _goes = agent("laptop-2", "7").await.expect("a good certificate");
    let stays = soon("the tunnel", hub.wait_for("laptop-1")).await.expect("an id");
    let goes = soon("the tunnel", hub.wait_for("laptop-2")).await.expect("an id");

    ssh_keygen_revoke(&list, &options, "serial: 7\n");

    let begun = Instant::now();
    let gone = soon("the end", goes.closed()).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(
        matches!(&gone.reason, CloseReason::Revoked { reason } if reason.contains("lists serial 7 of the CA SHA256:")),
        "{gone}"
    );
    let again = agent("laptop-3", "7").await.map(|_| ()).expect_err("the serial is revoked");
    assert!(matches!(again, ConnectError::Auth { .. }), "{again:?}");
    agent("laptop-3", "6").await.expect("no longer revoked");
    assert_eq!(hub.get("laptop-1").expect("connected").id(), stays.id());
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
        let certificate = ssh_keygen_sign(&authority, &ssh.key, &["-n", principal, "-V", validity]);

        let mut stock = Peer::start(&mut ssh.command(&hub, "laptop-1", &["-N"]));
        if welcome {
            soon("the login", stock.line("Authenticated to")).await;
        } else {
            let (status, said) = soon("the refusal", stock.finish()).await;
            assert_eq!(status.code(), Some(255), "{principal} {validity}");
            assert!(said.iter().any(|line| line.contains("Permission denied (publickey)")), "{said:#?}");
        }

        let key = PrivateKey::from_file(&ssh.key).expect("a key");
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
