//! Both roles, driven frame by frame.

mod hostile;
mod rules;
mod schedule;

use bytes::Bytes;
use tonic::Code;

use super::*;
use crate::grpctunnel::proto::{
    ClientToServer, CloseStream, Detail, MessageData, Metadata, NewStream, ServerToClient, Settings, Status,
    client_to_server::Frame as ClientFrame, metadata::Values, server_to_client::Frame as ServerFrame,
};

const METHOD: &str = "/test.Echo/Call";

fn metadata(entries: &[(&str, &str)]) -> Metadata {
    let mut metadata = Metadata::default();
    for (key, value) in entries {
        metadata.md.entry((*key).into()).or_insert_with(Values::default).val.push((*value).into());
    }
    metadata
}

fn data(len: usize) -> Bytes {
    Bytes::from(vec![b'x'; len])
}

/// What a client may send.
mod from_client {
    use super::*;

    pub(super) fn frame(stream_id: i64, frame: ClientFrame) -> ClientToServer {
        ClientToServer { stream_id, frame: Some(frame) }
    }

    pub(super) fn call(id: i64) -> ClientToServer {
        call_with(id, METHOD, 2, 1000)
    }

    pub(super) fn call_with(id: i64, method: &str, revision: i32, window: u32) -> ClientToServer {
        let (method_name, request_headers) = (method.to_owned(), Some(Metadata::default()));
        let stream =
            NewStream { method_name, request_headers, initial_window_size: window, protocol_revision: revision };
        frame(id, ClientFrame::NewStream(stream))
    }

    pub(super) fn message(id: i64, size: u32, len: usize) -> ClientToServer {
        frame(id, ClientFrame::RequestMessage(MessageData { size, data: data(len) }))
    }

    pub(super) fn more(id: i64, len: usize) -> ClientToServer {
        frame(id, ClientFrame::MoreRequestData(data(len)))
    }

    pub(super) fn half_close(id: i64) -> ClientToServer {
        frame(id, ClientFrame::HalfClose(()))
    }

    pub(super) fn cancel(id: i64) -> ClientToServer {
        frame(id, ClientFrame::Cancel(()))
    }

    pub(super) fn update(id: i64, bytes: u32) -> ClientToServer {
        frame(id, ClientFrame::WindowUpdate(bytes))
    }

    pub(super) fn unknown(stream_id: i64) -> ClientToServer {
        ClientToServer { stream_id, frame: None }
    }
}

/// What a server may send.
mod from_server {
    use super::*;

    pub(super) fn frame(stream_id: i64, frame: ServerFrame) -> ServerToClient {
        ServerToClient { stream_id, frame: Some(frame) }
    }

    pub(super) fn settings(id: i64, revisions: &[i32], window: u32) -> ServerToClient {
        let settings = Settings { supported_protocol_revisions: revisions.to_vec(), initial_window_size: window };
        frame(id, ServerFrame::Settings(settings))
    }

    pub(super) fn headers(id: i64, entries: &[(&str, &str)]) -> ServerToClient {
        frame(id, ServerFrame::ResponseHeaders(metadata(entries)))
    }

    pub(super) fn message(id: i64, size: u32, len: usize) -> ServerToClient {
        frame(id, ServerFrame::ResponseMessage(MessageData { size, data: data(len) }))
    }

    pub(super) fn more(id: i64, len: usize) -> ServerToClient {
        frame(id, ServerFrame::MoreResponseData(data(len)))
    }

    pub(super) fn close(id: i64, status: Option<Status>) -> ServerToClient {
        frame(id, ServerFrame::CloseStream(CloseStream { response_trailers: None, status }))
    }

    pub(super) fn update(id: i64, bytes: u32) -> ServerToClient {
        frame(id, ServerFrame::WindowUpdate(bytes))
    }

    pub(super) fn unknown(stream_id: i64) -> ServerToClient {
        ServerToClient { stream_id, frame: None }
    }
}

/// A frame in one line.
trait Show {
    fn show(&self) -> String;
}

fn show_status(status: Option<&Status>) -> String {
    status.map_or("OK".into(), |status| format!("{:?} `{}`", status.code(), status.message))
}

