//! Keys, certificates and claims for the tests of this module and its neighbours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use russh::keys::ssh_key::certificate::Builder;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::ssh_key::{Algorithm, PrivateKey};

use crate::ssh::authorized_keys::certificate::Certificate;
use crate::ssh::authorizer::{Claim, Credential};
use crate::ssh::key::PublicKey;

/// The middle of the time in which certificates made here are valid, in seconds since 1970.
pub(crate) const NOON: u64 = 1_800_000_000;

/// [`NOON`] as the clock would show it.
pub(crate) fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOON)
}

/// A fresh key pair.
pub(crate) struct Key {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
}

pub(crate) fn key() -> Key {
    let private = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("a key");
    let public = PublicKey::new(private.public_key().key_data().clone(), "");
    Key { private, public }
}

impl Key {
    pub(crate) fn data(&self) -> KeyData {
        self.public.key_data().clone()
    }

    /// The line of its .pub file.
    pub(crate) fn openssh(&self) -> String {
        self.public.to_openssh()
    }
}

/// A user certificate for `laptop-1`, valid an hour around [`NOON`]; `change` may add to it.
pub(crate) fn certificate(subject: &Key, authority: &Key, change: impl FnOnce(&mut Builder)) -> Certificate {
    certificate_between(subject, authority, NOON - 1_800, NOON + 1_800, |builder| {
        builder.valid_principal("laptop-1").expect("a principal");
        change(builder);
    })
}

/// A user certificate without principals, valid in the given seconds since 1970.
pub(crate) fn certificate_between(
    subject: &Key,
    authority: &Key,
    after: u64,
    before: u64,
    change: impl FnOnce(&mut Builder),
) -> Certificate {
    let mut builder = Builder::new_with_random_nonce(&mut rand::rng(), subject.data(), after, before).expect("valid");
    change(&mut builder);
    builder.sign(&authority.private).expect("signed").into()
}

/// A claim made with a plain key, from 192.0.2.7.
pub(crate) fn key_claim(id: &str, key: &Key) -> Claim {
    claim(id, Credential::Key(key.public.clone()))
}

/// A claim from 192.0.2.7.
pub(crate) fn claim(id: &str, credential: Credential) -> Claim {
    Claim::new(id.parse().expect("an id"), credential, Some("192.0.2.7:4022".parse().expect("an address")))
}
