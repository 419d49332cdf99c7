use russh::keys::EcdsaCurve;
use russh::keys::ssh_encoding::base64::{Base64, Encoding};
use russh::keys::ssh_key::certificate::CertType;

use super::*;
use crate::ssh::key::PrivateKey;
use crate::ssh::key::testing::{NOW, certify, missing, random, run};

fn key() -> PublicKey {
    PrivateKey::generate().public_key()
}

fn parse(text: &str) -> KnownHosts {
    KnownHosts::parse(Path::new("known_hosts"), text.as_bytes())
}

fn bare(key: &PublicKey) -> PublicKeyOrCertificate {
    key.inner().clone().into()
}

fn judge(text: &str, host: &str, port: u16, offered: &PublicKey) -> Result<(), HostKeyError> {
    parse(text).judge(&HostName::new(host, port), &bare(offered), NOW)
}

fn hashed(name: &str) -> String {
    let salt = [9; 20];
    let mut mac = Hmac::<Sha1>::new_from_slice(&salt).unwrap();
    mac.update(name.as_bytes());
    format!("|1|{}|{}", Base64::encode_string(&salt), Base64::encode_string(&mac.finalize().into_bytes()))
}

#[test]
fn lines_match_by_the_name_that_openssh_uses() {
    let k = key();
    // hosts field, host, port, whether it matches
    let table = [
        ("hub", "hub", 22, true),
        ("hub", "HUB", 22, true),
        ("Hub", "hub", 22, true),
        ("hub", "hub2", 22, false),
        ("hub", "hub", 2222, false),
        ("[hub]:2222", "hub", 2222, true),
        ("[hub]:2222", "hub", 22, false),
        ("[hub]:2222", "hub", 2223, false),
        ("a,hub,b", "hub", 22, true),
        ("a,b", "hub", 22, false),
        ("*", "hub", 2222, true),
        ("*.example.com", "hub.example.com", 22, true),
        ("*.example.com", "example.com", 22, false),
        ("*.example.com", "hub.example.com", 2222, false),
        ("[*.example.com]:*", "hub.example.com", 2222, true),
        ("h?b", "hub", 22, true),
        ("h?b", "hb", 22, false),
        ("*,!hub", "hub", 22, false),
        ("!hub,*", "hub", 22, false),
        ("!hub,*", "other", 22, true),
        ("!other", "hub", 22, false),
        ("192.0.2.1", "192.0.2.1", 22, true),
        ("2001:db8::1", "2001:db8::1", 22, true),
        ("2001:db8::1", "[2001:db8::1]", 22, true),
        ("[2001:db8::1]:2222", "[2001:DB8::1]", 2222, true),
    ];
    for (hosts, host, port, matches) in table {
        let verdict = judge(&format!("{hosts} {k}"), host, port, &k);
        assert_eq!(verdict.is_ok(), matches, "`{hosts}` for {host} port {port}: {verdict:?}");
    }
    for (name, host, port) in [("hub", "HUB", 22), ("[hub]:2222", "hub", 2222)] {
        judge(&format!("{} {k}", hashed(name)), host, port, &k).unwrap();
        let verdict = judge(&format!("{} {k}", hashed(name)), host, port + 1, &k);
        assert!(matches!(verdict, Err(HostKeyError::Unknown { .. })), "{verdict:?}");
    }
}

#[test]
fn unknown_hub_is_refused_with_the_line_to_add() {
    let k = key();
    let error = judge(&format!("# comment\n\nother {k}\nbroken\n"), "hub", 2222, &k).unwrap_err();
    let text = error.to_string();
    assert!(matches!(&error, HostKeyError::Unknown { host, offered, problem: Some(p), .. }
        if host == "[hub]:2222" && *offered == k && p.at.line == 4));
    assert!(text.contains(&k.fingerprint()) && text.contains("`[hub]:2222 ssh-ed25519 AAAA"), "{text}");
    assert!(matches!(judge("", "hub", 22, &k), Err(HostKeyError::Unknown { problem: None, .. })));
}

#[test]
fn wrong_key_of_the_same_or_another_type_is_a_mismatch() {
    let (right, old) = (key(), key());
    let file = format!("hub {old}\n\n  hub\t{right}\t\nother {}", key());
    judge(&file, "hub", 22, &right).unwrap();
    judge(&file, "hub", 22, &old).unwrap(); // rotation: both are right
    let ecdsa = random(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }).public_key();
    for wrong in [key(), ecdsa] {
        let error = judge(&file, "hub", 22, &wrong).unwrap_err();
        let text = error.to_string();
        let HostKeyError::Mismatch { host, expected, offered } = error else { panic!("{error:?}") };
        assert_eq!((host.as_str(), offered), ("hub", wrong.clone()));
        let pins: Vec<_> = expected.iter().map(|p| (p.at.as_ref().unwrap().line, p.fingerprint.clone())).collect();
        assert_eq!(pins, [(1, old.fingerprint()), (3, right.fingerprint())]);
        for part in ["`hub`", "known_hosts:3", &right.fingerprint(), &wrong.summary()] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}

