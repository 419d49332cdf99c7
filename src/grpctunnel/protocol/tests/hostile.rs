//! Peers that obey no rule: whatever they send is an error or is not, ends no more than it has to, and costs no more memory
//! than the windows allow. Nothing panics.

use std::collections::{BTreeMap, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::*;

/// Mostly those of a few calls, one after the other; sometimes others.
fn ids() -> impl Strategy<Value = i64> {
    prop_oneof![20 => 1..8i64, 1 => -2..1i64, 1 => any::<i64>()]
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(0usize), 6 => 0..30usize, 2 => 0..200usize, 1 => 8000..20_000usize]
}

fn sizes() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0u32), 6 => 0..60u32, 2 => 0..1200u32, 1 => any::<u32>(), 1 => Just(1 << 31)]
}

fn numbers() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..100u32, 1 => any::<u32>()]
}

fn any_metadata() -> impl Strategy<Value = Option<Metadata>> {
    let entries = vec(("[a-z]{0,3}", ".{0,40}"), 0..4);
    proptest::option::of(entries.prop_map(|entries| {
        let mut metadata = Metadata::default();
        for (key, value) in entries {
            metadata.md.entry(key).or_insert_with(Values::default).val.push(value);
        }
        metadata
    }))
}

fn any_message() -> impl Strategy<Value = MessageData> {
    let fits = (lengths(), 0..20u32).prop_map(|(len, rest)| (len as u32 + rest, len));
    let any = (sizes(), lengths());
    prop_oneof![3 => fits, 1 => any].prop_map(|(size, len)| MessageData { size, data: data(len) })
}

fn client_frames() -> impl Strategy<Value = ClientToServer> {
    let method = prop_oneof![8 => Just(METHOD.to_owned()), 1 => ".{0,20}"];
    let revision = prop_oneof![8 => 0..3i32, 1 => any::<i32>()];
    let new =
        (method, any_metadata(), numbers(), revision).prop_map(|(method_name, request_headers, window, revision)| {
            let (initial_window_size, protocol_revision) = (window, revision);
            ClientFrame::NewStream(NewStream { method_name, request_headers, initial_window_size, protocol_revision })
        });
    let frame = prop_oneof![
        4 => new,
        5 => any_message().prop_map(ClientFrame::RequestMessage),
        4 => lengths().prop_map(|len| ClientFrame::MoreRequestData(data(len))),
        1 => Just(ClientFrame::HalfClose(())),
        1 => Just(ClientFrame::Cancel(())),
        1 => numbers().prop_map(ClientFrame::WindowUpdate),
    ];
    (ids(), proptest::option::weighted(0.97, frame)).prop_map(|(stream_id, frame)| ClientToServer { stream_id, frame })
}

fn server_frames() -> impl Strategy<Value = ServerToClient> {
    let status = proptest::option::of((any::<i32>(), ".{0,20}").prop_map(|(code, message)| Status {
        code,
        message,
        details: Vec::new(),
    }));
    let close = (any_metadata(), status)
        .prop_map(|(response_trailers, status)| ServerFrame::CloseStream(CloseStream { response_trailers, status }));
    let settings = (vec(any::<i32>(), 0..4), numbers()).prop_map(|(supported_protocol_revisions, window)| {
        ServerFrame::Settings(Settings { supported_protocol_revisions, initial_window_size: window })
    });
    let frame = prop_oneof![
        1 => any_metadata().prop_map(|headers| ServerFrame::ResponseHeaders(headers.unwrap_or_default())),
        5 => any_message().prop_map(ServerFrame::ResponseMessage),
        4 => lengths().prop_map(|len| ServerFrame::MoreResponseData(data(len))),
        1 => close,
        1 => settings,
        1 => numbers().prop_map(ServerFrame::WindowUpdate),
    ];
    (ids(), proptest::option::weighted(0.97, frame)).prop_map(|(stream_id, frame)| ServerToClient { stream_id, frame })
}

/// What may happen on this side meanwhile; numbers are ids, or sizes.
#[derive(Debug, Clone)]
enum Op<F> {
    Receive(F),
    Poll,
    Read(i64),
    Send(i64, usize),
    Start(i64, u32),
    Push(i64, usize),
    HasRoom(i64),
    /// A server's: closes, releases, discards, refuses. A client's: opens, half-closes, cancels.
    Other(u8, i64),
}

