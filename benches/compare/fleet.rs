//! Many agents on one hub.

use std::path::Path;

use crate::common::Failure;

pub(crate) async fn hub(_dir: &Path, _agents: usize, _listen: &str) -> Result<(), Failure> {
    Err("not yet".into())
}

pub(crate) async fn agents(_dir: &Path, _agents: usize, _address: &str) -> Result<(), Failure> {
    Err("not yet".into())
}
