//! Notices when files change.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::stamp::Stamp;

/// How often the files' times are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was seen of some files.
#[derive(Default)]
struct Seen {
    last: Option<Vec<Stamp>>,
    in_force: Option<Vec<Stamp>>,
}

impl Seen {
    /// Whether the files have another version, and are left alone since the last look: whoever writes them is done.
    fn look(&mut self, paths: &[PathBuf]) -> bool {
        let now: Option<Vec<Stamp>> = paths.iter().map(|path| Some(Stamp::of(&fs::metadata(path).ok()?))).collect();
        let settled = now == self.last;
        self.last = now;
        let changed = settled && self.last != self.in_force;
        if changed {
            self.in_force.clone_from(&self.last);
        }
        changed
    }
}

/// Calls `changed` when one of the files has, for as long as it is polled; and once at the start, for what was read before
/// may be older than the first look. A version is noticed within 2 s after it was written.
pub(crate) async fn follow(paths: Vec<PathBuf>, changed: impl Fn() + Send + Sync + 'static) {
    let (paths, changed) = (Arc::new(paths), Arc::new(changed));
    let mut seen = Seen::default();
    loop {
        let (paths, changed) = (paths.clone(), changed.clone());
        // A file may be on a network.
        let look = tokio::task::spawn_blocking(move || {
            if seen.look(&paths) {
                changed();
            }
            seen
        });
        seen = look.await.unwrap_or_default(); // at the end of the runtime, or after a panic, begin anew
        tokio::time::sleep(INTERVAL).await;
    }
}
