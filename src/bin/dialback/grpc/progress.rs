//! How far a long stream is: on a terminal's stderr, and nowhere else.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Calls that are over before need no progress.
const PATIENCE: Duration = Duration::from_secs(1);

/// Messages, bytes and rate, shown from the second second on.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    shown: bool,
    started: Instant,
    messages: u64,
    bytes: u64,
}

impl Progress {
    /// For a stream; shown only where a person sees it. `typing` is whether somebody types the request meanwhile, whose
    /// line it would disturb.
    pub(super) fn of_stream(typing: bool) -> Self {
        let wanted = io::stderr().is_terminal() && !typing;
        let bar = wanted.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            bar.with_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, shown: false, started: Instant::now(), messages: 0, bytes: 0 }
    }

    pub(super) fn none() -> Self {
        Self { bar: None, shown: false, started: Instant::now(), messages: 0, bytes: 0 }
    }

    /// Counts a message, and writes it without disturbing the line.
    pub(super) fn around<T>(&mut self, bytes: usize, write: impl FnOnce() -> T) -> T {
        let Some(bar) = &self.bar else { return write() };
        self.messages += 1;
        self.bytes += bytes as u64;
        let passed = self.started.elapsed();
        if !self.shown && passed >= PATIENCE {
            self.shown = true;
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if !self.shown {
            return write();
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let rate = (self.messages as f64 / passed.as_secs_f64()) as u64;
        let (messages, bytes) = (HumanCount(self.messages), BinaryBytes(self.bytes));
        bar.set_message(format!("{messages} messages, {bytes}, {} messages/s", HumanCount(rate)));
        // With both on one terminal the line goes away while the message is written.
        if io::stdout().is_terminal() { bar.suspend(write) } else { write() }
    }

    /// Takes the line away.
    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
