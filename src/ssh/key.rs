//! Private keys: made, loaded, kept.

mod error;
pub(crate) mod file;
mod public;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::ssh_key::{self, Algorithm, Certificate, HashAlg, LineEnding};

pub use error::KeyError;
use file::{MAX_KEY_FILE, Readers};
use public::decode_certificate;
pub use public::{InvalidPublicKey, PublicKey};
pub(crate) use public::{decode_base64, decode_key, name_inside};

/// A private key, optionally with an OpenSSH certificate for it: a hub's host key, or an agent's own.
///
/// Ed25519 and ECDSA keys are supported, RSA keys with the `rsa` feature. Cloning is cheap: clones share the key,
/// which is overwritten in memory when the last of them is dropped. `Debug` shows the fingerprint, never the key.
#[derive(Clone)]
pub struct PrivateKey {
    key: Arc<ssh_key::PrivateKey>,
    certificate: Option<Arc<Certificate>>,
}

impl PrivateKey {
    /// Makes a new Ed25519 key, from a cryptographic generator that the operating system seeds.
    pub fn generate() -> Self {
        let pair = ssh_key::private::Ed25519Keypair::random(&mut russh::keys::key::safe_rng());
        let mut key = ssh_key::PrivateKey::from(pair);
        key.set_comment("dialback");
        Self { key: Arc::new(key), certificate: None }
    }

    /// Loads a key file in OpenSSH's format, as `ssh-keygen` writes it. Nothing beside it is read: give a certificate
    /// with [`with_certificate_file`](Self::with_certificate_file).
    ///
    /// # Errors
    /// Refuses a file that is unreadable, no regular file, larger than 64 KiB, readable or writable by others than
    /// its owner (Unix), encrypted, malformed, or of an unsupported type: see [`KeyError`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        Self::from_file_with_passphrase(path, |_| None)
    }

    /// Loads a key file that may be encrypted. `passphrase` is called with the path, only if the file is; if it
    /// returns `None` the result is [`KeyError::Encrypted`].
    ///
    /// An encrypted key is slow to open by design (a tenth of a second and more): on an async runtime, do it before
    /// serving, or in `spawn_blocking`.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file); [`KeyError::WrongPassphrase`] if the passphrase does not open it.
    pub fn from_file_with_passphrase(
        path: impl AsRef<Path>,
        passphrase: impl FnOnce(&Path) -> Option<String>,
    ) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let key = Self::read(path)?;
        if !key.is_encrypted() {
            return Self::new(key, Some(path));
        }
        let passphrase = passphrase(path).ok_or_else(|| KeyError::Encrypted { path: Some(path.to_owned()) })?;
        match key.decrypt(passphrase) {
            Ok(key) => Self::new(key, Some(path)),
            Err(ssh_key::Error::Crypto) => Err(KeyError::WrongPassphrase { path: path.to_owned() }),
            Err(error) => Err(KeyError::malformed(Some(path), error.to_string())),
        }
    }

    /// The public half of the key in a file in OpenSSH's format, which needs no passphrase.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file), but for [`KeyError::Encrypted`].
    pub fn public_key_in(path: impl AsRef<Path>) -> Result<PublicKey, KeyError> {
        let key = Self::read(path.as_ref())?;
        Ok(PublicKey::new(key.public_key().key_data().clone(), key.comment().as_str_lossy()))
    }

    /// Reads a key of a supported type, encrypted or not.
    fn read(path: &Path) -> Result<ssh_key::PrivateKey, KeyError> {
        let mut file = file::open_private(path)?;
        let key = match ssh_key::PrivateKey::read_openssh(&mut (&mut file).take(MAX_KEY_FILE)) {
            Ok(key) => key,
            Err(ssh_key::Error::Io(kind)) if kind != io::ErrorKind::InvalidData => {
                return Err(KeyError::Unreadable { path: path.to_owned(), source: kind.into() });
            }
            Err(error) => return Err(KeyError::malformed(Some(path), not_openssh(first_line(&mut file), &error))),
        };
        supported(&key, Some(path))?;
        Ok(key)
    }

    /// Reads a key from text in OpenSSH's format, for keys that are not kept in files. It must not be encrypted.
    ///
    /// # Errors
    /// [`KeyError::Malformed`], [`KeyError::Encrypted`] or [`KeyError::UnsupportedAlgorithm`].
    pub fn from_openssh(text: &str) -> Result<Self, KeyError> {
        match ssh_key::PrivateKey::from_openssh(text) {
            Ok(key) => Self::new(key, None),
            Err(error) => Err(KeyError::malformed(None, not_openssh(text.lines().next().unwrap_or(""), &error))),
        }
    }

    /// Loads the key at `path`, or, where there is no file, makes one there: an Ed25519 key for the owner only (mode
    /// 0600), with its public half beside it in `PATH.pub`. Processes that do this at once end up with the same key.
    ///
    /// Meant for demonstrations and first runs. The directory has to exist.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file) and [`write_to`](Self::write_to).
    pub fn load_or_generate(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        match Self::from_file(path) {
            Err(KeyError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let key = Self::generate();
        match key.write_to(path) {
            Ok(()) => {}
            Err(KeyError::Exists { .. }) => return Self::from_file(path), // another process was first
            Err(error) => return Err(error),
        }
        // A `.pub` that is there already belongs to a private key that is gone.
        let mut public = path.as_os_str().to_owned();
        public.push(".pub");
        let public = PathBuf::from(public);
        let line = format!("{}\n", key.public_key());
        file::replace(&public, line.as_bytes(), Readers::Everyone)
            .map_err(|source| KeyError::Unwritable { path: public, source })?;
        Ok(key)
    }

    /// Writes the key, unencrypted, to a new file that only its owner may read (mode 0600). The file appears whole or
    /// not at all. A certificate is not written.
    ///
    /// # Errors
    /// [`KeyError::Exists`] if there is a file already, [`KeyError::Unwritable`] if it cannot be made.
    pub fn write_to(&self, path: impl AsRef<Path>) -> Result<(), KeyError> {
        let path = path.as_ref();
        let text = self.key.to_openssh(LineEnding::LF).map_err(|e| KeyError::malformed(None, e.to_string()))?;
        file::write_new(path, text.as_bytes(), Readers::Owner).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.to_owned() },
            _ => KeyError::Unwritable { path: path.to_owned(), source },
        })
    }

    /// Adds a certificate for this key, from the text of a `-cert.pub` file. An agent shows it to the hub before it
    /// tries the bare key; a hub shows it to agents that trust its authority.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] if it is no certificate, [`KeyError::CertificateMismatch`] if it is for another key.
    pub fn with_certificate(self, text: &str) -> Result<Self, KeyError> {
        self.certified(text, None)
    }

    /// Adds a certificate for this key, from a `-cert.pub` file of at most 64 KiB.
    ///
    /// # Errors
    /// As [`with_certificate`](Self::with_certificate); [`KeyError::Unreadable`] if the file cannot be read.
    pub fn with_certificate_file(self, path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let mut text = String::new();
        file::open_regular(path, MAX_KEY_FILE)
            .and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut text))
            .map_err(|source| KeyError::Unreadable { path: path.to_owned(), source })?;
        self.certified(&text, Some(path))
    }

    /// The public half, to put in a hub's `authorized_keys` or an agent's `known_hosts`.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::new(self.key.public_key().key_data().clone(), self.key.comment().as_str_lossy())
    }

    /// Takes an unencrypted key of a supported type.
    pub(crate) fn new(key: ssh_key::PrivateKey, path: Option<&Path>) -> Result<Self, KeyError> {
        supported(&key, path)?;
        if key.is_encrypted() {
            return Err(KeyError::Encrypted { path: path.map(Path::to_owned) });
        }
        Ok(Self { key: Arc::new(key), certificate: None })
    }

    pub(crate) fn inner(&self) -> &Arc<ssh_key::PrivateKey> {
        &self.key
    }

    pub(crate) fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.certificate.as_ref()
    }

    fn certified(mut self, text: &str, path: Option<&Path>) -> Result<Self, KeyError> {
        let certificate = decode_certificate(text).map_err(|what| KeyError::malformed(path, what))?;
        if certificate.public_key() != self.key.public_key().key_data() {
            return Err(KeyError::CertificateMismatch {
                path: path.map(Path::to_owned),
                certified: certificate.public_key().fingerprint(HashAlg::Sha256).to_string(),
                key: self.public_key().fingerprint(),
            });
        }
        self.certificate = Some(Arc::new(certificate));
        Ok(self)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public_key().summary())
    }
}

