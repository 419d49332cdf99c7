//! Who calls: bearer tokens and certificates, by a policy file that is read again when it changes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};

use super::policy::{CallerName, Policy, PolicyError};
use crate::follow::follow;

/// The largest policy, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// For callers whose agents want an `authorization` of their own.
const OWN_AUTHORIZATION: HeaderName = HeaderName::from_static("dialback-authorization");

/// A [`Policy`] in a file, which is read again when it changes.
///
/// A new version that has a fault is reported to `tracing`, and the one before stays in force; so it does when the file is
/// gone. Calls in flight are not cut off by a new version. Clones share what was read; dropping it closes nothing.
#[derive(Debug, Clone)]
pub struct PolicyFile(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    policy: RwLock<Arc<Policy>>,
}

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyFileError {
    /// The file cannot be read.
    #[error("cannot read the policy {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is larger than 1 MiB.
    #[error("the policy {} is larger than 1 MiB", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Others than its owner may write the file, and so give themselves what they like.
    #[error("the policy {} may be written by its group or by others: chmod go-w it", .path.display())]
    WritableByOthers {
        /// The file.
        path: PathBuf,
    },
    /// Its text is no policy.
    #[error("the policy {} is not in force", .path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: PolicyError,
    },
}

impl PolicyFile {
    /// Reads a policy. Blocks on the file system.
    ///
    /// # Errors
    /// When the file cannot be read, or its text is no policy.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, PolicyFileError> {
        let path = path.into();
        let policy = RwLock::new(Arc::new(read(&path)?));
        Ok(Self(Arc::new(Shared { path, policy })))
    }

    /// The policy in force.
    pub(super) fn current(&self) -> Arc<Policy> {
        self.0.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again whenever it changes, for as long as it is polled.
    pub(super) async fn follow(self) {
        let paths = vec![self.0.path.clone()];
        follow(paths, move || self.read_again()).await;
    }

    fn read_again(&self) {
        let Shared { path, policy } = &*self.0;
        match read(path) {
            Ok(new) => {
                *policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!(file = %path.display(), "policy read");
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(tracing::field::display);
                tracing::error!(%error, cause, "the policy before it stays in force");
            }
        }
    }
}

fn read(path: &Path) -> Result<Policy, PolicyFileError> {
    let failed = |source| PolicyFileError::Read { path: path.into(), source };
    let metadata = fs::metadata(path).map_err(failed)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if metadata.mode() & 0o022 != 0 {
            return Err(PolicyFileError::WritableByOthers { path: path.into() });
        }
    }
    if !metadata.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(PolicyFileError::TooLarge { path: path.into() });
    }
    Policy::parse(&text).map_err(|source| PolicyFileError::Policy { path: path.into(), source })
}

/// Why nobody can be made out as the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unauthenticated {
    #[error("say who you are: send metadata `authorization: Bearer <token>`, or use a client certificate")]
    Nobody,
    #[error("the token or certificate is not one that this gateway knows")]
    Unknown,
    #[error("the token and the certificate belong to different callers")]
    Contradiction,
}

/// Makes out the caller, and removes the token that proved it: it is not the agent's business. `names` are those in the
/// client's certificate, which was verified.
pub(super) fn authenticate(
    policy: &Policy,
    headers: &mut HeaderMap,
    names: &[String],
) -> Result<CallerName, Unauthenticated> {
    let by_certificate = policy.by_certificate(names.iter().map(String::as_str)).cloned();
    let header = [OWN_AUTHORIZATION, AUTHORIZATION].into_iter().find(|name| headers.contains_key(name));
    let mut by_token = None;
    if let Some(header) = &header {
        let mut values = headers.get_all(header).iter();
        // Of several, which one is meant?
        if let (Some(value), None) = (values.next(), values.next()) {
            by_token = bearer(value.as_bytes()).and_then(|token| policy.by_token(token)).cloned();
        }
        if by_token.is_some() {
            headers.remove(header);
        }
    }
    match (by_token, by_certificate) {
        (Some(token), Some(certificate)) if token != certificate => Err(Unauthenticated::Contradiction),
        (Some(caller), _) | (None, Some(caller)) => Ok(caller),
        (None, None) if header.is_none() && names.is_empty() => Err(Unauthenticated::Nobody),
        (None, None) => Err(Unauthenticated::Unknown),
    }
}

/// The token in `Bearer <token>` (RFC 6750 §2.1); the scheme's name may be in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
[[caller]]
name = "one"
token-sha256 = ["8709f63da40d6f8d53d3c1dd6b8ecc5e48d74174f64ddd3a9ad97e9fd3ae48b9"]
[[caller]]
name = "two"
certificate = ["two.example.com"]
"#;

    fn ask(headers: &[(&str, &str)], names: &[&str]) -> (Result<String, Unauthenticated>, Vec<String>) {
        use sha2::Digest;
        let hash: String = sha2::Sha256::digest(b"secret").iter().map(|byte| format!("{byte:02x}")).collect();
        let text = POLICY.replace("8709f63da40d6f8d53d3c1dd6b8ecc5e48d74174f64ddd3a9ad97e9fd3ae48b9", &hash);
        let policy = Policy::parse(&text).unwrap();
        let mut headers = headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let caller = authenticate(&policy, &mut headers, &names).map(|name| name.to_string());
        (caller, headers.keys().map(ToString::to_string).collect())
    }

    #[test]
    fn callers_are_made_out_and_their_token_goes_no_further() {
        let good = ("authorization", "Bearer secret");
        assert_eq!(ask(&[good], &[]), (Ok("one".into()), vec![]));
        assert_eq!(ask(&[("authorization", "bearer  secret")], &[]).0, Ok("one".into()));
        assert_eq!(ask(&[], &["two.example.com"]).0, Ok("two".into()));
        // The agent's own token stays.
        let both = [("dialback-authorization", "Bearer secret"), ("authorization", "Bearer theirs")];
        assert_eq!(ask(&both, &[]), (Ok("one".into()), vec!["authorization".into()]));
        let theirs = [("authorization", "Bearer theirs")];
        assert_eq!(ask(&theirs, &["two.example.com"]), (Ok("two".into()), vec!["authorization".into()]));
    }

    #[test]
    fn whoever_cannot_be_made_out_is_told_what_is_missing() {
        assert_eq!(ask(&[], &[]).0, Err(Unauthenticated::Nobody));
        for bad in ["Bearer wrong", "Bearer ", "Bearer", "Basic secret", "secret", "Bearer secre", "Bearer secret2"] {
            assert_eq!(ask(&[("authorization", bad)], &[]).0, Err(Unauthenticated::Unknown), "{bad}");
        }
        assert_eq!(ask(&[], &["three.example.com"]).0, Err(Unauthenticated::Unknown));
        let twice = [("authorization", "Bearer secret"), ("authorization", "Bearer secret")];
        assert_eq!(ask(&twice, &[]).0, Err(Unauthenticated::Unknown));
        let both = ask(&[("authorization", "Bearer secret")], &["two.example.com"]);
        assert_eq!(both.0, Err(Unauthenticated::Contradiction));
    }
}
