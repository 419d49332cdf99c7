//! What an agent signs with, and how it shows that to a hub.

#[cfg(unix)]
mod ssh_agent;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use russh::client::{AuthResult, Handle, Handler};
use russh::keys::agent::AgentIdentity;
use russh::keys::signature;
use russh::keys::ssh_encoding::Encode;
use russh::keys::ssh_key::Certificate;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::{Algorithm, HashAlg};
use russh::{MethodKind, Signer};

#[cfg(unix)]
use super::key::KeyError;
use super::key::{PrivateKey, PublicKey};
use crate::time::{Utc, unix_seconds};
#[cfg(unix)]
use ssh_agent::SshAgent;

/// How many keys are shown to a hub: dialback's hub, like many others, ends the connection after three wrong ones.
const MAX_OFFERS: usize = 3;

/// What an agent signs with: a [`PrivateKey`], or several, or the keys of a running ssh-agent.
///
/// A private key with a certificate shows the certificate first, then the bare key.
#[derive(Clone, Debug)]
pub struct Identity(Source);

#[derive(Clone, Debug)]
enum Source {
    Keys(Vec<PrivateKey>),
    #[cfg(unix)]
    SshAgent(SshAgent),
}

impl From<PrivateKey> for Identity {
    fn from(key: PrivateKey) -> Self {
        Self(Source::Keys(vec![key]))
    }
}

impl Identity {
    /// Signs with these keys: each is shown to the hub after those before it, until it takes one. At most three of keys and
    /// certificates are shown.
    ///
    /// ```
    /// # use dialback::{Agent, Identity, PrivateKey};
    /// let (new, old) = (PrivateKey::generate(), PrivateKey::generate());
    /// let builder = Agent::builder("laptop-1", Identity::keys([new, old]));
    /// ```
    pub fn keys(keys: impl IntoIterator<Item = PrivateKey>) -> Self {
        Self(Source::Keys(keys.into_iter().collect()))
    }
}

#[cfg(unix)]
impl Identity {
    /// Signs with the keys of the ssh-agent that the environment variable `SSH_AUTH_SOCK` names, as [`ssh_agent_at`]
    /// does. The variable is read here, once; the ssh-agent is first asked when the agent connects.
    ///
    /// # Errors
    /// [`KeyError::NoSshAgent`] if the variable is unset or empty.
    ///
    /// [`ssh_agent_at`]: Self::ssh_agent_at
    pub fn ssh_agent() -> Result<Self, KeyError> {
        Self::ssh_agent_named(std::env::var_os("SSH_AUTH_SOCK"))
    }

    fn ssh_agent_named(socket: Option<std::ffi::OsString>) -> Result<Self, KeyError> {
        match socket {
            Some(socket) if !socket.is_empty() => Ok(Self::ssh_agent_at(socket)),
            _ => Err(KeyError::NoSshAgent),
        }
    }

    /// Signs with the keys of the ssh-agent that listens on this Unix socket.
    ///
    /// At every connection to the hub the ssh-agent is asked anew, and its first three usable keys are tried in its
    /// order; certificates count. With more keys than that, choose one by [`with_public_key`](Self::with_public_key).
    /// The ssh-agent has 10 s for each answer, within which its user may have to confirm.
    pub fn ssh_agent_at(socket: impl Into<PathBuf>) -> Self {
        Self(Source::SshAgent(SshAgent::new(socket.into())))
    }
}

impl Identity {
    /// Shows the hub only this one of the ssh-agent's keys, and certificates for it. Called again, it adds another, to be
    /// shown after those before it. A private key has no others to choose from: for it this changes nothing.
    #[cfg_attr(not(unix), expect(unused_variables, unused_mut))]
    pub fn with_public_key(mut self, key: PublicKey) -> Self {
        #[cfg(unix)]
        if let Source::SshAgent(agent) = &mut self.0 {
            agent.want(key);
        }
        self
    }

    /// Shows the ssh-agent's other keys, too, after those that were chosen.
    #[cfg(unix)]
    pub(crate) fn or_others(mut self) -> Self {
        if let Source::SshAgent(agent) = &mut self.0 {
            agent.take_others();
        }
        self
    }

    /// Shows this certificate, if the ssh-agent holds its key.
    #[cfg(unix)]
    pub(crate) fn with_certificate(mut self, certificate: super::Certificate) -> Self {
        if let Source::SshAgent(agent) = &mut self.0 {
            agent.add_certificate((*certificate.0).clone());
        }
        self
    }

