//! Fuzzes the protocol `grpctunnel.v1`: the decoder of its frames, and the state machines of both roles behind it. The input
//! says what the peer sends, as bytes or as frames that are nearly right, and what callers and handlers do meanwhile.
#![no_main]
// Not all that is compiled here is used here.
#![allow(dead_code, unused_imports)]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;

use self::grpctunnel::proto::{
    ClientToServer, CloseStream, MessageData, Metadata, NewStream, ServerToClient, Settings, Status,
    client_to_server::Frame as ClientFrame, metadata::Values, server_to_client::Frame as ServerFrame,
};
use self::protocol::{Client, Config, Negotiated, ResponseEvent, Revision, Server, StreamId};

#[path = "../../src/http2/headers.rs"]
mod headers;
#[path = "../../src/grpctunnel/protocol/mod.rs"]
mod protocol;
#[path = "../../src/unread.rs"]
mod unread;

// The names by which the protocol knows what it needs of the crate.
mod http2 {
    pub(crate) use super::headers::strip_hop_by_hop;
}

mod grpctunnel {
    pub(crate) mod proto {
        include!("../../proto/gen/grpctunnel.v1.rs");
    }
}

/// The input, as far as it was not used.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// A number that is small, or close to the end of its range.
    fn number(&mut self) -> u32 {
        match self.byte() {
            Some(byte @ 0..=199) => byte.into(),
            Some(byte @ 200..=249) => u32::from(byte - 199) * 1000,
            Some(byte) => u32::MAX - u32::from(byte - 250),
            None => 0,
        }
    }

    fn id(&mut self) -> i64 {
        match self.byte() {
            Some(byte @ 0..=250) => i64::from(byte % 8),
            Some(251) => i64::MAX,
            Some(252) => i64::MIN,
            _ => -1,
        }
    }

    fn data(&mut self) -> Bytes {
        vec![0; self.number().min(20_000) as usize].into()
    }

    fn bytes(&mut self) -> Bytes {
        let len = usize::from(self.byte().unwrap_or_default()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Bytes::copy_from_slice(bytes)
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn metadata(&mut self) -> Metadata {
        let entries = self.byte().unwrap_or_default() % 4;
        Metadata { md: (0..entries).map(|_| (self.text(), Values { val: vec![self.text()] })).collect() }
    }

    fn message(&mut self) -> MessageData {
        let (data, more) = (self.data(), self.number());
        MessageData { size: (data.len() as u32).wrapping_add(more), data }
    }

    fn status(&mut self) -> Option<Status> {
        let code = i32::from(self.byte()?) - 1;
        Some(Status { code, message: self.text(), details: Vec::new() })
    }

    fn from_client(&mut self) -> ClientToServer {
        let stream_id = self.id();
        let frame = match self.byte().unwrap_or_default() % 10 {
            0..=2 => ClientFrame::NewStream(NewStream {
                method_name: if self.byte() == Some(0) { self.text() } else { "/a/b".into() },
                request_headers: Some(self.metadata()),
                initial_window_size: self.number(),
                protocol_revision: (self.number() % 4) as i32,
            }),
            3 | 4 => ClientFrame::RequestMessage(self.message()),
            5 | 6 => ClientFrame::MoreRequestData(self.data()),
            7 => ClientFrame::HalfClose(()),
            8 => ClientFrame::Cancel(()),
            _ => ClientFrame::WindowUpdate(self.number()),
        };
        ClientToServer { stream_id, frame: Some(frame) }
    }

    fn from_server(&mut self) -> ServerToClient {
        let stream_id = self.id();
        let frame = match self.byte().unwrap_or_default() % 9 {
            0 => ServerFrame::ResponseHeaders(self.metadata()),
            1 | 2 => ServerFrame::ResponseMessage(self.message()),
            3 | 4 => ServerFrame::MoreResponseData(self.data()),
            5 => ServerFrame::CloseStream(CloseStream {
                response_trailers: Some(self.metadata()),
                status: self.status(),
            }),
            6 => ServerFrame::Settings(self.settings()),
            _ => ServerFrame::WindowUpdate(self.number()),
        };
        ServerToClient { stream_id, frame: Some(frame) }
    }

    fn settings(&mut self) -> Settings {
        let initial_window_size = self.number();
        let supported_protocol_revisions = self.bytes().iter().map(|byte| i32::from(*byte)).collect();
        Settings { supported_protocol_revisions, initial_window_size }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let Some(first) = input.byte() else { return };
    let config = Config {
        newest: [Revision::Zero, Revision::One, Revision::Two][usize::from(first >> 2) % 3],
        window: input.number(),
        start: input.number(),
        max_chunk: input.number(),
        max_message: 100_000,
        max_metadata: 300,
        max_queued: 1000,
        max_unread: 100_000,
        max_streams: 4,
    };
    let negotiated = if first & 2 == 0 { Negotiated::Yes } else { Negotiated::No };
    if first & 1 == 0 {
        serve(Server::new(config, negotiated), input);
    } else {
        call(Client::new(config, negotiated), input);
    }
});

/// For when there is no call.
fn some_id() -> StreamId {
    let id = Client::new(Config::default(), Negotiated::No).open("/a/b", Metadata::default());
    id.expect("a tunnel of revision zero is ready at once")
}

fn serve(mut server: Server, mut input: Input<'_>) {
    let mut ids = vec![some_id()];
    while let Some(op) = input.byte() {
        let id = ids[usize::from(op >> 4) % ids.len()];
        let _ = match op % 16 {
            0 | 1 if !server.is_overfull() => {
                let Ok(frame) = ClientToServer::decode(input.bytes()) else { continue };
                if server.receive(frame).is_err() {
                    break;
                }
                while !server.unread().is_within_limit() {
                    server.end_most();
                }
                continue;
            }
            2..=4 if !server.is_overfull() => {
                if server.receive(input.from_client()).is_err() {
                    break;
                }
                while !server.unread().is_within_limit() {
                    server.end_most();
                }
                continue;
            }
            5 => server.send(id, input.data()),
            6 => server.start_message(id, input.number()),
            7 => server.push(id, input.data()),
            8 => server.headers(id, input.metadata()),
            9 => {
                server.close(id, input.status().unwrap_or_default(), input.metadata());
                Ok(())
            }
            10 => Ok(server.release(id)),
            11 => Ok(server.discard(id)),
            12 => Ok(server.refuse(id, Status::default())),
            13 => Ok(drop((server.poll_event(id), server.has_room(id)))),
            14 => Ok(while server.next_woken().is_some() {}),
            _ => {
                ids.extend(server.accept().map(|call| {
                    let _ = protocol::into_headers(call.metadata); // an error or not
                    call.id
                }));
                Ok(drop(server.poll_frame()))
            }
        };
        ids.drain(..ids.len().saturating_sub(8));
        assert!(server.calls() <= 4 + 1024 + 8 || server.is_overfull());
    }
    server.close_tunnel();
    assert_eq!((server.calls(), server.unread().queued(), server.poll_frame()), (0, 0, None));
}

fn call(mut client: Client, mut input: Input<'_>) {
    if client.revision().is_none()
        && client
            .receive(ServerToClient { stream_id: -1, frame: Some(ServerFrame::Settings(input.settings())) })
            .is_err()
    {
        return;
    }
    let mut ids = Vec::new();
    while let Some(op) = input.byte() {
        let id = ids.get(usize::from(op >> 4) % ids.len().max(1)).copied().unwrap_or_else(some_id);
        let _ = match op % 16 {
            0 | 1 if !client.is_overfull() => {
                let Ok(frame) = ServerToClient::decode(input.bytes()) else { continue };
                if client.receive(frame).is_err() {
                    break;
                }
                while !client.unread().is_within_limit() {
                    client.end_most();
                }
                continue;
            }
            2..=5 if !client.is_overfull() => {
                if client.receive(input.from_server()).is_err() {
                    break;
                }
                while !client.unread().is_within_limit() {
                    client.end_most();
                }
                continue;
            }
            6 => client.send(id, input.data()),
            7 => client.start_message(id, input.number()),
            8 => client.push(id, input.data()),
            9 => client.half_close(id),
            10 => Ok(client.cancel(id)),
            11 => Ok(drop((client.poll_event(id), client.has_room(id)))),
            12 => Ok(while client.next_woken().is_some() {}),
            13 if ids.len() < 16 => Ok(ids.extend(client.open("/a/b", input.metadata()))),
            _ => Ok(drop(client.poll_frame())),
        };
    }
    client.close();
    for id in ids {
        // Every call comes to its end, whoever has asked for what before.
        while !matches!(client.poll_event(id), Some(ResponseEvent::End { .. } | ResponseEvent::Lost)) {}
    }
    assert_eq!((client.calls(), client.unread().queued(), client.poll_frame()), (0, 0, None));
}
