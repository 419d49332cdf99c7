//! Any legal schedule of two peers: whatever their windows and their chunks, and in whatever order things happen, every
//! message arrives, in order, and no more is kept than the windows allow.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What one call is about.
#[derive(Debug, Clone)]
struct Script {
    requests: Vec<usize>,
    responses: Vec<usize>,
    /// The handler reads the whole request before it ends the call.
    patient: bool,
    /// Both write their messages in pieces of so many bytes.
    piece: usize,
}

#[derive(Debug, Clone)]
struct Setting {
    client: Config,
    server: Config,
    negotiated: bool,
    scripts: Vec<Script>,
    /// What happens first; then everything happens in turn.
    ops: Vec<(u8, u8)>,
    /// Calls may be given up.
    cancels: bool,
}

/// One end of one direction of a call, which writes.
#[derive(Debug)]
struct Writer {
    messages: Vec<Bytes>,
    next: usize,
    /// How much of the next message was written.
    written: usize,
    waits: bool,
}

impl Writer {
    fn new(seed: usize, sizes: &[usize]) -> Self {
        Self { messages: messages(seed, sizes), next: 0, written: 0, waits: false }
    }

    /// What it does next: begins a message, or writes some of it.
    fn next(&mut self, piece: usize) -> Option<Write> {
        let message = self.messages.get(self.next)?;
        if self.written == 0 && message.len() <= piece {
            self.next += 1;
            return Some(Write::Whole(message.clone()));
        }
        let end = message.len().min(self.written + piece);
        let data = message.slice(self.written..end);
        let begins = (self.written == 0).then_some(message.len() as u32);
        self.written = end;
        if end == message.len() {
            (self.next, self.written) = (self.next + 1, 0);
        }
        Some(Write::Some(begins, data))
    }
}

enum Write {
    Whole(Bytes),
    Some(Option<u32>, Bytes),
}

/// One end of one direction of a call, which reads.
#[derive(Debug, Default)]
struct Reader {
    messages: Vec<Bytes>,
    /// The size of the message that is being read, and what there is of it.
    current: Option<(usize, Vec<u8>)>,
    waits: bool,
    over: bool,
}

impl Reader {
    fn begin(&mut self, size: u32, data: &[u8]) {
        assert!(self.current.is_none(), "the message before is not complete");
        self.current = Some((size as usize, Vec::new()));
        self.go_on(data);
    }

    fn go_on(&mut self, data: &[u8]) {
        let (size, message) = self.current.as_mut().expect("a message");
        message.extend_from_slice(data);
        assert!(message.len() <= *size);
        if message.len() == *size {
            self.messages.extend(self.current.take().map(|(_, message)| message.into()));
        }
    }
}

fn messages(seed: usize, sizes: &[usize]) -> Vec<Bytes> {
    let message = |(n, size): (usize, &usize)| (0..*size).map(|i| (seed * 50 + n * 7 + i) as u8).collect();
    sizes.iter().enumerate().map(message).collect()
}

#[derive(Debug)]
struct Call {
    id: StreamId,
    script: Script,
    request: (Writer, Reader),
    response: (Writer, Reader),
    half_closed: bool,
    accepted: bool,
    closed: bool,
    cancelled: bool,
    end: Option<Status>,
    /// What the client and the server have granted, and what of it was read there.
    granted: [usize; 2],
    read: [usize; 2],
}

/// Two peers, what is under way between them, and their callers and handlers.
struct World {
    client: Client,
    server: Server,
    setting: Setting,
    to_server: VecDeque<ClientToServer>,
    to_client: VecDeque<ServerToClient>,
    calls: Vec<Call>,
    /// With what the server's windows begin.
    server_grants: usize,
    /// For how the wire cuts chunks up.
    random: u64,
}

impl World {
    fn new(setting: Setting) -> Self {
        let negotiated = if setting.negotiated { Negotiated::Yes } else { Negotiated::No };
        let client = Client::new(setting.client.clone(), negotiated);
        let server = Server::new(setting.server.clone(), negotiated);
        let (to_server, to_client) = (VecDeque::new(), VecDeque::new());
        Self { client, server, setting, to_server, to_client, calls: Vec::new(), server_grants: 0, random: 1 }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below
    }