    /// Authenticates a new connection as `id`. After [`AuthError::ConnectionEnded`] the handle is spent: it must not
    /// be awaited, only dropped.
    ///
    /// Not cancel safe: if the future is dropped, the connection has to be dropped too.
    pub(crate) async fn authenticate<H>(&self, handle: &mut Handle<H>, id: &str) -> Result<(), AuthError>
    where
        H: Handler,
        H::Error: fmt::Display,
    {
        match &self.0 {
            Source::Keys(keys) => {
                let offers = keys.iter().flat_map(|key| {
                    let certificate = key.certificate().map(|c| AgentIdentity::from(c.as_ref().clone()));
                    certificate.into_iter().chain([AgentIdentity::from(key.inner().public_key().clone())])
                });
                offer(handle, id, offers, &mut LocalSigner(keys)).await
            }
            #[cfg(unix)]
            Source::SshAgent(agent) => {
                let (keys, mut signer) = agent.connect(handle.agent_session_binding()).await?;
                offer(handle, id, keys.into_iter(), &mut signer).await
            }
        }
    }
}

/// Shows `keys` to the hub one after the other, until it takes one.
async fn offer<H, S>(
    handle: &mut Handle<H>,
    id: &str,
    keys: impl Iterator<Item = AgentIdentity> + Send,
    signer: &mut S,
) -> Result<(), AuthError>
where
    H: Handler,
    H::Error: fmt::Display,
    S: Signer<Error = SignError> + Send,
{
    let (mut offered, mut unused) = (vec![], vec![]);
    let mut closing = false;
    for key in keys {
        let label = label(&key);
        let mut skip = |why: &str| unused.push(format!("{label} ({why})"));
        if closing {
            skip("the hub takes no more");
            continue;
        }
        if offered.len() == MAX_OFFERS {
            skip("only three are tried: choose it by `with_public_key`");
            continue;
        }
        let hash = match key.public_key().algorithm() {
            Algorithm::Rsa { .. } if !cfg!(feature = "rsa") => {
                skip("needs dialback's `rsa` feature");
                continue;
            }
            Algorithm::Rsa { .. } => match handle.best_supported_rsa_hash().await {
                Ok(Some(None)) => {
                    skip("the hub takes RSA only with SHA-1, which is broken");
                    continue;
                }
                Ok(Some(hash)) => hash,
                // It did not say: then the one that every RFC 8332 implementation has.
                Ok(None) => Some(HashAlg::Sha256),
                Err(_) => return Err(ended(handle).await),
            },
            _ => None,
        };
        let answer = match key {
            AgentIdentity::PublicKey { key, .. } => handle.authenticate_publickey_with(id, key, hash, signer).await,
            AgentIdentity::Certificate { certificate, .. } => {
                handle.authenticate_certificate_with(id, certificate, hash, signer).await
            }
        };
        match answer {
            Ok(AuthResult::Success) => {
                tracing::debug!(id, key = %label, "authenticated");
                return Ok(());
            }
            // How russh says, too, that the connection is gone.
            Ok(AuthResult::Failure { .. }) if handle.is_closed() => return Err(ended(handle).await),
            Ok(AuthResult::Failure { remaining_methods, .. }) => {
                tracing::debug!(id, key = %label, "the hub refused the key");
                closing = !remaining_methods.contains(&MethodKind::PublicKey);
                offered.push(label);
            }
            Err(SignError::Declined(why)) => {
                tracing::debug!(id, key = %label, why, "the key could not sign");
                skip(&why);
            }
            Err(SignError::Broken(error)) => return Err(error),
            Err(SignError::Ended) => return Err(ended(handle).await),
        }
    }
    if offered.is_empty() {
        return Err(AuthError::NoUsableKey { unused });
    }
    Err(AuthError::Refused { id: id.to_owned(), offered, unused })
}

/// What became of a connection that is gone.
async fn ended<H>(handle: &mut Handle<H>) -> AuthError
where
    H: Handler,
    H::Error: fmt::Display,
{
    // Its task has ended or is about to: it takes no messages any more.
    let reason = match handle.await {
        Ok(()) => "the hub closed it".to_owned(),
        Err(error) => error.to_string(),
    };
    AuthError::ConnectionEnded { reason }
}

fn label(key: &AgentIdentity) -> String {
    let summary = PublicKey::new(key.public_key().key_data().clone(), "").summary();
    match key {
        AgentIdentity::PublicKey { .. } => summary,
        AgentIdentity::Certificate { certificate, .. } => {
            let name: String = certificate.key_id().chars().take(80).collect();
            format!("{summary} with certificate `{}`{}", name.escape_debug(), out_of_date(certificate))
        }
    }
}

