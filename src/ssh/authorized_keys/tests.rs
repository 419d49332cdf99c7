//! Who gets in: files on disk, claims as strangers make them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::public::{Ed25519PublicKey, KeyData, SkEd25519};
use tempfile::TempDir;

use super::certificate::Certificate;
use super::testing::{NOON, certificate, certificate_between, claim, key, key_claim, noon};
use super::{AuthorizedKeys, AuthorizedKeysError};
use crate::id::AgentId;
use crate::ssh::authorizer::{Authorizer, Claim, Credential, Denied};

/// A directory with an `authorized_keys` file of this text.
fn dir_with(text: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    write(&dir.path().join("authorized_keys"), text);
    dir
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
    safe(path);
}

/// Whatever the umask of the machine that runs the tests.
fn safe(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("chmod");
    }
}

fn open(dir: &TempDir) -> AuthorizedKeys {
    AuthorizedKeys::open(dir.path().join("authorized_keys")).expect("opens")
}

/// The answer at noon to one claim, of a file with this text.
fn decide(text: &str, claim: &Claim) -> Result<(), Denied> {
    open(&dir_with(text)).decide(claim, noon()).map(|_| ())
}

fn from(mut claim: Claim, peer: Option<&str>) -> Claim {
    claim.peer = peer.map(|ip| (ip.parse::<std::net::IpAddr>().expect("an address"), 4022).into());
    claim
}

fn with_certificate(id: &str, certificate: Certificate) -> Claim {
    claim(id, Credential::Certificate(certificate))
}

#[test]
fn a_key_never_gets_an_id_it_was_not_granted() {
    let (one, two, nobody) = (key(), key(), key());
    let text = format!(
        "principals=\"agent-1\" {}\nprincipals=\"agent-2,agent-3\" {}\n{}\n",
        one.openssh(),
        two.openssh(),
        nobody.openssh()
    );
    for (id, key, granted) in [
        ("agent-1", &one, true),
        ("agent-2", &one, false),
        ("agent-2", &two, true),
        ("agent-3", &two, true),
        ("agent-1", &two, false),
        ("agent-1.", &one, false),
        ("agent-11", &one, false),
        ("agent-", &one, false),
        ("agent-1", &nobody, false),
    ] {
        assert_eq!(decide(&text, &key_claim(id, key)).is_ok(), granted, "{id}");
    }
    let denied = decide(&text, &key_claim("agent-1", &two)).expect_err("not granted");
    assert!(matches!(&denied, Denied::IdNotGranted { granted, .. } if *granted == ["agent-2", "agent-3"]), "{denied}");
    let denied = decide(&text, &key_claim("agent-1", &nobody)).expect_err("no principals");
    assert!(matches!(&denied, Denied::LineRefused { line: 3, .. }), "{denied}");
    assert!(denied.to_string().contains("principals=\"AGENT-ID\""), "{denied}");
    let denied = decide(&text, &key_claim("agent-1", &key())).expect_err("unknown");
    assert!(matches!(denied, Denied::UnknownKey { .. }), "{denied}");
}

#[test]
fn names_that_are_no_ids_cannot_be_claimed() {
    let long = "a".repeat(64 * 1024);
    for user in
        ["", "Agent-1", "agent-1\0", "agent-1\n", "agent–1", "ａgent-1", "agent-1/", "../agent-1", "%u", "*", &long]
    {
        assert!(user.parse::<AgentId>().is_err(), "{user:.20}");
    }
}

#[test]
fn any_line_of_a_key_may_grant() {
    let key = key();
    let text = format!(
        "restrict,principals=\"a\" {k}\nprincipals=\"b\" {k}\nexpiry-time=\"20200101\",principals=\"a\" {k}\n\
         from=\"10.0.0.0/8\",principals=\"a\" {k}\n",
        k = key.openssh()
    );
    assert!(decide(&text, &from(key_claim("a", &key), Some("10.1.1.1"))).is_ok());
    assert!(decide(&text, &key_claim("b", &key)).is_ok());
    // The nearest miss is the reason: a line for this id whose terms are not met.
    let denied = decide(&text, &key_claim("a", &key)).expect_err("expired and elsewhere");
    assert!(matches!(denied, Denied::Expired { .. }), "{denied}");
    let denied = decide(&text, &key_claim("c", &key)).expect_err("no line for it");
    assert!(matches!(denied, Denied::LineRefused { line: 1, .. }), "{denied}");
}

