use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::ssh::key::PrivateKey;
use crate::ssh::key::testing::{certify, random};

fn key() -> PublicKey {
    PrivateKey::generate().public_key()
}

async fn check(rule: &HostKeys, key: &PublicKey) -> Result<(), HostKeyError> {
    rule.check("hub", 2222, &key.inner().clone().into()).await
}

/// A `known_hosts` file in a directory that goes away with it.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("known_hosts");
    fs::write(&path, text).unwrap();
    (directory, path)
}

#[tokio::test]
async fn file_is_read_again_at_each_check_and_fails_closed() {
    let (old, new) = (key(), key());
    let (_directory, path) = file(&format!("[hub]:2222 {old}\n"));
    let rule = HostKeys::known_hosts(&path).unwrap();
    check(&rule, &old).await.unwrap();
    assert!(matches!(check(&rule, &new).await, Err(HostKeyError::Mismatch { .. })));

    fs::write(&path, format!("[hub]:2222 {old}\n[hub]:2222 {new}\n")).unwrap();
    check(&rule, &old).await.unwrap();
    check(&rule, &new).await.unwrap();

    fs::write(&path, format!("[hub]:2222 {old}\n@revoked * {old}\n")).unwrap();
    assert!(matches!(check(&rule, &old).await, Err(HostKeyError::Revoked { .. })));

    fs::remove_file(&path).unwrap();
    let error = check(&rule, &old).await.unwrap_err();
    assert!(matches!(&error, HostKeyError::Unreadable { file, .. } if *file == path), "{error:?}");
    let error = rule.host_key_algorithms("hub", 2222).await.unwrap_err();
    assert!(matches!(error, HostKeyError::Unreadable { .. }), "{error:?}");

    fs::create_dir(&path).unwrap();
    assert!(matches!(check(&rule, &old).await, Err(HostKeyError::Unreadable { .. })));
}

#[tokio::test]
async fn lines_of_all_files_count_alike() {
    let (one, two, stolen) = (key(), key(), key());
    let (_directory, first) = file(&format!("[hub]:2222 {one}\n[hub]:2222 {stolen}\n"));
    let (_other_directory, second) = file(&format!("nonsense\n[hub]:2222 {two}\n@revoked * {stolen}\n"));
    let rule = HostKeys::known_hosts(&first).unwrap().or_known_hosts(&second).unwrap();
    check(&rule, &one).await.unwrap();
    check(&rule, &two).await.unwrap();
    let error = check(&rule, &stolen).await.unwrap_err();
    assert!(matches!(&error, HostKeyError::Revoked { at, .. } if at.file == second && at.line == 3), "{error:?}");
    let problems = rule.problems();
    assert!(matches!(&problems[..], [one] if one.at.file == second && one.at.line == 1), "{problems:?}");

    fs::remove_file(&second).unwrap();
    let error = check(&rule, &one).await.unwrap_err();
    assert!(matches!(&error, HostKeyError::Unreadable { file, .. } if *file == second), "{error:?}");
    let error = HostKeys::known_hosts(&first).unwrap().or_known_hosts(&second).unwrap_err();
    assert!(matches!(&error, HostKeysError::Unreadable { file, .. } if *file == second), "{error:?}");
    let error = HostKeys::public_key(one).or_known_hosts(&first).unwrap_err();
    assert!(matches!(error, HostKeysError::NoKnownHosts), "{error:?}");
}

#[test]
fn file_that_cannot_work_is_an_error_at_once() {
    let (directory, path) = file("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAA\n");
    match HostKeys::known_hosts(&path).unwrap_err() {
        HostKeysError::NotKnownHosts { problem } => assert_eq!((problem.at.file, problem.at.line), (path, 1)),
        error => panic!("{error:?}"),
    }
    for bad in [directory.path().to_owned(), directory.path().join("none"), "/dev/zero".into()] {
        let error = HostKeys::known_hosts(&bad).unwrap_err();
        assert!(matches!(&error, HostKeysError::Unreadable { file, .. } if *file == bad), "{error:?}");
    }
    let (_directory, path) = file("# nobody yet\n");
    assert_eq!(HostKeys::known_hosts(path).unwrap().problems(), []);
}

