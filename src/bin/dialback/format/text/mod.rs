//! Protobuf's text format, with the character 0x1E between messages.
//!
//! As with grpcurl, what is between two of these is a message even if it is empty, and so is an empty input.

mod parse;
mod write;

pub(super) use self::parse::parse;
pub(super) use self::write::write;
use super::input::{Cut, Framing};

const SEPARATOR: u8 = 0x1E;

/// Messages, which end at the separator and where the input ends.
#[derive(Debug, Default)]
pub(super) struct Records {
    seen: usize,
    ended: bool,
}

impl Framing for Records {
    fn cut(&mut self, rest: &[u8], last: bool) -> Cut {
        match rest[self.seen..].iter().position(|&byte| byte == SEPARATOR) {
            Some(length) => Cut::Message(std::mem::take(&mut self.seen) + length + 1),
            None if last && !self.ended => {
                self.ended = true;
                self.seen = 0;
                Cut::Message(rest.len())
            }
            None => {
                self.seen = rest.len();
                Cut::More
            }
        }
    }
}
