//! Request messages, from arguments, a file or stdin, each as soon as it is there.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use prost_reflect::{DynamicMessage, MessageDescriptor};
use tokio::sync::mpsc;

use super::args::CallArgs;
use crate::failure::Failure;
use crate::format::{self, Decoder, Format};

/// How much of a file is read before the call, to see which types its `Any`s name.
const HEAD: u64 = 4 << 20;

/// Where the messages come from.
pub(super) enum Source {
    Nothing,
    Bytes(Vec<u8>),
    Stdin,
    /// A file's beginning, and the rest of it, which may have no end.
    File(Vec<u8>, File),
}

impl Source {
    pub(super) fn of(args: &CallArgs) -> Result<Self, Failure> {
        match (args.data.as_deref(), &args.file) {
            (_, Some(path)) => {
                open(path).map_err(|error| Failure::because(format!("{} cannot be read", path.display()), &error))
            }
            (Some("@"), _) => Ok(Self::Stdin),
            (None | Some(""), _) => Ok(Self::Nothing),
            (Some(data), _) => Ok(Self::Bytes(data.as_bytes().to_vec())),
        }
    }

    /// What is there before anything is waited for.
    pub(super) fn head(&self) -> &[u8] {
        match self {
            Self::Nothing | Self::Stdin => &[],
            Self::Bytes(bytes) | Self::File(bytes, _) => bytes,
        }
    }
}

fn open(path: &Path) -> std::io::Result<Source> {
    let mut file = File::open(path)?;
    let mut head = Vec::new();
    // A pipe may give its messages one by one.
    if file.metadata()?.is_file() {
        file.by_ref().take(HEAD).read_to_end(&mut head)?;
    }
    Ok(Source::File(head, file))
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

/// The messages of a request.
pub(super) struct Requests {
    descriptor: MessageDescriptor,
    decoder: Decoder,
    assignments: Vec<String>,
    /// Where the messages come from.
    name: String,
    /// Pieces of stdin or of a file. None when all is in the decoder.
    pieces: Option<mpsc::Receiver<std::io::Result<Vec<u8>>>>,
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
        decoder.push(source.head());
        let made = matches!(source, Source::Nothing) && !assignments.is_empty();
        let pieces = match source {
            Source::Nothing | Source::Bytes(_) => None,
            Source::Stdin => Some(pieces_of(std::io::stdin())?),
            Source::File(_, rest) => Some(pieces_of(rest)?),
        };
        let name = args.file.as_ref().map_or("stdin".to_owned(), |path| path.display().to_string());
        Ok(Self { descriptor, decoder, assignments: assignments.clone(), name, pieces, made, count: 0 })
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
        while let Some(pieces) = &mut self.pieces {
            if let Some(message) = self.decoder.next().map_err(|error| bad(&error))? {
                return Ok(Some(message));
            }
            match pieces.recv().await {
                Some(Ok(data)) => self.decoder.push(&data),
                Some(Err(error)) => {
                    return Err(Failure::because(format!("{} cannot be read", self.name), &error));
                }
                None => self.pieces = None,
            }
        }
        self.decoder.finish().map_err(|error| bad(&error))
    }
}

fn bad(error: &dyn std::error::Error) -> Failure {
    Failure::because("the request cannot be used", error)
}

/// Reads in a thread, which nobody waits for: a read from a terminal cannot be given up.
fn pieces_of(mut input: impl Read + Send + 'static) -> Result<mpsc::Receiver<std::io::Result<Vec<u8>>>, Failure> {
    // What is read ahead: a few pieces, so that decoding and reading overlap.
    let (send, receive) = mpsc::channel(4);
    let pieces = move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let piece = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(buffer[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if send.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("request".into()).spawn(pieces);
    thread.map_err(|error| Failure::because("no thread can be had", &error))?;
    Ok(receive)
}
