//! One direction of a call, receiving: what waits for the reader, and what the peer may send.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::error::Violation;
use super::{Piece, Revision};
use crate::unread::Share;

/// Chunks below this size are gathered. All are copied: one that was kept as it came would keep the carrier's whole buffer,
/// and a peer could see to it that this is a thousand times as large.
const SMALL: usize = 8 * 1024;

/// As much of small chunks goes into one buffer.
const GATHERED: usize = 2 * SMALL;

/// What is kept of a message beside its bytes.
const RUN: usize = size_of::<Run>();

/// So many messages of the same size: a flood of empty ones, which revision one lets through without window, is one run.
#[derive(Debug)]
struct Run {
    size: u32,
    count: u32,
}

/// What becomes of what arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Reads,
    /// It is granted again at once, and dropped.
    Discards,
    /// It is dropped.
    Gone,
}

/// The window of a call: what it begins with, and up to what it may grow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub(super) start: u32,
    pub(super) most: u32,
}

/// The messages of one direction of a call that were received and not read.
///
/// Every byte of the window is at any time in one of three places: the peer may send it, or it is unread, or it was read
/// and is owed to the peer.
///
/// The window grows with what is granted: by as much again as was read, since who reads can take more, or by what a message
/// lacks that does not fit, so that it comes in one go. It does as far as the tunnel's [`Share`] has room.
#[derive(Debug)]
pub(super) struct Inbox {
    revision: Revision,
    /// What the peer may send.
    window: u32,
    /// What was read, and the peer does not know.
    owed: u32,
    /// All of the window, and its bounds.
    size: u32,
    windows: Windows,
    /// A message has begun that is larger than what the peer may send, and was not seen to.
    short: bool,
    max_message: u32,
    reader: Reader,
    /// The peer will send more, if it may.
    more: bool,
    /// What the message that is being received lacks.
    missing: u32,
    /// What the message that is being read has left.
    unread: u32,
    /// The messages after it.
    sizes: VecDeque<Run>,
    /// The bytes of all of them, as far as they have come.
    bytes: Rope,
}

impl Inbox {
    /// For a peer to which `windows.start` bytes were granted.
    pub(super) fn new(revision: Revision, windows: Windows, max_message: u32) -> Self {
        Self {
            revision,
            window: windows.start,
            owed: 0,
            size: windows.start,
            windows,
            short: false,
            max_message,
            reader: Reader::Reads,
            more: true,
            missing: 0,
            unread: 0,
            sizes: VecDeque::new(),
            bytes: Rope::default(),
        }
    }

    /// A message of `size` bytes has begun.
    pub(super) fn begin(&mut self, size: u32, data: Bytes) -> Result<(), Violation> {
        if self.missing > 0 {
            return Err(Violation::Interrupted);
        }
        let Some(missing) = u32::try_from(data.len()).ok().and_then(|len| size.checked_sub(len)) else {
            return Err(Violation::Excess);
        };
        let cost = size - missing;
        self.charge(cost.saturating_add(self.revision.overhead()))?;
        if size > self.max_message {
            return Err(Violation::MessageSize { size, limit: self.max_message });
        }
        self.missing = missing;
        self.short = self.reader == Reader::Reads && self.wanted_for_message() > 0;
        match self.reader {
            Reader::Reads => self.keep(size, data),
            Reader::Discards => self.owe(cost + self.revision.overhead()),
            Reader::Gone => {}
        }
        Ok(())
    }

    /// It goes on.
    pub(super) fn go_on(&mut self, data: Bytes) -> Result<(), Violation> {
        let Some(missing) = u32::try_from(data.len()).ok().and_then(|len| self.missing.checked_sub(len)) else {
            return Err(Violation::Excess);
        };
        let cost = self.missing - missing;
        self.charge(cost)?;
        self.missing = missing;
        match self.reader {
            Reader::Reads => self.bytes.push(data),
            Reader::Discards => self.owe(cost),
            Reader::Gone => {}
        }
        Ok(())
    }

