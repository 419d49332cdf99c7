//! What can be wrong with a key and where it is kept.

use std::io;
use std::path::{Path, PathBuf};

/// Why a key cannot be loaded, written or used.
///
/// Every message says what to do. `path` is `None` where the key was given as text. None of these is worth a retry:
/// the file or the call has to change first.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Others than the owner may read or write the file (Unix only). OpenSSH refuses such a key too.
    #[error("`{path}` is a private key that others may read or write (mode {mode:04o}): run `chmod 600 {path}`", path = .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is encrypted, and no passphrase was given.
    #[error("{} is encrypted: give its passphrase through `PrivateKey::from_file_with_passphrase`, or add it to an ssh-agent", shown(.path))]
    Encrypted {
        /// The file.
        path: Option<PathBuf>,
    },
    /// The passphrase does not open the key.
    #[error("the passphrase does not open `{}`", .path.display())]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// The file or text is not what it should be.
    #[error("{} cannot be used: {what}", shown(.path))]
    Malformed {
        /// The file.
        path: Option<PathBuf>,
        /// What is wrong with it.
        what: String,
    },
    /// The key is of a kind that this build does not sign with.
    #[error("{} is a key of type `{algorithm}`, {}", shown(.path), instead_of(.algorithm))]
    UnsupportedAlgorithm {
        /// The file.
        path: Option<PathBuf>,
        /// The kind of key, such as `ssh-rsa`.
        algorithm: String,
    },
    /// The certificate is for another key than the one it was given to.
    #[error("{} certifies the key {certified}, not {key}: give each key its own certificate", shown(.path))]
    CertificateMismatch {
        /// The certificate's file.
        path: Option<PathBuf>,
        /// The fingerprint of the key in the certificate.
        certified: String,
        /// The fingerprint of the key it was given to.
        key: String,
    },
    /// The file cannot be opened or read.
    #[error("cannot read `{}`", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write `{}`", .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is a file already, and a private key is never overwritten.
    #[error("`{}` exists, and private keys are never overwritten: move it away, or choose another path", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// No ssh-agent is named in the environment.
    #[error(
        "SSH_AUTH_SOCK is not set, so there is no ssh-agent to ask: start one (`eval \"$(ssh-agent)\"`), or load a key file"
    )]
    NoSshAgent,
}

fn shown(path: &Option<PathBuf>) -> String {
    match path {
        Some(path) => format!("`{}`", path.display()),
        None => "the given text".into(),
    }
}

fn instead_of(algorithm: &str) -> &'static str {
    match algorithm {
        "ssh-rsa" => "which needs dialback's `rsa` feature: build with it, or make a key with `ssh-keygen -t ed25519`",
        a if a.starts_with("sk-") => {
            "which lives in a security token: add it to an ssh-agent and use `Identity::ssh_agent`"
        }
        _ => "which is not supported: make one with `ssh-keygen -t ed25519`",
    }
}

impl KeyError {
    pub(super) fn malformed(path: Option<&Path>, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.map(Path::to_owned), what: what.into() }
    }
}
