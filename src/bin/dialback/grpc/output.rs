//! Data on stdout, in the order in which it came.

use std::io::{self, Write as _};

use tokio::sync::{mpsc, oneshot};

use super::progress::Progress;
use crate::failure::Failure;

/// How many messages may wait for a slow reader of stdout.
const WAITING: usize = 16;

/// Stdout, written by a thread of its own: its reader may be slow, and Ctrl-C must work meanwhile.
pub(super) struct Output {
    messages: mpsc::Sender<Vec<u8>>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    pub(super) fn new(mut progress: Progress) -> Result<Self, Failure> {
        let (messages, mut waiting) = mpsc::channel::<Vec<u8>>(WAITING);
        let (end, ended) = oneshot::channel();
        let write = move || {
            let mut all = || -> io::Result<()> {
                let mut stdout = io::stdout().lock();
                while let Some(message) = waiting.blocking_recv() {
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
        self.messages.send(message).await.is_ok()
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

/// Writes a text at once, for commands that say one thing. A reader that has gone away is no failure.
pub(crate) fn print(text: &[u8]) -> Result<(), Failure> {
    print_on(text).map(|_| ())
}

/// The same, for commands that go on: false when nobody reads any more.
pub(super) fn print_on(text: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::because("stdout cannot be written", &error)),
    }
}

/// Takes what a terminal would obey out of a text that somebody else wrote.
pub(crate) fn printable(text: &str) -> String {
    let safe = |c: char| {
        if c.is_control() && !matches!(c, '\n' | '\t') { c.escape_default().collect() } else { c.to_string() }
    };
    text.chars().map(safe).collect()
}
