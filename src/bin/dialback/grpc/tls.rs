//! TLS as a client of servers: whom it trusts, and what it shows of itself.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as cryptography;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring as cryptography;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::args::ServerArgs;
use crate::failure::Failure;
use crate::file;

/// The largest file with certificates, in bytes: all authorities that a system trusts take a quarter of a MiB.
const CERTIFICATES: u64 = 16 << 20;

/// What the arguments ask for.
pub(super) fn config(server: &ServerArgs) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(cryptography::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Failure::because("TLS cannot be set up", &error))?;
    let builder = if server.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anything(provider)))
    } else {
        builder.with_root_certificates(roots(server.cacert.as_deref())?)
    };
    let mut config = match (&server.cert, &server.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            builder
                .with_client_auth_cert(chain, private_key(key)?)
                .map_err(|error| Failure::because(format!("{} is no certificate of the key", cert.display()), &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Whether a client can show these certificates with this key.
///
/// # Errors
/// When a file cannot be used, or the two do not belong together.
pub(crate) fn check_pair(cert: &Path, key: &Path) -> Result<(), Failure> {
    let provider = Arc::new(cryptography::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Failure::because("TLS cannot be set up", &error))?;
    let builder = builder.with_root_certificates(RootCertStore::empty());
    let shown = builder.with_client_auth_cert(certificates(cert)?, private_key(key)?);
    shown
        .map(drop)
        .map_err(|error| Failure::because(format!("{} is no certificate of the key", cert.display()), &error))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    PrivateKeyDer::from_pem_slice(&file::read(path, file::SECRET)?)
        .map_err(|error| Failure::because(format!("{} has no private key in PEM form", path.display()), &error))
}

/// What an agent goes by when it dials a hub: the system's authorities, and those in a file of its own.
///
/// # Errors
/// When the file cannot be used.
pub(crate) fn hub(own: Option<&Path>) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(cryptography::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Failure::because("TLS cannot be set up", &error))?;
    let mut all = roots(None)?;
    if let Some(own) = own {
        all.roots.extend(roots(Some(own))?.roots);
    }
    let mut config = builder.with_root_certificates(all).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// TLS that takes any certificate, to find out whether a server speaks it. Nothing is sent over it.
pub(super) fn probe() -> Option<ClientConfig> {
    let provider = Arc::new(cryptography::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().ok()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anything(provider)));
    Some(builder.with_no_client_auth())
}

fn roots(own: Option<&Path>) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    match own {
        Some(path) => {
            for authority in certificates(path)? {
                roots.add(authority).map_err(|error| {
                    Failure::because(format!("{} is no authority's certificate", path.display()), &error)
                })?;
            }
        }
        None => {
            // Some of a system's may not be of use; what is missing then is missed when a certificate is checked.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

/// # Errors
/// When there is none in the file.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let pem = file::read(path, CERTIFICATES)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(Failure::new(format!("{} has no certificate in PEM form", path.display()))),
        Err(error) => Err(Failure::because(format!("{} has no certificate in PEM form", path.display()), &error)),
    }
}

/// What is wrong with a handshake, where rustls has no words for people.
pub(super) fn words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(certificate) if is_authority(certificate) => {
            "the server shows an authority's certificate as its own".into()
        }
        rustls::Error::InvalidCertificate(CertificateError::UnsupportedSignatureAlgorithmContext { .. }) => {
            "its certificate is signed in a way that is not taken here".into()
        }
        // The key is another kind than the signature: two authorities have the same name.
        rustls::Error::InvalidCertificate(CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
            ..
        }) => "its certificate names an authority whose key has not signed it".into(),
        other => other.to_string(),
    }
}

fn is_authority(error: &CertificateError) -> bool {
    // rustls has no name for it, and passes on what its library for certificates says.
    matches!(error, CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity"))
}

/// What to do about a handshake that failed. None for what no argument mends.
pub(super) fn advice(error: &rustls::Error) -> Option<&'static str> {
    use rustls::AlertDescription as Alert;
    use rustls::Error;
    match error {
        Error::InvalidCertificate(certificate) if is_authority(certificate) => Some(
            "it has to be made anew as a server's, with OpenSSL by `-addext basicConstraints=critical,CA:FALSE`, or \
             signed by the authority",
        ),
        Error::InvalidCertificate(CertificateError::UnsupportedSignatureAlgorithmContext { .. }) => {
            Some("it has to be made anew, signed by a P-256, Ed25519 or RSA key with SHA-256")
        }
        Error::InvalidCertificate(CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }) => {
            Some("pass the certificate of the authority that has signed it with -cacert")
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("pass its authority's certificate with -cacert")
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("pass a name that it has with -authority"),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some("it has to be renewed by its owner, or this machine's clock is wrong")
        }
        Error::AlertReceived(Alert::CertificateRequired) => Some("pass a client certificate with -cert and -key"),
        Error::AlertReceived(Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown) => {
            Some("the server does not take this client's certificate: see -cert and -key")
        }
        Error::AlertReceived(Alert::NoApplicationProtocol) => Some("the server speaks no HTTP/2 over TLS"),
        _ => None,
    }
}

/// Takes any certificate; whoever shows it must still have its key.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The name that a certificate is checked for: an authority without its port.
pub(super) fn server_name(authority: &str) -> Result<ServerName<'static>, Failure> {
    let host = authority.parse::<http::uri::Authority>().map_or(authority.to_owned(), |a| a.host().to_owned());
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host).map_err(|_: rustls::pki_types::InvalidDnsNameError| {
        Failure::usage(format!("{authority} is no name that a certificate can have: pass one with -authority"))
    })
}
