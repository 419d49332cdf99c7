//! TLS: of those who listen, from files that are followed; and of agents that dial.

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

use crate::follow::follow;

/// What TLS is made from, where one listens.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) certificates: PathBuf,
    pub(crate) key: PathBuf,
    /// Authorities of client certificates.
    pub(crate) client_ca: Option<PathBuf>,
    /// What is spoken above it.
    pub(crate) protocols: &'static [&'static str],
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

/// TLS as it is in force, where one listens; the files are read again when they change.
#[derive(Debug, Clone)]
pub(crate) struct Tls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files. Blocks on the file system.
    pub(crate) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let config = RwLock::new(Arc::new(read(&files)?));
        Ok(Self(Arc::new(Shared { files, config })))
    }

    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again when they change, for as long as it is polled.
    pub(crate) async fn follow(self) {
        let TlsFiles { certificates, key, client_ca, .. } = self.0.files.clone();
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
    config.alpn_protocols = files.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
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

/// What an agent goes by when it dials a server that speaks `protocol`: the system's authorities, and those in a file of
/// its own.
///
/// # Errors
/// When the file cannot be read. Blocks on the file system.
#[cfg(feature = "websocket")]
pub(crate) fn client(own: Option<&Path>, protocol: &str) -> Result<rustls::ClientConfig, TlsError> {
    client_as(own, None, protocol)
}

/// The same, which shows a certificate to servers that ask for one: of two files, the certificates and their key.
pub(crate) fn client_as(
    own: Option<&Path>,
    identity: Option<(&Path, &Path)>,
    protocol: &str,
) -> Result<rustls::ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    // Some of a system's may not be of use; what is missing then is missed when a certificate is checked.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = own {
        for authority in certificates(path)? {
            roots.add(authority).map_err(failed(path, "certificate of an authority"))?;
        }
    }
    let provider = Arc::new(cryptography::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let at = own.unwrap_or(Path::new("TLS"));
    let builder = builder.map_err(failed(at, "certificate"))?.with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(failed(key, "private key"))?;
            let shown = builder.with_client_auth_cert(certificates(chain)?, secret);
            shown.map_err(failed(chain, "certificate of the key"))?
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(config)
}
