//! Public keys, and the text and bytes they are written in.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use russh::keys::ssh_encoding::base64::{Base64, Encoding};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::ssh_key::{self, Algorithm, Certificate, HashAlg};

use crate::agent::ConnectError;
use crate::carrier::{Address, HostPort};
use crate::id::AgentId;

/// The longest key or certificate taken, in bytes of its binary form: an RSA key of 16384 bits is 2 KiB, and a
/// certificate adds two of those and its lists of names.
const MAX_BLOB: usize = 64 * 1024;

/// How often a certificate may name another one inside it: each level is one more call on the decoder's stack.
const MAX_CERTIFICATE_NAMES: usize = 8;

/// The public half of a key: what a hub or an agent is known by.
///
/// It is written as OpenSSH writes it, `ssh-ed25519 AAAA… comment`, by [`Display`](fmt::Display) and
/// [`to_openssh`](Self::to_openssh), and read back with [`parse`](str::parse). The comment is a label for people: two
/// keys that differ in nothing else are equal. Cloning is cheap.
#[derive(Clone)]
pub struct PublicKey(Arc<ssh_key::PublicKey>);

impl PublicKey {
    pub(crate) fn new(key: KeyData, comment: &str) -> Self {
        // A private key file may hold any bytes as its comment; a line break in a public key's line would start another.
        let comment: String = comment.trim().chars().filter(|c| !c.is_control()).collect();
        Self(Arc::new(ssh_key::PublicKey::new(key, comment)))
    }

    pub(crate) fn inner(&self) -> &ssh_key::PublicKey {
        &self.0
    }

    pub(crate) fn key_data(&self) -> &KeyData {
        self.0.key_data()
    }

    /// The kind of key, such as `ssh-ed25519`.
    pub fn algorithm(&self) -> String {
        self.0.algorithm().to_string()
    }

    /// The SHA-256 fingerprint, `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The label for people at the end of the line; empty if there is none.
    pub fn comment(&self) -> &str {
        self.0.comment().as_str_lossy()
    }

    /// The line OpenSSH keeps in a `.pub` file, without a line break: `ssh-ed25519 AAAA… comment`.
    #[expect(clippy::missing_panics_doc, reason = "it cannot")]
    pub fn to_openssh(&self) -> String {
        self.0.to_openssh().expect("a key that was decoded fits the buffer its own length gives")
    }

    /// The line of a hub's `authorized_keys` file that lets the owner of this key in as `agent`, and as nobody else, without a
    /// line break.
    pub fn authorized_keys_line(&self, agent: &AgentId) -> String {
        format!("principals=\"{agent}\" {self}")
    }

    /// The line of an agent's `known_hosts` file that says that this is the key of a hub, without a line break. The hub is
    /// named as in [`AgentBuilder::connect`](crate::AgentBuilder::connect).
    ///
    /// # Errors
    /// [`ConnectError::InvalidAddress`] if the text names no hub.
    pub fn known_hosts_line(&self, hub: &str) -> Result<String, ConnectError> {
        let invalid = |why| ConnectError::InvalidAddress { given: hub.to_owned(), why };
        let HostPort { host, port } = Address::parse_to_dial(hub).map_err(invalid)?.name();
        let name = if port == 22 { host } else { format!("[{host}]:{port}") };
        Ok(format!("{name} {self}"))
    }

    /// `ssh-ed25519 SHA256:…`, for messages.
    pub(crate) fn summary(&self) -> String {
        format!("{} {}", self.algorithm(), self.fingerprint())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_openssh())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.summary())
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.key_data() == other.key_data()
    }
}

impl Eq for PublicKey {}

impl Hash for PublicKey {
    fn hash<S: Hasher>(&self, state: &mut S) {
        self.key_data().hash(state);
    }
}

impl FromStr for PublicKey {
    type Err = InvalidPublicKey;

    fn from_str(line: &str) -> Result<Self, InvalidPublicKey> {
        let mut fields = line.split_ascii_whitespace();
        let (Some(kind), Some(base64)) = (fields.next(), fields.next()) else {
            return Err(InvalidPublicKey::NotALine);
        };
        let comment = fields.collect::<Vec<_>>().join(" ");
        Ok(Self::new(decode_key(kind, base64)?, &comment))
    }
}

/// Text that is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPublicKey {
    /// The line has no key type and key.
    #[error("not a public key: it reads `TYPE BASE64 [COMMENT]`, such as `ssh-ed25519 AAAA…`")]
    NotALine,
    /// The second field is not base64, or far too long.
    #[error("the key is not base64, or is cut short")]
    NotBase64,
    /// The bytes are not a key of the type they name.
    #[error("the key is damaged: {what}")]
    Damaged {
        /// What the decoder said.
        what: String,
    },
    /// A type of key that this build cannot read.
    #[error("keys of type `{}` are not known", .algorithm.escape_debug())]
    UnknownAlgorithm {
        /// The type, cut to 80 characters.
        algorithm: String,
    },
    /// The type before the key is not the type inside it.
    #[error("it says `{}`, but holds another type of key", .said.escape_debug())]
    WrongAlgorithm {
        /// The type the text gave, cut to 80 characters.
        said: String,
    },
    /// A certificate stands where a key belongs.
    #[error("it is a certificate, not a key")]
    Certificate,
}

