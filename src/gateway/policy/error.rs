//! What can be wrong with the text of a policy.

use std::fmt;

use super::CallerName;
use super::table::{AGENTS, CERTIFICATE, Field, LABELS, TOKEN};

/// A policy that is not in force, because something in it is wrong.
///
/// What it displays is safe to print, and holds neither tokens nor their hashes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
#[non_exhaustive]
pub struct PolicyError {
    /// The line that is wrong, counted from 1.
    pub line: usize,
    pub(super) fault: Fault,
}

/// A fault, and where in the text it is, in bytes.
pub(super) type Parsed<T> = Result<T, (usize, Fault)>;

/// What is wrong with a policy. None shows what was written as a hash, for it may be the token itself, by mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("this is not TOML: {0}")]
    NotToml(String),
    #[error("`{0}` means nothing here: use {1}")]
    UnknownKey(Given, String),
    #[error("`{}` {why}: write it like `{}`", .field.key, .field.example)]
    Field { field: Field, why: &'static str },
    #[error("`{0}` is not a caller's name: use 1 to 64 characters of a-z, A-Z, 0-9, `.`, `_`, `-`")]
    BadName(Given),
    #[error("there is a caller `{0}` already: use another name, or put both into one [[caller]]")]
    NameTaken(CallerName),
    #[error("caller `{0}` cannot authenticate: give it `{token}` or `{name}`", token = TOKEN.example, name = CERTIFICATE.example)]
    NoCredentials(CallerName),
    #[error("a token's hash is 64 hex digits: write those that `printf %s \"$TOKEN\" | sha256sum` prints")]
    BadHash,
    #[error("this is the hash of an empty token: set TOKEN before `printf %s \"$TOKEN\" | sha256sum`")]
    HashOfNothing,
    #[error("caller `{0}` has this token already: write it once, and make one of its own for every caller")]
    TokenTaken(CallerName),
    #[error("`{0}` is no name in a certificate: write a whole DNS name or URI, without `*`, and no address")]
    BadCertificateName(Given),
    #[error("caller `{1}` has the certificate name `{0}` already: write it once, for one caller")]
    CertificateTaken(Given, CallerName),
    #[error("there is no caller `{0}`: write the name of a [[caller]], or `*` for all of them")]
    UnknownCaller(Given),
    #[error("which agents is not said: add `{}`, `{}` or `agents = [\"*\"]`", AGENTS.example, LABELS.example)]
    NoAgents,
    #[error("`{0}` matches no agent id: use a-z, 0-9, `.`, `_`, `-`, and `*` for any run of characters")]
    BadAgent(Given),
    #[error("`{0}` is not a method: write `/package.Service/Method`, `/package.Service/*`, or `*` for all")]
    BadMethod(Given),
}

impl Fault {
    pub(super) fn field(field: Field, why: &'static str) -> Self {
        Self::Field { field, why }
    }
}

/// Text of the file: cut to 80 characters, and displayed without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given(String);

impl From<&str> for Given {
    fn from(text: &str) -> Self {
        Self(text.chars().take(80).collect())
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_debug().fmt(f)
    }
}
