//! Request messages, from arguments, a file or stdin, each as soon as it is there.

use std::io::Read as _;
use std::path::Path;

use prost_reflect::{DynamicMessage, MessageDescriptor};
use tokio::sync::mpsc;

use super::args::CallArgs;
use crate::failure::Failure;
use crate::format::{self, Decoder, Format};

/// Where the messages come from.
pub(super) enum Source {
    Nothing,
    Bytes(Vec<u8>),
    Stdin,
}

impl Source {
    pub(super) fn of(args: &CallArgs) -> Result<Self, Failure> {
        match (args.data.as_deref(), &args.file) {
            (_, Some(path)) => Ok(Self::Bytes(read(path)?)),
            (Some("@"), _) => Ok(Self::Stdin),
            (None | Some(""), _) => Ok(Self::Nothing),
            (Some(data), _) => Ok(Self::Bytes(data.as_bytes().to_vec())),
        }
    }
}

/// In which format they come.
pub(super) fn format(args: &CallArgs) -> Result<Format, Failure> {
    match (args.request_format, &args.file) {
        (Some(format), _) => Ok(format),
        (None, Some(path)) => Format::of_path(path).ok_or_else(|| {
            Failure::usage(format!("{}: its extension is of no format: pass --request-format", path.display()))
        }),
        (None, None) => Ok(args.format),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::because(format!("{} cannot be read", path.display()), &error))
}

/// The messages of a request.
pub(super) struct Requests {
    descriptor: MessageDescriptor,
    decoder: Decoder,
    assignments: Vec<String>,
    /// Pieces of stdin. None when all is in the decoder.
    stdin: Option<mpsc::Receiver<std::io::Result<Vec<u8>>>>,
    /// No data, but fields that are set: they are a message.
    made: bool,
    count: u64,
}

impl Requests {
    pub(super) fn new(
        args: &CallArgs,
        source: Source,
        format: Format,
        descriptor: MessageDescriptor,
    ) -> Result<Self, Failure> {
        let mut decoder = Decoder::new(format, descriptor.clone()).allow_unknown_fields(args.allow_unknown_fields);
        let assignments = &args.set;
        let mut stdin = None;
        let made = matches!(source, Source::Nothing) && !assignments.is_empty();
        match source {
            Source::Nothing => {}
            Source::Bytes(bytes) => decoder.push(&bytes),
            Source::Stdin => stdin = Some(read_stdin()?),
        }
        Ok(Self { descriptor, decoder, assignments: assignments.clone(), stdin, made, count: 0 })
    }

    /// The next message, or None after the last.
    pub(super) async fn next(&mut self) -> Result<Option<DynamicMessage>, Failure> {
        let message = self.read().await?;
        let Some(mut message) = message else { return Ok(None) };
        for assignment in &self.assignments {
            format::set(&mut message, assignment).map_err(|error| bad(&error))?;
        }
        self.count += 1;
        Ok(Some(message))
    }

    /// How many there were so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    async fn read(&mut self) -> Result<Option<DynamicMessage>, Failure> {
        if std::mem::take(&mut self.made) {
            return Ok(Some(DynamicMessage::new(self.descriptor.clone())));
        }
        while let Some(stdin) = &mut self.stdin {
            if let Some(message) = self.decoder.next().map_err(|error| bad(&error))? {
                return Ok(Some(message));
            }
            match stdin.recv().await {
                Some(Ok(data)) => self.decoder.push(&data),
                Some(Err(error)) => return Err(Failure::because("stdin cannot be read", &error)),
                None => self.stdin = None,
            }
        }
        self.decoder.finish().map_err(|error| bad(&error))
    }
}

fn bad(error: &dyn std::error::Error) -> Failure {
    Failure::because("the request cannot be used", error)
}

/// Reads stdin in a thread, which nobody waits for: a read from a terminal cannot be given up.
fn read_stdin() -> Result<mpsc::Receiver<std::io::Result<Vec<u8>>>, Failure> {
    // What is read ahead: a few pieces, so that decoding and reading overlap.
    let (send, receive) = mpsc::channel(4);
    let pieces = move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let piece = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(buffer[..length].to_vec()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if send.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("stdin".into()).spawn(pieces);
    thread.map_err(|error| Failure::because("no thread can be had", &error))?;
    Ok(receive)
}