/// Why a hub is bound to refuse a certificate, by this machine's clock: it does not say so itself.
fn out_of_date(certificate: &Certificate) -> String {
    let now = unix_seconds(SystemTime::now());
    if now >= certificate.valid_before() {
        format!(" (it expired at {})", Utc(certificate.valid_before()))
    } else if now < certificate.valid_after() {
        format!(" (it is not valid before {})", Utc(certificate.valid_after()))
    } else {
        String::new()
    }
}

/// Why a hub did not take an agent in, or why it could not be asked to.
///
/// All but [`ConnectionEnded`](Self::ConnectionEnded) need somebody to change something, on the hub for
/// [`Refused`](Self::Refused), here for the others.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The hub took none of the keys for this agent id.
    #[error(
        "the hub takes none of these keys for the agent id `{id}`: {}{}; let the hub's `authorized_keys` grant it one",
        .offered.join(", "), also(.unused)
    )]
    Refused {
        /// The agent id.
        id: String,
        /// The keys that were shown to the hub: type, fingerprint and certificate, with its date if that is the reason.
        offered: Vec<String>,
        /// The keys that were not, and why.
        unused: Vec<String>,
    },
    /// There are keys, but none of them can be used with this hub.
    #[error("none of the keys can be used: {}", .unused.join(", "))]
    NoUsableKey {
        /// The keys, and why each is unusable.
        unused: Vec<String>,
    },
    /// The ssh-agent has no keys, or not the one that was chosen.
    #[error(
        "the ssh-agent at `{}` does not hold {}: add it with `ssh-add`", .socket.display(),
        .wanted.as_deref().unwrap_or("any key")
    )]
    NoKeyInSshAgent {
        /// The ssh-agent's socket.
        socket: PathBuf,
        /// The key that was chosen by [`Identity::with_public_key`], if one was.
        wanted: Option<String>,
    },
    /// The ssh-agent cannot be reached.
    #[error("cannot reach the ssh-agent at `{}`: is it running?", .socket.display())]
    SshAgentUnreachable {
        /// The ssh-agent's socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The ssh-agent did not answer in time.
    #[error("the ssh-agent at `{}` did not answer within {after:?}: does it wait for its user?", .socket.display())]
    SshAgentSilent {
        /// The ssh-agent's socket.
        socket: PathBuf,
        /// How long it had.
        after: Duration,
    },
    /// The ssh-agent gave an answer that makes no sense.
    #[error("the ssh-agent at `{}` does not work: {reason}", .socket.display())]
    SshAgentBroken {
        /// The ssh-agent's socket.
        socket: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The connection ended before the hub had decided. It may be worth a retry.
    #[error("the connection ended before the hub took the agent in: {reason}")]
    ConnectionEnded {
        /// What ended it.
        reason: String,
    },
}

fn also(unused: &[String]) -> String {
    if unused.is_empty() { String::new() } else { format!(" (not tried: {})", unused.join(", ")) }
}

/// Why there is no signature.
#[derive(Debug)]
enum SignError {
    /// This key cannot sign; another may.
    Declined(String),
    /// No key can sign any more.
    #[cfg_attr(not(unix), allow(dead_code))] // of a running ssh-agent alone
    Broken(AuthError),
    /// The connection is gone.
    Ended,
}

impl From<russh::SendError> for SignError {
    fn from(_: russh::SendError) -> Self {
        Self::Ended
    }
}

/// Signs with the keys in memory.
///
/// Used even for that instead of russh's own path for private keys, which for an RSA certificate names SHA-1.
struct LocalSigner<'a>(&'a [PrivateKey]);

impl Signer for LocalSigner<'_> {
    type Error = SignError;

    async fn auth_sign(
        &mut self,
        identity: &AgentIdentity,
        hash: Option<HashAlg>,
        mut message: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        let wanted = identity.public_key();
        let key = self.0.iter().find(|key| key.inner().public_key().key_data() == wanted.key_data());
        let key = key.ok_or_else(|| SignError::Declined("it is not at hand".into()))?;
        let signature = match key.inner().key_data() {
            #[cfg(feature = "rsa")]
            KeypairData::Rsa(key) => signature::Signer::try_sign(&(key, hash), &message),
            key => {
                let _: Option<HashAlg> = hash; // the other algorithms have one hash each
                let key: &KeypairData = key;
                signature::Signer::try_sign(key, &message)
            }
        };
        let declined = |error: &dyn fmt::Display| SignError::Declined(format!("cannot sign: {error}"));
        // RFC 4252, section 7: the signature follows what it signs, as a string.
        let signature = signature.map_err(|e| declined(&e))?;
        signature.encode_prefixed(&mut message).map_err(|e| declined(&e))?;
        Ok(message)
    }
}

#[cfg(all(test, unix))]
mod tests;