    /// Cuts data in up to three parts, any of which may be empty.
    fn cut(&mut self, mut data: Bytes) -> Vec<Bytes> {
        let mut parts = Vec::new();
        while self.random(3) == 0 && parts.len() < 2 {
            let len = self.random(data.len() + 1);
            parts.push(data.split_to(len));
        }
        parts.push(data);
        parts
    }

    fn open(&mut self) -> bool {
        let n = self.calls.len();
        let Some(script) = self.setting.scripts.get(n).cloned() else { return false };
        let Ok(id) = self.client.open(METHOD, Metadata::default()) else { return false };
        let request = (Writer::new(2 * n, &script.requests), Reader::default());
        let response = (Writer::new(2 * n + 1, &script.responses), Reader::default());
        let (half_closed, accepted, closed, cancelled) = (false, false, false, false);
        let (end, granted, read) = (None, [0, self.server_grants], [0, 0]);
        let call = Call { id, script, request, response, half_closed, accepted, closed, cancelled, end, granted, read };
        self.calls.push(call);
        true
    }

    fn grants(&mut self, side: usize, id: i64, bytes: u32) {
        if let Some(call) = self.calls.iter_mut().find(|call| call.id == StreamId(id)) {
            call.granted[side] += bytes as usize;
        }
    }

    fn overhead(&self) -> usize {
        self.client.revision().map_or(0, |revision| revision.overhead() as usize)
    }

    fn client_sends(&mut self) -> bool {
        let Some(ClientToServer { stream_id, frame }) = self.client.poll_frame() else { return false };
        let (first, data) = match frame {
            Some(ClientFrame::RequestMessage(MessageData { size, data })) => (Some(size), data),
            Some(ClientFrame::MoreRequestData(data)) => (None, data),
            frame => {
                let granted = match &frame {
                    Some(ClientFrame::NewStream(new)) => new.initial_window_size,
                    Some(ClientFrame::WindowUpdate(bytes)) => *bytes,
                    _ => 0,
                };
                self.grants(0, stream_id, granted);
                self.to_server.push_back(ClientToServer { stream_id, frame });
                return true;
            }
        };
        assert!(first == Some(0) || !data.is_empty(), "a frame for nothing");
        for (n, data) in self.cut(data).into_iter().enumerate() {
            let frame = match first.filter(|_| n == 0) {
                Some(size) => ClientFrame::RequestMessage(MessageData { size, data }),
                None => ClientFrame::MoreRequestData(data),
            };
            self.to_server.push_back(from_client::frame(stream_id, frame));
        }
        true
    }

    fn server_sends(&mut self) -> bool {
        let Some(ServerToClient { stream_id, frame }) = self.server.poll_frame() else { return false };
        let (first, data) = match frame {
            Some(ServerFrame::ResponseMessage(MessageData { size, data })) => (Some(size), data),
            Some(ServerFrame::MoreResponseData(data)) => (None, data),
            frame => {
                match &frame {
                    Some(ServerFrame::Settings(settings)) => self.server_grants = settings.initial_window_size as usize,
                    Some(ServerFrame::WindowUpdate(bytes)) => self.grants(1, stream_id, *bytes),
                    _ => {}
                }
                self.to_client.push_back(ServerToClient { stream_id, frame });
                return true;
            }
        };
        for (n, data) in self.cut(data).into_iter().enumerate() {
            let frame = match first.filter(|_| n == 0) {
                Some(size) => ServerFrame::ResponseMessage(MessageData { size, data }),
                None => ServerFrame::MoreResponseData(data),
            };
            self.to_client.push_back(from_server::frame(stream_id, frame));
        }
        true
    }

    fn server_receives(&mut self) -> bool {
        if self.server.is_overfull() {
            return false;
        }
        let Some(frame) = self.to_server.pop_front() else { return false };
        self.server.receive(frame).expect("a legal frame");
        while let Some(call) = self.server.accept() {
            let call = self.calls.iter_mut().find(|known| known.id == call.id).expect("a call that was made");
            call.accepted = true;
        }
        true
    }

    fn client_receives(&mut self) -> bool {
        if self.client.is_overfull() {
            return false;
        }
        let Some(frame) = self.to_client.pop_front() else { return false };
        self.client.receive(frame).expect("a legal frame");
        true
    }

