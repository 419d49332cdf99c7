//! Ours: a hub that calls, and an agent that serves.

use dialback::PrivateKey;

use super::{Parts, Start};
use crate::common::Failure;
use crate::network::Side;
use crate::rigs::tls::Certificates;
use crate::roles::{AGENT, Way};

pub(super) async fn start(start: &mut Start, way: Way) -> Result<Parts, Failure> {
    // Made here, so that the two do not both make them.
    for name in ["agent", "host"] {
        PrivateKey::load_or_generate(start.dir.path().join(name))?;
    }
    let host = start.network.address(Side::Cloud);
    if way == Way::Wss {
        Certificates::of(start.dir.path(), &[host]);
    }
    let dir = start.dir()?.to_owned();
    let keepalive = start.network.keepalive().map(|seconds| ["--keepalive", seconds]);
    let keepalive = keepalive.as_ref().map_or(&[][..], |two| two);
    let mut hub = start.own(Side::Cloud, &[&["hub", &dir, way.name(), "--host", host], keepalive].concat())?;
    let address = hub.line("listening ").await?;
    let gateway = if way == Way::Gateway { Some(hub.line("gateway ").await?) } else { None };
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    let agent = start.own(Side::Laptop, &[&["agent", &dir, way.name(), &address], keepalive].concat())?;
    Ok(match gateway {
        None => Parts { caller: hub, others: vec![agent] },
        Some(gateway) => {
            let caller = start.own(Side::Cloud, &["client", &gateway, "--agent", AGENT])?;
            Parts { caller, others: vec![hub, agent] }
        }
    })
}