    fn keep(&mut self, size: u32, data: Bytes) {
        match self.sizes.back_mut() {
            Some(run) if run.size == size && run.count < u32::MAX => run.count += 1,
            _ => self.sizes.push_back(Run { size, count: 1 }),
        }
        self.bytes.push(data);
    }

    fn charge(&mut self, cost: u32) -> Result<(), Violation> {
        if self.revision != Revision::Zero {
            self.window = self.window.checked_sub(cost).ok_or(Violation::Window)?;
        }
        Ok(())
    }

    fn owe(&mut self, cost: u32) {
        if self.revision != Revision::Zero {
            self.owed += cost; // was charged, so that there is room
        }
    }

    /// Whether there is something to read.
    pub(super) fn has_piece(&self) -> bool {
        if self.unread > 0 { !self.bytes.is_empty() } else { !self.sizes.is_empty() }
    }

    /// What the reader gets next; with that it has read it.
    pub(super) fn next(&mut self) -> Option<Piece> {
        if self.unread > 0 {
            let data = self.bytes.pop(self.unread as usize)?;
            self.count(&data, 0);
            return Some(Piece::More(data));
        }
        let run = self.sizes.front_mut()?;
        let size = run.size;
        run.count -= 1;
        if run.count == 0 {
            self.sizes.pop_front();
        }
        self.unread = size;
        let data = if size == 0 { None } else { self.bytes.pop(size as usize) }.unwrap_or_default();
        self.count(&data, self.revision.overhead());
        Some(Piece::First { size, data })
    }

    fn count(&mut self, data: &Bytes, overhead: u32) {
        let len = data.len() as u32; // no more than is unread
        self.unread -= len;
        self.owe(len + overhead);
    }

    /// Whether the peer has to be granted some: a batch was read, or the peer cannot send without, or a message does not fit.
    pub(super) fn is_owing(&self) -> bool {
        let batch = self.owed >= (self.size / 4).max(1) || self.window <= self.revision.overhead();
        self.more && (self.owed > 0 && batch || self.short)
    }

    /// What was read since the last time, and what the window grows by. It may be nothing.
    pub(super) fn take_owed(&mut self, share: &mut Share) -> u32 {
        let wanted = if self.reader == Reader::Reads { self.owed.max(self.wanted_for_message()) } else { 0 };
        let growth = share.promise(wanted.min(self.windows.most - self.size));
        let granted = std::mem::take(&mut self.owed) + growth;
        self.size += growth;
        self.window += granted;
        self.short = false;
        granted
    }

    /// What the message that is being received needs beyond what the peer may send, as far as the window may grow.
    fn wanted_for_message(&self) -> u32 {
        let lacks = self.missing.saturating_sub(self.window + self.owed);
        if self.revision == Revision::Zero { 0 } else { lacks.min(self.windows.most - self.size) }
    }

    /// What of the window's growth the peer can still make this side hold, or has.
    pub(super) fn grown(&self) -> usize {
        let most = match self.reader {
            Reader::Reads if self.more => self.size as usize,
            Reader::Reads => self.bytes.len().min(self.size as usize),
            Reader::Discards | Reader::Gone => 0,
        };
        most.saturating_sub(self.windows.start as usize)
    }

    /// The message that is being received is not complete.
    pub(super) fn is_incomplete(&self) -> bool {
        self.missing > 0
    }

    /// The peer sends no more, so that nothing need be granted.
    pub(super) fn finish(&mut self) {
        self.more = false;
    }

    /// Nobody reads what is there, nor what comes; but the peer is to be able to send it.
    pub(super) fn discard(&mut self) {
        if self.reader == Reader::Reads {
            self.reader = Reader::Discards;
            let messages: u64 = self.sizes.iter().map(|run| u64::from(run.count)).sum();
            let cost = self.bytes.len() as u64 + messages * u64::from(self.revision.overhead());
            self.owe(u32::try_from(cost).unwrap_or(u32::MAX));
            self.clear();
        }
    }

    /// Nobody reads what is there, nor what comes, and the peer need not send it.
    pub(super) fn stop(&mut self) {
        self.reader = Reader::Gone;
        self.more = false;
        self.clear();
    }

