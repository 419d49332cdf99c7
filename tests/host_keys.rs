//! An agent talks to the right hub or to none: it says nothing, not even who it is, to another.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::peers::{require_program, ssh_keygen, ssh_keygen_sign};
use common::raw::{self, FakeHub};
use common::rig::soon;
use dialback::{
    Agent, AllowedKeys, CertificateProblem, ConnectError, HostKeyError, HostKeys, HostKeysError, Hub, PrivateKey,
    PublicKey,
};
use russh::keys::ssh_key::{
    self, Certificate,
    certificate::{Builder, CertType},
};
use russh::server;

/// A directory with a `known_hosts` file.
struct KnownHosts {
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl KnownHosts {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("known_hosts");
        fs::write(&file, text).expect("write known_hosts");
        Self { file, _dir: dir }
    }

    fn keys(&self) -> HostKeys {
        HostKeys::known_hosts(&self.file).expect("a known_hosts file")
    }
}

/// The line that pins `key` for the hub at `port` of loopback.
fn pin(port: u16, key: &PublicKey) -> String {
    format!("[127.0.0.1]:{port} {} {}\n", key.algorithm(), base64(key))
}

fn base64(key: &PublicKey) -> String {
    key.to_openssh().split(' ').nth(1).expect("TYPE BASE64").to_owned()
}

/// Why an agent does not connect to a fake hub; it must not have begun to authenticate.
async fn refusal(fake: &FakeHub, host_keys: HostKeys) -> HostKeyError {
    let agent = Agent::builder("laptop-1", PrivateKey::generate()).host_keys(host_keys);
    let connected = soon("an answer", agent.connect(fake.address.to_string())).await;
    assert_eq!(fake.userauth(), 0, "the agent began to authenticate");
    match connected {
        Err(ConnectError::HostKey { source, .. }) => *source,
        Err(other) => panic!("refused for another reason: {other:?}"),
        Ok(_) => panic!("connected to the wrong hub"),
    }
}

/// Whether an agent connects to a fake hub, which lets in everybody.
async fn connects(fake: &FakeHub, host_keys: HostKeys) {
    let agent = Agent::builder("laptop-1", PrivateKey::generate()).host_keys(host_keys);
    soon("an answer", agent.connect(fake.address.to_string())).await.expect("the right hub");
    assert!(fake.userauth() > 0);
}

#[tokio::test]
async fn another_key_is_refused_whatever_its_type() {
    let (_, expected_ed) = raw::key();
    let (_, expected_ec) = raw::ecdsa_key();
    for (fake_key, _) in [raw::key(), raw::ecdsa_key()] {
        let fake = FakeHub::with_key(&fake_key).await;
        for expected in [&expected_ed, &expected_ec].map(|key| key.public_key()) {
            let known = KnownHosts::new(&pin(fake.address.port(), &expected));
            let rules = [
                known.keys(),
                HostKeys::public_key(expected.clone()),
                HostKeys::fingerprint(&expected.fingerprint()).expect("a fingerprint"),
            ];
            for rule in rules {
                let error = refusal(&fake, rule).await;
                let HostKeyError::Mismatch { expected: pins, offered, .. } = &error else { panic!("{error:?}") };
                assert_eq!(pins[0].fingerprint, expected.fingerprint());
                assert_eq!(offered.fingerprint(), fingerprint(&fake_key));
            }
        }
    }
}

fn fingerprint(key: &ssh_key::PrivateKey) -> String {
    key.fingerprint(ssh_key::HashAlg::Sha256).to_string()
}

#[tokio::test]
async fn hub_with_the_right_key_among_others_shows_that_one() {
    let ((ed, ed_ours), (ec, ec_ours)) = (raw::key(), raw::ecdsa_key());
    for expected in [ed_ours, ec_ours] {
        let keys = vec![(*ed).clone(), (*ec).clone()];
        let fake = FakeHub::start(server::Config { keys, ..Default::default() }).await;
        let known = KnownHosts::new(&pin(fake.address.port(), &expected.public_key()));
        connects(&fake, known.keys()).await;
    }
}

