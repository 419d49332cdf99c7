//! Why the command failed, and its exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | it did not work: the message says why, and what to do |
//! | 64 | wrong arguments, or a wrong configuration (`EX_USAGE`) |
//! | 64 + n | a call ended with the gRPC code n, as with grpcurl |
//! | 130 | Ctrl-C |

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use crate::grpc::printable;

const GENERAL: u8 = 1;
const USAGE: u8 = 64;
/// What a shell says of a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Why the command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Whether the system was short of something, which has nothing to do with what was asked for.
    may_pass: bool,
    message: Message,
}

#[derive(Debug)]
enum Message {
    /// Already printed, or nothing to say.
    Silent,
    Text(String),
    /// clap's own, which has its form and colours. Help and version are among them.
    Usage(Box<clap::Error>),
}

impl Failure {
    /// It did not work.
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { code: GENERAL, may_pass: false, message: Message::Text(message.to_string()) }
    }

    /// The same, with the causes of the error, each after a colon.
    pub(crate) fn because(what: impl fmt::Display, error: &dyn Error) -> Self {
        Self { may_pass: may_pass(error.source()), ..Self::new(explained(what, error)) }
    }

    /// The same of a file, an address or the like that is configured: trying again is no use, unless the system was short of
    /// something.
    pub(crate) fn misconfigured(what: impl fmt::Display, error: &(dyn Error + 'static)) -> Self {
        Self { may_pass: may_pass(Some(error)), ..Self::because(what, error) }.of_configuration()
    }

    /// It did not work, for the system says so.
    pub(crate) fn of_system(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self { may_pass: may_pass(Some(error)), ..Self::because(what, error) }
    }

    /// What failed is what is configured.
    pub(crate) fn of_configuration(self) -> Self {
        Self { code: if self.may_pass { self.code } else { USAGE }, ..self }
    }

    /// The arguments or the configuration are wrong.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { code: USAGE, may_pass: false, message: Message::Text(message.to_string()) }
    }

    /// A call ended with a status that is not OK, which was printed.
    pub(crate) fn call(code: tonic::Code) -> Self {
        Self { code: USAGE + code as u8, may_pass: false, message: Message::Silent }
    }

    /// Ctrl-C has ended it, and everybody knows.
    pub(crate) fn interrupted() -> Self {
        Self { code: INTERRUPTED, may_pass: false, message: Message::Silent }
    }

    /// It did not work, and what there was to say was printed.
    pub(crate) fn told() -> Self {
        Self { code: GENERAL, may_pass: false, message: Message::Silent }
    }

    /// Says it on stderr (on stdout what was asked for, as help), and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self.message {
            Message::Silent => {}
            Message::Text(text) => {
                // Nobody is left to be told that stderr is gone.
                let _ = writeln!(anstream::stderr(), "dialback: {}", printable(&text));
            }
            Message::Usage(error) => {
                let _ = error.print(); // the same
            }
        }
        ExitCode::from(self.code)
    }

    /// What the command ends with.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

fn explained(what: impl fmt::Display, error: &dyn Error) -> String {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors repeat their source.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Whether the system was short of something, or a disk or network away.
fn may_pass(mut cause: Option<&(dyn Error + 'static)>) -> bool {
    use std::io::ErrorKind as Kind;
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            // No kind of its own have EIO, ENFILE and EMFILE.
            let is_short = cfg!(unix) && matches!(error.raw_os_error(), Some(5 | 23 | 24));
            let kinds = [Kind::OutOfMemory, Kind::Interrupted, Kind::TimedOut, Kind::StaleNetworkFileHandle];
            if is_short || kinds.contains(&error.kind()) {
                return true;
            }
        }
        cause = error.source();
    }
    false
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Message::Silent => f.write_str("it did not work"),
            Message::Text(text) => f.write_str(text),
            Message::Usage(error) => error.fmt(f),
        }
    }
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        let code = if error.use_stderr() { USAGE } else { 0 };
        Self { code, may_pass: false, message: Message::Usage(Box::new(error)) }
    }
}
