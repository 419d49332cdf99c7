//! One direction of a call, sending: what waits for the carrier or for the peer's window.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Piece, Revision, SendError};

/// What a piece costs beside its bytes. Without it empty messages would wait in any number.
const PIECE: usize = 64;

/// A quarter of the largest window that there was goes into one chunk, so that the peer can grant some while more is under
/// way; but chunks are not made smaller than this for it.
const SMALL_CHUNK: u32 = 1024;

/// What the writer has written at once, or what is left of it.
#[derive(Debug)]
struct Written {
    /// The size of the message that begins here.
    begins: Option<u32>,
    data: Bytes,
}

/// The messages of one direction of a call that were written and not sent.
#[derive(Debug)]
pub(super) struct Outbox {
    revision: Revision,
    /// Bytes that may be sent. Go adds up 32 bits and lets them overflow; nobody who is granted that much minds the rest.
    window: u64,
    /// The largest chunk at all, and the largest for the peer's window.
    max_chunk: u32,
    chunk: u32,
    pieces: VecDeque<Written>,
    queued: usize,
    /// The size of a message that was begun and has no data yet.
    begun: Option<u32>,
    /// What the message that was begun lacks.
    missing: u32,
}

impl Outbox {
    /// For a peer that has granted `window` bytes.
    pub(super) fn new(revision: Revision, window: u32, max_chunk: u32) -> Self {
        let max_chunk = max_chunk.max(1);
        let fit = if revision == Revision::Zero { u32::MAX } else { (window / 4).max(SMALL_CHUNK) };
        Self {
            revision,
            window: window.into(),
            max_chunk,
            chunk: max_chunk.min(fit),
            pieces: VecDeque::new(),
            queued: 0,
            begun: None,
            missing: 0,
        }
    }

    pub(super) fn start(&mut self, size: u32) -> Result<(), SendError> {
        if self.missing > 0 {
            return Err(SendError::Unfinished(self.missing));
        }
        self.missing = size;
        if size == 0 {
            self.queue(Written { begins: Some(0), data: Bytes::new() });
        } else {
            self.begun = Some(size);
        }
        Ok(())
    }

    pub(super) fn push(&mut self, data: Bytes) -> Result<(), SendError> {
        if data.is_empty() {
            return Ok(());
        }
        let Some(missing) = u32::try_from(data.len()).ok().and_then(|len| self.missing.checked_sub(len)) else {
            return Err(SendError::Excess(data.len() - self.missing as usize));
        };
        self.missing = missing;
        let begins = self.begun.take();
        self.queue(Written { begins, data });
        Ok(())
    }

    pub(super) fn send(&mut self, message: Bytes) -> Result<(), SendError> {
        let size = u32::try_from(message.len()).map_err(|_| SendError::TooLarge(message.len()))?;
        self.start(size)?;
        self.push(message)
    }

    fn queue(&mut self, piece: Written) {
        self.queued += piece.data.len() + PIECE;
        self.pieces.push_back(piece);
    }

    /// The peer has granted `bytes` more.
    pub(super) fn grant(&mut self, bytes: u32) {
        self.window = self.window.saturating_add(bytes.into());
        let fit = u32::try_from(self.window / 4).unwrap_or(u32::MAX);
        self.chunk = self.chunk.max(fit.min(self.max_chunk));
    }

    /// Whether there is something to send, and window enough to send at least one byte of it: a peer that grants in batches
    /// may grant nothing before that byte is used.
    pub(super) fn can_send(&self) -> bool {
        let Some(next) = self.pieces.front() else { return false };
        let needed = match (self.revision, next.begins) {
            (Revision::Zero, _) => 0,
            // Not even an empty message is sent without any window, though it takes none.
            (Revision::One, _) | (Revision::Two, None) => 1,
            (Revision::Two, Some(size)) => self.revision.overhead() + size.min(1),
        };
        self.window >= needed.into()
    }

    /// As much as goes into one frame.
    pub(super) fn next(&mut self) -> Option<Piece> {
        if !self.can_send() {
            return None;
        }
        let next = self.pieces.front_mut()?;
        let begins = next.begins.take();
        let mut len = next.data.len().min(self.chunk as usize);
        if self.revision != Revision::Zero {
            let overhead = begins.map_or(0, |_| self.revision.overhead().into());
            let left = self.window.saturating_sub(overhead);
            len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.window = left.saturating_sub(len as u64);
        }
        let data = next.data.split_to(len);
        self.queued -= len;
        if next.data.is_empty() {
            self.queued -= PIECE;
            self.pieces.pop_front();
        }
        Some(match begins {
            Some(size) => Piece::First { size, data },
            None => Piece::More(data),
        })
    }

    /// Everything that was written has been sent.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What the message that was begun lacks.
    pub(super) fn missing(&self) -> u32 {
        self.missing
    }

    /// What waits, with what each piece costs.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Nothing of it is sent.
    pub(super) fn clear(&mut self) {
        self.pieces = VecDeque::new();
        self.queued = 0;
    }
}
