//! The codecs against the messages of `proto/kinds.proto`, which have every kind of field.

mod bad_input;
mod mapping;
mod properties;
mod random;
mod requests;
mod streams;
mod terminal;

use std::sync::LazyLock;

use clap::ValueEnum as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use super::{Decoder, Encoder, Format, FormatError};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let files = protox::compile(["kinds.proto"], [proto]).unwrap();
    DescriptorPool::from_file_descriptor_set(files).unwrap()
});

fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name).unwrap_or_else(|| panic!("no {name}"))
}

fn kinds() -> MessageDescriptor {
    descriptor("dialback.kinds.v1.Kinds")
}

fn formats() -> &'static [Format] {
    Format::value_variants()
}

fn encode(format: Format, message: &DynamicMessage) -> String {
    String::from_utf8(encode_bytes(format, message)).unwrap()
}

fn encode_bytes(format: Format, message: &DynamicMessage) -> Vec<u8> {
    Encoder::new(format, false).encode(message).unwrap()
}

/// All messages of an input that comes in pieces, and the error that ended it.
fn decode_pieces<'a>(
    format: Format,
    descriptor: &MessageDescriptor,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<DynamicMessage>, Option<FormatError>) {
    let mut decoder = Decoder::new(format, descriptor.clone());
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    loop {
        match decoder.finish() {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(error)),
        }
    }
}

fn decode_all(
    format: Format,
    descriptor: &MessageDescriptor,
    input: &[u8],
) -> Result<Vec<DynamicMessage>, FormatError> {
    match decode_pieces(format, descriptor, [input]) {
        (messages, None) => Ok(messages),
        (_, Some(error)) => Err(error),
    }
}

/// The one message of an input.
fn decode(
    format: Format,
    descriptor: &MessageDescriptor,
    input: impl AsRef<[u8]>,
) -> Result<DynamicMessage, FormatError> {
    let mut messages = decode_all(format, descriptor, input.as_ref())?;
    assert_eq!(messages.len(), 1, "one message");
    Ok(messages.remove(0))
}

fn read(format: Format, input: &str) -> DynamicMessage {
    decode(format, &kinds(), input).unwrap_or_else(|error| panic!("{error}\n{input}"))
}

/// The JSON of a message of [`kinds`] in one line, which has all that there is to know about it.
fn json(message: &DynamicMessage) -> String {
    encode(Format::Ndjson, message).trim_end().to_owned()
}