fn ops<F: std::fmt::Debug + Clone>(frames: impl Strategy<Value = F>) -> impl Strategy<Value = Vec<Op<F>>> {
    let op = prop_oneof![
        12 => frames.prop_map(Op::Receive),
        2 => Just(Op::Poll),
        2 => ids().prop_map(Op::Read),
        1 => (ids(), lengths()).prop_map(|(id, len)| Op::Send(id, len)),
        1 => (ids(), sizes()).prop_map(|(id, size)| Op::Start(id, size)),
        1 => (ids(), lengths()).prop_map(|(id, len)| Op::Push(id, len)),
        1 => ids().prop_map(Op::HasRoom),
        3 => (any::<u8>(), ids()).prop_map(|(what, id)| Op::Other(what, id)),
    ];
    vec(op, 0..200)
}

fn config() -> Config {
    Config {
        window: 100,
        start: 60,
        max_chunk: 50,
        max_message: 1000,
        max_metadata: 200,
        max_queued: 500,
        max_unread: 2000,
        max_streams: 4,
        ..Config::default()
    }
}

/// The most that one frame can bring, with what is kept of it beside its data.
const FRAME: usize = 20_000 + 8;

fn drive_server(server: &mut Server, op: Op<ClientToServer>) -> Result<(), TunnelError> {
    match op {
        Op::Receive(_) if server.is_overfull() => {}
        Op::Receive(frame) => {
            server.receive(frame)?;
            while !server.unread().is_within_limit() {
                server.end_most();
            }
        }
        Op::Poll => drop(server.poll_frame()),
        Op::Read(id) => drop(server.poll_event(StreamId(id))),
        Op::Send(id, len) => drop(server.send(StreamId(id), data(len))),
        Op::Start(id, size) => drop(server.start_message(StreamId(id), size)),
        Op::Push(id, len) => drop(server.push(StreamId(id), data(len))),
        Op::HasRoom(id) => drop(server.has_room(StreamId(id))),
        Op::Other(what, id) => {
            let id = StreamId(id);
            match what % 8 {
                0 => drop(server.close(id, Status::default(), Metadata::default())),
                1 => drop(server.close(id, Status::new(Code::Aborted, "x"), Metadata::default())),
                2 => server.release(id),
                3 => server.discard(id),
                4 => server.refuse(id, Status::new(Code::Aborted, "x")),
                5 => drop(server.headers(id, Metadata::default())),
                6 => drop(server.next_woken()),
                _ => drop(server.accept()),
            }
        }
    }
    Ok(())
}

