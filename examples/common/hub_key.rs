//! How a demo agent recognises its hub.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use dialback::HostKeys;

use crate::program::Failure;

/// Believes the hub that has the public key in this file, once there is such a file. Whoever answers first is not
/// believed for that: a stranger on the way could be the first.
pub(crate) async fn public_key_in(file: &Path, who: &str) -> Result<HostKeys, Failure> {
    let mut told = false;
    loop {
        match std::fs::read_to_string(file) {
            Ok(text) => return Ok(HostKeys::public_key(text.trim().parse()?)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot read {}: {error}", file.display()).into()),
        }
        if !std::mem::replace(&mut told, true) {
            println!("{who}: waiting for {}: start the hub here, or copy it from its machine", file.display());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
