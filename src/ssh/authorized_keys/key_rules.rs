//! Which types and sizes of key may stand for an agent or a CA.

use russh::keys::ssh_key::public::KeyData;

/// The shortest RSA modulus accepted, in bits.
const MIN_RSA_BITS: usize = 2048;

/// A key that is never accepted, whoever lists it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyFault {
    #[error("DSA keys are broken: make an Ed25519 key")]
    Dsa,
    #[error("RSA keys need the crate's `rsa` feature: better make an Ed25519 key")]
    RsaWithoutFeature,
    #[error("an RSA key of {0} bits is too short: use 2048 or more, or better an Ed25519 key")]
    ShortRsa(usize),
    /// russh verifies the signature of a security key but not the flag that says it was touched, which is the point of
    /// such a key; and an agent that reconnects at night has nobody to touch it.
    #[error("security keys (sk-…) need a touch that is not verified here: make an Ed25519 key")]
    SecurityKey,
    #[error("this is a certificate: list its CA's public key as `cert-authority` instead")]
    Certificate,
    #[error("keys of this type are not supported: make an Ed25519 key")]
    Unsupported,
}

/// Accepts Ed25519, ECDSA on the three NIST curves, and RSA from 2048 bits where the `rsa` feature is on.
pub(crate) fn check(key: &KeyData) -> Result<(), KeyFault> {
    match key {
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) => Ok(()),
        KeyData::Rsa(_) if !cfg!(feature = "rsa") => Err(KeyFault::RsaWithoutFeature),
        KeyData::Rsa(rsa) => match bits(rsa.n().as_positive_bytes().unwrap_or_default()) {
            short if short < MIN_RSA_BITS => Err(KeyFault::ShortRsa(short)),
            _ => Ok(()),
        },
        KeyData::Dsa(_) => Err(KeyFault::Dsa),
        KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_) => Err(KeyFault::SecurityKey),
        KeyData::Certificate(_) => Err(KeyFault::Certificate),
        _ => Err(KeyFault::Unsupported),
    }
}

/// The number of bits of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    match number.get(zeros) {
        None => 0,
        Some(first) => (number.len() - zeros) * 8 - first.leading_zeros() as usize,
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::public::{Ed25519PublicKey, RsaPublicKey, SkEd25519};
    use russh::keys::ssh_key::{Algorithm, EcdsaCurve, Mpint, PrivateKey};

    use super::*;

    #[test]
    fn modern_keys_are_accepted() {
        let curves = [EcdsaCurve::NistP256, EcdsaCurve::NistP384, EcdsaCurve::NistP521];
        let types = curves.into_iter().map(|curve| Algorithm::Ecdsa { curve }).chain([Algorithm::Ed25519]);
        for algorithm in types {
            let key = PrivateKey::random(&mut rand::rng(), algorithm).expect("a key");
            assert_eq!(check(key.public_key().key_data()), Ok(()), "{}", key.algorithm());
        }
    }

    #[test]
    fn rsa_needs_the_feature_and_2048_bits() {
        let rsa = |top: u8, bytes: usize| {
            let mut modulus = vec![0xab; bytes];
            modulus[0] = top;
            let number = |bytes: &[u8]| Mpint::from_positive_bytes(bytes);
            check(&KeyData::Rsa(RsaPublicKey::new(number(&[1, 0, 1]), number(&modulus)).expect("a key")))
        };
        if cfg!(feature = "rsa") {
            assert_eq!(rsa(0x80, 256), Ok(()));
            assert_eq!(rsa(0x7f, 256), Err(KeyFault::ShortRsa(2047)));
            assert_eq!(rsa(0x80, 128), Err(KeyFault::ShortRsa(1024)));
        } else {
            assert_eq!(rsa(0x80, 256), Err(KeyFault::RsaWithoutFeature));
        }
    }

    #[test]
    fn security_keys_are_refused() {
        let key = SkEd25519::new(Ed25519PublicKey([7; 32]), "ssh:");
        assert_eq!(check(&KeyData::SkEd25519(key)), Err(KeyFault::SecurityKey));
    }
}
