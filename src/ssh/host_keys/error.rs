//! Why a hub's host key is not believed.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::super::key::PublicKey;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileLine {
    /// The file.
    pub file: PathBuf,
    /// The line in it; the first is 1.
    pub line: usize,
}

impl fmt::Display for FileLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A line of a `known_hosts` file that says nothing usable. The other lines stay in force.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownHostsProblem {
    /// Where it is.
    pub at: FileLine,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for KnownHostsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// A key that a hub was expected to have, or to be certified by.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinnedKey {
    /// Its fingerprint, `SHA256:…`.
    pub fingerprint: String,
    /// Its kind, such as `ssh-ed25519`, where that is known.
    pub algorithm: Option<String>,
    /// Whether it certifies host keys (`@cert-authority`) rather than being one.
    pub is_authority: bool,
    /// Where it is written, if it is in a file.
    pub at: Option<FileLine>,
}

impl fmt::Display for PinnedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_authority {
            f.write_str("a certificate by ")?;
        }
        if let Some(algorithm) = &self.algorithm {
            write!(f, "{algorithm} ")?;
        }
        f.write_str(&self.fingerprint)?;
        match &self.at {
            Some(at) => write!(f, " ({at})"),
            None => Ok(()),
        }
    }
}

pub(crate) fn list(keys: &[PinnedKey]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// Why a [`HostKeys`](super::HostKeys) cannot be made. None of these is worth a retry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostKeysError {
    /// The `known_hosts` file cannot be read.
    #[error("cannot read `{}`, which has to name the hub's host key", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No line of the file is one of a `known_hosts` file.
    #[error("`{}` is not a known_hosts file ({problem})", .problem.at.file.display())]
    NotKnownHosts {
        /// The first line that is not.
        problem: KnownHostsProblem,
    },
    /// The text is not a SHA-256 fingerprint.
    #[error("`{}` is not a fingerprint: `ssh-keygen -l -f` on the hub's public key prints it, `SHA256:…`", .given.escape_debug())]
    NotAFingerprint {
        /// What was given, cut to 80 characters.
        given: String,
    },
    /// A fingerprint was added to a rule that is not made of keys and fingerprints.
    #[error("a fingerprint can be added to fingerprints and public keys only")]
    NotPinned,
    /// A file was added to a rule that is not made of files.
    #[error("a known_hosts file can be added to known_hosts files only")]
    NoKnownHosts,
}

/// Why a hub's host key was not believed. Nothing was sent to the hub that a stranger may not see: no agent id and no
/// signature.
///
/// None of these is cured by a retry, unless the hub or the file changes in between.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostKeyError {
    /// The file has no line for this hub.
    #[error(
        "`{file}` has no key for `{host}`{hint}: compare {offered}, which it offers, with what `ssh-keygen -l` says on \
         the hub, then add the line `{host} {key}`",
        file = .file.display(), offered = .offered.summary(), key = BareKey(.offered),
        hint = .problem.as_ref().map(|p| format!(" ({p})")).unwrap_or_default()
    )]
    Unknown {
        /// The hub, as its line has to name it.
        host: String,
        /// The `known_hosts` file.
        file: PathBuf,
        /// The key that the hub has.
        offered: PublicKey,
        /// The first unusable line of the file, which may be the one that was meant.
        problem: Option<KnownHostsProblem>,
    },
    /// The hub has another key than it should have, of the same type or not.
    #[error(
        "`{host}` offers the key {offered}, but should have {expected}: somebody may be posing as it; if its key was \
         changed on purpose, compare fingerprints with the hub and put the new one in place of the old",
        offered = .offered.summary(), expected = list(.expected)
    )]
    Mismatch {
        /// The hub.
        host: String,
        /// Every key that would have been right.
        expected: Vec<PinnedKey>,
        /// The key that the hub has.
        offered: PublicKey,
    },
    /// The hub's key, or the authority that certified it, is marked `@revoked`.
    #[error("the key {key} of `{host}` is revoked ({at}): give the hub a new key", key = .key.summary())]
    Revoked {
        /// The hub.
        host: String,
        /// The revoked key.
        key: PublicKey,
        /// The line that revokes it.
        at: FileLine,
    },
    /// A `@revoked` line cannot be read, so that any key might be the one it means.
    #[error("no key of `{host}` can be trusted while a revocation is unreadable ({problem}): mend that line")]
    UnreadableRevocation {
        /// The hub.
        host: String,
        /// The line.
        problem: KnownHostsProblem,
    },
    /// The hub's certificate is not good.
    #[error("the host certificate `{key_id}` of `{host}`, signed by {authority}, is refused: {reason}", key_id = .key_id.escape_debug(), authority = .authority.summary())]
    Certificate {
        /// The hub.
        host: String,
        /// What the authority called the certificate, cut to 80 characters.
        key_id: String,
        /// The key of the authority that signed it.
        authority: PublicKey,
        /// The line that names the authority, if one does.
        at: Option<FileLine>,
        /// What is wrong.
        reason: CertificateProblem,
    },
    /// The `known_hosts` file could be read before, but not now.
    #[error("cannot read `{}`, so `{host}` is not trusted", .file.display())]
    Unreadable {
        /// The hub.
        host: String,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program's own callback said no.
    #[error("the key {offered} of `{host}` is refused: {reason}", offered = .offered.summary())]
    Refused {
        /// The hub.
        host: String,
        /// The key that the hub has.
        offered: PublicKey,
        /// What the callback said.
        reason: String,
    },
}

/// `TYPE BASE64`, without the comment.
struct BareKey<'a>(&'a PublicKey);

impl fmt::Display for BareKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&PublicKey::new(self.0.key_data().clone(), "").to_openssh())
    }
}

/// What is wrong with a host certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// It is for a user, not for a host.
    #[error("it is a user certificate: sign the hub's key with `ssh-keygen -h`")]
    NotForHosts,
    /// No `@cert-authority` line for this hub names the key that signed it.
    #[error("that authority is not trusted; expected {}", list(.expected))]
    UntrustedAuthority {
        /// What would have been right.
        expected: Vec<PinnedKey>,
    },
    /// The authority's signature is not right, or of a kind that proves nothing (RSA with SHA-1) or is not supported.
    #[error("the authority's signature does not hold")]
    BadSignature,
    /// It is not valid yet.
    #[error("it will not be valid for another {}: check the clocks", rough(*.wait))]
    NotYetValid {
        /// How long it still takes.
        wait: Duration,
    },
    /// It is not valid any more.
    #[error("it expired {} ago: have the hub's key signed again", rough(*.ago))]
    Expired {
        /// How long ago it expired.
        ago: Duration,
    },
    /// It names no host, and so would stand for every host.
    #[error("it names no hosts: sign the hub's key with `ssh-keygen -h -n HOST`")]
    NoPrincipals,
    /// It is for other hosts.
    #[error("it is for {}", quoted(.principals))]
    OtherHosts {
        /// The first few of them, cut to 80 characters each.
        principals: Vec<String>,
    },
    /// It demands something that is not understood.
    #[error("its critical option `{}` is not known", .name.escape_debug())]
    CriticalOption {
        /// The option, cut to 80 characters.
        name: String,
    },
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{}`", name.escape_debug())).collect::<Vec<_>>().join(", ")
}

fn rough(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86400),
    }
}
