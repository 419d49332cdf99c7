//! The calls of one tunnel, and which of them have something to do. What both roles have in common.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::lines::Line;
use super::receive::{Inbox, Windows};
use super::send::Outbox;
use super::{Config, Revision, StreamId};
use crate::unread::{Share, Unread};

/// A call that has something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Woken {
    pub(crate) id: StreamId,
    /// Whoever reads it was told that there was nothing, and now there is something. Or the call is over.
    pub(crate) reader: bool,
    /// Whoever writes it was told that there was no room, and now there is. Or the call is over.
    pub(crate) writer: bool,
}

/// What the client's calls and the server's do not have in common.
pub(super) trait Role: Sized {
    /// Whether the call has a frame that goes before the data of all calls.
    fn is_due(stream: &Stream<Self>) -> bool;
    /// Whether its reader would get something.
    fn has_event(stream: &Stream<Self>) -> bool;
}

/// One call.
#[derive(Debug)]
pub(super) struct Stream<R> {
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    pub(super) role: R,
    /// The reader was told that there is nothing.
    pub(super) reader_waits: bool,
    pub(super) revision: Revision,
    /// The writer was told that there is no room.
    writer_waits: bool,
    /// Whom the driver has to run; with either it is in the line of the woken.
    wakes_reader: bool,
    wakes_writer: bool,
    /// It is in this line.
    in_due: bool,
    in_ready: bool,
    /// What its metadata take that have come and were not read.
    pub(super) metadata: usize,
    /// What it takes of what is held in all, of that what has no window, and of what was promised in all.
    held: usize,
    unwindowed: usize,
    grown: usize,
}

impl<R> Stream<R> {
    /// What is to be granted to the peer now, if something is.
    pub(super) fn take_owed(&mut self, share: &mut Share) -> Option<u32> {
        let bytes = if self.inbox.is_owing() { self.inbox.take_owed(share) } else { 0 };
        (bytes > 0).then_some(bytes)
    }
}

/// The calls of one tunnel. Nothing here looks at all of them, but what ends the tunnel, and what finds out who holds most.
#[derive(Debug)]
pub(super) struct Streams<R> {
    pub(super) config: Config,
    streams: HashMap<StreamId, Stream<R>>,
    /// Those that have something to send beside data.
    due: Line,
    /// Those that have data and window.
    ready: Line,
    woken: VecDeque<StreamId>,
    share: Share,
    /// What calls of revision zero hold of it, metadata aside.
    unwindowed: usize,
}

impl<R: Role> Streams<R> {
    pub(super) fn new(mut config: Config) -> Self {
        config.window = config.window.max(config.newest.minimum_window());
        config.start = config.start.max(config.newest.minimum_window()).min(config.window);
        let share = Share::new(Arc::new(Unread::new(config.max_unread)));
        Self {
            config,
            streams: HashMap::new(),
            due: Line::default(),
            ready: Line::default(),
            woken: VecDeque::new(),
            share,
            unwindowed: 0,
        }
    }

    /// From now on counts together with others.
    pub(super) fn share(&mut self, unread: Arc<Unread>) {
        self.share.move_to(unread);
    }

    pub(super) fn unread(&self) -> &Arc<Unread> {
        self.share.unread()
    }

    /// Adds a call whose peer has granted `window` bytes, and whose metadata take `metadata`.
    pub(super) fn insert(&mut self, id: StreamId, revision: Revision, window: u32, role: R, metadata: usize) {
        let Config { start, window: most, max_message, max_chunk, .. } = self.config;
        let stream = Stream {
            outbox: Outbox::new(revision, window, max_chunk),
            inbox: Inbox::new(revision, Windows { start, most }, max_message),
            role,
            reader_waits: false,
            revision,
            writer_waits: false,
            wakes_reader: false,
            wakes_writer: false,
            in_due: false,
            in_ready: false,
            metadata,
            held: 0,
            unwindowed: 0,
            grown: 0,
        };
        self.streams.insert(id, stream);
        self.with(id, |_, _| ());
    }