#[tokio::test]
async fn problems_are_those_of_the_last_reading() {
    let k = key();
    let (_directory, path) = file(&format!("[hub]:2222 {k}\nbroken\n"));
    let rule = HostKeys::known_hosts(&path).unwrap();
    assert_eq!(rule.problems().len(), 1);
    assert_eq!(rule.problems()[0].at, FileLine { file: path.clone(), line: 2 });
    check(&rule, &k).await.unwrap();

    fs::write(&path, format!("[hub]:2222 {k}\n")).unwrap();
    check(&rule, &k).await.unwrap();
    assert_eq!(rule.problems(), []);
}

#[tokio::test]
async fn pinned_fingerprints_and_keys_admit_nothing_else() {
    let (old, new, wrong) = (key(), key(), key());
    let by_fingerprint = HostKeys::fingerprint(&format!(" {}\n", old.fingerprint())).unwrap();
    for rule in [by_fingerprint, HostKeys::public_key(old.clone())] {
        let rule = rule.or_fingerprint(&new.fingerprint()).unwrap();
        check(&rule, &old).await.unwrap();
        check(&rule, &new).await.unwrap();
        let error = check(&rule, &wrong).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, HostKeyError::Mismatch { ref expected, .. } if expected.len() == 2), "{error:?}");
        for part in [&old.fingerprint(), &new.fingerprint(), &wrong.fingerprint(), "`[hub]:2222`"] {
            assert!(text.contains(part), "{text}");
        }
    }
    // A certificate counts as the key it is for.
    let hub = PrivateKey::generate();
    let certificate = certify(&hub, &PrivateKey::generate(), |_| {}).into();
    HostKeys::public_key(hub.public_key()).check("hub", 22, &certificate).await.unwrap();
    assert!(HostKeys::public_key(old).check("hub", 22, &certificate).await.is_err());
}

#[test]
fn what_is_no_sha256_fingerprint_is_refused() {
    let good = key().fingerprint();
    let sha512 = format!("SHA512:{}", "A".repeat(86));
    for bad in ["", "SHA256:", "SHA256:abc", "MD5:00:11:22", &good[7..], &good[..good.len() - 1], &sha512, "x\x1b[2J"] {
        let error = HostKeys::fingerprint(bad).unwrap_err();
        assert!(matches!(error, HostKeysError::NotAFingerprint { .. }), "{bad}");
        assert!(!error.to_string().contains('\x1b'));
    }
    let any = HostKeys::dangerous_accept_any();
    assert!(matches!(any.or_fingerprint(&good), Err(HostKeysError::NotPinned)));
}

#[tokio::test]
async fn callback_decides_and_says_why() {
    let k = key();
    let (expected, calls) = (k.clone(), Arc::new(AtomicUsize::new(0)));
    let seen = calls.clone();
    let rule = HostKeys::callback(move |offered| {
        seen.fetch_add(1, Ordering::Relaxed);
        assert_eq!((offered.host.as_str(), offered.port), ("hub", 2222));
        if offered.key == expected { Ok(()) } else { Err("never seen".into()) }
    });
    check(&rule, &k).await.unwrap();
    let error = check(&rule, &key()).await.unwrap_err();
    assert!(matches!(&error, HostKeyError::Refused { reason, .. } if reason == "never seen"), "{error:?}");
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    check(&HostKeys::dangerous_accept_any(), &key()).await.unwrap();
}

#[tokio::test]
async fn expected_types_are_asked_for_first_and_certificates_only_where_an_authority_is_trusted() {
    let p384 = Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 };
    let ecdsa = random(p384.clone()).public_key();
    let (_directory, path) = file(&format!("[hub]:2222 {ecdsa}\nhub {}\n@cert-authority ca {ecdsa}\n", key()));
    let rule = HostKeys::known_hosts(path).unwrap();

    let pinned = rule.host_key_algorithms("hub", 2222).await.unwrap();
    assert_eq!(pinned.keys[..2], [p384.clone(), Algorithm::Ed25519]);
    assert_eq!(pinned.certificates, []);
    assert_eq!(rule.host_key_algorithms("hub", 22).await.unwrap().keys[0], Algorithm::Ed25519);
    assert_eq!(HostKeys::public_key(ecdsa).host_key_algorithms("x", 1).await.unwrap().keys[0], p384);

    let certified = rule.host_key_algorithms("ca", 22).await.unwrap();
    assert_eq!(certified.certificates, supported_algorithms());
    let mut preferred = Preferred::DEFAULT;
    certified.apply_to(&mut preferred);
    assert!(!preferred.key.contains(&Algorithm::Rsa { hash: None }), "SHA-1 signatures are negotiable");
    assert_eq!(preferred.host_key_certificates.to_vec(), supported_algorithms());
    let rsa = preferred.key.iter().filter(|algorithm| is_rsa(algorithm)).count();
    assert_eq!(rsa, if cfg!(feature = "rsa") { 2 } else { 0 });
}

