//! Who may be which agent: the question, the answer, and the trait that gives it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataMap;

use crate::id::AgentId;
use crate::ssh::authorized_keys::AuthorizedKeysError;
use crate::ssh::authorized_keys::certificate::Certificate;
use crate::ssh::key::PublicKey;
use crate::time::Utc;

/// Decides whether a key may be an agent.
///
/// A hub asks once per login, after the peer has proved that it holds the private key, and again and again while the
/// tunnel lives, to learn of a revocation. [`AuthorizedKeys`](crate::AuthorizedKeys) reads OpenSSH files,
/// [`AllowedKeys`](crate::AllowedKeys) is a list in memory; implement the trait to ask a database.
///
/// An answer must come from the claim and the authorizer's own records alone: a key must never get an id because it
/// asked for it. The peer is not told why it was refused; the reason goes to the hub's log.
///
/// ```
/// use dialback::{Authorizer, Claim, Credential, Denied, Grant};
///
/// struct Fleet;
///
/// #[async_trait::async_trait]
/// impl Authorizer for Fleet {
///     async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
///         match &claim.credential {
///             Credential::Key(key) if key.fingerprint() == "SHA256:…" && claim.agent_id.as_str() == "laptop-1" => {
///                 Ok(Grant::new().label("site", "berlin"))
///             }
///             other => Err(Denied::UnknownKey { fingerprint: other.fingerprint() }),
///         }
///     }
/// }
/// ```
#[async_trait::async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Grants or denies one claim.
    ///
    /// # Errors
    /// The reason for the refusal, for the hub's log.
    ///
    /// # Cancel safety
    /// The hub drops the future when its login deadline passes, so an implementation must stay usable when that
    /// happens at any await.
    async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied>;

    /// Whether a certificate may ever be granted anything. A certificate is first offered by its bare key, so where
    /// this is true every offer must be answered as if it were welcome, and the refusal comes after the proof.
    /// Default: true.
    fn accepts_certificates(&self) -> bool {
        true
    }

    /// How often a hub asks again for each live tunnel, to end it when what was granted has been taken back (all but
    /// [`Denied::Unavailable`] takes back) or is another grant, which the agent gets when it comes back; never if there is
    /// none. An authorizer that never answers the same twice should say none. Default: every minute.
    fn recheck_every(&self) -> Option<Duration> {
        Some(Duration::from_secs(60))
    }
}

#[async_trait::async_trait]
impl<T: Authorizer + ?Sized> Authorizer for Arc<T> {
    async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
        (**self).authorize(claim).await
    }

    fn accepts_certificates(&self) -> bool {
        (**self).accepts_certificates()
    }

    fn recheck_every(&self) -> Option<Duration> {
        (**self).recheck_every()
    }
}

#[async_trait::async_trait]
impl<T: Authorizer + ?Sized> Authorizer for Box<T> {
    async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
        (**self).authorize(claim).await
    }

    fn accepts_certificates(&self) -> bool {
        (**self).accepts_certificates()
    }

    fn recheck_every(&self) -> Option<Duration> {
        (**self).recheck_every()
    }
}

/// What a peer asks for: to be this agent, with this credential, from this address.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct Claim {
    /// The agent it wants to be: its SSH user name, or what its metadata say.
    pub agent_id: AgentId,
    /// The key or certificate whose private half it has proved to hold; or metadata, of which nothing is proved.
    pub credential: Credential,
    /// Where it connects from; `None` over a carrier without addresses.
    pub peer: Option<SocketAddr>,
}

impl Claim {
    /// A claim as a hub would make it, to test an [`Authorizer`].
    pub fn new(agent_id: AgentId, credential: Credential, peer: Option<SocketAddr>) -> Self {
        Self { agent_id, credential, peer }
    }
}

/// What a peer authenticated with.
#[non_exhaustive]
#[derive(Clone)]
pub enum Credential {
    /// A plain public key.
    Key(PublicKey),
    /// An OpenSSH user certificate. Nothing about it has been judged yet: see [`Certificate::check`].
    Certificate(Certificate),
    /// What came with a tunnel of [`grpctunnel`](crate#features): a token, for example. Nothing about it has been judged yet.
    Metadata(MetadataMap),
}

impl fmt::Debug for Credential {
    /// Without the values of metadata, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.debug_tuple("Key").field(key).finish(),
            Self::Certificate(certificate) => f.debug_tuple("Certificate").field(certificate).finish(),
            Self::Metadata(metadata) => f.debug_set().entries(metadata.keys()).finish(),
        }
    }
}

impl Credential {
    /// SHA-256 fingerprint of the key, or of the certificate's own key (not of its CA). Of metadata there is none.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Key(key) => key.fingerprint(),
            Self::Certificate(certificate) => certificate.key().fingerprint(),
            Self::Metadata(_) => "(none)".into(),
        }
    }
}