#[test]
fn a_line_holds_from_its_sources_until_its_expiry() {
    let key = key();
    for (options, peer, granted) in [
        ("from=\"192.0.2.0/24\"", Some("192.0.2.7"), true),
        ("from=\"192.0.2.0/24\"", Some("::ffff:192.0.2.7"), true),
        ("from=\"192.0.2.0/24\"", Some("198.51.100.1"), false),
        ("from=\"192.0.2.*,!192.0.2.7\"", Some("192.0.2.7"), false),
        ("from=\"*\"", None, false),
        ("pty", None, true),
        // NOON is 2027-01-15 08:00:00 UTC.
        ("expiry-time=\"20270115080001\"", None, true),
        ("expiry-time=\"20270115080000Z\"", None, false),
        ("expiry-time=\"20270115\"", None, false),
        ("EXPIRY-TIME=\"20270116\"", None, true),
        ("restrict,port-forwarding", None, true),
        ("restrict", None, false),
        ("no-port-forwarding", None, false),
        ("from=\"*.example.com\"", Some("192.0.2.7"), false),
        ("frobnicate", None, false),
    ] {
        let text = format!("{options},principals=\"a\" {}", key.openssh());
        let decision = decide(&text, &from(key_claim("a", &key), peer));
        assert_eq!(decision.is_ok(), granted, "{options} {peer:?} {decision:?}");
    }
}

#[test]
fn only_good_certificates_are_accepted() {
    let (agent, ca, other_ca) = (key(), key(), key());
    let text = format!("cert-authority {}\n", ca.openssh());
    let decide_with =
        |change: &dyn Fn(&mut Builder)| decide(&text, &with_certificate("laptop-1", certificate(&agent, &ca, change)));
    let with_option = |name: &str, value: &str| {
        decide_with(&|builder| {
            builder.critical_option(name, value).expect("set");
        })
    };
    decide_with(&|_| {}).expect("a plain one");
    decide_with(&|builder| {
        builder.valid_principal("laptop-2").expect("set").extension("permit-pty", "").expect("set");
    })
    .expect("another principal and an extension do no harm");
    with_option("source-address", "10.0.0.0/8,192.0.2.0/24").expect("in its network");
    for (name, value, why) in [
        ("force-command", "/bin/true", "option `force-command`"),
        ("verify-required", "", "option `verify-required`"),
        ("x@example.com", "", "option `x@example.com`"),
        ("Source-Address", "192.0.2.0/24", "option `Source-Address`"),
        ("source-address", "10.0.0.0/8", "only from 10.0.0.0/8"),
        ("source-address", "*", "not a list of addresses"),
        ("source-address", "", "not a list of addresses"),
    ] {
        let denied = with_option(name, value).expect_err(why);
        assert!(denied.to_string().contains(why), "{name}={value}: {denied}");
    }
    let host = |builder: &mut Builder| {
        builder.cert_type(CertType::Host).expect("set");
    };
    let denied = decide_with(&host).expect_err("a host certificate");
    assert!(denied.to_string().contains("host certificate"), "{denied}");
    let between = |after, before, principals: &[&str]| {
        certificate_between(&agent, &ca, after, before, |builder| {
            builder.all_principals_valid().expect("set");
            for principal in principals {
                builder.valid_principal(*principal).expect("set");
            }
        })
    };
    let forever = between(0, u64::MAX, &["laptop-1"]);
    assert!(decide(&text, &with_certificate("laptop-1", forever.clone())).is_ok());
    assert!(decide(&text, &from(with_certificate("laptop-1", forever.clone()), None)).is_ok());
    for (name, certificate, kind) in [
        ("expired this second", between(0, NOON, &["laptop-1"]), "expired"),
        ("not yet valid", between(NOON + 1, u64::MAX, &["laptop-1"]), "not valid before"),
        ("no principals at all", between(0, u64::MAX, &[]), "no id"),
        ("another principal", between(0, u64::MAX, &["laptop-2"]), "laptop-2"),
        ("a pattern", between(0, u64::MAX, &["*", "laptop-?"]), "granted *"),
        ("a list in one principal", between(0, u64::MAX, &["laptop-1,laptop-2"]), "granted laptop-1,laptop-2"),
        ("other case", between(0, u64::MAX, &["LAPTOP-1"]), "granted LAPTOP-1"),
        ("another CA", certificate(&agent, &other_ca, |_| {}), "not a trusted CA"),
        ("signed by itself", certificate(&agent, &agent, |_| {}), "not a trusted CA"),
        ("forged", forged(&certificate(&agent, &ca, |_| {})), "signature is wrong"),
    ] {
        let denied = decide(&text, &with_certificate("laptop-1", certificate)).expect_err(name);
        assert!(denied.to_string().contains(kind), "{name}: {denied}");
    }
    let anywhere = certificate(&agent, &ca, |builder| {
        builder.critical_option("source-address", "0.0.0.0/0,::/0").expect("set");
    });
    assert!(decide(&text, &from(with_certificate("laptop-1", anywhere), None)).is_err());
}

