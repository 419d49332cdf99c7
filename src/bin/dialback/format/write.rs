//! From a message to the tree of its JSON: protojson's rules, with the choices of grpcurl where the two differ.

use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

use super::MAX_DEPTH;
use super::any;
use super::error::FormatError;
use super::scalar;
use super::slot::Slot;
use super::tree::{Data, Node, entry};
use super::well_known::{self, WellKnown};

/// The tree of a message. `emit_defaults` has the fields too that are not set.
pub(super) fn message(message: &DynamicMessage, emit_defaults: bool) -> Result<Node, FormatError> {
    write_message(message, emit_defaults, 0)
}

/// A message may hold an `Any` that holds another, and so on: no decoder has bounded that.
pub(super) fn too_deep(depth: usize, message: &DynamicMessage) -> Result<(), FormatError> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(FormatError::Unwritable {
        path: message.descriptor().full_name().to_owned(),
        what: format!("nested deeper than {MAX_DEPTH}"),
    })
}

fn write_message(message: &DynamicMessage, defaults: bool, depth: usize) -> Result<Node, FormatError> {
    too_deep(depth, message)?;
    match well_known::well_known(&message.descriptor()) {
        Some(WellKnown::Any) => return write_any(message, defaults, depth),
        Some(WellKnown::Timestamp | WellKnown::Duration) => {
            // One that is not valid has no text, and shows its fields: better than to show nothing of the answer.
            if let Some(text) = well_known::text(message) {
                return Ok(Node::string(text));
            }
        }
        Some(WellKnown::Wrapper) => {
            if let Some(field) = message.descriptor().get_field(1) {
                return write_plain(&field.kind(), &message.get_field(&field), defaults, depth);
            }
        }
        Some(WellKnown::Struct | WellKnown::ListValue) => {
            if let Some(field) = message.descriptor().get_field(1) {
                return write_field(&Slot::Field(field.clone()), &message.get_field(&field), defaults, depth);
            }
        }
        Some(WellKnown::Value) => {
            return match message.fields().next() {
                Some((field, value)) if field.number() != 1 => write_plain(&field.kind(), value, defaults, depth + 1),
                _ => Ok(Data::Null.into()),
            };
        }
        // A field mask is an object with `paths`, as in grpcurl, though protojson has a string; both are read.
        Some(WellKnown::FieldMask | WellKnown::Empty) | None => {}
    }
    let mut entries = Vec::new();
    for (slot, value) in Slot::of(message, defaults) {
        let node = match value {
            Some(value) => write_field(&slot, value, defaults, depth)?,
            None if !slot.is_list() && slot.map().is_none() && slot.kind().as_message().is_some() => Data::Null.into(),
            None => write_field(&slot, &slot.default(), defaults, depth)?,
        };
        entries.push(entry(slot.json_name(), node));
    }
    Ok(Data::Map(entries).into())
}

fn write_field(slot: &Slot, value: &Value, defaults: bool, depth: usize) -> Result<Node, FormatError> {
    match (value, slot.map()) {
        (Value::Map(map), Some((_, kind))) => {
            let mut sorted: Vec<_> = map.iter().collect();
            sorted.sort_by_key(|(key, _)| *key);
            let mut entries = Vec::new();
            for (key, value) in sorted {
                entries.push(entry(scalar::key_text(key), write_value(&kind, value, defaults, depth + 1)?));
            }
            Ok(Data::Map(entries).into())
        }
        (Value::List(values), _) => {
            let kind = slot.kind();
            let write = |value| write_value(&kind, value, defaults, depth + 1);
            Ok(Data::List(values.iter().map(write).collect::<Result<_, _>>()?).into())
        }
        _ => write_value(&slot.kind(), value, defaults, depth + 1),
    }
}

fn write_value(kind: &Kind, value: &Value, defaults: bool, depth: usize) -> Result<Node, FormatError> {
    Ok(match value {
        Value::F32(value) if value.is_finite() => Node::number(scalar::go_float_text(*value)),
        Value::F64(value) if value.is_finite() => Node::number(scalar::go_float_text(*value)),
        _ => return write_plain(kind, value, defaults, depth),
    })
}

/// A value in a well-known type, whose floating-point numbers grpcurl leaves to `encoding/json`.
fn write_plain(kind: &Kind, value: &Value, defaults: bool, depth: usize) -> Result<Node, FormatError> {
    let text = || Node::string(scalar::text(kind, value).unwrap_or_default());
    Ok(match value {
        Value::Message(message) => write_message(message, defaults, depth)?,
        Value::Bool(value) => Data::Bool(*value).into(),
        Value::I32(value) => Node::number(value),
        Value::U32(value) => Node::number(value),
        Value::F32(value) if value.is_finite() => Node::number(scalar::float_text(*value)),
        Value::F64(value) if value.is_finite() => Node::number(scalar::float_text(*value)),
        Value::EnumNumber(number) => match kind.as_enum() {
            Some(descriptor) if descriptor.get_value(*number).is_some() => text(),
            _ => Node::number(number),
        },
        _ => text(),
    })
}

fn write_any(message: &DynamicMessage, defaults: bool, depth: usize) -> Result<Node, FormatError> {
    let (url, bytes) = any::parts(message);
    if url.is_empty() && bytes.is_empty() {
        return Ok(Data::Map(Vec::new()).into());
    }
    let mut entries = vec![entry("@type", Node::string(url.clone()))];
    match any::payload(&message.descriptor(), &url, &bytes) {
        Some(payload) if any::has_value(&payload.descriptor()) => {
            entries.push(entry("value", write_message(&payload, defaults, depth + 1)?));
        }
        Some(payload) => {
            if let Data::Map(mut fields) = write_message(&payload, defaults, depth + 1)?.data {
                // By name and not by number, as grpcurl does in this one place.
                fields.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
                entries.extend(fields);
            }
        }
        None => {
            let name = any::name(&url);
            let what = format!("{name} is not recognized; see @value for raw binary message data");
            entries.insert(usize::from(url.is_empty()), entry("@error", Node::string(what)));
            entries.push(entry("@value", Node::string(scalar::to_base64(&bytes))));
        }
    }
    Ok(Data::Map(entries).into())
}
