//! The name a hub knows an agent by.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name a hub knows an agent by; on the wire it is the SSH user name.
///
/// An id is 1 to 64 characters of `a-z`, `0-9`, `.`, `_` and `-`, and starts with a letter or a digit, so it is
/// safe in file names, host names, log lines and URLs, and two ids never differ by case alone. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId(Arc<str>);

impl AgentId {
    /// The longest id, in characters.
    pub const MAX_LEN: usize = 64;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text that is not an [`AgentId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not an agent id: use 1 to 64 characters of a-z, 0-9, `.`, `_`, `-`, starting with a letter or digit", .given.escape_debug())]
#[non_exhaustive]
pub struct InvalidAgentId {
    /// What was given, cut to 80 characters.
    pub given: String,
}

impl FromStr for AgentId {
    type Err = InvalidAgentId;

    fn from_str(text: &str) -> Result<Self, InvalidAgentId> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if starts_well && text.len() <= Self::MAX_LEN && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidAgentId { given: text.chars().take(80).collect() })
        }
    }
}

impl TryFrom<&str> for AgentId {
    type Error = InvalidAgentId;

    fn try_from(text: &str) -> Result<Self, InvalidAgentId> {
        text.parse()
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentId({})", self.0)
    }
}

impl AsRef<str> for AgentId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for AgentId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_safe_names_only() {
        for good in ["laptop-1", "a", "0", "pi.kitchen_2", &"x".repeat(64)] {
            assert!(AgentId::from_str(good).is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", "Laptop", "a b", "a/b", "..", "-a", "ä", "a\n", "a\0", "a%u", &long] {
            assert!(AgentId::from_str(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn error_escapes_what_was_given() {
        let error = AgentId::from_str("a\x1b[31m").unwrap_err();
        assert!(!error.to_string().contains('\x1b'));
    }
}