impl Show for ClientToServer {
    fn show(&self) -> String {
        let frame = match &self.frame {
            Some(ClientFrame::NewStream(new)) => {
                format!("new {} revision {} window {}", new.method_name, new.protocol_revision, new.initial_window_size)
            }
            Some(ClientFrame::RequestMessage(data)) => format!("message {} of {}", data.data.len(), data.size),
            Some(ClientFrame::MoreRequestData(data)) => format!("more {}", data.len()),
            Some(ClientFrame::HalfClose(())) => "half-close".into(),
            Some(ClientFrame::Cancel(())) => "cancel".into(),
            Some(ClientFrame::WindowUpdate(bytes)) => format!("update {bytes}"),
            None => "nothing".into(),
        };
        format!("{} {frame}", self.stream_id)
    }
}

impl Show for ServerToClient {
    fn show(&self) -> String {
        let frame = match &self.frame {
            Some(ServerFrame::ResponseHeaders(headers)) => {
                format!("headers {:?}", headers.md.keys().collect::<Vec<_>>())
            }
            Some(ServerFrame::ResponseMessage(data)) => format!("message {} of {}", data.data.len(), data.size),
            Some(ServerFrame::MoreResponseData(data)) => format!("more {}", data.len()),
            Some(ServerFrame::CloseStream(close)) => format!("close {}", show_status(close.status.as_ref())),
            Some(ServerFrame::Settings(settings)) => {
                format!("settings {:?} {}", settings.supported_protocol_revisions, settings.initial_window_size)
            }
            Some(ServerFrame::WindowUpdate(bytes)) => format!("update {bytes}"),
            None => "nothing".into(),
        };
        format!("{} {frame}", self.stream_id)
    }
}

impl Server {
    /// All that it has to send.
    fn sent(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.poll_frame()).map(|frame| frame.show()).collect()
    }

    /// All that there is to read of a call, in one line each.
    fn read(&mut self, id: i64) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.poll_event(StreamId(id)) {
            let over = event == RequestEvent::Cancelled;
            events.push(match event {
                RequestEvent::Message { size, data } => format!("message {} of {size}", data.len()),
                RequestEvent::More(data) => format!("more {}", data.len()),
                event => format!("{event:?}"),
            });
            if over {
                break;
            }
        }
        events
    }

    /// Takes the frames, none of which may end the tunnel.
    fn take(&mut self, frames: impl IntoIterator<Item = ClientToServer>) {
        for frame in frames {
            self.receive(frame).expect("a frame that does not end the tunnel");
        }
    }

    fn woken(&mut self) -> Vec<Woken> {
        std::iter::from_fn(|| self.next_woken()).collect()
    }
}

impl Client {
    fn sent(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.poll_frame()).map(|frame| frame.show()).collect()
    }

    fn read(&mut self, id: StreamId) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.poll_event(id) {
            let over = matches!(event, ResponseEvent::End { .. } | ResponseEvent::Lost);
            events.push(match event {
                ResponseEvent::Headers(headers) => format!("headers {:?}", headers.md.keys().collect::<Vec<_>>()),
                ResponseEvent::Message { size, data } => format!("message {} of {size}", data.len()),
                ResponseEvent::More(data) => format!("more {}", data.len()),
                ResponseEvent::End { status, .. } if status.is_ok() => "end OK".into(),
                ResponseEvent::End { status, .. } => format!("end {}", show_status(Some(&status))),
                ResponseEvent::Lost => "lost".into(),
            });
            if over {
                break;
            }
        }
        events
    }

    fn take(&mut self, frames: impl IntoIterator<Item = ServerToClient>) {
        for frame in frames {
            self.receive(frame).expect("a frame that does not end the tunnel");
        }
    }

    fn woken(&mut self) -> Vec<Woken> {
        std::iter::from_fn(|| self.next_woken()).collect()
    }

    fn call(&mut self) -> StreamId {
        self.open(METHOD, Metadata::default()).expect("a call")
    }
}

/// A server that has sent its settings.
fn server_with(config: Config) -> Server {
    let mut server = Server::new(config, Negotiated::Yes);
    server.poll_frame().expect("settings");
    server
}

fn server() -> Server {
    server_with(Config { window: 100, ..Config::default() })
}

/// A client whose server has granted a window of 1,000 bytes.
fn client_with(config: Config) -> Client {
    let newest = config.newest;
    let mut client = Client::new(config, Negotiated::Yes);
    client.take([from_server::settings(-1, &Revision::up_to(newest), 1000)]);
    client
}

fn client() -> Client {
    client_with(Config { window: 100, ..Config::default() })
}

/// A client that has made and sent one call.
fn client_in_call() -> (Client, StreamId) {
    let mut client = client();
    let id = client.call();
    client.sent();
    (client, id)
}