/// Decodes the `TYPE BASE64` of a key line.
pub(crate) fn decode_key(kind: &str, base64: &str) -> Result<KeyData, InvalidPublicKey> {
    let short = |text: &str| text.chars().take(80).collect();
    let blob = decode_base64(base64).ok_or(InvalidPublicKey::NotBase64)?;
    let inside = name_inside(&blob).ok_or(InvalidPublicKey::NotBase64)?;
    if inside.contains("-cert-v01@") {
        return Err(InvalidPublicKey::Certificate);
    }
    if inside != kind {
        return Err(InvalidPublicKey::WrongAlgorithm { said: short(kind) });
    }
    if Algorithm::new(kind).is_err() {
        return Err(InvalidPublicKey::UnknownAlgorithm { algorithm: short(kind) });
    }
    match ssh_key::PublicKey::from_bytes(&blob) {
        Ok(key) => Ok(key.key_data().clone()),
        Err(error) => Err(InvalidPublicKey::Damaged { what: error.to_string() }),
    }
}

/// Decodes a line of a `-cert.pub` file. The error says what is wrong with it.
pub(crate) fn decode_certificate(line: &str) -> Result<Certificate, String> {
    let mut fields = line.split_ascii_whitespace();
    let (Some(kind), Some(base64)) = (fields.next(), fields.next()) else {
        return Err("not a certificate: it reads `ssh-ed25519-cert-v01@openssh.com AAAA…`".into());
    };
    if !kind.contains("-cert-v01@") {
        return Err("not a certificate, but a key: the file that `ssh-keygen -s` writes ends in `-cert.pub`".into());
    }
    let blob = decode_base64(base64).ok_or("the certificate is not base64, or is cut short")?;
    let names = blob.windows(10).filter(|bytes| bytes == b"-cert-v01@").count();
    if name_inside(&blob) != Some(kind) || names > MAX_CERTIFICATE_NAMES {
        return Err("the certificate is damaged".into());
    }
    Certificate::from_bytes(&blob).map_err(|error| format!("the certificate is damaged: {error}"))
}

/// Decodes base64 of at most [`MAX_BLOB`] bytes.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_BLOB / 3 * 4 {
        return None;
    }
    Base64::decode_vec(text).ok()
}

/// The algorithm name that every key and certificate starts with (RFC 4253, section 6.6).
pub(crate) fn name_inside(blob: &[u8]) -> Option<&str> {
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let name = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    std::str::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::key::PrivateKey;
    use crate::ssh::key::testing::certify_user;

    #[test]
    fn line_round_trips_with_its_comment() {
        let key = PrivateKey::generate().public_key();
        let line = format!("{} \t two  words \n", key.to_openssh().split(' ').take(2).collect::<Vec<_>>().join("\t"));
        let read: PublicKey = line.parse().unwrap();
        assert_eq!(read, key);
        assert_eq!(read.comment(), "two words");
        assert_eq!(read.to_string().parse::<PublicKey>().unwrap().comment(), "two words");
    }

    #[test]
    fn comment_cannot_start_another_line() {
        let key = PrivateKey::generate().public_key();
        let evil = PublicKey::new(key.key_data().clone(), "me\nssh-ed25519 AAAA\x1b[2J");
        assert!(!evil.to_openssh().contains(|c: char| c.is_control()));
    }

    #[test]
    fn comment_is_no_part_of_the_identity() {
        let key = PrivateKey::generate().public_key();
        assert_eq!(PublicKey::new(key.key_data().clone(), "other"), key);
        assert_ne!(PrivateKey::generate().public_key(), key);
    }

    #[test]
    fn each_bad_line_says_what_is_wrong() {
        use InvalidPublicKey as E;
        let key = PrivateKey::generate();
        let line = key.public_key().to_openssh();
        let base64 = line.split(' ').nth(1).unwrap();
        let certificate = certify_user(&key, &PrivateKey::generate(), "a");
        let cases = [
            (String::new(), E::NotALine),
            ("ssh-ed25519".into(), E::NotALine),
            ("ssh-ed25519 %%%%".into(), E::NotBase64),
            (format!("ssh-ed25519 {}", "A".repeat(2 * MAX_BLOB)), E::NotBase64),
            (format!("ssh-rsa {base64}"), E::WrongAlgorithm { said: "ssh-rsa".into() }),
            (certificate, E::Certificate),
            ("no-such AAAAB25vLXN1Y2g=".into(), E::UnknownAlgorithm { algorithm: "no-such".into() }),
        ];
        for (line, expected) in cases {
            assert_eq!(line.parse::<PublicKey>(), Err(expected), "{line}");
        }
        let cut = format!("ssh-ed25519 {}", &base64[..base64.len() - 8]);
        assert!(matches!(cut.parse::<PublicKey>(), Err(E::Damaged { .. })), "{cut}");
    }
}
