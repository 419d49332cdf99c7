//! The list of what is revoked.

use std::collections::HashSet;
use std::path::Path;

use russh::keys::ssh_key::HashAlg;
use russh::keys::ssh_key::public::KeyData;

use crate::ssh::authorized_keys::certificate::Certificate;
use crate::ssh::authorized_keys::file;
use crate::ssh::authorized_keys::krl::{self, Krl, KrlFault};
use crate::ssh::authorized_keys::line::{self, LineFault};
use crate::ssh::authorizer::{Credential, Denied, Revocation};

/// Keys and certificates that nobody may use any more: either form of sshd's `RevokedKeys`.
#[derive(Debug)]
pub(super) enum RevokedKeys {
    /// Keys, one per line.
    Text(HashSet<KeyData>),
    /// What `ssh-keygen -k` writes.
    Binary(Krl),
}

/// A list that cannot be used. Anything that is not understood spoils it all: it might be the key that was stolen.
#[derive(Debug)]
pub(super) enum BadRevokedKeys {
    Line(usize, LineFault),
    Binary(KrlFault),
}

impl RevokedKeys {
    pub(super) fn parse(file: &[u8]) -> Result<Self, BadRevokedKeys> {
        if file.starts_with(krl::MAGIC) {
            return Krl::parse(file).map(Self::Binary).map_err(BadRevokedKeys::Binary);
        }
        let mut keys = HashSet::new();
        for (number, text) in file::lines(file) {
            match text.and_then(|text| line::parse_bare(&text)) {
                Ok(key) => keys.extend(key),
                Err(fault) => return Err(BadRevokedKeys::Line(number, fault)),
            }
        }
        Ok(Self::Text(keys))
    }

    /// Refuses a key on the list, and a certificate that is on it, or whose own key is, or whose CA's; `path` is for
    /// messages.
    pub(super) fn check(&self, credential: &Credential, path: &Path) -> Result<(), Denied> {
        let revoked = match credential {
            Credential::Key(key) => self.key(key.key_data()).map(|by| ("the key".to_owned(), by)),
            Credential::Certificate(certificate) => {
                let its_key =
                    || self.key(certificate.0.public_key()).map(|by| (format!("the key of {certificate}"), by));
                let itself = || self.certificate(certificate).map(|by| (certificate.to_string(), by));
                let its_ca =
                    || self.key(certificate.0.signature_key()).map(|by| (format!("the CA of {certificate}"), by));
                its_key().or_else(itself).or_else(its_ca)
            }
            Credential::Metadata(_) => None,
        };
        match revoked {
            None => Ok(()),
            Some((what, by)) => Err(Denied::Revoked { what, by, file: path.into() }),
        }
    }

    fn key(&self, key: &KeyData) -> Option<Revocation> {
        match self {
            Self::Text(keys) => keys
                .contains(key)
                .then(|| Revocation::Key { fingerprint: key.fingerprint(HashAlg::Sha256).to_string() }),
            Self::Binary(list) => list.key(key),
        }
    }

    fn certificate(&self, certificate: &Certificate) -> Option<Revocation> {
        match self {
            Self::Text(_) => None,
            Self::Binary(list) => list.certificate(certificate),
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
        let cut = RevokedKeys::parse(b"SSHKRL\n\0\0\0\0\x01");
        assert!(matches!(cut, Err(BadRevokedKeys::Binary(KrlFault { at: 12, .. }))), "{cut:?}");
        assert!(matches!(RevokedKeys::parse(b"SSHKRL\n"), Err(BadRevokedKeys::Line(1, _))));
        assert!(RevokedKeys::parse(b"").is_ok());
    }
}