/// Permission to be the agent that was claimed.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// What the authorizer knows about the agent, for the hub's own use. Empty by default.
    pub labels: BTreeMap<String, String>,
    /// The names of the labels that the agent may set itself, where the authorizer sets none. Empty by default.
    pub accepted_labels: BTreeSet<String>,
    /// Who holds the agent's id, in place of what shows by itself: see [`Grant::holder`]. None by default.
    pub holder: Option<String>,
}

impl Grant {
    /// A grant without labels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a label, or replaces the one of that name.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Lets the agent set these labels itself; others that it sends are not looked at.
    #[must_use]
    pub fn accept_labels<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.accepted_labels.extend(names.into_iter().map(Into::into));
        self
    }

    /// Says who holds the agent's id while the tunnel lives: a tunnel of the same id for another holder is refused, and one
    /// for the same may take its place, or stand beside it. Any name or number that the credential is known by, but not a
    /// secret. For credentials that change, such as tokens that expire, and for several that are as good as one another.
    ///
    /// Default: the key; of a certificate, its authority; of a tunnel of [`grpctunnel`](crate#features), its metadata
    /// `authorization`, of which a hash is kept, and where there is none, anybody who may be this agent.
    #[must_use]
    pub fn holder(mut self, name: impl Into<String>) -> Self {
        self.holder = Some(name.into());
        self
    }
}

/// Why a claim was refused: for the hub's log, never for the peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// No line names this key.
    #[error("key {fingerprint} is not authorised: add its public key to the hub's list")]
    UnknownKey {
        /// SHA-256 fingerprint of the key.
        fingerprint: String,
    },
    /// There is no file for this agent.
    #[error("agent {agent_id} is unknown: {} does not exist", .file.display())]
    UnknownAgent {
        /// The id that was claimed.
        agent_id: AgentId,
        /// The file that would list its keys.
        file: PathBuf,
    },
    /// The key is known, the id is not among those it was granted.
    #[error("key {fingerprint} may not be {agent_id}: it was granted {}", Names(.granted))]
    IdNotGranted {
        /// The id that was claimed.
        agent_id: AgentId,
        /// SHA-256 fingerprint of the key.
        fingerprint: String,
        /// The ids of its lines, or the principals of its certificate.
        granted: Vec<String>,
    },
    /// The line or the certificate is no longer valid.
    #[error("{what} expired at {}", Utc(*.at))]
    Expired {
        /// The line or certificate.
        what: String,
        /// When, in seconds since 1970 UTC.
        at: u64,
    },
    /// The certificate is not valid yet.
    #[error("{what} is not valid before {}: check both clocks", Utc(*.from))]
    NotYetValid {
        /// The certificate.
        what: String,
        /// From when on, in seconds since 1970 UTC.
        from: u64,
    },
    /// The peer's address is not one that the line or the certificate allows.
    #[error("{what} is not allowed from {}: only from {}", Peer(.peer), .allowed.escape_debug())]
    SourceNotAllowed {
        /// The line or certificate.
        what: String,
        /// The peer's address; `None` when the carrier has none, which is always refused here.
        peer: Option<IpAddr>,
        /// The list of patterns that did not match.
        allowed: String,
    },
    /// The certificate was signed by a CA that nobody trusts here.
    #[error(
        "{what} is signed by {authority}, which is not a trusted CA: add it to the trusted user CA keys, or as a `cert-authority` line"
    )]
    WrongCa {
        /// The certificate.
        what: String,
        /// SHA-256 fingerprint of the CA that signed it.
        authority: String,
    },
    /// The certificate is not one that can prove an agent's identity.
    #[error("{what} cannot be used: {why}")]
    BadCertificate {
        /// The certificate.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The certificate carries a critical option that a hub cannot honour.
    #[error("{what} has the critical option `{}`, which is not supported here: issue it without", .name.escape_debug())]
    UnsupportedOption {
        /// The certificate.
        what: String,
        /// The option's name, as the CA wrote it.
        name: String,
    },
    /// The key or certificate, or the key of its CA, is on the list of what is revoked.
    #[error("{what} is revoked: {} lists {by}", .file.display())]
    Revoked {
        /// The key, the certificate, its own key or its CA.
        what: String,
        /// The entry of the list.
        by: Revocation,
        /// The list.
        file: PathBuf,
    },
    /// Keys of this type or size are never accepted.
    #[error("key {fingerprint} is not accepted: {why}")]
    KeyNotAccepted {
        /// SHA-256 fingerprint of the key.
        fingerprint: String,
        /// Why, and what to use instead.
        why: String,
    },
    /// The key is listed, on a line that is not in force.
    #[error("key {fingerprint} is on {}:{line}, which is not in force: {why}", .file.display())]
    LineRefused {
        /// SHA-256 fingerprint of the key.
        fingerprint: String,
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with the line.
        why: String,
    },
    /// The agent has no key, and the list is of keys.
    #[error(
        "agent {agent_id} came by grpctunnel, with metadata and without a key: tell who it is with TunnelServiceBuilder::identify"
    )]
    NoKey {
        /// The id that was claimed.
        agent_id: AgentId,
    },
    /// The records cannot be consulted, so nobody is let in.
    #[error("the list of keys is unavailable, so nobody is let in")]
    Unavailable {
        /// What is wrong with it.
        #[source]
        source: AuthorizedKeysError,
    },
    /// Any other reason, from an authorizer of your own. Control characters in it are escaped when displayed.
    #[error("{}", .0.escape_debug())]
    Other(String),
}