#[test]
fn revoked_key_is_refused_whatever_else_matches() {
    let k = key();
    for file in [format!("hub {k}\n@revoked * {k}"), format!("@revoked\thub\t{k}\nhub {k}")] {
        let error = judge(&file, "hub", 22, &k).unwrap_err();
        assert!(matches!(&error, HostKeyError::Revoked { key, .. } if *key == k), "{error:?}");
        assert!(error.to_string().contains(&k.fingerprint()), "{error}");
    }
    judge(&format!("hub {k}\n@revoked other {k}"), "hub", 22, &k).unwrap();
}

#[test]
fn revocation_that_cannot_be_read_refuses_every_key() {
    let k = key();
    let cut = &k.to_openssh()[..60];
    for line in ["@revoked", "@revoked * ssh-ed25519", &format!("@revoked * {cut}"), &format!("@revoked ,, {k}")] {
        let error = judge(&format!("hub {k}\n{line}"), "hub", 22, &k).unwrap_err();
        assert!(
            matches!(&error, HostKeyError::UnreadableRevocation { problem, .. } if problem.at.line == 2),
            "{error}"
        );
    }
    // A type that this build does not know cannot be offered either.
    judge(&format!("hub {k}\n@revoked * new-type AAAACG5ldy10eXBl"), "hub", 22, &k).unwrap();
}

#[test]
fn malformed_lines_are_listed_and_the_others_stay_in_force() {
    let k = key();
    let lines = [
        "hub",
        "hub ssh-ed25519",
        "hub ssh-ed25519 AAAA%",
        "hub ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAA",
        "hub 1024 35 1234567",
        "|1|c2hvcnQ=|c2hvcnQ= ssh-ed25519 AAAA",
        "|1|x ssh-ed25519 AAAA",
        "@no-such * ssh-ed25519 AAAA",
        "\u{0}\u{1}\u{fffd} x y",
    ];
    let file = parse(&format!("# fine\n{}\r\nhub {k} caf\u{e9}\r\n", lines.join("\n")));
    let numbers: Vec<_> = file.problems().iter().map(|problem| problem.at.line).collect();
    assert_eq!(numbers, (2..2 + lines.len()).collect::<Vec<_>>());
    file.judge(&HostName::new("hub", 22), &bare(&k), NOW).unwrap();
    assert!(file.problems().iter().all(|p| !p.to_string().contains(|c: char| c.is_control())));
    assert_eq!(file.problems()[0].to_string(), "known_hosts:2: a line reads `HOSTS TYPE BASE64`");

    let latin1 = [format!("hub {k} caf").as_bytes(), b"\xe9\n"].concat();
    assert!(KnownHosts::parse(Path::new("x"), &latin1).problems().is_empty());
}

#[test]
fn certificate_is_believed_only_from_an_authority_for_this_hub() {
    let (hub, authority, other) = (PrivateKey::generate(), PrivateKey::generate(), PrivateKey::generate());
    let certificate = PublicKeyOrCertificate::from(certify(&hub, &authority, |_| {}));
    let ca = authority.public_key();
    let verdict = |text: String| parse(&text).judge(&HostName::new("hub.example.com", 2222), &certificate, NOW);

    verdict(format!("@cert-authority [*.example.com]:* {ca}")).unwrap();
    verdict(format!("@cert-authority * {}\n@cert-authority * {ca}", other.public_key())).unwrap();

    let error = verdict(format!("@cert-authority * {}", other.public_key())).unwrap_err();
    assert!(error.to_string().contains("known_hosts:1") && error.to_string().contains(&ca.fingerprint()), "{error}");
    assert!(matches!(error, HostKeyError::Certificate { reason: CertificateProblem::UntrustedAuthority { .. }, .. }));
    let unknown = verdict(format!("@cert-authority elsewhere {ca}"));
    assert!(matches!(unknown, Err(HostKeyError::Unknown { .. })), "{unknown:?}");
    // The authority's own key, not marked as one, certifies nothing.
    assert!(verdict(format!("* {ca}")).is_err());
    // A pinned key is right also in a certificate by a stranger.
    verdict(format!("* {}", hub.public_key())).unwrap();

    for revoked in [&ca, &hub.public_key()] {
        let error = verdict(format!("@cert-authority * {ca}\n@revoked * {revoked}")).unwrap_err();
        assert!(matches!(&error, HostKeyError::Revoked { key, at, .. } if key == revoked && at.line == 2), "{error:?}");
    }
}

