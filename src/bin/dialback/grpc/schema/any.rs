//! What is inside of messages: their types, and the types that an `Any` names.

use std::collections::HashSet;

use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage as _, Value};

const ANY: &str = "google.protobuf.Any";

/// How deep messages are looked into. A decoder has bounded that, but for `Any`s in `Any`s; no format writes deeper ones.
const DEEPEST: usize = 200;

/// Visits a message and all that can be in it, each once.
pub(super) fn visit(message: &MessageDescriptor, look: &mut impl FnMut(&MessageDescriptor)) {
    let mut seen = HashSet::new();
    let mut open = vec![message.clone()];
    while let Some(message) = open.pop() {
        if seen.insert(message.full_name().to_owned()) {
            look(&message);
            open.extend(message.fields().filter_map(|field| field.kind().as_message().cloned()));
            open.extend(message.extensions().filter_map(|field| field.kind().as_message().cloned()));
        }
    }
}

/// Whether an `Any` can be in a message.
pub(in crate::grpc) fn may_hold_any(message: &MessageDescriptor) -> bool {
    let mut found = false;
    visit(message, &mut |message| found |= message.full_name() == ANY);
    found
}

/// The names of types in `Any`s that the message's own pool does not have.
pub(super) fn unknown_types(message: &DynamicMessage) -> HashSet<String> {
    let mut missing = HashSet::new();
    in_message(message, 0, &mut missing);
    missing
}

fn in_message(message: &DynamicMessage, depth: usize, missing: &mut HashSet<String>) {
    if depth > DEEPEST {
        return;
    }
    if message.descriptor().full_name() == ANY {
        let text = message.get_field_by_number(1);
        let url = text.as_deref().and_then(Value::as_str).unwrap_or_default();
        let name = url.rsplit_once('/').map_or(url, |(_, name)| name);
        let inner = message.get_field_by_number(2);
        match message.descriptor().parent_pool().get_message_by_name(name) {
            None if name.is_empty() => {}
            None => drop(missing.insert(name.to_owned())),
            Some(known) => {
                let bytes = inner.as_deref().and_then(Value::as_bytes).cloned().unwrap_or_default();
                // What cannot be decoded is said so when it is printed.
                if let Ok(inner) = DynamicMessage::decode(known, bytes) {
                    in_message(&inner, depth + 1, missing);
                }
            }
        }
        return;
    }
    let fields = message.fields().map(|(_, value)| value);
    for value in fields.chain(message.extensions().map(|(_, value)| value)) {
        in_value(value, depth, missing);
    }
}

fn in_value(value: &Value, depth: usize, missing: &mut HashSet<String>) {
    match value {
        Value::Message(message) => in_message(message, depth + 1, missing),
        Value::List(list) => list.iter().for_each(|value| in_value(value, depth, missing)),
        Value::Map(map) => map.values().for_each(|value| in_value(value, depth, missing)),
        _ => {}
    }
}
