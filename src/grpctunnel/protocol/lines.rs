//! Streams that wait their turn.

use std::collections::VecDeque;

use super::StreamId;

/// Those that have left may make up half of a line, and this many in any case: they are found only when it is their turn.
const SWEEP: usize = 64;

/// A line of streams. Who stands in it is known to the streams themselves, so that none stands in it twice.
#[derive(Debug, Default)]
pub(super) struct Line {
    ids: VecDeque<StreamId>,
    /// How many of them have left.
    left: usize,
}

impl Line {
    pub(super) fn push(&mut self, id: StreamId) {
        self.ids.push_back(id);
    }

    /// The next. It may have left; then the caller says so with [`skipped`](Self::skipped).
    pub(super) fn pop(&mut self) -> Option<StreamId> {
        self.ids.pop_front()
    }

    /// The stream that was popped had left.
    pub(super) fn skipped(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// One that stands in line has left. Without this, calls that are made and given up while the carrier takes nothing
    /// would be memory for ever.
    pub(super) fn leave(&mut self, is_there: impl Fn(StreamId) -> bool) {
        self.left += 1;
        if self.left > SWEEP && self.left > self.ids.len() / 2 {
            self.ids.retain(|id| is_there(*id));
            self.left = 0;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether nobody stands in it, gone or not.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }
}