/// The same certificate with another serial number, and so with a signature that is wrong.
fn forged(certificate: &Certificate) -> Certificate {
    let mut bytes = certificate.0.to_bytes().expect("bytes");
    let key = certificate.0.public_key().ed25519().expect("an Ed25519 key").0;
    let serial = bytes.windows(32).position(|window| window == key).expect("the key is in it") + 32;
    bytes[serial + 7] ^= 1;
    russh::keys::ssh_key::Certificate::from_bytes(&bytes).expect("still a certificate").into()
}

#[test]
fn a_certificate_for_a_key_type_that_is_refused_is_refused() {
    let ca = key();
    let subject = KeyData::SkEd25519(SkEd25519::new(Ed25519PublicKey([7; 32]), "ssh:"));
    let mut builder = Builder::new_with_random_nonce(&mut rand::rng(), subject, 0, u64::MAX).expect("valid");
    builder.valid_principal("laptop-1").expect("set");
    let certificate = builder.sign(&ca.private).expect("signed").into();
    let text = format!("cert-authority {}", ca.openssh());
    let denied = decide(&text, &with_certificate("laptop-1", certificate)).expect_err("a security key");
    assert!(matches!(denied, Denied::KeyNotAccepted { .. }), "{denied}");
}

#[test]
fn an_authority_is_trusted_within_the_terms_of_its_line() {
    let (agent, ca) = (key(), key());
    for (options, granted) in [
        ("cert-authority", true),
        ("Cert-Authority,principals=\"laptop-1,laptop-9\"", true),
        ("cert-authority,principals=\"laptop-2\"", false),
        ("cert-authority,from=\"192.0.2.0/24\"", true),
        ("cert-authority,from=\"10.0.0.0/8\"", false),
        ("cert-authority,expiry-time=\"20260101\"", false),
        ("cert-authority,restrict", false),
        ("cert-authority,restrict,port-forwarding", true),
        ("cert-authority,frobnicate", false),
        ("principals=\"laptop-1\"", false),
    ] {
        let text = format!("{options} {}", ca.openssh());
        let decision = decide(&text, &with_certificate("laptop-1", certificate(&agent, &ca, |_| {})));
        assert_eq!(decision.is_ok(), granted, "{options}: {decision:?}");
    }
}

#[test]
fn keys_and_certificates_are_not_mixed_up() {
    let (agent, ca) = (key(), key());
    let authority = format!("cert-authority,principals=\"laptop-1\" {}", ca.openssh());
    let plain = format!("principals=\"laptop-1\" {}", agent.openssh());
    let certificate = || with_certificate("laptop-1", certificate(&agent, &ca, |_| {}));
    assert!(decide(&authority, &certificate()).is_ok());
    assert!(decide(&authority, &key_claim("laptop-1", &ca)).is_err(), "a CA is no agent");
    assert!(decide(&authority, &key_claim("laptop-1", &agent)).is_err(), "the key alone is not signed");
    assert!(decide(&plain, &certificate()).is_err(), "a certificate does not count as its key");
    assert!(decide(&plain, &key_claim("laptop-1", &agent)).is_ok());
    let both = format!("{authority}\nprincipals=\"laptop-2\" {}", ca.openssh());
    assert!(decide(&both, &key_claim("laptop-2", &ca)).is_ok());
    assert!(decide(&both, &key_claim("laptop-1", &ca)).is_err());
}

