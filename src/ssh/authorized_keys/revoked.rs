//! The list of revoked keys.

use std::collections::HashSet;
use std::path::Path;

use russh::keys::ssh_key::HashAlg;
use russh::keys::ssh_key::public::KeyData;

use crate::ssh::authorized_keys::file;
use crate::ssh::authorized_keys::line::{self, LineFault};
use crate::ssh::authorizer::{Credential, Denied};

/// Keys that nobody may use any more, one per line, as in the text form of sshd's `RevokedKeys`.
#[derive(Debug, Default)]
pub(super) struct RevokedKeys(HashSet<KeyData>);

/// How a binary list made by `ssh-keygen -k` starts.
const BINARY_MAGIC: &[u8] = b"SSHKRL\n\0";

/// A list that cannot be used. One line that is not understood spoils it all: it might be the key that was stolen.
#[derive(Debug)]
pub(super) enum BadRevokedKeys {
    Binary,
    Line(usize, LineFault),
}

impl RevokedKeys {
    pub(super) fn parse(text: &[u8]) -> Result<Self, BadRevokedKeys> {
        if text.starts_with(BINARY_MAGIC) {
            return Err(BadRevokedKeys::Binary);
        }
        let mut keys = HashSet::new();
        for (number, text) in file::lines(text) {
            match text.and_then(|text| line::parse_bare(&text)) {
                Ok(key) => keys.extend(key),
                Err(fault) => return Err(BadRevokedKeys::Line(number, fault)),
            }
        }
        Ok(Self(keys))
    }

    /// Refuses a key on the list, and a certificate whose own key or whose CA is; `path` is for messages.
    pub(super) fn check(&self, credential: &Credential, path: &Path) -> Result<(), Denied> {
        let (keys, what) = match credential {
            Credential::Key(key) => (vec![key.key_data()], "the key".to_owned()),
            Credential::Certificate(certificate) => {
                (vec![certificate.0.public_key(), certificate.0.signature_key()], certificate.to_string())
            }
        };
        match keys.into_iter().find(|key| self.0.contains(key)) {
            None => Ok(()),
            Some(key) => {
                let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
                Err(Denied::Revoked { what, fingerprint, file: path.into() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::authorized_keys::testing::{certificate, key, key_claim};

    #[test]
    fn keys_and_everything_signed_by_them_are_refused() {
        let (stolen, other) = (key(), key());
        let list = format!("# stolen in May\n{}\r\n\n", stolen.openssh());
        let list = RevokedKeys::parse(list.as_bytes()).expect("a list");
        let check = |credential: &Credential| list.check(credential, Path::new("revoked"));
        let cert = |subject, authority| Credential::Certificate(certificate(subject, authority, |_| {}));
        assert!(check(&key_claim("a", &stolen).credential).is_err());
        assert!(check(&key_claim("a", &other).credential).is_ok());
        assert!(check(&cert(&stolen, &other)).is_err());
        assert!(check(&cert(&other, &stolen)).is_err());
        assert!(check(&cert(&other, &key())).is_ok());
    }

    #[test]
    fn a_list_is_understood_completely_or_not_at_all() {
        let good = key().openssh();
        let text = format!("{good}\nserial: 5\n");
        assert!(matches!(RevokedKeys::parse(text.as_bytes()), Err(BadRevokedKeys::Line(2, _))));
        assert!(matches!(RevokedKeys::parse(b"SSHKRL\n\0\0\0\0\x01"), Err(BadRevokedKeys::Binary)));
        assert!(RevokedKeys::parse(b"").is_ok());
    }
}
