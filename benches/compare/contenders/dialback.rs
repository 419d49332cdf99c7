//! Ours: a hub that calls, and an agent that serves.

use dialback::PrivateKey;

use super::{Parts, Start};
use crate::common::Failure;
use crate::rigs::tls::Certificates;
use crate::roles::{AGENT, Way};

pub(super) async fn start(start: &mut Start, way: Way) -> Result<Parts, Failure> {
    // Made here, so that the two do not both make them.
    for name in ["agent", "host"] {
        PrivateKey::load_or_generate(start.dir.path().join(name))?;
    }
    if way == Way::Wss {
        Certificates::of(start.dir.path(), &["127.0.0.1"]);
    }
    let dir = start.dir()?.to_owned();
    let mut hub = start.own(&["hub", &dir, way.name()])?;
    let address = hub.line("listening ").await?;
    let gateway = if way == Way::Gateway { Some(hub.line("gateway ").await?) } else { None };
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    let agent = start.own(&["agent", &dir, way.name(), &address])?;
    Ok(match gateway {
        None => Parts { caller: hub, others: vec![agent] },
        Some(gateway) => {
            Parts { caller: start.own(&["client", &gateway, "--agent", AGENT])?, others: vec![hub, agent] }
        }
    })
}