#[tokio::test]
async fn unknown_hub_is_refused() {
    let (key, ours) = raw::key();
    let fake = FakeHub::with_key(&key).await;
    // The same key under another name and another port is not this hub's.
    let elsewhere = pin(fake.address.port() ^ 1, &ours.public_key());
    let by_name = pin(fake.address.port(), &ours.public_key()).replace("127.0.0.1", "hub.example.com");
    for text in ["", "# nothing\n", &elsewhere, &by_name] {
        let error = refusal(&fake, KnownHosts::new(text).keys()).await;
        assert!(matches!(error, HostKeyError::Unknown { .. }), "{text:?}: {error:?}");
    }
}

#[tokio::test]
async fn two_pins_let_the_key_be_rotated() {
    let ((old, old_ours), (new, new_ours)) = (raw::key(), raw::key());
    let (wrong, _) = raw::key();
    for key in [old, new] {
        let fake = FakeHub::with_key(&key).await;
        let port = fake.address.port();
        let both = pin(port, &old_ours.public_key()) + &pin(port, &new_ours.public_key());
        connects(&fake, KnownHosts::new(&both).keys()).await;
        let prints = HostKeys::fingerprint(&old_ours.public_key().fingerprint()).expect("a fingerprint");
        connects(&fake, prints.or_fingerprint(&new_ours.public_key().fingerprint()).expect("another")).await;
    }
    let fake = FakeHub::with_key(&wrong).await;
    let port = fake.address.port();
    let both = pin(port, &old_ours.public_key()) + &pin(port, &new_ours.public_key());
    let error = refusal(&fake, KnownHosts::new(&both).keys()).await;
    assert!(matches!(&error, HostKeyError::Mismatch { expected, .. } if expected.len() == 2), "{error:?}");
}

#[tokio::test]
async fn revoked_key_is_refused_though_it_is_pinned() {
    let (key, ours) = raw::key();
    let fake = FakeHub::with_key(&key).await;
    let public = ours.public_key();
    let pinned = pin(fake.address.port(), &public);
    for revocation in
        [format!("@revoked * {public}\n"), format!("@revoked [127.0.0.1]:{} {public}\n", fake.address.port())]
    {
        for text in [format!("{pinned}{revocation}"), format!("{revocation}{pinned}")] {
            let error = refusal(&fake, KnownHosts::new(&text).keys()).await;
            assert!(matches!(error, HostKeyError::Revoked { .. }), "{text}: {error:?}");
        }
    }
}

#[tokio::test]
async fn unreadable_revocation_refuses_every_hub() {
    let (key, ours) = raw::key();
    let fake = FakeHub::with_key(&key).await;
    let text = pin(fake.address.port(), &ours.public_key()) + "@revoked * ssh-ed25519 AAAAdamaged\n";
    let error = refusal(&fake, KnownHosts::new(&text).keys()).await;
    assert!(matches!(error, HostKeyError::UnreadableRevocation { .. }), "{error:?}");
}

#[tokio::test]
async fn known_hosts_that_cannot_be_read_trusts_nobody() {
    let (key, ours) = raw::key();
    let fake = FakeHub::with_key(&key).await;
    let known = KnownHosts::new(&pin(fake.address.port(), &ours.public_key()));
    let rule = known.keys();
    connects(&fake, rule.clone()).await;

    // Gone, or something else in its place, after it was opened. (Permissions would not stop root.)
    let seen = fake.userauth();
    fs::remove_file(&known.file).expect("remove");
    let agent = Agent::builder("laptop-1", PrivateKey::generate()).host_keys(rule.clone());
    let gone = soon("an answer", agent.connect(fake.address.to_string())).await.map(|_| ()).expect_err("refused");
    assert!(
        matches!(&gone, ConnectError::HostKey { source, .. } if matches!(**source, HostKeyError::Unreadable { .. })),
        "{gone:?}"
    );
    fs::create_dir(&known.file).expect("a directory in its place");
    let agent = Agent::builder("laptop-1", PrivateKey::generate()).host_keys(rule);
    let directory = soon("an answer", agent.connect(fake.address.to_string())).await.map(|_| ()).expect_err("refused");
    assert!(
        matches!(&directory, ConnectError::HostKey { source, .. } if matches!(**source, HostKeyError::Unreadable { .. })),
        "{directory:?}"
    );
    assert_eq!(fake.userauth(), seen, "the agent began to authenticate");

    // And what is not there, or no known_hosts at all, is not opened in the first place.
    let opened = |path: &Path| HostKeys::known_hosts(path).expect_err("not opened");
    assert!(matches!(opened(&known.file), HostKeysError::Unreadable { .. }));
    assert!(matches!(opened(Path::new("/no/such/file")), HostKeysError::Unreadable { .. }));
    let corrupt = KnownHosts::new("\0\u{1}\u{2} binary rubbish\n");
    assert!(matches!(opened(&corrupt.file), HostKeysError::NotKnownHosts { .. }));
}

