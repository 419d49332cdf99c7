//! Files that are read whole, each up to a bound: a name may lead to a device that never ends.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::failure::Failure;

/// The largest file that holds a secret or a key, in bytes.
pub(crate) const SECRET: u64 = 64 << 10;

/// # Errors
/// When it cannot be read, or is larger than `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    up_to(path, limit).map_err(|error| Failure::of_system(format!("{} cannot be read", path.display()), &error))
}

/// # Errors
/// The same, and when it is no UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, Failure> {
    let text = String::from_utf8(read(path, limit)?);
    text.map_err(|_| Failure::new(format!("{} cannot be read: it is no UTF-8", path.display())))
}

/// # Errors
/// The same as [`read`], for those who say it in another way.
pub(crate) fn up_to(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large(limit)) } else { Ok(bytes) }
}

/// What is wrong with a file that is larger than its bound.
pub(crate) fn too_large(limit: u64) -> io::Error {
    let (limit, unit) = if limit < 1 << 20 { (limit >> 10, "KiB") } else { (limit >> 20, "MiB") };
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {limit} {unit}, the most that is read"))
}
