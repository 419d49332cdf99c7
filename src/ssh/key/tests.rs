use std::fs;
use std::sync::Barrier;

use russh::keys::ssh_key::{Cipher, EcdsaCurve, Kdf};

use super::testing::{certify_user, missing, random, run};
use super::*;

/// `key` as an encrypted file, with the fewest rounds, so that a debug build opens it at once.
fn encrypted(key: &PrivateKey, passphrase: &str) -> String {
    let kdf = Kdf::Bcrypt { salt: vec![7; 16], rounds: 1 };
    let key = key.inner().encrypt_with(Cipher::Aes256Ctr, kdf, 42, passphrase).unwrap();
    key.to_openssh(LineEnding::LF).unwrap().to_string()
}

fn private_file(directory: &Path, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.join("id");
    let _ = fs::remove_file(&path);
    file::write_new(&path, contents.as_ref(), Readers::Owner).unwrap();
    path
}

#[test]
fn generated_keys_are_ed25519_and_never_the_same() {
    let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
    assert_eq!(a.public_key().algorithm(), "ssh-ed25519");
    assert_ne!(a.public_key(), b.public_key());
    assert!(a.public_key().fingerprint().starts_with("SHA256:"));
}

#[test]
fn debug_shows_the_fingerprint_and_nothing_else() {
    let key = PrivateKey::generate();
    assert_eq!(format!("{key:?}"), format!("PrivateKey(ssh-ed25519 {})", key.public_key().fingerprint()));
}

#[test]
fn written_key_comes_back_and_is_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("id");
    let curves = [EcdsaCurve::NistP256, EcdsaCurve::NistP384, EcdsaCurve::NistP521];
    for algorithm in curves.map(|curve| Algorithm::Ecdsa { curve }).into_iter().chain([Algorithm::Ed25519]) {
        let key = random(algorithm);
        key.write_to(&path).unwrap();
        assert_eq!(PrivateKey::from_file(&path).unwrap().public_key(), key.public_key());
        let before = fs::read(&path).unwrap();
        let error = PrivateKey::generate().write_to(&path).unwrap_err();
        assert!(matches!(&error, KeyError::Exists { path: p } if *p == path), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "drafts are left behind");
}

#[cfg(unix)]
#[test]
fn files_others_can_read_or_write_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("id");
    PrivateKey::generate().write_to(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for open in [0o640, 0o620, 0o604, 0o602, 0o610, 0o601, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
        let error = PrivateKey::from_file(&path).unwrap_err();
        assert!(matches!(error, KeyError::TooOpen { mode, .. } if mode == open), "{error:?}");
        assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    PrivateKey::from_file(&path).unwrap();
}

#[test]
fn only_regular_files_of_sensible_size_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = private_file(directory.path(), vec![b'a'; MAX_KEY_FILE as usize + 1]);
    for path in [directory.path(), &path, &directory.path().join("none"), Path::new("/dev/zero")] {
        let error = PrivateKey::from_file(path).unwrap_err();
        assert!(matches!(&error, KeyError::Unreadable { path: p, .. } if p == path), "{error:?}");
    }
}

#[test]
fn passphrase_is_asked_for_only_where_needed() {
    let directory = tempfile::tempdir().unwrap();
    let key = PrivateKey::generate();
    let path = private_file(directory.path(), encrypted(&key, "correct horse"));

    let load = |passphrase: Option<&str>| {
        PrivateKey::from_file_with_passphrase(&path, |asked| {
            assert_eq!(asked, path);
            passphrase.map(str::to_owned)
        })
    };
    assert_eq!(load(Some("correct horse")).unwrap().public_key(), key.public_key());
    assert!(matches!(load(Some("wrong")), Err(KeyError::WrongPassphrase { path: p }) if p == path));
    assert!(matches!(load(Some("")), Err(KeyError::WrongPassphrase { .. })));
    assert!(matches!(load(None), Err(KeyError::Encrypted { .. })));
    assert!(matches!(PrivateKey::from_file(&path), Err(KeyError::Encrypted { path: Some(p) }) if p == path));
    assert!(matches!(PrivateKey::from_openssh(&encrypted(&key, "x")), Err(KeyError::Encrypted { path: None })));

    let plain = directory.path().join("plain");
    key.write_to(&plain).unwrap();
    PrivateKey::from_file_with_passphrase(&plain, |_| panic!("asked for no reason")).unwrap();
}