#[tokio::test]
async fn corrupt_lines_pin_nothing_and_the_others_stay_in_force() {
    let (key, ours) = raw::key();
    let fake = FakeHub::with_key(&key).await;
    let good = pin(fake.address.port(), &ours.public_key());
    let corrupt = [
        good.trim_end()[..good.len() - 20].to_owned(),
        good.replace("ssh-ed25519 ", "ssh-rsa "),
        good.replace("ssh-ed25519 ", ""),
        format!("@unknown-marker {good}"),
    ];
    for line in corrupt {
        let other = PrivateKey::generate().public_key();
        let text = format!("{line}\nelsewhere {other}\n");
        let known = KnownHosts::new(&text);
        let error = refusal(&fake, known.keys()).await;
        assert!(matches!(error, HostKeyError::Unknown { problem: Some(_), .. }), "{line:?}: {error:?}");
    }
    let known = KnownHosts::new(&format!("not a line\n{good}"));
    connects(&fake, known.keys()).await;
}

/// A certificate for `key`, by `authority`.
fn certify(key: &ssh_key::PrivateKey, authority: &ssh_key::PrivateKey, kind: CertType, host: &str) -> Certificate {
    certify_for(key, authority, kind, host, 0, u64::MAX)
}

fn certify_for(
    key: &ssh_key::PrivateKey,
    authority: &ssh_key::PrivateKey,
    kind: CertType,
    host: &str,
    from: u64,
    until: u64,
) -> Certificate {
    let mut builder = Builder::new(*b"0123456789abcdef", key.public_key().clone(), from, until).expect("times");
    builder.cert_type(kind).expect("a type").key_id("test").expect("an id");
    builder.valid_principal(host).expect("a principal");
    builder.sign(authority).expect("a signature")
}

/// A fake hub that shows a certificate where it is asked for one.
async fn certified(key: &ssh_key::PrivateKey, certificate: Certificate) -> FakeHub {
    FakeHub::start(server::Config {
        keys: vec![key.clone()],
        certificates: vec![certificate],
        preferred: russh::Preferred {
            host_key_certificates: std::borrow::Cow::Owned(vec![ssh_key::Algorithm::Ed25519]),
            ..Default::default()
        },
        ..Default::default()
    })
    .await
}

/// Trusts an authority for every hub on loopback.
fn authority_line(authority: &PublicKey) -> String {
    format!("@cert-authority [127.0.0.1]:*,127.0.0.1 {authority}\n")
}

#[tokio::test]
async fn good_host_certificate_is_accepted() {
    let ((key, _), (authority, trusted)) = (raw::key(), raw::key());
    let fake = certified(&key, certify(&key, &authority, CertType::Host, "127.0.0.1")).await;
    connects(&fake, KnownHosts::new(&authority_line(&trusted.public_key())).keys()).await;
}

