//! Key files on disk: what is refused, and how a new one appears whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::KeyError;

/// The largest key file read, in bytes. The largest that `ssh-keygen` writes (RSA, 16384 bits) is 13 KiB.
pub(crate) const MAX_KEY_FILE: u64 = 64 * 1024;

/// Opens a regular file of at most `limit` bytes. The caller still has to stop reading at `limit`: the file may grow.
pub(crate) fn open_regular(path: &Path, limit: u64) -> io::Result<File> {
    // Asked before opening, because opening a FIFO waits for its writer, and after, because the name may have moved.
    let check = |metadata: fs::Metadata| match metadata.is_file() {
        true if metadata.len() <= limit => Ok(()),
        true => Err(io::Error::other(format!("it is larger than {limit} bytes"))),
        false => Err(io::Error::other("it is not a regular file")),
    };
    check(fs::metadata(path)?)?;
    let file = File::open(path)?;
    check(file.metadata()?)?;
    Ok(file)
}

/// Whether a file belongs to the user that this process runs as, or to root: other owners may change it, whatever its mode.
#[cfg(unix)]
pub(crate) fn is_own(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw()
}

/// Opens a private key file, refusing one that others than its owner may read or write. Who that is does not matter, as it does
/// not for `ssh`: root may use a user's key.
pub(super) fn open_private(path: &Path) -> Result<File, KeyError> {
    let unreadable = |source| KeyError::Unreadable { path: path.to_owned(), source };
    let file = open_regular(path, MAX_KEY_FILE).map_err(unreadable)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen { path: path.to_owned(), mode });
        }
    }
    Ok(file)
}

/// Who may read a new file.
#[derive(Clone, Copy)]
pub(super) enum Readers {
    Owner,
    Everyone,
}

/// Writes a new file; fails with `AlreadyExists` if there is one, and never leaves half of one to be seen.
pub(super) fn write_new(path: &Path, contents: &[u8], readers: Readers) -> io::Result<()> {
    let draft = Draft::write(path, contents, readers)?;
    match fs::hard_link(&draft.0, path) {
        // A file system without hard links: then a reader may see the file before it is whole.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => create(path, contents, readers),
        linked => linked,
    }
}

/// Writes a file, replacing the one that is there.
pub(super) fn replace(path: &Path, contents: &[u8], readers: Readers) -> io::Result<()> {
    fs::rename(&Draft::write(path, contents, readers)?.0, path)
}

fn create(path: &Path, contents: &[u8], readers: Readers) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(match readers {
            Readers::Owner => 0o600,
            Readers::Everyone => 0o644,
        });
    }
    #[cfg(not(unix))]
    let _ = readers; // the directory's own rules apply
    let mut file = options.open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// A file under a name of its own, in the directory it is meant for; removed on drop.
struct Draft(PathBuf);

impl Draft {
    fn write(target: &Path, contents: &[u8], readers: Readers) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        // `RandomState` is seeded by the operating system; the name only has to differ from other drafts.
        let unique = RandomState::new().hash_one(target);
        let draft = Self(target.with_file_name(format!(".{}.{unique:016x}", name.to_string_lossy())));
        create(&draft.0, contents, readers)?;
        Ok(draft)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `replace` there is nothing left to remove, and otherwise nobody to tell.
        let _ = fs::remove_file(&self.0);
    }
}
