//! The path of the keys file, which may depend on the agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::id::AgentId;
use crate::ssh::authorized_keys::AuthorizedKeysError;

/// A path in which `%u` stands for the agent id and `%%` for a percent sign.
#[derive(Debug)]
pub(super) enum PathPattern {
    Single(PathBuf),
    /// The parts between which the id goes; at least two.
    PerAgent(Vec<String>),
}

impl PathPattern {
    pub(super) fn parse(path: PathBuf) -> Result<Self, AuthorizedKeysError> {
        if !path.as_os_str().as_encoded_bytes().contains(&b'%') {
            return Ok(Self::Single(path));
        }
        let bad = |token: &str| AuthorizedKeysError::UnknownToken { path: path.clone(), token: token.into() };
        let text = path.to_str().ok_or_else(|| bad("%"))?;
        let mut parts = vec![String::new()];
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match (c, parts.last_mut()) {
                ('%', Some(part)) => match chars.next() {
                    Some('%') => part.push('%'),
                    Some('u') => parts.push(String::new()),
                    Some(other) => return Err(bad(&format!("%{other}"))),
                    None => return Err(bad("%")),
                },
                (c, Some(part)) => part.push(c),
                (_, None) => {}
            }
        }
        match parts.as_slice() {
            [only] => Ok(Self::Single(only.into())),
            _ => Ok(Self::PerAgent(parts)),
        }
    }

    /// The file of this agent; `None` if it cannot have one of its own.
    pub(super) fn path(&self, id: &AgentId) -> Option<PathBuf> {
        match self {
            Self::Single(path) => Some(path.clone()),
            // Windows drops dots at the end of a name, so that the id would get the file of another.
            Self::PerAgent(_) if id.as_str().ends_with('.') => None,
            Self::PerAgent(parts) => Some(parts.join(id.as_str()).into()),
        }
    }

    /// Whether the directory above the first `%u` exists: a mistyped path would only show as "unknown agent".
    pub(super) fn check_directory(&self) -> Result<(), AuthorizedKeysError> {
        let Self::PerAgent(parts) = self else { return Ok(()) };
        let first = parts.first().map(String::as_str).unwrap_or_default();
        let directory = match first.rfind(std::path::is_separator) {
            Some(end) => Path::new(first.get(..=end).unwrap_or_default()),
            None => Path::new("."),
        };
        let result = fs::metadata(directory).and_then(|metadata| match metadata.is_dir() {
            true => Ok(()),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        result.map_err(|source| AuthorizedKeysError::Read { path: directory.into(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(pattern: &str, id: &str) -> Option<PathBuf> {
        PathPattern::parse(pattern.into()).expect(pattern).path(&id.parse().expect(id))
    }

    #[test]
    fn tokens_are_replaced() {
        for (pattern, expected) in [
            ("keys/authorized_keys", "keys/authorized_keys"),
            ("keys/%u", "keys/a-1"),
            ("keys/%u/%u.pub", "keys/a-1/a-1.pub"),
            ("keys/%%u", "keys/%u"),
            ("100%%/%u", "100%/a-1"),
        ] {
            assert_eq!(path(pattern, "a-1"), Some(expected.into()), "{pattern}");
        }
    }

    #[test]
    fn other_tokens_are_refused() {
        for pattern in ["%h/.ssh/authorized_keys", "keys/%", "keys/%U", "keys/%u%"] {
            let error = PathPattern::parse(pattern.into()).expect_err(pattern);
            assert!(matches!(error, AuthorizedKeysError::UnknownToken { .. }), "{error}");
        }
    }

    #[test]
    fn an_id_with_a_dot_at_its_end_has_no_file() {
        assert_eq!(path("keys/%u", "a."), None);
        assert!(path("keys/authorized_keys", "a.").is_some());
    }

    #[test]
    fn a_directory_that_does_not_exist_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = |pattern: PathBuf| PathPattern::parse(pattern).expect("a pattern").check_directory();
        assert!(check(dir.path().join("%u")).is_ok());
        assert!(check(dir.path().join("x%u")).is_ok());
        let error = check(dir.path().join("missing").join("%u")).expect_err("missing");
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