#[tokio::test]
async fn bad_host_certificates_are_refused() {
    let ((key, _), (authority, trusted), (stranger, _)) = (raw::key(), raw::key(), raw::key());
    let host = CertType::Host;
    type Refused = fn(&CertificateProblem) -> bool;
    let cases: [(&str, Certificate, Refused); 6] = [
        ("wrong CA", certify(&key, &stranger, host, "127.0.0.1"), |problem| {
            matches!(problem, CertificateProblem::UntrustedAuthority { .. })
        }),
        ("signed by itself", certify(&key, &key, host, "127.0.0.1"), |problem| {
            matches!(problem, CertificateProblem::UntrustedAuthority { .. })
        }),
        ("user certificate", certify(&key, &authority, CertType::User, "127.0.0.1"), |problem| {
            matches!(problem, CertificateProblem::NotForHosts)
        }),
        ("wrong host name", certify(&key, &authority, host, "hub.example.com"), |problem| {
            matches!(problem, CertificateProblem::OtherHosts { .. })
        }),
        ("expired", certify_for(&key, &authority, host, "127.0.0.1", 1, 2), |problem| {
            matches!(problem, CertificateProblem::Expired { .. })
        }),
        ("not yet valid", certify_for(&key, &authority, host, "127.0.0.1", u64::MAX / 4, u64::MAX / 2), |problem| {
            matches!(problem, CertificateProblem::NotYetValid { .. })
        }),
    ];
    for (what, certificate, expected) in cases {
        let fake = certified(&key, certificate).await;
        let error = refusal(&fake, KnownHosts::new(&authority_line(&trusted.public_key())).keys()).await;
        assert!(matches!(&error, HostKeyError::Certificate { reason, .. } if expected(reason)), "{what}: {error:?}");
    }
}

/// E10, with keys and certificates of stock ssh-keygen: whatever somebody in the middle can show is refused, for a reason of
/// its own, before the agent says who it is.
#[tokio::test]
async fn each_imposter_is_refused_with_a_reason_of_its_own() {
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let make = |name: &str, kind: &str| ssh_keygen(dir.path(), name, kind);
    let (ca, ca_public) = make("ca", "ed25519");
    let (stranger, _) = make("stranger", "ed25519");
    let (stolen_ca, stolen_ca_public) = make("stolen-ca", "ed25519");
    let (hub, hub_public) = make("hub", "ed25519");
    let (other, _) = make("other", "ed25519");
    let (other_type, _) = make("other-type", "ecdsa");
    let read = |file: &Path| fs::read_to_string(file).expect("a file");
    let key = |file: &Path| ssh_key::PrivateKey::from_openssh(read(file)).expect("a key");
    let sign = |authority: &Path, options: &[&str]| {
        Certificate::from_openssh(&read(&ssh_keygen_sign(authority, &hub, options))).expect("a certificate")
    };
    let trusted = format!(
        "@cert-authority [127.0.0.1]:*,127.0.0.1 {ca_public}\n@cert-authority [127.0.0.1]:* {stolen_ca_public}\n\
         @revoked * {stolen_ca_public}\n"
    );

    for good in [&["-h", "-n", "127.0.0.1"][..], &["-h", "-n", "hub.example.com,127.0.0.*", "-V", "-5m:+1h"]] {
        connects(&certified(&key(&hub), sign(&ca, good)).await, KnownHosts::new(&trusted).keys()).await;
    }
    let here = ["-h", "-n", "127.0.0.1"];
    let imposters = [
        ("wrong CA", sign(&stranger, &here), "that authority is not trusted"),
        ("revoked CA", sign(&stolen_ca, &here), "is revoked ("),
        ("user certificate", sign(&ca, &["-n", "127.0.0.1"]), "it is a user certificate"),
        ("wrong host name", sign(&ca, &["-h", "-n", "hub.example.com"]), "it is for `hub.example.com`"),
        ("no host name", sign(&ca, &["-h"]), "it names no hosts"),
        ("expired", sign(&ca, &["-h", "-n", "127.0.0.1", "-V", "-2d:-1d"]), "it expired "),
        ("not yet valid", sign(&ca, &["-h", "-n", "127.0.0.1", "-V", "+1d:+2d"]), "it will not be valid for another "),
        (
            "critical option",
            sign(&ca, &["-h", "-n", "127.0.0.1", "-O", "critical:mood=x"]),
            "its critical option `mood` is not known",
        ),
    ];
    let bare = [("another key", &other), ("a key of another type", &other_type)];
    let mut refusals = vec![];
    for (what, certificate, why) in imposters {
        let fake = certified(&key(&hub), certificate).await;
        let error = refusal(&fake, KnownHosts::new(&trusted).keys()).await;
        refusals.push((what, why, error.to_string()));
    }
    for (what, file) in bare {
        let fake = FakeHub::with_key(&key(file)).await;
        let port = fake.address.port();
        let pinned = KnownHosts::new(&pin(port, &hub_public.parse().expect("a key")));
        let error = refusal(&fake, pinned.keys()).await;
        assert!(error.to_string().contains(&fingerprint(&key(file))), "{what}: {error}");
        refusals.push((what, "somebody may be posing as it", error.to_string()));
    }
    for (what, why, said) in &refusals {
        assert!(said.contains(why), "{what}: {said}");
        for (other, reason, _) in refusals.iter().filter(|(_, reason, _)| reason != why) {
            assert!(!said.contains(reason), "{what} sounds like {other}: {said}");
        }
    }
}

