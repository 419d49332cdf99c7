//! Whether a host certificate of a trusted authority holds for a host and a time.

use std::time::Duration;

use russh::keys::ssh_key::{Algorithm, Certificate, HashAlg};

use super::super::host_keys::CertificateProblem;
use super::{glob, short};

/// Checks all that makes a host certificate good (OpenSSH's PROTOCOL.certkeys), except whether its authority is
/// trusted: that is the caller's part. `host` is in lower case, `now` in seconds since 1970.
pub(super) fn check(certificate: &Certificate, host: &str, now: u64) -> Result<(), CertificateProblem> {
    if !certificate.cert_type().is_host() {
        return Err(CertificateProblem::NotForHosts);
    }
    if let Some(wait @ 1..) = certificate.valid_after().checked_sub(now) {
        return Err(CertificateProblem::NotYetValid { wait: Duration::from_secs(wait) });
    }
    if let Some(ago) = now.checked_sub(certificate.valid_before()) {
        return Err(CertificateProblem::Expired { ago: Duration::from_secs(ago) });
    }
    // SHA-1 signatures can be forged for two contents at once, so that one says little about the content.
    let sha1 = matches!(certificate.signature().algorithm(), Algorithm::Rsa { hash: None });
    let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
    if sha1 || certificate.validate_at(now, [&authority]).is_err() {
        return Err(CertificateProblem::BadSignature);
    }
    let principals = certificate.valid_principals();
    if principals.is_empty() {
        return Err(CertificateProblem::NoPrincipals);
    }
    // As for OpenSSH, the names in a host certificate may be patterns.
    if !principals.iter().any(|name| glob(name.to_ascii_lowercase().as_bytes(), host.as_bytes())) {
        let principals = principals.iter().take(8).map(|name| short(name)).collect();
        return Err(CertificateProblem::OtherHosts { principals });
    }
    // None is defined for hosts; "critical" means that who does not know one has to refuse.
    match certificate.critical_options().keys().next() {
        Some(name) => Err(CertificateProblem::CriticalOption { name: short(name) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::EcdsaCurve;
    use russh::keys::ssh_key::certificate::CertType;

    use super::*;
    use crate::ssh::key::PrivateKey;
    use crate::ssh::key::testing::{Draft, NOW, certify, random};

    fn judge(change: impl FnOnce(&mut Draft)) -> Result<(), CertificateProblem> {
        let (key, authority) = (PrivateKey::generate(), PrivateKey::generate());
        check(&certify(&key, &authority, change), "hub.example.com", NOW)
    }

    #[test]
    fn good_certificate_is_accepted_whatever_the_authority_signs_with() {
        assert_eq!(judge(|_| {}), Ok(()));
        assert_eq!(judge(|d| d.principals = vec!["other".into(), "*.EXAMPLE.com".into()]), Ok(()));
        assert_eq!(judge(|d| d.valid = NOW..NOW + 1), Ok(()));
        let authority = random(Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 });
        let certificate = certify(&PrivateKey::generate(), &authority, |_| {});
        assert_eq!(check(&certificate, "hub.example.com", NOW), Ok(()));
    }

    #[test]
    fn each_fault_is_refused_by_name() {
        use CertificateProblem as P;
        let seconds = Duration::from_secs;
        assert_eq!(judge(|d| d.kind = CertType::User), Err(P::NotForHosts));
        assert_eq!(judge(|d| d.valid = NOW + 5..NOW + 9), Err(P::NotYetValid { wait: seconds(5) }));
        assert_eq!(judge(|d| d.valid = 0..NOW), Err(P::Expired { ago: seconds(0) }));
        assert_eq!(judge(|d| d.valid = 0..NOW - 7), Err(P::Expired { ago: seconds(7) }));
        assert_eq!(judge(|d| d.principals.clear()), Err(P::NoPrincipals));
        let others = vec!["hub.example.com.evil.org".to_owned(), "example.com".into()];
        assert_eq!(judge(|d| d.principals.clone_from(&others)), Err(P::OtherHosts { principals: others.clone() }));
        assert_eq!(judge(|d| d.critical = vec!["mood"]), Err(P::CriticalOption { name: "mood".into() }));
    }

    #[test]
    fn signature_covers_every_byte() {
        let certificate = certify(&PrivateKey::generate(), &PrivateKey::generate(), |_| {});
        let bytes = certificate.to_bytes().unwrap();
        let mut changed = 0;
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let Ok(forged) = Certificate::from_bytes(&bytes) else { continue };
            changed += 1;
            assert!(check(&forged, "hub.example.com", NOW).is_err(), "byte {at} can be changed");
        }
        assert!(changed > 100, "{changed} changes were tried");
    }
}
