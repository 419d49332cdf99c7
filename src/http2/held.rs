//! Counts what is kept for readers who are slow.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes are kept, all together, and how many that may be.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: AtomicUsize,
    limit: usize,
}

impl Held {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), limit }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.limit
    }

    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts as over its limit, until as many [`unfill`](Self::unfill)s.
    pub(super) fn fill(&self) {
        self.add(self.limit + 1);
    }

    pub(super) fn unfill(&self) {
        self.remove(self.limit + 1);
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