#[test]
fn trusted_user_ca_keys_are_enough() {
    let (agent, ca, line_ca) = (key(), key(), key());
    let dir = dir_with("# nobody\n");
    let list = dir.path().join("user_ca");
    write(&list, &format!("# the CA of laptops\n\n{} laptops\n", ca.openssh()));
    let only = AuthorizedKeys::none().trusted_user_ca_keys(&list).expect("a list");
    let beside_a_file = open(&dir).trusted_user_ca_keys(&list).expect("a list");
    let beside_files = AuthorizedKeys::open(dir.path().join("%u")).expect("opens");
    let beside_files = beside_files.trusted_user_ca_keys(&list).expect("a list");
    let both = |builder: &mut Builder| {
        builder.valid_principal("laptop-2").expect("set");
    };
    let nobody = certificate_between(&agent, &ca, 0, u64::MAX, |builder| {
        builder.all_principals_valid().expect("set");
    });
    let expired = certificate_between(&agent, &ca, 0, NOON, |builder| {
        builder.valid_principal("laptop-1").expect("set");
    });
    for keys in [only, beside_a_file, beside_files] {
        let decide = |claim: Claim| keys.decide(&claim, noon()).map(|_| ()).map_err(|denied| denied.to_string());
        let certified = |id, certificate| decide(with_certificate(id, certificate));
        assert_eq!(certified("laptop-1", certificate(&agent, &ca, |_| {})), Ok(()));
        assert_eq!(certified("laptop-2", certificate(&agent, &ca, both)), Ok(()));
        for (id, certificate, why) in [
            ("laptop-2", certificate(&agent, &ca, |_| {}), "granted laptop-1"),
            ("laptop-1", nobody.clone(), "granted no id"),
            ("laptop-1", certificate(&agent, &line_ca, |_| {}), "not a trusted CA"),
            ("laptop-1", expired.clone(), "expired"),
        ] {
            let denied = certified(id, certificate).expect_err(why);
            assert!(denied.contains(why), "{denied}");
        }
        for nobody in [&agent, &ca] {
            assert!(decide(key_claim("laptop-1", nobody)).is_err(), "only certificates are trusted");
        }
    }
}

#[test]
fn either_a_line_or_a_trusted_ca_may_grant() {
    let (agent, ca, line_ca) = (key(), key(), key());
    let text = format!(
        "principals=\"laptop-1\" {}\ncert-authority,environment=\"site=rome\" {}\ncert-authority,from=\"10.0.0.0/8\" {}\n",
        agent.openssh(),
        line_ca.openssh(),
        ca.openssh()
    );
    let dir = dir_with(&text);
    let list = dir.path().join("user_ca");
    write(&list, &ca.openssh());
    let keys = open(&dir).trusted_user_ca_keys(&list).expect("a list");
    let by = |authority| with_certificate("laptop-1", certificate(&agent, authority, |_| {}));
    let site = |claim: &Claim| keys.decide(claim, noon()).map(|grant| grant.labels.get("site").cloned());
    assert_eq!(site(&by(&ca)).expect("by the list, whatever the line says"), None);
    assert_eq!(site(&by(&line_ca)).expect("by its line"), Some("rome".into()));
    assert_eq!(site(&key_claim("laptop-1", &agent)).expect("by its line"), None);

    // A list that cannot be used takes away what it grants, and no more.
    for bad in ["garbage\n".to_owned(), format!("cert-authority {}\n", ca.openssh())] {
        write(&list, &bad);
        let denied = site(&by(&ca)).expect_err("not understood");
        assert!(
            matches!(&denied, Denied::Unavailable { source: AuthorizedKeysError::BadUserCaKey { line: 1, .. } }),
            "{denied}"
        );
        assert!(site(&by(&line_ca)).is_ok() && site(&key_claim("laptop-1", &agent)).is_ok());
    }
    fs::remove_file(&list).expect("removed");
    assert!(matches!(site(&by(&ca)), Err(Denied::Unavailable { .. })));
    write(&list, "# nobody any more\n");
    let denied = site(&by(&ca)).expect_err("not trusted any more");
    assert!(matches!(denied, Denied::SourceNotAllowed { .. }), "the line says why: {denied}");
    write(&list, &ca.openssh());
    assert!(site(&by(&ca)).is_ok());

    // Lines that cannot be read deny everybody.
    fs::remove_file(dir.path().join("authorized_keys")).expect("removed");
    assert!(matches!(site(&by(&ca)), Err(Denied::Unavailable { .. })));
}