/// The agent's end of a handshake: asks `rule`, and keeps what it said.
struct Agent {
    rule: HostKeys,
    verdict: tokio::sync::mpsc::UnboundedSender<Result<(), HostKeyError>>,
}

impl russh::client::Handler for Agent {
    type Error = russh::Error;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let verdict = self.rule.check("hub.example.com", 2222, offered).await;
        let good = verdict.is_ok();
        self.verdict.send(verdict).unwrap();
        Ok(good)
    }
}

/// The hub's end: has no business seeing a login from an agent that does not trust it.
struct Hub;

impl russh::server::Handler for Hub {
    type Error = russh::Error;
}

async fn handshake(rule: &HostKeys, keys: &[&PrivateKey]) -> Result<(), HostKeyError> {
    let hub = russh::server::Config {
        keys: keys.iter().map(|key| key.inner().as_ref().clone()).collect(),
        certificates: keys.iter().filter_map(|key| key.certificate().map(|c| c.as_ref().clone())).collect(),
        ..Default::default()
    };
    let mut preferred = Preferred::DEFAULT;
    rule.host_key_algorithms("hub.example.com", 2222).await?.apply_to(&mut preferred);
    let agent = russh::client::Config { preferred, ..Default::default() };
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (verdict, mut verdicts) = tokio::sync::mpsc::unbounded_channel();
    let hub = tokio::spawn(russh::server::run_stream(Arc::new(hub), far, Hub));
    let handler = Agent { rule: rule.clone(), verdict };
    let connected = russh::client::connect_stream(Arc::new(agent), near, handler).await.is_ok();
    hub.await.unwrap().unwrap();
    let verdict = verdicts.recv().await.expect("the key exchange got as far as the host key");
    assert_eq!(connected, verdict.is_ok());
    verdict
}

#[tokio::test]
async fn hub_shows_the_key_that_is_pinned_or_the_certificate_that_is_trusted() {
    let (ed25519, authority) = (PrivateKey::generate(), PrivateKey::generate());
    let p256 = random(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 });
    let certificate = certify(&p256, &authority, |draft| draft.valid = 0..u64::MAX);
    let certified = p256.clone().with_certificate(&certificate.to_openssh().unwrap()).unwrap();

    for key in [&ed25519, &p256] {
        let (_directory, path) = file(&format!("[hub.example.com]:2222 {}\n", key.public_key()));
        let rule = HostKeys::known_hosts(path).unwrap();
        handshake(&rule, &[&ed25519, &p256]).await.unwrap();
        handshake(&rule, &[&certified, &ed25519]).await.unwrap(); // it asks for no certificate
        // A stranger with a key of the other type only gets as far as being told apart.
        let stranger = if key.public_key() == p256.public_key() { &ed25519 } else { &p256 };
        let error = handshake(&rule, &[stranger]).await.unwrap_err();
        assert!(matches!(error, HostKeyError::Mismatch { .. }), "{error:?}");
    }

    let (_directory, path) = file(&format!("@cert-authority [*.example.com]:2222 {}\n", authority.public_key()));
    let rule = HostKeys::known_hosts(path).unwrap();
    handshake(&rule, &[&ed25519, &certified]).await.unwrap();
    let error = handshake(&rule, &[&ed25519, &p256]).await.unwrap_err();
    assert!(matches!(error, HostKeyError::Mismatch { .. }), "{error:?}");
    let forged = certify(&p256, &PrivateKey::generate(), |draft| draft.valid = 0..u64::MAX);
    let forged = p256.with_certificate(&forged.to_openssh().unwrap()).unwrap();
    let error = handshake(&rule, &[&forged]).await.unwrap_err();
    assert!(matches!(error, HostKeyError::Certificate { .. }), "{error:?}");
}
