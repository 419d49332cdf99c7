//! Keys, certificates and stock programs for tests.

use std::path::Path;
use std::process::{Command, Stdio};

use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::{self, Algorithm, Certificate};

use super::PrivateKey;

/// A time inside the validity of the certificates made here: 2020-09-13.
pub(crate) const NOW: u64 = 1_600_000_000;

pub(crate) fn random(algorithm: Algorithm) -> PrivateKey {
    let key = ssh_key::PrivateKey::random(&mut russh::keys::key::safe_rng(), algorithm).unwrap();
    PrivateKey::new(key, None).unwrap()
}

/// A host certificate for `hub.example.com`, valid for an hour around [`NOW`], changed by `change`.
pub(crate) fn certify(key: &PrivateKey, authority: &PrivateKey, change: impl FnOnce(&mut Draft)) -> Certificate {
    let mut draft = Draft {
        kind: CertType::Host,
        principals: vec!["hub.example.com".into()],
        valid: NOW - 1800..NOW + 1800,
        critical: vec![],
    };
    change(&mut draft);
    let public = key.inner().public_key().clone();
    let mut builder = Builder::new(*b"0123456789abcdef", public, draft.valid.start, draft.valid.end).unwrap();
    builder.cert_type(draft.kind).unwrap().key_id("test").unwrap();
    if draft.principals.is_empty() {
        builder.all_principals_valid().unwrap();
    }
    for principal in draft.principals {
        builder.valid_principal(principal).unwrap();
    }
    for option in draft.critical {
        builder.critical_option(option, "").unwrap();
    }
    builder.sign(&**authority.inner()).unwrap()
}

pub(crate) struct Draft {
    pub(crate) kind: CertType,
    pub(crate) principals: Vec<String>,
    pub(crate) valid: std::ops::Range<u64>,
    pub(crate) critical: Vec<&'static str>,
}

/// The line of a user certificate for `principal` that is valid for ever.
pub(crate) fn certify_user(key: &PrivateKey, authority: &PrivateKey, principal: &str) -> String {
    let certificate = certify(key, authority, |draft| {
        draft.kind = CertType::User;
        draft.principals = vec![principal.into()];
        draft.valid = 0..u64::MAX;
    });
    certificate.to_openssh().unwrap()
}

/// Whether a test that needs `program` has to be skipped. Panics where the environment demands the program.
pub(crate) fn missing(program: &str) -> bool {
    let found = Command::new(program).arg("-?").stdin(Stdio::null()).output().is_ok();
    if !found {
        assert!(std::env::var_os("DIALBACK_REQUIRE_PEERS").is_none_or(|v| v != "1"), "`{program}` is not installed");
        eprintln!("skipped: `{program}` is not installed");
    }
    !found
}

/// Runs a stock program to its end and returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