#[test]
fn a_list_of_authorities_that_cannot_be_used_is_an_error_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("user_ca");
    let open = || AuthorizedKeys::none().trusted_user_ca_keys(&path).expect_err("unusable");
    assert!(matches!(open(), AuthorizedKeysError::Read { .. }));
    write(&path, &format!("{}\nssh-ed25519 AAAA\n", key().openssh()));
    let error = open().to_string();
    assert!(error.contains("user_ca:2: ") && error.contains("damaged"), "{error}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        write(&path, &key().openssh());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).expect("chmod");
        assert!(matches!(open(), AuthorizedKeysError::WritableByOthers { .. }));
    }
}

#[test]
fn revoked_keys_and_authorities_are_refused_at_once() {
    let (agent, ca) = (key(), key());
    let text = format!("cert-authority {}\nprincipals=\"laptop-1\" {}", ca.openssh(), agent.openssh());
    let dir = dir_with(&text);
    let list = dir.path().join("revoked");
    write(&list, "");
    let keys = open(&dir).revoked_keys(&list).expect("a list");
    let plain = key_claim("laptop-1", &agent);
    let signed = with_certificate("laptop-1", certificate(&agent, &ca, |_| {}));
    let answers = || (keys.decide(&plain, noon()).is_ok(), keys.decide(&signed, noon()).is_ok());
    assert_eq!(answers(), (true, true));
    write(&list, &ca.openssh());
    assert_eq!(answers(), (true, false));
    write(&list, &agent.openssh());
    assert_eq!(answers(), (false, false));
    write(&list, "not a key");
    let denied = keys.decide(&plain, noon()).expect_err("unusable list");
    assert!(matches!(denied, Denied::Unavailable { source: AuthorizedKeysError::BadRevokedKey { line: 1, .. } }));
    write(&list, "SSHKRL\n\0\0\0\0\u{2}");
    let denied = keys.decide(&plain, noon()).expect_err("a binary list of another version");
    let Denied::Unavailable { source } = denied else { panic!("{denied}") };
    assert!(matches!(source, AuthorizedKeysError::BadKrl { at: 8, .. }), "{source:?}");
    assert!(source.to_string().ends_with("revoked at byte 8: it is of version 2 of the format, not 1"), "{source}");
    fs::remove_file(&list).expect("removed");
    assert!(matches!(keys.decide(&plain, noon()), Err(Denied::Unavailable { .. })));
    write(&list, "");
    assert_eq!(answers(), (true, true));
}

#[tokio::test]
async fn changes_take_effect_at_once() {
    let (one, two) = (key(), key());
    let line = |key: &super::testing::Key| format!("principals=\"a\" {}\n", key.openssh());
    let dir = dir_with(&line(&one));
    let path = dir.path().join("authorized_keys");
    let keys = open(&dir);
    for _ in 0..20 {
        assert!(keys.authorize(&key_claim("a", &one)).await.is_ok());
        assert!(keys.authorize(&key_claim("a", &two)).await.is_err());
        write(&path, &line(&two));
        assert!(keys.authorize(&key_claim("a", &one)).await.is_err());
        assert!(keys.authorize(&key_claim("a", &two)).await.is_ok());
        write(&path, &line(&one));
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_lets_nobody_in() {
    let key = key();
    let text = format!("principals=\"a\" {}\n", key.openssh());
    let dir = dir_with(&text);
    let path = dir.path().join("authorized_keys");
    let keys = open(&dir);
    let claim = key_claim("a", &key);
    assert!(keys.authorize(&claim).await.is_ok());
    fs::remove_file(&path).expect("removed");
    assert!(matches!(keys.authorize(&claim).await, Err(Denied::Unavailable { .. })));
    fs::create_dir(&path).expect("made");
    assert!(matches!(keys.authorize(&claim).await, Err(Denied::Unavailable { .. })));
    fs::remove_dir(&path).expect("removed");
    write(&path, &text);
    assert!(keys.authorize(&claim).await.is_ok());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
        let denied = keys.authorize(&claim).await.expect_err("others can write it");
        let Denied::Unavailable { source } = denied else { panic!("{denied}") };
        assert!(matches!(source, AuthorizedKeysError::WritableByOthers { mode: 0o666, .. }), "{source}");
        let error = AuthorizedKeys::open(&path).expect_err("others can write it");
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
}

#[test]
fn what_is_missing_at_the_start_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = AuthorizedKeys::open(dir.path().join("authorized_keys")).expect_err("missing");
    assert!(error.to_string().contains("authorized_keys"), "{error}");
    assert!(AuthorizedKeys::open(dir.path().join("missing").join("%u")).is_err());
    assert!(AuthorizedKeys::open(dir.path().join("%h")).is_err());
}

#[test]
fn problems_name_file_line_and_fault_and_follow_the_file() {
    let good = key().openssh();
    let dir = dir_with(&format!("principals=\"a\" {good}\n\nform=\"x\\\"\x1b\" {good}\nssh-ed25519 AAAA\n"));
    let path = dir.path().join("authorized_keys");
    let keys = open(&dir);
    let problems = keys.problems();
    assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [3, 4]);
    let text = problems[0].to_string();
    assert!(text.ends_with("authorized_keys:3: option `form` is unknown"), "{text}");
    write(&path, &format!("principals=\"a\" {good}\n"));
    assert!(keys.decide(&key_claim("a", &key()), noon()).is_err());
    assert_eq!(keys.problems(), []);
}