fn supported(key: &ssh_key::PrivateKey, path: Option<&Path>) -> Result<(), KeyError> {
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(()),
        Algorithm::Rsa { .. } if cfg!(feature = "rsa") => Ok(()),
        other => Err(KeyError::UnsupportedAlgorithm { path: path.map(Path::to_owned), algorithm: other.to_string() }),
    }
}

/// What to tell somebody whose file does not start like an OpenSSH private key.
fn not_openssh(first_line: impl AsRef<str>, error: &ssh_key::Error) -> String {
    let first_line = first_line.as_ref().trim();
    if first_line.starts_with("-----BEGIN OPENSSH PRIVATE KEY") {
        format!("the key is damaged: {error}")
    } else if first_line.starts_with("-----BEGIN") && first_line.contains("PRIVATE KEY") {
        "it is a private key in another format: `ssh-keygen -p -f FILE` rewrites it in OpenSSH's".into()
    } else if first_line.parse::<PublicKey>().is_ok() {
        "it is a public key; the private key is in the file without `.pub`".into()
    } else {
        "it does not start with `-----BEGIN OPENSSH PRIVATE KEY-----`".into()
    }
}

/// The first line of a file that was just read; empty if it cannot be had.
fn first_line(file: &mut File) -> String {
    let mut line = Vec::new();
    let read = file.rewind().and_then(|()| BufReader::new(file.take(MAX_KEY_FILE)).read_until(b'\n', &mut line));
    match read {
        Ok(_) => String::from_utf8_lossy(&line).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests;
