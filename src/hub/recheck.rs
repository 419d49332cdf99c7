//! Asks the authorizer again while tunnels live: what was granted at login may have been taken back.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::registry::Registry;
use crate::close::CloseReason;
use crate::ssh::{Authorizer, Denied, Session};

/// How long one answer may take; no answer changes nothing.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many questions are under way at once.
const AT_ONCE: usize = 16;

/// Runs as long as its hub.
pub(super) async fn run(registry: Arc<Registry>, authorizer: Arc<dyn Authorizer>) {
    let Some(interval) = authorizer.recheck_every() else { return };
    let interval = interval.max(Duration::from_millis(100));
    loop {
        tokio::time::sleep(interval).await;
        let mut questions = JoinSet::new();
        for session in registry.sessions() {
            if questions.len() >= AT_ONCE {
                let _ = questions.join_next().await; // an authorizer that panics has said nothing
            }
            questions.spawn(ask(session, authorizer.clone()));
        }
        while questions.join_next().await.is_some() {}
    }
}

async fn ask(session: Arc<Session>, authorizer: Arc<dyn Authorizer>) {
    let Some(proof) = session.proof() else { return };
    let Some(claim) = &proof.claim else { return };
    match tokio::time::timeout(PATIENCE, authorizer.authorize(claim)).await {
        // A file that cannot be read keeps newcomers out; whoever is in was let in by one that could.
        Err(_) | Ok(Err(Denied::Unavailable { .. })) => {}
        // Policies and groups go by labels; with new ones it has to come back.
        Ok(Ok(grant)) if grant != proof.grant => {
            session.close(CloseReason::Revoked { reason: "its labels have changed, and it may connect again".into() });
        }
        Ok(Ok(_)) => {}
        Ok(Err(denied)) => session.close(CloseReason::Revoked { reason: denied.to_string() }),
    }
}
