//! A file that is read again when it changes, and not trusted when others can write it.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::ssh::authorized_keys::AuthorizedKeysError;
#[cfg(unix)]
use crate::ssh::key::file::is_own;
use crate::stamp::Stamp;

/// The largest file, in bytes: about 150,000 keys.
pub(super) const MAX_FILE: u64 = 16 * 1024 * 1024;

/// One file and what was last read from it.
#[derive(Debug)]
pub(super) struct Watched<T> {
    path: PathBuf,
    absence: Absence,
    state: Mutex<State<T>>,
}

/// What it means that the file does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence {
    Normal,
    /// Worth a warning.
    Fault,
}

#[derive(Debug)]
struct State<T> {
    version: Option<Arc<Version<T>>>,
    /// Whether the last look at the file failed, so that each failure is logged once.
    failing: bool,
}

#[derive(Debug)]
struct Version<T> {
    stamp: Stamp,
    /// Whether an equal stamp proves that the file is the same.
    settled: bool,
    value: Arc<T>,
}

impl<T> Watched<T> {
    pub(super) fn new(path: PathBuf, absence: Absence) -> Self {
        Self { path, absence, state: Mutex::new(State { version: None, failing: false }) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was last read; none before the first time, and while the file cannot be used.
    pub(super) fn last(&self) -> Option<Arc<T>> {
        self.lock().version.as_ref().map(|version| version.value.clone())
    }

    /// What the file says now. `parse` gets its text and what was read before, only if the file may have changed.
    ///
    /// Blocks on the file system, without holding a lock: two callers may both read, and either result may stay; the
    /// next caller's look at the file tells whether it is current.
    pub(super) fn current(
        &self,
        now: SystemTime,
        parse: impl FnOnce(&[u8], Option<&T>) -> Result<T, AuthorizedKeysError>,
    ) -> Result<Arc<T>, AuthorizedKeysError> {
        let known = self.lock().version.clone();
        let result = self.refresh(known, now, parse);
        let mut state = self.lock();
        state.version = result.as_ref().ok().cloned();
        let was_failing = std::mem::replace(&mut state.failing, result.is_err());
        drop(state);
        match &result {
            Ok(_) if was_failing => tracing::info!(file = %self.path.display(), "the file can be used again"),
            Err(error) if error.is_missing() && self.absence == Absence::Normal => {}
            Err(error) if !was_failing => {
                let cause = std::error::Error::source(error).map(tracing::field::display);
                tracing::warn!(%error, cause, "nobody is let in by this file");
            }
            _ => {}
        }
        result.map(|version| version.value.clone())
    }

    /// The known version if it is current, else a new one.
    fn refresh(
        &self,
        known: Option<Arc<Version<T>>>,
        now: SystemTime,
        parse: impl FnOnce(&[u8], Option<&T>) -> Result<T, AuthorizedKeysError>,
    ) -> Result<Arc<Version<T>>, AuthorizedKeysError> {
        let failed = |source: io::Error| AuthorizedKeysError::Read { path: self.path.clone(), source };
        // Before it is opened: opening a pipe would wait for its writer.
        let stamp = self.examine(&fs::metadata(&self.path).map_err(failed)?)?;
        if let Some(known) = &known
            && known.settled
            && known.stamp == stamp
        {
            return Ok(known.clone());
        }
        let file = File::open(&self.path).map_err(failed)?;
        let stamp = self.examine(&file.metadata().map_err(failed)?)?;
        let mut text = Vec::new();
        // It may grow while it is read.
        file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_FILE {
            return Err(AuthorizedKeysError::TooLarge { path: self.path.clone() });
        }
        let value = Arc::new(parse(&text, known.as_ref().map(|known| &*known.value))?);
        Ok(Arc::new(Version { settled: stamp.is_settled(now), stamp, value }))
    }

    fn examine(&self, metadata: &Metadata) -> Result<Stamp, AuthorizedKeysError> {
        if !metadata.is_file() {
            return Err(AuthorizedKeysError::NotAFile { path: self.path.clone() });
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            if !is_own(metadata) {
                return Err(AuthorizedKeysError::Owner { path: self.path.clone(), owner: metadata.uid() });
            }
            let mode = metadata.mode() & 0o7777;
            if mode & 0o022 != 0 {
                return Err(AuthorizedKeysError::WritableByOthers { path: self.path.clone(), mode });
            }
        }
        if metadata.len() > MAX_FILE {
            return Err(AuthorizedKeysError::TooLarge { path: self.path.clone() });
        }
        Ok(Stamp::of(metadata))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The state is replaced whole, so a panic elsewhere leaves it sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(60)
    }

    fn text(watched: &Watched<String>, now: SystemTime, reads: &Cell<u32>) -> Result<String, AuthorizedKeysError> {
        let value = watched.current(now, |text, _| {
            reads.set(reads.get() + 1);
            Ok(String::from_utf8_lossy(text).into_owned())
        });
        value.map(|value| value.to_string())
    }

    #[test]
    fn an_unchanged_file_is_read_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, "one").expect("written");
        let (watched, reads) = (Watched::new(path, Absence::Fault), Cell::new(0));
        for _ in 0..3 {
            assert_eq!(text(&watched, later(), &reads).expect("read"), "one");
        }
        assert_eq!(reads.get(), 1);
    }