#[test]
fn with_a_file_per_agent_a_key_is_the_agent_of_its_file() {
    let (one, two, ca) = (key(), key(), key());
    let dir = tempfile::tempdir().expect("a directory");
    let keys = AuthorizedKeys::open(dir.path().join("%u").join("authorized_keys")).expect("opens");
    let file = |id: &str, text: &str| {
        fs::create_dir_all(dir.path().join(id)).expect("made");
        write(&dir.path().join(id).join("authorized_keys"), text);
    };
    file("laptop-1", &format!("{}\ncert-authority {}\n", one.openssh(), ca.openssh()));
    file("laptop-2", &format!("principals=\"laptop-2,laptop-1\" {}\n", two.openssh()));
    file("laptop-3", &format!("principals=\"laptop-1\" {}\n", one.openssh()));
    let signed = |id| {
        let both = |builder: &mut Builder| {
            builder.valid_principal("laptop-2").expect("set");
        };
        with_certificate(id, certificate(&two, &ca, both))
    };
    for (claim, granted) in [
        (key_claim("laptop-1", &one), true),
        (key_claim("laptop-2", &one), false),
        (key_claim("laptop-2", &two), true),
        (key_claim("laptop-1", &two), false),
        (key_claim("laptop-3", &one), false),
        (key_claim("laptop-4", &one), false),
        (key_claim("laptop-1.", &one), false),
        (signed("laptop-1"), true),
        (signed("laptop-2"), false),
    ] {
        let decision = keys.decide(&claim, noon());
        assert_eq!(decision.is_ok(), granted, "{claim:?}: {decision:?}");
    }
    let denied = keys.decide(&key_claim("laptop-4", &one), noon()).expect_err("no file");
    assert!(matches!(denied, Denied::UnknownAgent { .. }), "{denied}");
    let problems = keys.problems();
    assert!(problems.len() == 1 && problems[0].to_string().contains("laptop-3"), "{problems:?}");
    fs::remove_dir_all(dir.path().join("laptop-1")).expect("removed");
    assert!(keys.decide(&key_claim("laptop-1", &one), noon()).is_err());
}

#[test]
fn made_up_ids_are_not_remembered() {
    let dir = tempfile::tempdir().expect("a directory");
    let keys = AuthorizedKeys::open(dir.path().join("%u")).expect("opens");
    let key = key();
    for n in 0..super::MAX_REMEMBERED + 10 {
        assert!(keys.decide(&key_claim(&format!("a{n}"), &key), noon()).is_err());
    }
    assert_eq!(keys.lock().files.len(), 0);
    for n in 0..super::MAX_REMEMBERED + 10 {
        write(&dir.path().join(format!("a{n}")), &key.openssh());
        assert!(keys.decide(&key_claim(&format!("a{n}"), &key), noon()).is_ok());
    }
    assert_eq!(keys.lock().files.len(), super::MAX_REMEMBERED);
    assert!(keys.decide(&key_claim("a0", &key), noon()).is_ok(), "forgotten, not refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_ask_at_once() {
    let (known, stranger) = (key(), key());
    let dir = dir_with(&format!("principals=\"a\" {}\n", known.openssh()));
    let keys = open(&dir);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let expected = n % 2 == 0;
        let (keys, claim) = (keys.clone(), key_claim("a", if expected { &known } else { &stranger }));
        tasks.spawn(async move { keys.authorize(&claim).await.is_ok() == expected });
    }
    assert!(tasks.join_all().await.into_iter().all(|as_expected| as_expected));
}

