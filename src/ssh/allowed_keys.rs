//! A list of keys in memory.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use russh::keys::ssh_key::public::KeyData;

use crate::id::{AgentId, InvalidAgentId};
use crate::ssh::authorized_keys::key_rules;
use crate::ssh::authorizer::{Authorizer, Claim, Credential, Denied, Grant};
use crate::ssh::key::PublicKey;

/// A fixed list of which key may be which agent, in memory: for tests, examples and hubs with a handful of agents.
///
/// An empty list lets nobody in. Certificates are refused; [`AuthorizedKeys`](crate::AuthorizedKeys) knows them.
#[derive(Debug, Clone, Default)]
pub struct AllowedKeys {
    ids: HashMap<KeyData, Vec<AgentId>>,
    accepted_labels: BTreeSet<String>,
}

impl AllowedKeys {
    /// A list that lets nobody in.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the holder of this key be this agent. One key may be several agents, and one agent have several keys.
    ///
    /// # Errors
    /// When `id` is not an [`AgentId`].
    pub fn allow(mut self, id: impl AsRef<str>, key: PublicKey) -> Result<Self, InvalidAgentId> {
        let id = id.as_ref().parse()?;
        self.ids.entry(key.key_data().clone()).or_default().push(id);
        Ok(self)
    }

    /// Lets all these agents set these labels themselves. Default: none.
    #[must_use]
    pub fn accept_labels<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.accepted_labels.extend(names.into_iter().map(Into::into));
        self
    }
}

#[async_trait::async_trait]
impl Authorizer for AllowedKeys {
    async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
        let fingerprint = claim.credential.fingerprint();
        let key = match &claim.credential {
            Credential::Key(key) => key,
            Credential::Certificate(certificate) => {
                let authority = certificate.authority_fingerprint();
                return Err(Denied::WrongCa { what: certificate.to_string(), authority });
            }
            Credential::Metadata(_) => return Err(Denied::NoKey { agent_id: claim.agent_id.clone() }),
        };
        let key = key.key_data();
        key_rules::check(key)
            .map_err(|why| Denied::KeyNotAccepted { fingerprint: fingerprint.clone(), why: why.to_string() })?;
        let Some(ids) = self.ids.get(key) else {
            return Err(Denied::UnknownKey { fingerprint });
        };
        if ids.contains(&claim.agent_id) {
            return Ok(Grant::new().accept_labels(self.accepted_labels.clone()));
        }
        let granted = ids.iter().map(ToString::to_string).collect();
        Err(Denied::IdNotGranted { agent_id: claim.agent_id.clone(), fingerprint, granted })
    }

    fn accepts_certificates(&self) -> bool {
        false
    }

    /// Never: the list does not change.
    fn recheck_every(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::authorized_keys::testing::{key, key_claim};

    #[tokio::test]
    async fn a_key_is_only_the_agents_it_was_given() {
        let (known, stranger) = (key(), key());
        let list = AllowedKeys::new().allow("laptop-1", known.public.clone()).expect("an id");
        let list = list.allow("laptop-2", known.public.clone()).expect("an id");
        for id in ["laptop-1", "laptop-2"] {
            assert!(list.authorize(&key_claim(id, &known)).await.is_ok(), "{id}");
        }
        let denied = list.authorize(&key_claim("laptop-3", &known)).await.expect_err("another id");
        assert!(matches!(&denied, Denied::IdNotGranted { granted, .. } if granted.len() == 2), "{denied}");
        let denied = list.authorize(&key_claim("laptop-1", &stranger)).await.expect_err("another key");
        assert!(matches!(denied, Denied::UnknownKey { .. }), "{denied}");
    }

    #[tokio::test]
    async fn a_comment_does_not_make_another_key() {
        let known = key();
        let renamed = PublicKey::new(known.public.key_data().clone(), "another comment");
        let list = AllowedKeys::new().allow("a", renamed).expect("an id");
        assert!(list.authorize(&key_claim("a", &known)).await.is_ok());
    }

    #[test]
    fn an_id_is_checked_when_it_is_added() {
        assert!(AllowedKeys::new().allow("Laptop 1", key().public).is_err());
    }
}