    /// Only those that were woken try again what was in vain.
    fn wake(&mut self) {
        while let Some(woken) = self.client.next_woken() {
            if let Some(call) = self.calls.iter_mut().find(|call| call.id == woken.id) {
                call.response.1.waits &= !woken.reader;
                call.request.0.waits &= !woken.writer;
            }
        }
        while let Some(woken) = self.server.next_woken() {
            if let Some(call) = self.calls.iter_mut().find(|call| call.id == woken.id) {
                call.request.1.waits &= !woken.reader;
                call.response.0.waits &= !woken.writer;
            }
        }
    }

    fn client_writes(&mut self, n: usize) -> bool {
        let call = &mut self.calls[n];
        if call.half_closed || call.cancelled || call.end.is_some() || call.request.0.waits {
            return false;
        }
        if !self.client.has_room(call.id) {
            call.request.0.waits = true;
            return false;
        }
        let result = match call.request.0.next(call.script.piece) {
            Some(Write::Whole(message)) => self.client.send(call.id, message),
            Some(Write::Some(begins, data)) => begins
                .map_or(Ok(()), |size| self.client.start_message(call.id, size))
                .and_then(|()| self.client.push(call.id, data)),
            None => {
                call.half_closed = true;
                self.client.half_close(call.id)
            }
        };
        assert!(matches!(result, Ok(()) | Err(SendError::Over)), "{result:?}");
        true
    }

    fn client_reads(&mut self, n: usize) -> bool {
        let overhead = self.overhead();
        let call = &mut self.calls[n];
        let reader = &mut call.response.1;
        if reader.over || reader.waits || call.cancelled {
            return false;
        }
        match self.client.poll_event(call.id) {
            Some(ResponseEvent::Headers(_)) => assert!(reader.messages.is_empty() && reader.current.is_none()),
            Some(ResponseEvent::Message { size, data }) => {
                call.read[0] += data.len() + overhead;
                reader.begin(size, &data);
            }
            Some(ResponseEvent::More(data)) => {
                call.read[0] += data.len();
                reader.go_on(&data);
            }
            Some(ResponseEvent::End { status, .. }) => {
                (reader.over, call.end) = (true, Some(status));
            }
            Some(ResponseEvent::Lost) => panic!("the tunnel stands"),
            None => {
                reader.waits = true;
                return false;
            }
        }
        true
    }

    fn server_reads(&mut self, n: usize) -> bool {
        let overhead = self.overhead();
        let call = &mut self.calls[n];
        let reader = &mut call.request.1;
        if !call.accepted || call.closed || reader.over || reader.waits {
            return false;
        }
        match self.server.poll_event(call.id) {
            Some(RequestEvent::Message { size, data }) => {
                call.read[1] += data.len() + overhead;
                reader.begin(size, &data);
            }
            Some(RequestEvent::More(data)) => {
                call.read[1] += data.len();
                reader.go_on(&data);
            }
            Some(RequestEvent::HalfClosed) => reader.over = true,
            Some(RequestEvent::Cancelled) => {
                assert!(self.setting.cancels);
                (reader.over, call.closed) = (true, true);
            }
            None => {
                reader.waits = true;
                return false;
            }
        }
        true
    }

    fn server_writes(&mut self, n: usize) -> bool {
        let call = &mut self.calls[n];
        if !call.accepted || call.closed || call.response.0.waits {
            return false;
        }
        if !self.server.has_room(call.id) {
            call.response.0.waits = true;
            return false;
        }
        let result = match call.response.0.next(call.script.piece) {
            Some(Write::Whole(message)) => self.server.send(call.id, message),
            Some(Write::Some(begins, data)) => begins
                .map_or(Ok(()), |size| self.server.start_message(call.id, size))
                .and_then(|()| self.server.push(call.id, data)),
            None if call.script.patient && !call.request.1.over => return false,
            None => {
                call.closed = true;
                self.server.close(call.id, Status::default(), Metadata::default());
                Ok(())
            }
        };
        assert!(matches!(result, Ok(()) | Err(SendError::Over)), "{result:?}");
        true
    }

    fn gives_up(&mut self, n: usize) -> bool {
        let call = &mut self.calls[n];
        if call.end.is_some() || call.cancelled {
            return false;
        }
        call.cancelled = true;
        self.client.cancel(call.id);
        true
    }

    fn refuses(&mut self, n: usize) -> bool {
        let call = &mut self.calls[n];
        if !call.accepted || call.closed {
            return false;
        }
        call.closed = true;
        self.server.refuse(call.id, Status::new(Code::Aborted, "refused"));
        true
    }

