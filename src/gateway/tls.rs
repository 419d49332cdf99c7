//! TLS at the gateway, and the names in its clients' certificates.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as cryptography;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring as cryptography;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::follow::follow;

/// The files of a gateway's TLS.
#[derive(Debug, Clone)]
pub(super) struct TlsFiles {
    pub(super) certificates: PathBuf,
    pub(super) key: PathBuf,
    /// Authorities of client certificates.
    pub(super) client_ca: Option<PathBuf>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{} has no {wanted} in PEM form that can be used", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Client certificates are asked for, and TLS is not.
    #[error("client certificates need TLS: call `tls(certificates, key)`, too")]
    NoTls,
}

/// TLS as it is in force; the files are read again when they change.
#[derive(Debug, Clone)]
pub(super) struct Tls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files. Blocks on the file system.
    pub(super) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let config = RwLock::new(Arc::new(read(&files)?));
        Ok(Self(Arc::new(Shared { files, config })))
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again when they change, for as long as it is polled.
    pub(super) async fn follow(self) {
        let TlsFiles { certificates, key, client_ca } = self.0.files.clone();
        let paths = [certificates, key].into_iter().chain(client_ca).collect();
        follow(paths, move || self.read_again()).await;
    }

    fn read_again(&self) {
        match read(&self.0.files) {
            Ok(config) => {
                *self.0.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                tracing::info!(file = %self.0.files.certificates.display(), "certificates read");
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(tracing::field::display);
                tracing::error!(%error, cause, "the certificates before stay in force");
            }
        }
    }
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(cryptography::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(failed(&files.certificates, "certificate"))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(failed(path, "certificate of an authority"))?;
            }
            // Who shows none may still have a token.
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
            builder.with_client_cert_verifier(verifier.build().map_err(failed(path, "certificate of an authority"))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(failed(&files.key, "private key"))?;
    let chain = certificates(&files.certificates)?;
    let mut config =
        builder.with_single_cert(chain, key).map_err(failed(&files.certificates, "certificate of the key"))?;
    // Who asks for HTTP/1.1 is told by it that it is not spoken here.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(failed(path, "certificate"))?;
    let all: Vec<_> = read.collect::<Result<_, _>>().map_err(failed(path, "certificate"))?;
    if all.is_empty() {
        return Err(failed(path, "certificate")(io::Error::new(io::ErrorKind::InvalidData, "there is none")));
    }
    Ok(all)
}

fn failed<'a, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    path: &'a Path,
    wanted: &'static str,
) -> impl FnOnce(E) -> TlsError + use<'a, E> {
    move |source| TlsError::File { path: path.into(), wanted, source: source.into() }
}

/// The DNS names and URIs in a client's certificate, which was verified.
pub(super) fn names_in(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    // A DNS name that looks like a URI must not pass for one.
    let dns = certificate.valid_dns_names().filter(|name| !name.contains(':'));
    let uris = certificate.valid_uri_names().filter(|uri| uri.contains(':'));
    dns.chain(uris).map(str::to_owned).collect()
}
