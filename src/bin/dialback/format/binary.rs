//! Messages in binary form, each after its length.
//!
//! The length is a varint, as in `writeDelimitedTo` of Java, `protodelim` of Go and `length_prefixed` of Python.
//! There is no binary form without a length here: nothing would say where one message ends and the next begins.

use prost_reflect::prost::Message as _;
use prost_reflect::prost::encoding::{decode_varint, encode_varint};
use prost_reflect::{DynamicMessage, MessageDescriptor};

use super::MAX_MESSAGE;
use super::error::FormatError;
use super::input::{Cut, Framing};

#[derive(Debug, Default)]
pub(super) struct Delimited;

impl Framing for Delimited {
    fn cut(&mut self, rest: &[u8], last: bool) -> Cut {
        let Some((prefix, length)) = length(rest) else {
            // The longest length that is allowed has four bytes; a varint may have zeros behind it, up to ten.
            return match rest.len() {
                0 => Cut::More,
                10.. => Cut::Wrong(0, "expected the length of a message as a varint".into()),
                _ if last => Cut::Wrong(rest.len(), "the input ends in the length of a message".into()),
                _ => Cut::More,
            };
        };
        let there = rest.len() - prefix;
        match usize::try_from(length) {
            Ok(length) if length <= there => Cut::Message(prefix + length),
            Ok(length) if length <= MAX_MESSAGE && last => {
                Cut::Wrong(rest.len(), format!("the input ends after {there} bytes of a message of {length}"))
            }
            Ok(length) if length <= MAX_MESSAGE => Cut::More,
            _ => Cut::Wrong(
                0,
                format!("a message of {length} bytes is larger than the limit of {} MiB", MAX_MESSAGE >> 20),
            ),
        }
    }
}

/// How many bytes the length has, and what it says.
fn length(mut rest: &[u8]) -> Option<(usize, u64)> {
    let before = rest.len();
    let end = rest.iter().take(10).position(|byte| byte & 0x80 == 0)?;
    let length = decode_varint(&mut rest).ok()?;
    debug_assert_eq!(before - rest.len(), end + 1);
    Some((end + 1, length))
}

pub(super) fn decode(frame: &[u8], offset: u64, descriptor: &MessageDescriptor) -> Result<DynamicMessage, FormatError> {
    let (prefix, _) = length(frame).unwrap_or_default();
    DynamicMessage::decode(descriptor.clone(), &frame[prefix..])
        .map_err(|error| FormatError::Binary { offset: offset + prefix as u64, what: error.to_string() })
}

pub(super) fn encode(message: &DynamicMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(message.encoded_len() as u64, &mut bytes);
    message.encode(&mut bytes).expect("a vector grows as needed");
    bytes
}
