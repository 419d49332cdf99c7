//! OpenSSH user certificates, and what makes one good for an agent.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use russh::keys::ssh_encoding::Base64Reader;
use russh::keys::ssh_encoding::Reader as _;
use russh::keys::ssh_key::{self, Algorithm, HashAlg};

use crate::id::AgentId;
use crate::ssh::authorized_keys::key_rules;
use crate::ssh::authorized_keys::sources::Sources;
use crate::ssh::authorizer::{Brief, Denied};
use crate::ssh::key::PublicKey;
use crate::time::unix_seconds;

/// An OpenSSH certificate that a peer presented.
///
/// Everything in it is what some CA wrote, and anybody can be a CA: nothing may be believed before
/// [`check`](Self::check) against a CA that you trust. Displayed, its key id is escaped and cut. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate(pub(crate) Arc<ssh_key::Certificate>);

/// Text that is not an OpenSSH certificate.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not an OpenSSH certificate: give the one line of a -cert.pub file")]
#[non_exhaustive]
pub struct InvalidCertificate {
    /// What the decoder found, if it came that far.
    source: Option<ssh_key::Error>,
}

impl Certificate {
    /// The key that the certificate is about: the agent's own.
    pub fn key(&self) -> PublicKey {
        PublicKey::new(self.0.public_key().clone(), "")
    }

    /// SHA-256 fingerprint of the key that signed it, `SHA256:…`.
    pub fn authority_fingerprint(&self) -> String {
        self.0.signature_key().fingerprint(HashAlg::Sha256).to_string()
    }

    /// The name the CA gave the certificate, for logs. Any text at all: escape it before you print it.
    pub fn key_id(&self) -> &str {
        self.0.key_id()
    }

    /// The number the CA gave the certificate; 0 if it does not count.
    pub fn serial(&self) -> u64 {
        self.0.serial()
    }

    /// The agent ids the CA vouches for. Any text at all: escape it before you print it.
    pub fn principals(&self) -> &[String] {
        self.0.valid_principals()
    }

    /// Checks that this certificate lets its holder be this agent, now, from this address, if this CA is trusted.
    ///
    /// It must be a user certificate, signed by `authority`, with key types this crate accepts (and no SHA-1), valid
    /// now, and list the agent id as a principal: one without principals, which sshd takes for "any", is refused. Of
    /// the critical options, `source-address` is enforced and every other one refused, `force-command` too: it says
    /// that the certificate is for something else. Extensions concern shells and are ignored.
    ///
    /// Whether the peer holds the private key, and whether a key was revoked, are not checked here. A hub asks nobody
    /// about a certificate that is out of date at login, or whose signature is wrong: russh has refused it by then.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(
        &self,
        authority: &PublicKey,
        agent_id: &AgentId,
        peer: Option<SocketAddr>,
        now: SystemTime,
    ) -> Result<(), Denied> {
        let certificate = &self.0;
        if certificate.signature_key() != authority.key_data() {
            return Err(Denied::WrongCa { what: self.to_string(), authority: self.authority_fingerprint() });
        }
        for key in [certificate.signature_key(), certificate.public_key()] {
            key_rules::check(key).map_err(|why| Denied::KeyNotAccepted {
                fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
                why: why.to_string(),
            })?;
        }
        if !certificate.cert_type().is_user() {
            return Err(self.bad("it is a host certificate: sign it without `-h`"));
        }
        if certificate.signature().algorithm() == (Algorithm::Rsa { hash: None }) {
            return Err(self.bad("its CA signed it with SHA-1: sign it with `-t rsa-sha2-512`"));
        }
        let now = unix_seconds(now);
        if now < certificate.valid_after() {
            return Err(Denied::NotYetValid { what: self.to_string(), from: certificate.valid_after() });
        }
        if now >= certificate.valid_before() {
            return Err(Denied::Expired { what: self.to_string(), at: certificate.valid_before() });
        }
        let trusted = authority.inner().fingerprint(HashAlg::Sha256);
        certificate.validate_at(now, [&trusted]).map_err(|_| self.bad("its signature is wrong"))?;
        if !self.principals().iter().any(|principal| principal == agent_id.as_str()) {
            let (fingerprint, granted) = (self.key().fingerprint(), self.principals().to_vec());
            return Err(Denied::IdNotGranted { agent_id: agent_id.clone(), fingerprint, granted });
        }
        self.check_critical_options(peer)
    }

    fn check_critical_options(&self, peer: Option<SocketAddr>) -> Result<(), Denied> {
        for (name, value) in self.0.critical_options().iter() {
            if name != "source-address" {
                return Err(Denied::UnsupportedOption { what: self.to_string(), name: name.clone() });
            }
            let sources = Sources::network_list(value)
                .map_err(|_| self.bad("its source-address is not a list of addresses and networks"))?;
            let peer = peer.map(|peer| peer.ip().to_canonical());
            if !sources.allows(peer) {
                let allowed = Brief(sources.as_str()).to_string();
                return Err(Denied::SourceNotAllowed { what: self.to_string(), peer, allowed });
            }
        }
        Ok(())
    }

    fn bad(&self, why: &'static str) -> Denied {
        Denied::BadCertificate { what: self.to_string(), why }
    }
}