    /// Does something to a call, and sees to what follows from it: who is to be woken, and in which lines the call stands.
    pub(super) fn with<T>(&mut self, id: StreamId, act: impl FnOnce(&mut Stream<R>, &mut Share) -> T) -> Option<T> {
        let stream = self.streams.get_mut(&id)?;
        let result = act(stream, &mut self.share);

        let (received, grown) = (stream.inbox.held(), stream.inbox.grown());
        let held = received + stream.metadata;
        self.share.update(stream.held, held);
        stream.held = held;
        if stream.revision == Revision::Zero {
            self.unwindowed = self.unwindowed - stream.unwindowed + received;
            stream.unwindowed = received;
        }
        // What it grows by, it has been promised when it asked.
        self.share.take_back(stream.grown.saturating_sub(grown));
        stream.grown = grown;

        if !stream.in_due && R::is_due(stream) {
            stream.in_due = true;
            self.due.push(id);
        }
        if !stream.in_ready && stream.outbox.can_send() {
            stream.in_ready = true;
            self.ready.push(id);
        }

        let was_woken = stream.wakes_reader || stream.wakes_writer;
        if stream.reader_waits && R::has_event(stream) {
            stream.reader_waits = false;
            stream.wakes_reader = true;
        }
        if stream.writer_waits && stream.outbox.queued() < self.config.max_queued {
            stream.writer_waits = false;
            stream.wakes_writer = true;
        }
        if !was_woken && (stream.wakes_reader || stream.wakes_writer) {
            self.woken.push_back(id);
        }
        Some(result)
    }

    /// Whether a writer may write. If not, it will be woken.
    pub(super) fn has_room(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        stream.writer_waits = stream.outbox.queued() >= self.config.max_queued;
        !stream.writer_waits
    }

    /// Forgets a call. Whoever waits for it is woken, and if `tell` the driver hears of it in any case.
    pub(super) fn remove(&mut self, id: StreamId, tell: bool) -> Option<Stream<R>> {
        let stream = self.streams.remove(&id)?;
        self.share.update(stream.held, 0);
        self.share.take_back(stream.grown);
        self.unwindowed -= stream.unwindowed;
        if stream.in_due {
            self.due.leave(|id| self.streams.contains_key(&id));
        }
        if stream.in_ready {
            self.ready.leave(|id| self.streams.contains_key(&id));
        }
        // One that is in line already wakes both: the line knows no more than that it is gone.
        if (tell || stream.reader_waits || stream.writer_waits) && !stream.wakes_reader && !stream.wakes_writer {
            self.woken.push_back(id);
        }
        Some(stream)
    }

    /// The next call that has something to send beside data.
    pub(super) fn next_due(&mut self) -> Option<StreamId> {
        while let Some(id) = self.due.pop() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.in_due = false;
                return Some(id);
            }
            self.due.skipped();
        }
        None
    }

    /// The next call that has data to send.
    pub(super) fn next_ready(&mut self) -> Option<StreamId> {
        while let Some(id) = self.ready.pop() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.in_ready = false;
                return Some(id);
            }
            self.ready.skipped();
        }
        None
    }

    pub(super) fn next_woken(&mut self) -> Option<Woken> {
        let id = self.woken.pop_front()?;
        let Some(stream) = self.streams.get_mut(&id) else { return Some(Woken { id, reader: true, writer: true }) };
        let woken = Woken { id, reader: stream.wakes_reader, writer: stream.wakes_writer };
        (stream.wakes_reader, stream.wakes_writer) = (false, false);
        Some(woken)
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&Stream<R>> {
        self.streams.get(&id)
    }

    pub(super) fn contains(&self, id: StreamId) -> bool {
        self.streams.contains_key(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Calls of revision zero hold a window's worth: only not to read the carrier keeps their peer from sending more.
    pub(super) fn is_overfull(&self) -> bool {
        self.unwindowed > 0 && self.unwindowed >= self.config.window as usize
    }

    /// Who holds most, and how much that is.
    pub(super) fn most(&self) -> Option<(StreamId, usize)> {
        self.streams.iter().map(|(id, stream)| (*id, stream.held)).max_by_key(|(_, held)| *held)
    }

    /// The tunnel has ended: nothing is sent any more. These are the calls.
    pub(super) fn end(&mut self) -> Vec<StreamId> {
        self.due.clear();
        self.ready.clear();
        for stream in self.streams.values_mut() {
            (stream.in_due, stream.in_ready) = (false, false);
        }
        self.streams.keys().copied().collect()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = (&StreamId, &Stream<R>)> {
        self.streams.iter()
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.share.held()
    }

    #[cfg(test)]
    pub(super) fn promised(&self) -> usize {
        self.share.promised()
    }

    /// How many stand in the lines, gone or not.
    #[cfg(test)]
    pub(super) fn in_lines(&self) -> usize {
        self.due.len() + self.ready.len() + self.woken.len()
    }
}