    fn clear(&mut self) {
        self.unread = 0;
        self.sizes = VecDeque::new();
        self.bytes = Rope::default();
    }

    /// What it takes of memory.
    pub(super) fn held(&self) -> usize {
        self.bytes.len() + self.sizes.len() * RUN
    }
}

/// A queue of bytes that keeps nothing but these, and does not keep small pieces apart.
#[derive(Debug, Default)]
struct Rope {
    pieces: VecDeque<Bytes>,
    /// Small pieces, after all the others.
    gathered: BytesMut,
    len: usize,
}

impl Rope {
    fn push(&mut self, data: Bytes) {
        self.len += data.len();
        if data.len() >= SMALL {
            self.close();
            self.pieces.push_back(Bytes::copy_from_slice(&data));
        } else if !data.is_empty() {
            if self.gathered.len() + data.len() > GATHERED {
                self.close();
            }
            self.gathered.extend_from_slice(&data);
        }
    }

    /// At most `max` bytes.
    fn pop(&mut self, max: usize) -> Option<Bytes> {
        if self.pieces.is_empty() {
            self.close();
        }
        let front = self.pieces.front_mut()?;
        let data = if front.len() > max { Some(front.split_to(max)) } else { self.pieces.pop_front() }?;
        self.len -= data.len();
        Some(data)
    }

    fn close(&mut self) {
        if !self.gathered.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.gathered).freeze());
        }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn fixed(window: u32) -> Windows {
        Windows { start: window, most: window }
    }

    #[test]
    fn chunk_does_not_keep_the_buffer_in_which_it_came() {
        for len in [1, SMALL - 1, SMALL, 10 * SMALL] {
            let mut inbox = Inbox::new(Revision::One, fixed(100_000), 100_000);
            let buffer = Bytes::from(vec![1; 1 << 20]);
            inbox.begin(len as u32, buffer.slice(..len)).unwrap();
            assert!(buffer.is_unique(), "{len}");
            assert_eq!(inbox.next(), Some(Piece::First { size: len as u32, data: buffer.slice(..len) }));
        }
    }

    #[test]
    fn many_small_chunks_take_no_more_than_their_bytes() {
        let mut inbox = Inbox::new(Revision::One, fixed(100_000), 100_000);
        inbox.begin(100_000, Bytes::new()).unwrap();
        for _ in 0..100_000 {
            inbox.go_on(Bytes::from_static(b"x")).unwrap();
        }
        assert!(inbox.bytes.pieces.len() <= 100_000 / GATHERED);
        assert_eq!(inbox.held(), 100_000 + RUN);
    }

    #[test]
    fn size_alone_takes_no_memory() {
        let mut inbox = Inbox::new(Revision::Two, fixed(100), u32::MAX);
        inbox.begin(1 << 31, Bytes::new()).unwrap();
        assert_eq!(inbox.held(), RUN);
        assert_eq!(inbox.next(), Some(Piece::First { size: 1 << 31, data: Bytes::new() }));
        assert_eq!((inbox.next(), inbox.held()), (None, 0));
    }

    proptest! {
        #[test]
        fn bytes_come_out_in_the_order_in_which_they_went_in(
            steps in vec((prop_oneof![0..20usize, 0..3 * SMALL], 0..3usize, 1..3 * SMALL), 0..40)
        ) {
            let (mut rope, mut given, mut taken, mut next) = (Rope::default(), Vec::new(), Vec::new(), 0u8);
            for (len, pops, max) in steps {
                let data: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                given.extend_from_slice(&data);
                rope.push(data.into());
                for data in (0..pops).map_while(|_| rope.pop(max)) {
                    prop_assert!(!data.is_empty() && data.len() <= max);
                    taken.extend_from_slice(&data);
                }
                prop_assert_eq!(rope.len(), given.len() - taken.len());
            }
            while let Some(data) = rope.pop(usize::MAX) {
                taken.extend_from_slice(&data);
            }
            prop_assert!(rope.is_empty() && taken == given);
        }
    }
}
