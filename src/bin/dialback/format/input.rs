//! What has come in and is not decoded yet, and how a format finds the end of a message in it.

use super::error::{FormatError, Place};

/// What a format says about the bytes that are there.
#[derive(Debug, PartialEq)]
pub(super) enum Cut {
    /// The message is not complete.
    More,
    /// So many bytes belong to no message.
    Skip(usize),
    /// A message is so long. What follows belongs to the next.
    Message(usize),
    /// What is there can be no message, from this byte on.
    Wrong(usize, String),
}

/// Finds where messages end. It remembers how far it has looked, so that each byte is looked at once.
pub(super) trait Framing: std::fmt::Debug {
    /// Looks at everything that is there, which is what it saw the last time and more, unless it cut something off.
    /// `last` says that nothing more comes.
    fn cut(&mut self, rest: &[u8], last: bool) -> Cut;
}

#[derive(Debug)]
pub(super) struct Input {
    buffer: Vec<u8>,
    start: usize,
    place: Place,
    offset: u64,
}

impl Default for Input {
    fn default() -> Self {
        Self { buffer: Vec::new(), start: 0, place: Place::START, offset: 0 }
    }
}

impl Input {
    pub(super) fn push(&mut self, data: &[u8]) {
        // Moves what is left to the front only when more than that has been taken: on the whole each byte moves once.
        if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(data);
    }

    pub(super) fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Where the rest begins.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// How many bytes were before the rest.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn take(&mut self, count: usize) -> &[u8] {
        let taken = &self.buffer[self.start..self.start + count];
        self.start += count;
        self.place = self.place.after(taken);
        self.offset += count as u64;
        taken
    }

    /// Has what was taken be no part of the text.
    pub(super) fn restart(&mut self) {
        self.place = Place::START;
    }

    pub(super) fn clear(&mut self) {
        self.buffer = Vec::new();
        self.start = 0;
    }
}

/// The text of a message, which all formats but the binary one have in UTF-8.
pub(super) fn utf8(bytes: &[u8], place: Place) -> Result<&str, FormatError> {
    std::str::from_utf8(bytes).map_err(|error| FormatError::Syntax {
        place: place.after(&bytes[..error.valid_up_to()]),
        what: "invalid UTF-8".into(),
    })
}
