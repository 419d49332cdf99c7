//! One line of an authorized_keys file.

use russh::keys::ssh_encoding::{Base64Reader, Decode};
use russh::keys::ssh_key;
use russh::keys::ssh_key::public::KeyData;

use crate::id::AgentId;
use crate::ssh::authorized_keys::key_rules::{self, KeyFault};
use crate::ssh::authorized_keys::options::{self, BadOptions, Options};
use crate::ssh::authorizer::Brief;

/// Why a line grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineFault {
    #[error("the line is longer than {} bytes", super::file::MAX_LINE)]
    TooLong,
    #[error("{0}")]
    Options(BadOptions),
    #[error("no key follows the options")]
    NoKey,
    #[error("`{}` is not a type of key", Brief(.0))]
    UnknownType(String),
    #[error("the key after `{0}` is missing or damaged: copy the whole line of the .pub file again")]
    Damaged(String),
    #[error("{0}")]
    Key(KeyFault),
    #[error("the key may be no agent: put principals=\"AGENT-ID\" before it")]
    NoPrincipals,
    #[error("the key may be no agent: this is the file of {0}, which principals= does not list")]
    NotTheOwner(AgentId),
}

/// A line that names a key. Its options may still be refused, and are kept to say so when the key is used.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) key: KeyData,
    pub(super) options: Result<Options, BadOptions>,
}

/// Reads a line without its line ending; `None` for an empty line or a comment.
pub(super) fn parse(line: &str) -> Result<Option<Line>, LineFault> {
    let line = line.trim_matches([' ', '\t']);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    if is_key_type(first_word(line)) {
        return Ok(Some(Line { key: parse_key(line)?, options: Ok(Options::default()) }));
    }
    let (raw, rest) = options::split(line).map_err(LineFault::Options)?;
    let rest = rest.trim_start_matches([' ', '\t']);
    if rest.is_empty() {
        // One word alone is more likely a cut key than an option.
        return Err(if raw.len() == 1 { LineFault::UnknownType(first_word(line).into()) } else { LineFault::NoKey });
    }
    if !is_key_type(first_word(rest)) {
        return Err(LineFault::UnknownType(first_word(rest).into()));
    }
    Ok(Some(Line { key: parse_key(rest)?, options: options::interpret(raw) }))
}

/// Reads a key without options, as in a list of revoked keys or of CAs; `None` for an empty line or a comment.
pub(super) fn parse_bare(line: &str) -> Result<Option<KeyData>, LineFault> {
    let line = line.trim_matches([' ', '\t']);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let name = first_word(line);
    if is_key_type(name) { decode(line).map(Some) } else { Err(LineFault::UnknownType(name.into())) }
}

fn first_word(text: &str) -> &str {
    text.split([' ', '\t']).next().unwrap_or_default()
}

/// Whether a word is the name of a type of key or certificate, so that it cannot be options.
fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"].iter().any(|prefix| word.starts_with(prefix))
}

/// Reads `TYPE BASE64 [COMMENT]`, and accepts only keys that may be used.
fn parse_key(text: &str) -> Result<KeyData, LineFault> {
    let key = decode(text)?;
    key_rules::check(&key).map_err(LineFault::Key)?;
    Ok(key)
}

fn decode(text: &str) -> Result<KeyData, LineFault> {
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let name = words.next().unwrap_or_default();
    let base64 = words.next().unwrap_or_default();
    if name.ends_with("-cert-v01@openssh.com") {
        return Err(LineFault::Key(KeyFault::Certificate));
    }
    let damaged = || LineFault::Damaged(Brief(name).to_string());
    // The decoder follows the name inside, and certificates nest without limit: a plain name outside must not let
    // a certificate in.
    let mut reader = Base64Reader::new(base64.as_bytes()).map_err(|_| damaged())?;
    if String::decode(&mut reader).ok().as_deref() != Some(name) {
        return Err(damaged());
    }
    match ssh_key::PublicKey::from_openssh(&format!("{name} {base64}")) {
        Ok(key) => Ok(key.key_data().clone()),
        Err(ssh_key::Error::AlgorithmUnknown | ssh_key::Error::AlgorithmUnsupported { .. }) => {
            Err(LineFault::Key(KeyFault::Unsupported))
        }
        Err(_) => Err(damaged()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::authorized_keys::testing::{certificate, key};

    #[test]
    fn comments_and_blank_lines_are_nothing() {
        for line in ["", " \t ", "# ssh-ed25519 AAAA", "   # x"] {
            assert!(parse(line).expect(line).is_none(), "{line:?}");
        }
    }

    #[test]
    fn a_key_is_found_behind_options_and_before_comments() {
        let key = key();
        let (text, data) = (key.openssh(), key.data());
        for line in [
            text.clone(),
            format!("  {text} # not a comment delimiter, \"quotes\" neither"),
            format!("pty {text}"),
            format!("command=\"ssh-ed25519 AAAA # no\" \t {text} laptop of Zoë"),
            text.replace(' ', "\t  "),
        ] {
            let parsed = parse(&line).expect(&line).expect("a key");
            assert_eq!(parsed.key, data, "{line}");
            assert!(parsed.options.is_ok());
        }
    }

    #[test]
    fn refused_options_keep_the_key() {
        let key = key();
        let line = parse(&format!("frobnicate {}", key.openssh())).expect("a line").expect("a key");
        assert_eq!(line.key, key.data());
        assert_eq!(line.options.expect_err("unknown"), BadOptions::Unknown("frobnicate".into()));
    }

    #[test]
    fn broken_lines_say_what_is_wrong() {
        let good = key().openssh();
        let base64 = good.split(' ').nth(1).expect("base64");
        let swapped = format!("ecdsa-sha2-nistp256 {base64}");
        for (line, expected) in [
            ("ssh-ed25519".to_owned(), "missing or damaged"),
            ("ssh-ed25519 AAAA".to_owned(), "missing or damaged"),
            (good[..good.len() - 4].to_owned(), "missing or damaged"),
            (format!("{good}AAAA"), "missing or damaged"),
            (swapped, "missing or damaged"),
            ("ssh-dss AAAAB3NzaC1kc3M=".to_owned(), "missing or damaged"),
            (base64.to_owned(), "is not a type of key"),
            (format!("pty,no-pty {base64}"), "is not a type of key"),
            ("pty,no-pty".to_owned(), "no key follows"),
            (format!("from=\"10.0.0.1 {good}"), "never ends"),
            (format!("pty, {good}"), "is empty"),
            (format!("\u{feff}{good}"), "is not a type of key"),
        ] {
            let fault = parse(&line).expect_err(&line).to_string();
            assert!(fault.contains(expected), "{line}: {fault}");
        }
    }

    #[test]
    fn a_certificate_is_no_key_under_any_name() {
        let (subject, authority) = (key(), key());
        let text = certificate(&subject, &authority, |_| {}).0.to_openssh().expect("text");
        let fault = parse(&text).expect_err("a certificate");
        assert_eq!(fault, LineFault::Key(KeyFault::Certificate));
        let base64 = text.split(' ').nth(1).expect("base64");
        let fault = parse(&format!("ssh-ed25519 {base64}")).expect_err("a certificate under a key's name");
        assert_eq!(fault, LineFault::Damaged("ssh-ed25519".into()));
    }

    #[test]
    fn messages_escape_the_file() {
        for line in ["ssh-\x1b[31m x", "a\x1b[31mb", "pty \x1b[31m"] {
            let fault = parse(line).expect_err("broken").to_string();
            assert!(!fault.contains('\x1b'), "{fault:?}");
        }
    }
}
