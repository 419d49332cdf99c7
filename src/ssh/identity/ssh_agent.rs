//! Talking to an ssh-agent (draft-ietf-sshm-ssh-agent), with a deadline on every answer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use russh::Signer;
use russh::keys::agent::client::AgentClient;
use russh::keys::agent::{AgentIdentity, AgentSessionBinding};
use russh::keys::{self, Certificate, HashAlg};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::key::PublicKey;
use super::{AuthError, SignError};

/// How long an ssh-agent may take for one answer: enough to touch a security key, well within the 20 s that a hub
/// gives a login by default.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where an ssh-agent is, and which of its keys to use.
#[derive(Clone, Debug)]
pub(super) struct SshAgent {
    socket: PathBuf,
    /// The keys to try first.
    wanted: Vec<PublicKey>,
    /// And no others, if there are any of these.
    only: bool,
    /// For keys that it holds without them.
    certificates: Vec<Certificate>,
    deadline: Duration,
}

/// A connection to an ssh-agent, for one login.
pub(super) struct Connection<'a> {
    agent: &'a SshAgent,
    client: AgentClient<UnixStream>,
    /// Those that the ssh-agent does not hold.
    certificates: Vec<Certificate>,
}

impl SshAgent {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, wanted: Vec::new(), only: true, certificates: Vec::new(), deadline: DEADLINE }
    }

    pub(super) fn want(&mut self, key: PublicKey) {
        self.wanted.push(key);
    }

    /// Tries the others after those that are wanted.
    pub(super) fn take_others(&mut self) {
        self.only = false;
    }

    pub(super) fn add_certificate(&mut self, certificate: Certificate) {
        self.certificates.push(certificate);
    }

    /// Which of those that are wanted a key is; `None` if it is not to be tried.
    fn rank(&self, key: &AgentIdentity) -> Option<usize> {
        let key = key.public_key();
        let place = self.wanted.iter().position(|wanted| key.key_data() == wanted.key_data());
        place.or_else(|| (self.wanted.is_empty() || !self.only).then_some(self.wanted.len()))
    }

    #[cfg(test)]
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Connects, and lists the keys to try: at least one.
    pub(super) async fn connect(
        &self,
        session: Option<&AgentSessionBinding>,
    ) -> Result<(Vec<AgentIdentity>, Connection<'_>), AuthError> {
        let client = self.in_time(AgentClient::connect_uds(&self.socket)).await?;
        let mut client = client.map_err(|error| match error {
            keys::Error::IO(source) => self.unreachable(source),
            other => self.broken(&other),
        })?;
        if let Some(session) = session {
            // Keys may be restricted to certain hosts; the ssh-agent offers those only once it knows the host. One
            // that does not know the request says no, and has no such keys.
            if let Err(error) = self.in_time(client.bind_session(session, false)).await? {
                tracing::debug!(%error, "the ssh-agent does not bind to sessions");
            }
        }
        let keys = self.in_time(client.request_identities()).await?.map_err(|error| self.broken(&error))?;
        let mut keys: Vec<_> = keys.into_iter().filter_map(|key| Some((self.rank(&key)?, key))).collect();
        if keys.is_empty() {
            let wanted: Vec<_> = self.wanted.iter().map(PublicKey::summary).collect();
            let wanted = (!wanted.is_empty()).then(|| wanted.join(" or "));
            return Err(AuthError::NoKeyInSshAgent { socket: self.socket.clone(), wanted });
        }
        keys.sort_by_key(|(rank, _)| *rank); // stable: otherwise in the ssh-agent's order
        let mut certificates = self.certificates.clone();
        for (_, key) in &keys {
            if let AgentIdentity::Certificate { certificate, .. } = key {
                certificates.retain(|ours| ours != certificate);
            }
        }
        let certificate_for = |key: &AgentIdentity| {
            let AgentIdentity::PublicKey { key, .. } = key else { return None };
            let mut ours = certificates.iter().filter(|ours| ours.public_key() == key.key_data());
            ours.next().cloned().map(AgentIdentity::from)
        };
        let keys = keys.into_iter().flat_map(|(_, key)| [certificate_for(&key), Some(key)]).flatten().collect();
        Ok((keys, Connection { agent: self, client, certificates }))
    }

    async fn in_time<F: Future>(&self, answer: F) -> Result<F::Output, AuthError> {
        timeout(self.deadline, answer)
            .await
            .map_err(|_| AuthError::SshAgentSilent { socket: self.socket.clone(), after: self.deadline })
    }

    fn unreachable(&self, source: io::Error) -> AuthError {
        AuthError::SshAgentUnreachable { socket: self.socket.clone(), source }
    }

    fn broken(&self, error: &keys::Error) -> AuthError {
        AuthError::SshAgentBroken { socket: self.socket.clone(), reason: error.to_string() }
    }
}

impl Signer for Connection<'_> {
    type Error = SignError;

    async fn auth_sign(
        &mut self,
        key: &AgentIdentity,
        hash: Option<HashAlg>,
        message: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        // The ssh-agent knows nothing of a certificate that was added to its key here.
        let bare = match key {
            AgentIdentity::Certificate { certificate, .. } if self.certificates.contains(certificate) => {
                Some(keys::PublicKey::from(certificate.public_key().clone()).into())
            }
            _ => None,
        };
        let key = bare.as_ref().unwrap_or(key);
        let signature = self.agent.in_time(self.client.sign_request(key, hash, message)).await;
        match signature.map_err(SignError::Broken)? {
            Ok(signed) => Ok(signed),
            // Its user said no, or the key is gone or restricted.
            Err(keys::Error::AgentFailure) => Err(SignError::Declined("the ssh-agent declined to sign".into())),
            Err(error) => Err(SignError::Broken(self.agent.broken(&error))),
        }
    }
}