impl From<ssh_key::Certificate> for Certificate {
    fn from(certificate: ssh_key::Certificate) -> Self {
        Self(Arc::new(certificate))
    }
}

/// How often the mark of a certificate may occur in one: its own name, and some in texts. The decoder follows
/// certificates inside certificates without limit, which could exhaust the stack.
const MAX_MARKS: usize = 8;

/// Reads the one line of a `-cert.pub` file.
impl FromStr for Certificate {
    type Err = InvalidCertificate;

    fn from_str(text: &str) -> Result<Self, InvalidCertificate> {
        let mark = b"-cert-v01@";
        let base64 = text.split_ascii_whitespace().nth(1).ok_or(InvalidCertificate { source: None })?;
        let fault = |source: ssh_key::Error| InvalidCertificate { source: Some(source) };
        let mut reader = Base64Reader::new(base64.as_bytes()).map_err(|error| fault(error.into()))?;
        let mut bytes = vec![0; reader.remaining_len()];
        reader.read(&mut bytes).map_err(|error| fault(error.into()))?;
        if bytes.windows(mark.len()).filter(|window| window == mark).count() > MAX_MARKS {
            return Err(InvalidCertificate { source: None });
        }
        ssh_key::Certificate::from_openssh(text).map(Self::from).map_err(fault)
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate `{}` (serial {})", Brief(self.key_id()), self.serial())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("key_id", &self.key_id())
            .field("serial", &self.serial())
            .field("principals", &self.principals())
            .field("key", &self.key().fingerprint())
            .field("authority", &self.authority_fingerprint())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::authorized_keys::testing::{certificate, key};

    #[test]
    fn text_reads_back_and_nonsense_is_refused() {
        let made = certificate(&key(), &key(), |_| {});
        let text = made.0.to_openssh().expect("text");
        assert_eq!(text.parse::<Certificate>().expect("a certificate"), made);
        for bad in
            ["", "x", "ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519-cert-v01@openssh.com AAAA", &key().openssh()]
        {
            assert!(bad.parse::<Certificate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_deeply_nested_certificate_does_not_exhaust_the_stack() {
        use russh::keys::ssh_encoding::{Base64Writer, Encode};
        let name = "ssh-ed25519-cert-v01@openssh.com";
        let mut nested = Vec::new();
        for _ in 0..1_000 {
            let mut outer = Vec::new();
            name.encode(&mut outer).expect("encodes");
            // An empty nonce, a key, a serial, the type; then nothing for the key id, the principals, the two times
            // and the three lists that come before the CA's key.
            outer.extend([0; 4]);
            [7_u8; 32].as_slice().encode(&mut outer).expect("encodes");
            outer.extend([0; 8]);
            outer.extend([0, 0, 0, 1]);
            outer.extend([0; 8 + 16 + 12]);
            nested.encode(&mut outer).expect("encodes");
            nested = outer;
        }
        let mut buffer = vec![0; nested.len() * 2];
        let mut writer = Base64Writer::new(&mut buffer).expect("a writer");
        russh::keys::ssh_encoding::Writer::write(&mut writer, &nested).expect("fits");
        let text = format!("{name} {}", writer.finish().expect("base64"));
        assert!(text.parse::<Certificate>().is_err());
    }

    #[test]
    fn what_a_ca_wrote_is_escaped_when_shown() {
        let evil = certificate(&key(), &key(), |builder| {
            builder.key_id("x\x1b[31m\n").expect("set").valid_principal("y\x1b[0m").expect("set");
        });
        for text in [evil.to_string(), format!("{evil:?}")] {
            assert!(!text.contains(['\x1b', '\n']), "{text:?}");
        }
    }
}