/// Runs stock ssh-keygen, or says why it cannot.
fn ssh_keygen(dir: &Path, arguments: &[&str]) -> bool {
    match Command::new("ssh-keygen").current_dir(dir).arg("-q").args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(error) if std::env::var_os("DIALBACK_REQUIRE_PEERS").is_some_and(|value| value == "1") => {
            panic!("ssh-keygen is required: {error}")
        }
        Err(error) => {
            eprintln!("skipped: ssh-keygen cannot be run: {error}");
            false
        }
    }
}

#[tokio::test]
async fn keys_and_certificates_of_stock_ssh_keygen_are_understood() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let read = |name: &str| fs::read_to_string(path(name)).expect(name);
    if !ssh_keygen(dir.path(), &["-t", "ed25519", "-N", "", "-C", "the CA", "-f", "ca"]) {
        return;
    }
    write(&path("authorized_keys"), &format!("cert-authority,principals=\"laptop-1\" {}", read("ca.pub")));
    let keys = AuthorizedKeys::open(path("authorized_keys")).expect("opens");
    assert_eq!(keys.problems(), []);
    for curve in ["ed25519", "ecdsa"] {
        ssh_keygen(dir.path(), &["-t", curve, "-N", "", "-f", curve]);
        let public = format!("{curve}.pub");
        for (options, granted) in [
            (&["-n", "laptop-1"][..], true),
            (&["-n", "laptop-1", "-V", "-5m:+1h", "-z", "7"], true),
            (&["-n", "laptop-1", "-O", "source-address=192.0.2.0/24"], true),
            (&["-n", "laptop-1", "-O", "source-address=10.0.0.0/8"], false),
            (&["-n", "laptop-1", "-O", "force-command=true"], false),
            (&["-n", "laptop-1", "-V", "-2h:-1h"], false),
            (&["-n", "laptop-1", "-V", "+1h:+2h"], false),
            (&["-n", "laptop-1", "-h"], false),
            (&["-n", "laptop-2"], false),
            (&[], false),
        ] {
            let arguments = [&["-s", "ca", "-I", "a name"], options, &[&public]].concat();
            ssh_keygen(dir.path(), &arguments);
            let certificate: Certificate = read(&format!("{curve}-cert.pub")).parse().expect("a certificate");
            assert_eq!(certificate.key_id(), "a name");
            let decision = keys.authorize(&with_certificate("laptop-1", certificate)).await;
            assert_eq!(decision.is_ok(), granted, "{curve} {options:?}: {decision:?}");
        }
        let line = format!("principals=\"laptop-1\" {}", read(&public));
        write(&path("plain"), &line);
        assert_eq!(AuthorizedKeys::open(path("plain")).expect("opens").problems(), [], "{line}");
    }
}

#[cfg(feature = "rsa")]
#[tokio::test]
async fn rsa_is_accepted_with_sha2_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect(name);
    if !ssh_keygen(dir.path(), &["-t", "rsa", "-b", "2048", "-N", "", "-f", "ca"]) {
        return;
    }
    ssh_keygen(dir.path(), &["-t", "rsa", "-b", "2048", "-N", "", "-f", "agent"]);
    ssh_keygen(dir.path(), &["-t", "rsa", "-b", "1024", "-N", "", "-f", "short"]);
    let text = format!("cert-authority {}principals=\"a\" {}", read("ca.pub"), read("short.pub"));
    let dir_of_keys = dir_with(&text);
    let keys = open(&dir_of_keys);
    let problems = keys.problems();
    assert!(problems.len() == 1 && problems[0].to_string().contains("1024 bits"), "{problems:?}");
    for (algorithm, granted) in [("rsa-sha2-512", true), ("rsa-sha2-256", true), ("ssh-rsa", false)] {
        ssh_keygen(dir.path(), &["-s", "ca", "-t", algorithm, "-I", "x", "-n", "laptop-1", "agent.pub"]);
        let certificate = read("agent-cert.pub").parse().expect("a certificate");
        let decision = keys.authorize(&with_certificate("laptop-1", certificate)).await;
        assert_eq!(decision.is_ok(), granted, "{algorithm}: {decision:?}");
    }
}

#[test]
fn the_noon_of_these_tests_is_what_they_say() {
    assert_eq!(noon(), SystemTime::UNIX_EPOCH + Duration::from_secs(NOON));
    assert_eq!(crate::time::Utc(NOON).to_string(), "2027-01-15 08:00:00 UTC");
}
