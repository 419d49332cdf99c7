//! What the text of `known_hosts` files says about a hub: bytes in, verdict out.
//!
//! The format is that of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". As there, a hub on port 22 is called `host`, on any
//! other port `[host]:port`, and only lines that match that name count.

mod certificate;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use russh::keys::PublicKeyOrCertificate;
use russh::keys::ssh_key::{Algorithm, Certificate};
use sha1::Sha1;

use super::host_keys::{CertificateProblem, FileLine, HostKeyError, KnownHostsProblem, PinnedKey};
use super::key::{InvalidPublicKey, PublicKey, decode_base64, decode_key};

/// A hub as lines name it. Lower case, because host names are the same in any case.
pub(super) struct HostName {
    host: String,
    port: u16,
}

impl HostName {
    /// `host` may be a name or an address, an IPv6 address with or without its brackets.
    pub(super) fn new(host: &str, port: u16) -> Self {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        Self { host: bare.to_ascii_lowercase(), port }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            22 => f.write_str(&self.host),
            port => write!(f, "[{}]:{port}", self.host),
        }
    }
}

/// The parsed text of one file, or of several.
pub(super) struct KnownHosts {
    /// The first of them.
    file: Arc<Path>,
    lines: Vec<Line>,
    problems: Vec<KnownHostsProblem>,
    /// The first `@revoked` line that cannot be read.
    lost_revocation: Option<KnownHostsProblem>,
}

struct Line {
    file: Arc<Path>,
    number: usize,
    marker: Marker,
    hosts: Hosts,
    key: PublicKey,
}

#[derive(Clone, Copy, PartialEq)]
enum Marker {
    None,
    CertAuthority,
    Revoked,
}

enum Hosts {
    /// Patterns in lower case, and whether each is negated.
    Patterns(Vec<(bool, String)>),
    /// HMAC-SHA1 of one name.
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl KnownHosts {
    /// Parses a whole file; `file` is what messages call it. Lines that mean nothing become problems.
    pub(super) fn parse(file: &Path, text: &[u8]) -> Self {
        let mut this = Self { file: file.into(), lines: vec![], problems: vec![], lost_revocation: None };
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            // Only names and base64 matter, all ASCII; a comment may be in any encoding.
            let line = String::from_utf8_lossy(line);
            let line = line.trim_matches(|c: char| c.is_ascii_whitespace());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match Line::parse(&this.file, index + 1, line) {
                Ok(line) => this.lines.push(line),
                Err(unusable) => {
                    let at = FileLine { file: this.file.to_path_buf(), line: index + 1 };
                    let problem = KnownHostsProblem { at, what: unusable.what };
                    if unusable.revokes_something {
                        this.lost_revocation.get_or_insert(problem.clone());
                    }
                    this.problems.push(problem);
                }
            }
        }
        this
    }

    /// Takes in another file: all lines of all files count alike.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.lines.extend(other.lines);
        self.problems.extend(other.problems);
        self.lost_revocation = self.lost_revocation.or(other.lost_revocation);
        self
    }

    pub(super) fn problems(&self) -> &[KnownHostsProblem] {
        &self.problems
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The types of the keys that are right for this hub, and whether an authority may certify others.
    pub(super) fn expected_types(&self, host: &HostName) -> (Vec<Algorithm>, bool) {
        let matching = self.matching(host);
        let plain = matching.iter().filter(|line| line.marker == Marker::None);
        let types = plain.map(|line| line.key.inner().algorithm()).collect();
        (types, matching.iter().any(|line| line.marker == Marker::CertAuthority))
    }

    /// Whether `offered` is what this hub should have. `now` is in seconds since 1970.
    pub(super) fn judge(
        &self,
        host: &HostName,
        offered: &PublicKeyOrCertificate,
        now: u64,
    ) -> Result<(), HostKeyError> {
        if let Some(problem) = &self.lost_revocation {
            return Err(HostKeyError::UnreadableRevocation { host: host.to_string(), problem: problem.clone() });
        }
        let matching = self.matching(host);
        let find = |marker, key: &PublicKey| matching.iter().find(|line| line.marker == marker && line.key == *key);
        let not_revoked = |key: &PublicKey| match find(Marker::Revoked, key) {
            Some(line) => Err(HostKeyError::Revoked { host: host.to_string(), key: key.clone(), at: line.at() }),
            None => Ok(()),
        };

        let key = PublicKey::new(offered.public_key().key_data().clone(), "");
        not_revoked(&key)?;
        if let Some(certificate) = offered.certificate() {
            let authority = PublicKey::new(certificate.signature_key().clone(), "");
            not_revoked(&authority)?;
            if let Some(line) = find(Marker::CertAuthority, &authority) {
                return certificate::check(certificate, &host.host, now)
                    .map_err(|reason| refused(host, certificate, Some(line.at()), reason));
            }
            if !certificate.cert_type().is_host() {
                return Err(refused(host, certificate, None, CertificateProblem::NotForHosts));
            }
        }
        // A certificate by somebody else adds nothing, but takes nothing away either: the hub has proved that it
        // holds the key, and that key may be pinned.
        if find(Marker::None, &key).is_some() {
            return Ok(());
        }

        let expected: Vec<_> =
            matching.iter().filter(|line| line.marker != Marker::Revoked).map(|line| line.pinned()).collect();
        if expected.is_empty() {
            let problem = self.problems.first().cloned();
            return Err(HostKeyError::Unknown {
                host: host.to_string(),
                file: self.file.to_path_buf(),
                offered: key,
                problem,
            });
        }
        Err(match offered.certificate() {
            Some(certificate) => refused(host, certificate, None, CertificateProblem::UntrustedAuthority { expected }),
            None => HostKeyError::Mismatch { host: host.to_string(), expected, offered: key },
        })
    }

    fn matching(&self, host: &HostName) -> Vec<&Line> {
        let name = host.to_string();
        self.lines.iter().filter(|line| line.hosts.matches(&name)).collect()
    }
}

