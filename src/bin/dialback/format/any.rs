//! `google.protobuf.Any`: which type it holds.

use prost_reflect::{DynamicMessage, MessageDescriptor};

use super::error::{Problem, nearest};
use super::well_known::well_known;

/// The message type that a type URL names, among those that came with the message's own.
pub(super) fn resolve(descriptor: &MessageDescriptor, url: &str) -> Result<MessageDescriptor, Problem> {
    let name = name(url);
    let pool = descriptor.parent_pool();
    pool.get_message_by_name(name).ok_or_else(|| {
        let all: Vec<_> = pool.all_messages().filter(|message| !message.is_map_entry()).collect();
        Problem::UnknownType {
            name: name.to_owned(),
            nearest: nearest(name, all.iter().map(|message| message.full_name())),
        }
    })
}

/// The name in a type URL.
pub(super) fn name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

/// Whether the JSON of such a message inside of an `Any` is under the key `value`, as it is no object of its fields.
pub(super) fn has_value(payload: &MessageDescriptor) -> bool {
    well_known(payload).is_some()
}

/// What an `Any` says that it holds, and the bytes of it.
pub(super) fn parts(message: &DynamicMessage) -> (String, Vec<u8>) {
    let url = message.get_field_by_number(1).and_then(|value| Some(value.as_str()?.to_owned()));
    let bytes = message.get_field_by_number(2).and_then(|value| Some(value.as_bytes()?.to_vec()));
    (url.unwrap_or_default(), bytes.unwrap_or_default())
}

/// The message inside, if its type is known and the bytes are one.
pub(super) fn payload(descriptor: &MessageDescriptor, url: &str, bytes: &[u8]) -> Option<DynamicMessage> {
    DynamicMessage::decode(resolve(descriptor, url).ok()?, bytes).ok()
}