    /// Says whether anything happened.
    fn step(&mut self, (op, n): (u8, u8)) -> bool {
        self.wake();
        let n = usize::from(n);
        let happened = match op {
            0 => self.open(),
            1 => self.client_sends(),
            2 => self.server_sends(),
            3 => self.server_receives(),
            4 => self.client_receives(),
            _ if self.calls.is_empty() => false,
            5 => self.client_writes(n % self.calls.len()),
            6 => self.client_reads(n % self.calls.len()),
            7 => self.server_reads(n % self.calls.len()),
            8 => self.server_writes(n % self.calls.len()),
            9 if self.setting.cancels && n < 40 => self.gives_up(n % self.calls.len()),
            10 if self.setting.cancels && n < 40 => self.refuses(n % self.calls.len()),
            _ => false,
        };
        self.check_memory();
        happened
    }

    fn check_memory(&self) {
        let zero = self.client.revision() == Some(Revision::Zero);
        let most = |config: &Config, newest: Revision| config.window.max(newest.minimum_window()) as usize;
        let (client, server) = (&self.setting.client, &self.setting.server);
        let windows = [most(client, client.newest), most(server, server.newest)];
        let chunks = [server.max_chunk.max(1) as usize, client.max_chunk.max(1) as usize];
        let starts = [client, server].map(|config| config.start.max(config.newest.minimum_window()) as usize);
        let (mut held, mut beyond) = ([0, 0], [0, 0]);
        for call in &self.calls {
            let inboxes = [
                self.client.streams().get(call.id).map(|stream| stream.inbox.held()),
                self.server.streams().get(call.id).map(|stream| stream.inbox.held()),
            ];
            let messages = [call.script.responses.len(), call.script.requests.len()];
            for side in 0..2 {
                let bytes = inboxes[side].unwrap_or_default().saturating_sub(8 * messages[side]);
                held[side] += bytes;
                // What a peer may send of a call that is answered is dropped as it comes.
                if zero || inboxes[side].is_none() || side == 1 && call.closed {
                    continue;
                }
                let window = call.granted[side] - call.read[side];
                assert!(window <= windows[side], "{window} is more than the window");
                assert!(bytes <= window, "{bytes} bytes are held of a window of {window}");
                beyond[side] += bytes.saturating_sub(starts[side]);
            }
            let written = [
                (self.client.streams().get(call.id).map(|stream| stream.outbox.queued()), client),
                (self.server.streams().get(call.id).map(|stream| stream.outbox.queued()), server),
            ];
            for (queued, config) in written {
                assert!(queued.unwrap_or_default() <= config.max_queued + call.script.piece + 64);
            }
        }
        for (side, config) in [client, server].into_iter().enumerate() {
            assert!(beyond[side] <= config.max_unread / 2, "{} bytes are held beyond the starts", beyond[side]);
            assert!(!zero || held[side] <= windows[side] + chunks[side], "{} bytes are held", held[side]);
        }
    }

    /// Everything happens in turn, until nothing happens any more.
    fn finish(&mut self) {
        loop {
            let mut happened = false;
            for op in 0..5 {
                happened |= self.step((op, 0));
            }
            for op in 5..9 {
                for n in 0..self.calls.len() {
                    happened |= self.step((op, n as u8));
                }
            }
            if !happened {
                return;
            }
        }
    }

    /// What has to be true at the end.
    fn check(&mut self) {
        assert_eq!(self.calls.len(), self.setting.scripts.len());
        for (n, call) in self.calls.iter().enumerate() {
            let requests = messages(2 * n, &call.script.requests);
            let responses = messages(2 * n + 1, &call.script.responses);
            assert!(requests.starts_with(&call.request.1.messages));
            assert!(responses.starts_with(&call.response.1.messages));
            if call.cancelled {
                continue;
            }
            let status = call.end.as_ref().expect("an end: the tunnel has stalled");
            if !status.is_ok() {
                assert!(self.setting.cancels, "{status:?}");
                continue;
            }
            assert_eq!(call.response.1.messages, responses);
            assert!(call.response.1.current.is_none());
            if call.script.patient {
                assert_eq!(call.request.1.messages, requests);
            }
        }
        assert!(self.to_client.is_empty() && self.to_server.is_empty());
        assert_eq!((self.client.calls(), self.server.calls()), (0, 0));
        assert_eq!((self.client.streams().held(), self.server.streams().held()), (0, 0));
        assert_eq!((self.client.streams().promised(), self.server.streams().promised()), (0, 0));
        assert_eq!((self.client.woken(), self.server.woken()), (vec![], vec![]));
        self.client.poll_frame();
        self.server.poll_frame();
        assert_eq!((self.client.streams().in_lines(), self.server.streams().in_lines()), (0, 0));
    }
}

