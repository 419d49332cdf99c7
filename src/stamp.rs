//! What tells versions of a file apart.

use std::fs::Metadata;
use std::time::{Duration, SystemTime};

/// How long a file must have been left alone before its times tell versions apart. Some file systems count in steps of
/// two seconds (FAT), the others in steps of a clock tick.
const SETTLED: Duration = Duration::from_secs(2);

/// What changes when a file does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    /// Device, inode, and time of the last change of content, mode or name, which nobody can set back.
    #[cfg(unix)]
    inode: (u64, u64, i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            modified: metadata.modified().ok(),
            len: metadata.len(),
            #[cfg(unix)]
            inode: (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file was left alone long enough for a later change to show in the stamp.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let settled = |changed: SystemTime| now.duration_since(changed).is_ok_and(|age| age >= SETTLED);
        #[cfg(unix)]
        let inode_settled = {
            let seconds = Duration::from_secs(u64::try_from(self.inode.2).unwrap_or_default() + 1);
            settled(SystemTime::UNIX_EPOCH + seconds)
        };
        #[cfg(not(unix))]
        let inode_settled = true;
        inode_settled && self.modified.is_some_and(settled)
    }
}
