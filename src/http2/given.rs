//! Whether h2 still has data that it was given.

use std::sync::{Arc, Weak};

use bytes::Bytes;

/// Watches the last of the data that were given to h2 for one stream.
///
/// h2 keeps what a peer grants no window for, even when both sides have ended the call, until somebody resets the stream. But
/// a reset of a call that is over counts as one, and h2 remembers only so many: so whoever ends a call has to know.
#[derive(Debug, Default)]
pub(crate) struct Given(Weak<()>);

struct Watched {
    data: Bytes,
    _lives: Arc<()>,
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Given {
    /// The same data, watched.
    pub(super) fn watch(&mut self, data: Bytes) -> Bytes {
        if data.is_empty() {
            return data; // needs no window
        }
        let lives = Arc::new(());
        self.0 = Arc::downgrade(&lives);
        Bytes::from_owner(Watched { data, _lives: lives })
    }

    /// Whether not all of it was sent.
    pub(crate) fn is_kept(&self) -> bool {
        self.0.strong_count() > 0
    }
}