fn configs() -> impl Strategy<Value = Config> {
    let newest = prop_oneof![1 => Just(Revision::Zero), 1 => Just(Revision::One), 2 => Just(Revision::Two)];
    let window = prop_oneof![4 => 1..=12u32, 2 => 13..2000u32, 1 => Just(65_536u32), 1 => Just(1024 * 1024)];
    let chunk = prop_oneof![1..20u32, 100..5000u32, Just(65_536)];
    let queued = prop_oneof![1..100usize, Just(10_000)];
    let start = prop_oneof![2 => 1..12u32, 1 => 13..2000u32, 1 => Just(65_536u32)];
    let unread = prop_oneof![1 => 0..1000usize, 1 => 1000..100_000usize, 1 => Just(64 << 20)];
    (newest, window, start, chunk, queued, unread).prop_map(
        |(newest, window, start, max_chunk, max_queued, max_unread)| Config {
            newest,
            window,
            start,
            max_chunk,
            max_queued,
            max_unread,
            ..Config::default()
        },
    )
}

fn scripts() -> impl Strategy<Value = Script> {
    let size = || prop_oneof![2 => Just(0usize), 4 => 0..20usize, 2 => 0..1500usize, 1 => 0..20_000usize];
    let messages = || vec(size(), 0..5);
    let piece = prop_oneof![1..20usize, 100..1000usize, Just(100_000)];
    (messages(), messages(), prop::bool::weighted(0.7), piece)
        .prop_map(|(requests, responses, patient, piece)| Script { requests, responses, patient, piece })
}

fn settings(cancels: bool) -> impl Strategy<Value = Setting> {
    let ops = vec((0..11u8, any::<u8>()), 0..600);
    (configs(), configs(), prop::bool::weighted(0.85), vec(scripts(), 1..5), ops).prop_map(
        move |(client, server, negotiated, mut scripts, ops)| {
            // A large message through a window of a byte takes too long to be tried often.
            for script in &mut scripts {
                let least = |config: &Config| config.window.min(config.start) as usize;
                let most = least(&client).min(least(&server)) * 25;
                for size in script.requests.iter_mut().chain(&mut script.responses) {
                    *size = (*size).min(most);
                }
                script.piece = script.piece.max(most.min(20_000) / 200);
            }
            Setting { client, server, negotiated, scripts, ops, cancels }
        },
    )
}

proptest! {
    #[test]
    fn every_message_arrives_in_order_and_nothing_stalls(setting in settings(false)) {
        let mut world = World::new(setting);
        for op in world.setting.ops.clone() {
            world.step(op);
        }
        world.finish();
        world.check();
    }

    #[test]
    fn calls_that_are_given_up_leave_nothing_and_do_not_harm_others(setting in settings(true)) {
        let mut world = World::new(setting);
        for op in world.setting.ops.clone() {
            world.step(op);
        }
        world.finish();
        world.check();
    }
}

/// Windows of all sizes from the smallest on, at both ends, in each revision: large messages both ways at once.
#[test]
fn no_window_stalls() {
    let script = |size: usize| Script {
        requests: vec![size, 0, size],
        responses: vec![0, size, size],
        patient: true,
        piece: 777,
    };
    for newest in [Revision::One, Revision::Two] {
        let windows = (newest.minimum_window()..40).chain([63, 64, 1000, 1024, 4096, 65_536, 1024 * 1024]);
        for window in windows {
            let config = Config { newest, window, ..Config::default() };
            for other in [window, 16, 65_536] {
                let size = (window.min(other) as usize * 12).min(50_000);
                let server = Config { window: other, ..config.clone() };
                let scripts = vec![script(size), script(1)];
                let client = config.clone();
                let setting = Setting { client, server, negotiated: true, scripts, ops: vec![], cancels: false };
                let mut world = World::new(setting);
                world.finish();
                world.check();
            }
        }
    }
}