#[test]
fn malformed_files_say_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let key = PrivateKey::generate();
    let whole = key.inner().to_openssh(LineEnding::LF).unwrap().to_string();
    let cases: [(Vec<u8>, &str); 7] = [
        (vec![], "does not start with"),
        (b"hello".into(), "does not start with"),
        (vec![0xff; 64], "does not start with"),
        (key.public_key().to_openssh().into(), "public key"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n".into(), "ssh-keygen -p"),
        (whole.replacen("AAAA", "AAAB", 1).into(), "damaged"),
        (whole.as_bytes()[..whole.len() / 2].into(), "damaged"),
    ];
    for (contents, expected) in cases {
        let path = private_file(directory.path(), &contents);
        let error = PrivateKey::from_file(&path).unwrap_err();
        assert!(matches!(&error, KeyError::Malformed { what, .. } if what.contains(expected)), "{error}");
        let Ok(text) = String::from_utf8(contents) else { continue };
        let error = PrivateKey::from_openssh(&text).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn certificate_has_to_be_for_this_key() {
    let (key, other, authority) = (PrivateKey::generate(), PrivateKey::generate(), PrivateKey::generate());
    let line = certify_user(&key, &authority, "laptop-1");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("id-cert.pub");
    fs::write(&path, &line).unwrap();

    assert!(key.clone().with_certificate(&line).unwrap().certificate().is_some());
    assert!(key.clone().with_certificate_file(&path).unwrap().certificate().is_some());
    match other.clone().with_certificate_file(&path).unwrap_err() {
        KeyError::CertificateMismatch { path: p, certified, key: given } => {
            assert_eq!((p.as_ref(), certified), (Some(&path), key.public_key().fingerprint()));
            assert_eq!(given, other.public_key().fingerprint());
        }
        error => panic!("{error}"),
    }
    for bad in ["", "x", &line[..line.len() - 9], &key.public_key().to_openssh()] {
        let error = key.clone().with_certificate(bad).unwrap_err();
        assert!(matches!(error, KeyError::Malformed { .. }), "{bad}: {error}");
    }
    assert!(matches!(key.with_certificate_file("/none"), Err(KeyError::Unreadable { .. })));
}

#[test]
fn certificate_nested_in_certificates_is_refused_not_followed() {
    fn string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }
    let name = string(b"a-cert-v01@x");
    let mut blob = string(b"a@x");
    while blob.len() < 40_000 {
        let empty = string(b"");
        let fields = [&name[..], &empty, &empty, &[0; 8], &1u32.to_be_bytes(), &empty, &empty, &[0; 16]].concat();
        blob = [fields, empty.repeat(3), string(&blob), string(b"")].concat();
    }
    use russh::keys::ssh_encoding::base64::{Base64, Encoding};
    let line = format!("a-cert-v01@x {}", Base64::encode_string(&blob));
    let error = PrivateKey::generate().with_certificate(&line).unwrap_err();
    assert!(matches!(&error, KeyError::Malformed { what, .. } if what == "the certificate is damaged"), "{error}");
}

#[cfg(unix)]
#[test]
fn first_run_makes_a_key_and_the_next_loads_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hub");
    fs::write(directory.path().join("hub.pub"), "left over").unwrap();
    let key = PrivateKey::load_or_generate(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let public = fs::read_to_string(directory.path().join("hub.pub")).unwrap();
    assert_eq!(public, format!("{}\n", key.public_key()));
    assert_eq!(PrivateKey::load_or_generate(&path).unwrap().public_key(), key.public_key());
    assert!(matches!(PrivateKey::load_or_generate("/none/of/it"), Err(KeyError::Unwritable { .. })));
}

#[test]
fn first_runs_that_race_agree_on_one_key() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..30 {
        let path = directory.path().join(format!("hub{round}"));
        let start = Barrier::new(4);
        let race = || {
            start.wait();
            PrivateKey::load_or_generate(&path).unwrap().public_key()
        };
        let keys: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..4).map(|_| scope.spawn(race)).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        let public: PublicKey = fs::read_to_string(path.with_extension("pub")).unwrap().parse().unwrap();
        assert_eq!(public, keys[0]);
    }
}