/// An entry of a list of what is revoked, and so the reason why a key or certificate may not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revocation {
    /// A key.
    Key {
        /// Its SHA-256 fingerprint.
        fingerprint: String,
    },
    /// The fingerprint of a key.
    Fingerprint {
        /// As it is listed, `SHA256:…` or `SHA1:…`.
        fingerprint: String,
    },
    /// The serial number of a certificate.
    Serial {
        /// The number, which is never 0.
        serial: u64,
        /// SHA-256 fingerprint of the CA that gave it; `None` if it is revoked whoever gave it.
        authority: Option<String>,
    },
    /// The key id of a certificate.
    KeyId {
        /// The id. Any text at all: escaped and cut when displayed.
        key_id: String,
        /// SHA-256 fingerprint of the CA that gave it; `None` if it is revoked whoever gave it.
        authority: Option<String>,
    },
}

impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = match self {
            Self::Key { fingerprint } => return write!(f, "the key {fingerprint}"),
            Self::Fingerprint { fingerprint } => return write!(f, "the fingerprint {fingerprint}"),
            Self::Serial { serial, authority } => {
                write!(f, "serial {serial} of ")?;
                authority
            }
            Self::KeyId { key_id, authority } => {
                write!(f, "the key id `{}` of ", Brief(key_id))?;
                authority
            }
        };
        match authority {
            Some(fingerprint) => write!(f, "the CA {fingerprint}"),
            None => f.write_str("every CA"),
        }
    }
}

/// How many names an error lists before it only counts.
const NAMES_SHOWN: usize = 8;

/// Names that a file or a peer supplied, for an error message.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no id");
        }
        for (index, name) in self.0.iter().take(NAMES_SHOWN).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", Brief(name))?;
        }
        match self.0.len().saturating_sub(NAMES_SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Text that somebody else chose: escaped, and cut to 80 characters.
pub(crate) struct Brief<'a>(pub(crate) &'a str);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(80) {
            None => self.0.escape_debug().fmt(f),
            Some((end, _)) => write!(f, "{}…", self.0[..end].escape_debug()),
        }
    }
}

/// A peer's address, or that there is none.
struct Peer<'a>(&'a Option<IpAddr>);

impl fmt::Display for Peer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("a peer without an address"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_escape_what_strangers_wrote() {
        let id: AgentId = "laptop-1".parse().expect("an id");
        let evil = "x\x1b[31m\n".to_owned();
        let denials = [
            Denied::IdNotGranted { agent_id: id, fingerprint: "SHA256:x".into(), granted: vec![evil.clone()] },
            Denied::UnsupportedOption { what: "certificate".into(), name: evil.clone() },
            Denied::SourceNotAllowed { what: "certificate".into(), peer: None, allowed: evil.clone() },
            Denied::Revoked {
                what: "certificate".into(),
                by: Revocation::KeyId { key_id: evil.clone(), authority: None },
                file: "revoked".into(),
            },
            Denied::Other(evil),
        ];
        for denied in denials {
            let text = denied.to_string();
            assert!(!text.contains(['\x1b', '\n']), "{text:?}");
        }
    }

    #[test]
    fn long_lists_of_names_are_counted() {
        let names: Vec<_> = (0..10).map(|n| format!("a{n}")).collect();
        assert_eq!(Names(&names).to_string(), "a0, a1, a2, a3, a4, a5, a6, a7 and 2 more");
        assert_eq!(Names(&[]).to_string(), "no id");
        let long = "é".repeat(90);
        assert_eq!(Brief(&long).to_string(), format!("{}…", "é".repeat(80)));
    }

    #[tokio::test]
    async fn shared_and_boxed_authorizers_pass_the_claim_on() {
        struct Always;
        #[async_trait::async_trait]
        impl Authorizer for Always {
            async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
                Ok(Grant::new().label("id", claim.agent_id.as_str()))
            }
        }
        let key = crate::ssh::authorized_keys::testing::key().public;
        let claim = Claim::new("a".parse().expect("an id"), Credential::Key(key), None);
        let boxed: Box<dyn Authorizer> = Box::new(Arc::new(Always));
        assert_eq!(boxed.authorize(&claim).await.expect("granted").labels["id"], "a");
    }
}
