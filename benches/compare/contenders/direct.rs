//! No tunnel: what an application gets that can dial its server.

use super::{Parts, Start};
use crate::common::Failure;
use crate::network::Side;
use crate::rigs::tls::Certificates;

pub(super) async fn tcp(start: &mut Start) -> Result<Parts, Failure> {
    let host = start.network.address(Side::Laptop);
    let mut server = start.own(Side::Laptop, &["server", "--host", host])?;
    let address = server.line("listening ").await?;
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    Ok(Parts { caller: start.own(Side::Cloud, &["client", &address])?, others: vec![server] })
}

pub(super) async fn tls(start: &mut Start) -> Result<Parts, Failure> {
    let host = start.network.address(Side::Laptop);
    Certificates::of(start.dir.path(), &[host]);
    let dir = start.dir()?.to_owned();
    let mut server = start.own(Side::Laptop, &["server", "--host", host, "--tls", &dir])?;
    let address = server.line("listening ").await?;
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    Ok(Parts { caller: start.own(Side::Cloud, &["client", &address, "--tls", &dir])?, others: vec![server] })
}
