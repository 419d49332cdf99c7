//! Names and values as they are written in `.proto` source.

use std::fmt::Write as _;

use prost_reflect::text_format::FormatOptions;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, Value};

pub(super) fn type_name(kind: &Kind, is_map: bool) -> String {
    match kind {
        Kind::Message(entry) if is_map => {
            let part = |field: FieldDescriptor| type_name(&field.kind(), false);
            format!("map<{}, {}>", part(entry.map_entry_key_field()), part(entry.map_entry_value_field()))
        }
        Kind::Message(message) => format!(".{}", message.full_name()),
        Kind::Enum(item) => format!(".{}", item.full_name()),
        scalar => format!("{scalar:?}"),
    }
}

/// Options with their values, in the order of their names, custom ones last.
pub(super) fn rendered(options: &DynamicMessage, more: &[(String, String)]) -> Vec<(String, String)> {
    let mut all = more.to_vec();
    let mut add = |name: String, kind: &Kind, value: &Value| match value {
        Value::List(list) => all.extend(list.iter().map(|value| (name.clone(), literal(kind, value)))),
        value => all.push((name, literal(kind, value))),
    };
    for (field, value) in options.fields().filter(|(field, _)| field.name() != "map_entry") {
        add(field.name().to_owned(), &field.kind(), value);
    }
    for (extension, value) in options.extensions() {
        add(format!("(.{})", extension.full_name()), &extension.kind(), value);
    }
    all.sort_by(|a, b| (a.0.starts_with('('), &a.0).cmp(&(b.0.starts_with('('), &b.0)));
    all
}

fn literal(kind: &Kind, value: &Value) -> String {
    match (kind, value) {
        (Kind::Enum(item), Value::EnumNumber(number)) => {
            item.get_value(*number).map_or(number.to_string(), |value| value.name().to_owned())
        }
        (_, Value::String(text)) => quoted(text.as_bytes(), true),
        (_, Value::Bytes(bytes)) => quoted(bytes, false),
        (_, Value::F32(number)) => format!("{number:.6}"),
        (_, Value::F64(number)) => format!("{number:.6}"),
        (_, Value::Message(message)) => {
            let text = message.to_text_format_with_options(&FormatOptions::new());
            format!("{{ {text} }}")
        }
        (_, value) => value.to_string(),
    }
}

/// A literal of the language. Bytes have escapes for all but printable ASCII, a text for control characters alone.
pub(super) fn quoted(bytes: &[u8], is_text: bool) -> String {
    let mut out = String::from('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                c if is_text && !c.is_control() || c.is_ascii_graphic() || c == ' ' => out.push(c),
                c => octal(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        octal(&mut out, chunk.invalid());
    }
    out.push('"');
    out
}

fn octal(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "\\{byte:03o}"); // a String takes all
    }
}

/// What the compiler makes of a name (https://protobuf.dev/programming-guides/json/).
pub(super) fn json_name(name: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.push(c.to_ascii_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}