fn refused(
    host: &HostName,
    certificate: &Certificate,
    at: Option<FileLine>,
    reason: CertificateProblem,
) -> HostKeyError {
    let authority = PublicKey::new(certificate.signature_key().clone(), "");
    HostKeyError::Certificate { host: host.to_string(), key_id: short(certificate.key_id()), authority, at, reason }
}

/// Peer's text, cut to what a message has room for.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What is wrong with a line.
struct Unusable {
    what: String,
    /// The line is a revocation, of a key that this build could meet.
    revokes_something: bool,
}

impl Line {
    fn at(&self) -> FileLine {
        FileLine { file: self.file.to_path_buf(), line: self.number }
    }

    fn pinned(&self) -> PinnedKey {
        PinnedKey {
            fingerprint: self.key.fingerprint(),
            algorithm: Some(self.key.algorithm()),
            is_authority: self.marker == Marker::CertAuthority,
            at: Some(self.at()),
        }
    }

    fn parse(file: &Arc<Path>, number: usize, line: &str) -> Result<Self, Unusable> {
        let mut fields = line.split_ascii_whitespace().peekable();
        let marker = match fields.next_if(|field| field.starts_with('@')) {
            None => Marker::None,
            Some("@cert-authority") => Marker::CertAuthority,
            Some("@revoked") => Marker::Revoked,
            Some(other) => {
                let what = format!("the marker `{}` is not known", short(other).escape_debug());
                return Err(Unusable { what, revokes_something: false });
            }
        };
        let unusable = |what| Unusable { what, revokes_something: marker == Marker::Revoked };
        let (Some(hosts), Some(kind), Some(base64)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(unusable("a line reads `HOSTS TYPE BASE64`".into()));
        };
        let hosts = Hosts::parse(hosts).map_err(|what| unusable(what.into()))?;
        match decode_key(kind, base64) {
            Ok(key) => Ok(Self { file: file.clone(), number, marker, hosts, key: PublicKey::new(key, "") }),
            // No hub can prove that it holds a key of a type that this build does not know: the line revokes nothing.
            Err(error @ InvalidPublicKey::UnknownAlgorithm { .. }) => {
                Err(Unusable { what: error.to_string(), revokes_something: false })
            }
            Err(error) => Err(unusable(error.to_string())),
        }
    }
}

impl Hosts {
    fn parse(field: &str) -> Result<Self, &'static str> {
        if let Some(hashed) = field.strip_prefix('|') {
            let hashed = hashed.strip_prefix("1|").and_then(|rest| rest.split_once('|'));
            let (salt, hash) = hashed.ok_or("a hashed name reads `|1|SALT|HASH`, and stands alone")?;
            return match (decode_base64(salt), decode_base64(hash)) {
                (Some(salt), Some(hash)) if salt.len() == 20 && hash.len() == 20 => Ok(Self::Hashed { salt, hash }),
                _ => Err("the hashed name's salt and hash are not 20 bytes of base64 each"),
            };
        }
        let patterns = field.split(',').map(|pattern| match pattern.strip_prefix('!') {
            Some(pattern) => (true, pattern.to_ascii_lowercase()),
            None => (false, pattern.to_ascii_lowercase()),
        });
        let patterns: Vec<_> = patterns.collect();
        match patterns.iter().any(|(_, pattern)| pattern.is_empty()) {
            true => Err("a name in the list of hosts is empty"),
            false => Ok(Self::Patterns(patterns)),
        }
    }

    /// A list matches if one of its patterns does, and no negated one.
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Patterns(patterns) => {
                let hit = |negated| {
                    let mut wanted = patterns.iter().filter(move |(is_negated, _)| *is_negated == negated);
                    wanted.any(|(_, pattern)| glob(pattern.as_bytes(), name.as_bytes()))
                };
                hit(false) && !hit(true)
            }
            Self::Hashed { salt, hash } => {
                let mut mac = Hmac::<Sha1>::new_from_slice(salt).expect("HMAC takes a key of any length");
                mac.update(name.as_bytes());
                mac.verify_slice(hash).is_ok()
            }
        }
    }
}

/// Whether `text` matches `pattern`, where `*` stands for any bytes and `?` for one.
///
/// Only the last `*` has to be tried again, so the time is at most the product of the two lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((star, from)) = retry else { return false };
                retry = Some((star, from + 1));
                (p, t) = (star + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests;