/// A trusted authority vouches for certificates only: its own bare key, and any other, is a stranger's.
#[tokio::test]
async fn bare_keys_are_refused_where_a_certificate_is_expected() {
    let ((key, _), (authority, trusted)) = (raw::key(), raw::key());
    for bare in [&key, &authority] {
        let fake = FakeHub::with_key(bare).await;
        let error = refusal(&fake, KnownHosts::new(&authority_line(&trusted.public_key())).keys()).await;
        assert!(matches!(error, HostKeyError::Mismatch { .. } | HostKeyError::Unknown { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn revoked_authority_is_refused() {
    let ((key, _), (authority, trusted)) = (raw::key(), raw::key());
    let fake = certified(&key, certify(&key, &authority, CertType::Host, "127.0.0.1")).await;
    let public = trusted.public_key();
    let text = format!("{}@revoked * {public}\n", authority_line(&public));
    let error = refusal(&fake, KnownHosts::new(&text).keys()).await;
    assert!(matches!(error, HostKeyError::Revoked { .. }), "{error:?}");
}

/// dialback's own hub, with a certificate.
#[tokio::test]
async fn hub_shows_its_certificate_to_agents_that_trust_its_authority() {
    let ((key, ours), (authority, trusted)) = (raw::key(), raw::key());
    let certificate = certify(&key, &authority, CertType::Host, "127.0.0.1").to_openssh().expect("a line");
    let (_, stranger) = raw::key();
    let agent_key = PrivateKey::generate();
    let allowed = AllowedKeys::new().allow("laptop-1", agent_key.public_key()).expect("an id");
    let hub = Hub::builder(ours.clone().with_certificate(&certificate).expect("for this key")).authorizer(allowed);
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let connect = async |text: &str| {
        let known = KnownHosts::new(text);
        let agent = Agent::builder("laptop-1", agent_key.clone()).host_keys(known.keys());
        soon("an answer", agent.connect(hub.local_addr().to_string())).await.map(|_| ())
    };

    // By its authority, and by its bare key.
    connect(&authority_line(&trusted.public_key())).await.expect("the authority is trusted");
    connect(&pin(hub.local_addr().port(), &ours.public_key())).await.expect("the key is pinned");
    let error = connect(&authority_line(&stranger.public_key())).await.expect_err("another authority");
    assert!(matches!(error, ConnectError::HostKey { .. }), "{error:?}");
}

/// A hub that changes its key under a connected agent is refused when the agent comes back.
#[tokio::test]
async fn agent_that_reconnects_checks_again() {
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow("laptop-1", key.public_key()).expect("an id");
    let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let (wrong, _) = raw::key();
    let fake = FakeHub::with_key(&wrong).await;
    let proxy = common::proxy::Proxy::to(hub.local_addr()).await;
    let brisk = std::time::Duration::from_millis(50);
    let agent = Agent::builder("laptop-1", key).host_keys(HostKeys::public_key(host.public_key()));
    let agent = agent.backoff(brisk, brisk, brisk).connect(proxy.address().to_string()).await.expect("connect");

    proxy.set_target(fake.address);
    proxy.cut(common::proxy::Cut::Reset);

    let mut status = agent.status();
    let refused = status.wait_for(|status| {
        matches!(status, dialback::AgentStatus::Connecting { last_error: Some(error), .. }
            if error.to_string().contains("host key"))
    });
    soon("the refusal", refused).await.expect("the agent lives on");
    assert_eq!(fake.userauth(), 0);
    drop(agent);
}
