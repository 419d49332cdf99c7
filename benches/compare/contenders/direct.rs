//! No tunnel: what an application gets that can dial its server.

use super::{Parts, Start};
use crate::common::Failure;
use crate::rigs::tls::Certificates;

pub(super) async fn tcp(start: &mut Start) -> Result<Parts, Failure> {
    let (server, address) = start.server().await?;
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    Ok(Parts { caller: start.own(&["client", &address])?, others: vec![server] })
}

pub(super) async fn tls(start: &mut Start) -> Result<Parts, Failure> {
    Certificates::of(start.dir.path(), &["127.0.0.1"]);
    let dir = start.dir()?.to_owned();
    let mut server = start.own(&["server", "--tls", &dir])?;
    let address = server.line("listening ").await?;
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    Ok(Parts { caller: start.own(&["client", &address, "--tls", &dir])?, others: vec![server] })
}
