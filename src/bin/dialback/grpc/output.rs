//! Data on stdout, in the order in which it came.

use std::io::{self, IsTerminal as _, Write as _};

use prost_reflect::MessageDescriptor;
use tokio::sync::{mpsc, oneshot};

use super::progress::Progress;
use crate::failure::Failure;
use crate::format::{self, Encoder, Format, is_safe};

/// How many messages may wait for a slow reader of stdout.
const WAITING: usize = 16;

/// What the thread is told.
enum Told {
    Received(Vec<u8>),
    /// A message of so many bytes, for the progress.
    Sent(usize),
}

/// Stdout, written by a thread of its own: its reader may be slow, and Ctrl-C must work meanwhile.
pub(super) struct Output {
    messages: mpsc::Sender<Told>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    pub(super) fn new(mut progress: Progress) -> Result<Self, Failure> {
        let (messages, mut waiting) = mpsc::channel(WAITING);
        let (end, ended) = oneshot::channel();
        let write = move || {
            let mut all = || -> io::Result<()> {
                let mut stdout = io::stdout().lock();
                while let Some(told) = waiting.blocking_recv() {
                    let message = match told {
                        Told::Received(message) => message,
                        Told::Sent(bytes) => {
                            progress.around(bytes, || ());
                            continue;
                        }
                    };
                    progress.around(message.len(), || {
                        stdout.write_all(&message)?;
                        // What waits already goes out with it.
                        if waiting.is_empty() { stdout.flush() } else { Ok(()) }
                    })?;
                }
                stdout.flush()
            };
            let result = all();
            progress.end();
            let _ = end.send(result); // the command has ended before
        };
        let thread = std::thread::Builder::new().name("stdout".into()).spawn(write);
        thread.map_err(|error| Failure::because("no thread can be had", &error))?;
        Ok(Self { messages, ended })
    }

    /// Writes a message. False if nobody reads stdout any more, or it cannot be written: then see [`Output::end`].
    pub(super) async fn write(&self, message: Vec<u8>) -> bool {
        self.messages.send(Told::Received(message)).await.is_ok()
    }

    /// Counts a message that was sent.
    pub(super) async fn sent(&self, bytes: usize) {
        let _ = self.messages.send(Told::Sent(bytes)).await; // who reads no output sees no progress
    }

    /// Waits until all is written. A reader that has gone away, as `head` does, is no failure.
    pub(super) async fn end(self) -> Result<(), Failure> {
        drop(self.messages);
        match self.ended.await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Ok(Err(error)) => Err(Failure::because("stdout cannot be written", &error)),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}

/// Writes a text at once, for commands that wait for nothing. A reader that has gone away is no failure.
pub(crate) fn print(text: &[u8]) -> Result<(), Failure> {
    write(text).map(|_| ())
}

fn write(text: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::because("stdout cannot be written", &error)),
    }
}

/// Writes a text on stdout, as [`Output`] does: Ctrl-C works while a terminal is stopped. False when nobody reads any more.
pub(super) async fn show(text: impl Into<Vec<u8>>) -> Result<bool, Failure> {
    let text = text.into();
    let written = tokio::task::spawn_blocking(move || write(&text)).await;
    written.unwrap_or_else(|error| Err(Failure::because("stdout cannot be written", &error)))
}

/// Writes a text on stderr in the same way.
pub(super) async fn say(text: impl Into<Vec<u8>>) {
    let text = text.into();
    // Nobody is left to be told that stderr is gone.
    let _ = tokio::task::spawn_blocking(move || io::stderr().write_all(&text)).await;
}

/// What writes messages for stdout.
pub(super) fn encoder(format: Format, emit_defaults: bool) -> Encoder {
    Encoder::new(format, emit_defaults).for_terminal(io::stdout().is_terminal())
}

/// Whether messages in this format can go to stdout.
pub(super) fn check(format: Format) -> Result<(), Failure> {
    if format == Format::Binary && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "binary is not for a terminal: send stdout to a file or a program, or see --format",
        ));
    }
    Ok(())
}

/// Writes a sample of a message.
pub(super) async fn sample(message: &MessageDescriptor, format: Format) -> Result<(), Failure> {
    let sample = format::sample(message, &mut encoder(format, false));
    show(sample.map_err(|error| Failure::because("no sample can be made", &error))?).await.map(|_| ())
}

/// What a text that somebody else wrote looks like on stdout: as it is, unless that is a terminal.
pub(super) fn on_stdout(text: &str) -> String {
    if io::stdout().is_terminal() { printable(text) } else { text.to_owned() }
}

/// Takes what a terminal would obey out of a text that somebody else wrote.
pub(crate) fn printable(text: &str) -> String {
    let safe = |c: char| if is_safe(c) { c.to_string() } else { c.escape_default().collect() };
    text.chars().map(safe).collect()
}