#[test]
fn new_file_is_never_seen_half_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = |round: usize| directory.path().join(round.to_string());
    let contents = vec![b'k'; MAX_KEY_FILE as usize];
    std::thread::scope(|scope| {
        let writer = scope
            .spawn(|| (0..100).for_each(|round| file::write_new(&path(round), &contents, Readers::Owner).unwrap()));
        for round in 0..100 {
            let seen = loop {
                let done = writer.is_finished();
                match fs::read(path(round)) {
                    Ok(seen) => break seen,
                    Err(error) => assert!(!done, "{error}"),
                }
                std::thread::yield_now();
            };
            assert_eq!(seen.len(), contents.len());
        }
    });
}

#[test]
fn ssh_keygen_and_we_read_each_others_files() {
    if missing("ssh-keygen") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let ours = PrivateKey::load_or_generate(directory.path().join("ours")).unwrap();
    let printed = run("ssh-keygen", &["-y", "-f", "ours"], directory.path());
    assert_eq!(printed.parse::<PublicKey>().unwrap(), ours.public_key());
    assert!(run("ssh-keygen", &["-l", "-f", "ours.pub"], directory.path()).contains(&ours.public_key().fingerprint()));

    for (kind, passphrase) in [("ed25519", ""), ("ecdsa", ""), ("ed25519", "secret")] {
        let path = directory.path().join("theirs");
        run("ssh-keygen", &["-q", "-t", kind, "-N", passphrase, "-a", "1", "-f", "theirs"], directory.path());
        let key = PrivateKey::from_file_with_passphrase(&path, |_| Some(passphrase.into())).unwrap();
        let public = fs::read_to_string(directory.path().join("theirs.pub")).unwrap();
        assert_eq!(format!("{}\n", key.public_key()), public);
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn rsa_keys_need_the_feature() {
    if missing("ssh-keygen") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    run("ssh-keygen", &["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", "rsa"], directory.path());
    let loaded = PrivateKey::from_file(directory.path().join("rsa"));
    if cfg!(feature = "rsa") {
        assert_eq!(loaded.unwrap().public_key().algorithm(), "ssh-rsa");
    } else {
        let error = loaded.unwrap_err();
        assert!(matches!(&error, KeyError::UnsupportedAlgorithm { algorithm, .. } if algorithm == "ssh-rsa"));
        assert!(error.to_string().contains("`rsa` feature"), "{error}");
    }
}

#[test]
fn lines_for_the_files_of_the_other_side() {
    let key = PrivateKey::generate().public_key();
    let agent = "laptop-1".parse().unwrap();
    assert_eq!(key.authorized_keys_line(&agent), format!("principals=\"laptop-1\" {key}"));
    for (hub, name) in [
        ("hub.example.com:22", "hub.example.com"),
        ("hub.example.com:2222", "[hub.example.com]:2222"),
        ("ssh://hub.example.com:2222", "[hub.example.com]:2222"),
        ("[::1]:2222", "[::1]:2222"),
        ("unix:/run/hub.sock", "localhost"),
    ] {
        assert_eq!(key.known_hosts_line(hub).unwrap(), format!("{name} {key}"));
    }
    for none in ["", "hub.example.com", "hub.example.com:0", "me@hub.example.com:22", "a b:1", "a\n:1"] {
        assert!(key.known_hosts_line(none).is_err(), "{none:?}");
    }
}