#[test]
fn bad_certificate_of_a_trusted_authority_is_refused_with_its_line() {
    let (hub, authority) = (PrivateKey::generate(), PrivateKey::generate());
    let host = HostName::new("hub.example.com", 22);
    let file = parse(&format!("\n@cert-authority * {}", authority.public_key()));
    let expired = certify(&hub, &authority, |draft| draft.valid = 0..NOW - 60).into();
    let error = file.judge(&host, &expired, NOW).unwrap_err();
    let HostKeyError::Certificate { at: Some(at), reason, key_id, .. } = &error else { panic!("{error:?}") };
    assert_eq!((at.line, key_id.as_str()), (2, "test"));
    assert!(matches!(reason, CertificateProblem::Expired { .. }));
    assert!(error.to_string().contains("expired 60 s ago"), "{error}");
    // Pinning the key as well does not mend the certificate.
    let both = parse(&format!("* {}\n@cert-authority * {}", hub.public_key(), authority.public_key()));
    assert!(both.judge(&host, &expired, NOW).is_err());

    let user = certify(&hub, &authority, |draft| draft.kind = CertType::User).into();
    for text in [format!("@cert-authority * {}", authority.public_key()), format!("* {}", hub.public_key())] {
        let error = parse(&text).judge(&host, &user, NOW).unwrap_err();
        assert!(matches!(error, HostKeyError::Certificate { reason: CertificateProblem::NotForHosts, .. }), "{error}");
    }
    // Where only certificates are right, a bare key is a mismatch, not an unknown hub.
    let error = file.judge(&host, &bare(&hub.public_key()), NOW).unwrap_err();
    assert!(matches!(&error, HostKeyError::Mismatch { expected, .. } if expected[0].is_authority), "{error:?}");
}

#[test]
fn a_liars_text_is_cut_and_escaped() {
    let (hub, authority) = (PrivateKey::generate(), PrivateKey::generate());
    let liar = format!("\x1b[2J{}", "x".repeat(5000));
    let certificate = certify(&hub, &authority, |draft| draft.principals = vec![liar; 100]).into();
    let file = parse(&format!("@cert-authority * {}", authority.public_key()));
    let text = file.judge(&HostName::new("hub", 22), &certificate, NOW).unwrap_err().to_string();
    assert!(!text.contains('\x1b') && text.len() < 2000, "{text}");
}

#[test]
fn no_bytes_make_the_parser_panic() {
    let k = key();
    let good = format!("hub,[a]:1,!b* {k}\n{} {k}\n@revoked * {k}\n@cert-authority * {k}\n", hashed("hub"));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64; // xorshift: the same bytes in every run
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let host = HostName::new("hub", 22);
    for _ in 0..3000 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=random() % 8 {
            let at = (random() % bytes.len() as u64) as usize;
            match random() % 4 {
                0 => bytes[at] = random() as u8,
                1 => bytes[at] = b" \t\n|,*!@=1"[(random() % 10) as usize],
                2 => drop(bytes.drain(at..(at + (random() % 40) as usize).min(bytes.len()))),
                _ => bytes.insert(at, random() as u8),
            }
            if bytes.is_empty() {
                bytes.push(b'x');
            }
        }
        let file = KnownHosts::parse(Path::new("x"), &bytes);
        let _ = file.judge(&host, &bare(&k), NOW); // any verdict will do
    }
}

#[test]
fn hostile_pattern_takes_no_more_than_a_moment() {
    let pattern = "*a".repeat(5000) + "b";
    assert!(!glob(pattern.as_bytes(), "a".repeat(10_000).as_bytes()));
    assert!(glob(b"**a*?c*", b"xxaxbc"));
    assert!(!glob(b"", b"a") && glob(b"", b"") && glob(b"*", b"") && !glob(b"?", b""));
}

#[test]
fn files_of_ssh_keygen_are_understood() {
    if missing("ssh-keygen") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let hub = PrivateKey::load_or_generate(directory.path().join("hub")).unwrap();
    let authority = PrivateKey::load_or_generate(directory.path().join("ca")).unwrap();

    std::fs::write(directory.path().join("known"), format!("[hub.example.com]:2222 {}\n", hub.public_key())).unwrap();
    run("ssh-keygen", &["-q", "-H", "-f", "known"], directory.path());
    let text = std::fs::read_to_string(directory.path().join("known")).unwrap();
    assert!(text.starts_with("|1|"), "{text}");
    judge(&text, "hub.example.com", 2222, &hub.public_key()).unwrap();

    let sign = ["-q", "-s", "ca", "-I", "hub", "-h", "-n", "hub.example.com", "-V", "-1m:+5m", "hub.pub"];
    run("ssh-keygen", &sign, directory.path());
    let hub = hub.with_certificate_file(directory.path().join("hub-cert.pub")).unwrap();
    let certificate = PublicKeyOrCertificate::from(Certificate::clone(hub.certificate().unwrap()));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let file = parse(&format!("@cert-authority * {}", authority.public_key()));
    file.judge(&HostName::new("hub.example.com", 2222), &certificate, now).unwrap();
}