    #[test]
    fn changes_in_quick_succession_are_all_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let (watched, reads) = (Watched::new(path.clone(), Absence::Fault), Cell::new(0));
        // Same length, and so fast that the times may well be equal.
        for n in 100..400 {
            fs::write(&path, n.to_string()).expect("written");
            assert_eq!(text(&watched, SystemTime::now(), &reads).expect("read"), n.to_string());
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_replacement_with_old_times_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, new) = (dir.path().join("file"), dir.path().join("new"));
        fs::write(&path, "one").expect("written");
        let (watched, reads) = (Watched::new(path.clone(), Absence::Fault), Cell::new(0));
        assert_eq!(text(&watched, later(), &reads).expect("read"), "one");
        fs::write(&new, "two").expect("written");
        let modified = fs::metadata(&path).expect("there").modified().expect("a time");
        File::options().write(true).open(&new).expect("opens").set_modified(modified).expect("set");
        fs::rename(&new, &path).expect("moved");
        assert_eq!(text(&watched, later(), &reads).expect("read"), "two");
    }

    #[cfg(unix)]
    #[test]
    fn a_change_with_its_time_set_back_is_still_recent() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, "one").expect("written");
        File::options().write(true).open(&path).expect("opens").set_modified(SystemTime::UNIX_EPOCH).expect("set");
        let changed = fs::metadata(&path).expect("there").ctime();
        let just_now = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(changed).expect("after 1970"));
        let (watched, reads) = (Watched::new(path, Absence::Fault), Cell::new(0));
        for _ in 0..3 {
            text(&watched, just_now, &reads).expect("read");
        }
        assert_eq!(reads.get(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, "one").expect("written");
        let (watched, reads) = (Watched::new(path.clone(), Absence::Fault), Cell::new(0));
        let chmod = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        for (mode, safe) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false), (0o444, true)] {
            chmod(mode);
            let result = text(&watched, later(), &reads);
            assert_eq!(result.is_ok(), safe, "{mode:o}");
            if let Err(error) = result {
                assert!(error.to_string().contains("chmod go-w"), "{error}");
                assert!(watched.last().is_none());
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_of_somebody_else_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, "one").expect("written");
        if std::os::unix::fs::chown(&path, Some(65534), None).is_err() {
            return; // not root, who alone can do that
        }
        let (watched, reads) = (Watched::new(path, Absence::Fault), Cell::new(0));
        let error = text(&watched, later(), &reads).expect_err("it is somebody else's");
        assert!(matches!(error, AuthorizedKeysError::Owner { owner: 65534, .. }), "{error}");
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let reads = Cell::new(0);
        let error = text(&Watched::new(dir.path().into(), Absence::Fault), later(), &reads).expect_err("a directory");
        assert!(matches!(error, AuthorizedKeysError::NotAFile { .. }), "{error}");
        let missing = dir.path().join("missing");
        let error = text(&Watched::new(missing, Absence::Fault), later(), &reads).expect_err("missing");
        assert!(error.is_missing(), "{error}");
        let large = dir.path().join("large");
        File::create(&large).expect("created").set_len(MAX_FILE + 1).expect("set");
        let error = text(&Watched::new(large, Absence::Fault), later(), &reads).expect_err("too large");
        assert!(matches!(error, AuthorizedKeysError::TooLarge { .. }), "{error}");
        assert_eq!(reads.get(), 0);
    }

    #[test]
    fn a_clock_behind_the_file_reads_it_every_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, "one").expect("written");
        let (watched, reads) = (Watched::new(path, Absence::Fault), Cell::new(0));
        for _ in 0..3 {
            text(&watched, SystemTime::UNIX_EPOCH, &reads).expect("read");
        }
        assert_eq!(reads.get(), 3);
    }
}