fn drive_client(client: &mut Client, op: Op<ServerToClient>) -> Result<(), TunnelError> {
    match op {
        Op::Receive(_) if client.is_overfull() => {}
        Op::Receive(frame) => {
            client.receive(frame)?;
            while !client.unread().is_within_limit() {
                client.end_most();
            }
        }
        Op::Poll => drop(client.poll_frame()),
        Op::Read(id) => drop(client.poll_event(StreamId(id))),
        Op::Send(id, len) => drop(client.send(StreamId(id), data(len))),
        Op::Start(id, size) => drop(client.start_message(StreamId(id), size)),
        Op::Push(id, len) => drop(client.push(StreamId(id), data(len))),
        Op::HasRoom(id) => drop(client.has_room(StreamId(id))),
        Op::Other(what, id) => {
            let id = StreamId(id);
            match what % 8 {
                0 => client.cancel(id),
                1 => drop(client.half_close(id)),
                2 => drop(client.next_woken()),
                3 => drop(client.was_sent(id)),
                _ => drop(client.open(METHOD, Metadata::default())),
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn server_survives_any_client(ops in ops(client_frames()), negotiated in any::<bool>()) {
        let mut server = Server::new(config(), if negotiated { Negotiated::Yes } else { Negotiated::No });
        for op in ops {
            let result = drive_server(&mut server, op);
            prop_assert!(server.streams().held() <= 2000);
            prop_assert!(server.streams().len() <= 4);
            for (_, stream) in server.streams().all() {
                // Of each byte of the window and each run of empty messages between two no more than this is kept.
                let window = 60 + stream.inbox.grown();
                let most = if stream.revision == Revision::Zero { 100 + FRAME } else { window + 8 * 201 };
                prop_assert!(window <= 100 && stream.inbox.held() <= most, "{}", stream.inbox.held());
            }
            let grown: usize = server.streams().all().map(|(_, stream)| stream.inbox.grown()).sum();
            prop_assert_eq!(server.streams().promised(), grown);
            prop_assert!(grown <= 1000);
            if result.is_err() {
                break;
            }
        }
        server.close_tunnel();
        prop_assert_eq!((server.calls(), server.streams().held(), server.streams().promised()), (0, 0, 0));
    }

    #[test]
    fn client_survives_any_server(ops in ops(server_frames()), window in 0..50u32, revisions in vec(0..4i32, 0..3)) {
        let mut client = Client::new(config(), Negotiated::Yes);
        if client.receive(from_server::settings(-1, &revisions, window)).is_err() {
            return Ok(());
        }
        for op in ops {
            let result = drive_client(&mut client, op);
            prop_assert!(client.streams().held() <= 2000);
            let grown: usize = client.streams().all().map(|(_, stream)| stream.inbox.grown()).sum();
            prop_assert_eq!(client.streams().promised(), grown);
            prop_assert!(grown <= 1000);
            if result.is_err() {
                break;
            }
        }
        client.close();
        let ids: Vec<_> = client.streams().all().map(|(id, _)| *id).collect();
        for id in ids {
            let mut events = 0;
            while !matches!(client.poll_event(id), Some(ResponseEvent::End { .. } | ResponseEvent::Lost)) {
                events += 1;
                prop_assert!(events < 1000, "no end");
            }
        }
        prop_assert_eq!((client.calls(), client.streams().held(), client.streams().promised()), (0, 0, 0));
    }

    #[test]
    fn any_bytes_are_an_error_or_a_frame(
        noise in vec(vec(any::<u8>(), 0..60), 0..20),
        frames in vec((client_frames(), vec((any::<prop::sample::Index>(), any::<u8>()), 0..3)), 0..20),
        others in vec((server_frames(), vec((any::<prop::sample::Index>(), any::<u8>()), 0..3)), 0..20),
    ) {
        fn spoil<M: Message>((frame, spots): (M, Vec<(prop::sample::Index, u8)>)) -> Vec<u8> {
            let mut bytes = frame.encode_to_vec();
            for (spot, byte) in spots {
                if !bytes.is_empty() {
                    let at = spot.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            bytes
        }
        let mut server = server_with(config());
        for bytes in noise.iter().cloned().chain(frames.into_iter().map(spoil)) {
            if let Ok(frame) = ClientToServer::decode(Bytes::from(bytes)) {
                let _ = server.receive(frame); // an error or not
                server.poll_frame();
            }
        }
        let mut client = client_with(config());
        for _ in 0..4 {
            client.call();
        }
        client.sent();
        for bytes in noise.into_iter().chain(others.into_iter().map(spoil)) {
            if let Ok(frame) = ServerToClient::decode(Bytes::from(bytes)) {
                let _ = client.receive(frame); // an error or not
                client.poll_frame();
            }
        }
    }
}

/// What a server has to make of what a client sends, written down as plainly as can be.
#[derive(Debug, Default)]
struct Model {
    last: Option<i64>,
    calls: BTreeMap<i64, ModelCall>,
}

#[derive(Debug)]
struct ModelCall {
    overhead: u32,
    /// None without flow control.
    window: Option<u32>,
    missing: u32,
    half_closed: bool,
    /// The sizes of the messages that were begun and not read.
    begun: VecDeque<u32>,
    bytes: usize,
}

impl Model {
    /// What becomes of the call: nothing, or an end with this code. An error ends the tunnel.
    fn receive(&mut self, frame: &ClientToServer) -> Result<Option<Code>, TunnelError> {
        let id = frame.stream_id;
        let known = self.last.is_some_and(|last| id <= last) || id < 0;
        if let Some(ClientFrame::NewStream(new)) = &frame.frame {
            if known {
                return Err(TunnelError::StreamIdUsed(id));
            }
            self.last = Some(id);
            return Ok(self.begin(id, new));
        }
        if !known {
            return Err(TunnelError::NeverCreated(id));
        }
        let Some(call) = self.calls.get_mut(&id) else { return Ok(None) };
        let end = match &frame.frame {
            Some(ClientFrame::RequestMessage(message)) => call.data(Some(message.size), message.data.len()),
            Some(ClientFrame::MoreRequestData(data)) => call.data(None, data.len()),
            Some(ClientFrame::HalfClose(())) if call.missing > 0 => Some(Code::InvalidArgument),
            Some(ClientFrame::HalfClose(())) => {
                call.half_closed = true;
                None
            }
            Some(ClientFrame::Cancel(())) => Some(Code::Cancelled),
            Some(ClientFrame::WindowUpdate(_)) => None,
            _ => Some(Code::Internal),
        };
        if end.is_some() {
            self.calls.remove(&id);
        }
        Ok(end)
    }

    fn begin(&mut self, id: i64, new: &NewStream) -> Option<Code> {
        let (overhead, least) = match new.protocol_revision {
            _ if self.calls.len() == 4 => return Some(Code::ResourceExhausted),
            0 => (0, 0),
            1 => (0, 1),
            2 => (5, 6),
            _ => return Some(Code::FailedPrecondition),
        };
        if new.initial_window_size < least {
            return Some(Code::Internal);
        }
        let entries = new.request_headers.iter().flat_map(|headers| &headers.md);
        let size: usize = entries.flat_map(|(k, v)| v.val.iter().map(|value| k.len() + value.len() + 32)).sum();
        if size + new.method_name.len() > 200 {
            return Some(Code::ResourceExhausted);
        }
        if new.method_name != METHOD {
            return Some(Code::InvalidArgument);
        }
        let window = (new.protocol_revision > 0).then_some(60);
        let (begun, bytes) = (VecDeque::new(), 0);
        self.calls.insert(id, ModelCall { overhead, window, missing: 0, half_closed: false, begun, bytes });
        None
    }
}

impl ModelCall {
    fn data(&mut self, size: Option<u32>, len: usize) -> Option<Code> {
        let interrupts = size.is_some() && self.missing > 0;
        let room = size.unwrap_or(self.missing) as usize;
        if self.half_closed || interrupts || len > room {
            return Some(Code::InvalidArgument);
        }
        let cost = len as u32 + size.map_or(0, |_| self.overhead);
        if self.window.is_some_and(|window| cost > window) || size.is_some_and(|size| size > 1000) {
            return Some(Code::ResourceExhausted);
        }
        self.window = self.window.map(|window| window - cost);
        self.missing = (room - len) as u32;
        self.begun.extend(size);
        self.bytes += len;
        None
    }
}

#[derive(Debug, Clone)]
enum Act {
    Receive(ClientToServer),
    Read(i64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let frames = client_frames().prop_filter("no method that looks like one", |frame| match &frame.frame {
        Some(ClientFrame::NewStream(new)) => new.method_name == METHOD || !new.method_name.contains('/'),
        _ => true,
    });
    vec(prop_oneof![4 => frames.prop_map(Act::Receive), 1 => ids().prop_map(Act::Read)], 0..200)
}

proptest! {
    #[test]
    fn server_does_what_the_model_does(acts in acts()) {
        let mut server = server_with(Config { max_unread: usize::MAX, ..config() });
        let mut model = Model::default();
        for act in acts {
            match act {
                Act::Receive(frame) => {
                    let (id, expected) = (frame.stream_id, model.receive(&frame));
                    let result = server.receive(frame);
                    prop_assert_eq!(result.clone().err(), expected.clone().err());
                    let Ok(end) = expected else { break };
                    let closes = sent(&mut server, &mut model)?;
                    prop_assert_eq!(closes, end.map(|code| (id, code)).into_iter().collect::<Vec<_>>());
                    while server.accept().is_some() {}
                }
                Act::Read(id) => {
                    read(&mut server, &mut model, id)?;
                    prop_assert_eq!(sent(&mut server, &mut model)?, vec![]);
                    if let Some(call) = model.calls.get(&id) {
                        let stalls = call.window.is_some_and(|window| window <= call.overhead);
                        prop_assert!(!stalls || call.half_closed, "all was read, and the client may send nothing");
                    }
                }
            }
            prop_assert_eq!(server.calls(), model.calls.len());
            let bytes = model.calls.values().map(|call| call.bytes).sum::<usize>();
            prop_assert!(server.streams().held() >= bytes);
        }
    }
}

/// The calls that the server has ended. What it grants is booked.
fn sent(server: &mut Server, model: &mut Model) -> Result<Vec<(i64, Code)>, TestCaseError> {
    let mut closes = Vec::new();
    while let Some(ServerToClient { stream_id, frame }) = server.poll_frame() {
        match frame {
            Some(ServerFrame::CloseStream(close)) => closes.push((stream_id, close.status.unwrap_or_default().code())),
            Some(ServerFrame::WindowUpdate(bytes)) => {
                let call = model.calls.get_mut(&stream_id).ok_or(TestCaseError::fail("window for no call"))?;
                let window = call.window.as_mut().ok_or(TestCaseError::fail("window in revision zero"))?;
                *window += bytes;
                prop_assert!(bytes > 0 && *window as usize + call.bytes <= 100);
            }
            frame => prop_assert!(false, "{:?}", frame),
        }
    }
    Ok(closes)
}

/// Reads all there is of a call.
fn read(server: &mut Server, model: &mut Model, id: i64) -> Result<(), TestCaseError> {
    let call = model.calls.get_mut(&id);
    let Some(call) = call else {
        prop_assert_eq!(server.poll_event(StreamId(id)), Some(RequestEvent::Cancelled));
        return Ok(());
    };
    while let Some(event) = server.poll_event(StreamId(id)) {
        match event {
            RequestEvent::Message { size, data } => {
                prop_assert_eq!(call.begun.pop_front(), Some(size));
                call.bytes -= data.len();
            }
            RequestEvent::More(data) => call.bytes -= data.len(),
            RequestEvent::HalfClosed => prop_assert!(call.half_closed),
            RequestEvent::Cancelled => prop_assert!(false, "cancelled"),
        }
    }
    prop_assert_eq!((call.begun.len(), call.bytes), (0, 0));
    Ok(())
}
