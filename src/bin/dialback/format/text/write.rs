//! From a message to text format.

use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

use crate::format::error::FormatError;
use crate::format::slot::Slot;
use crate::format::well_known::{self, WellKnown};
use crate::format::write::too_deep;
use crate::format::{any, scalar};

/// A field in each line.
pub(in crate::format) fn write(message: &DynamicMessage, emit_defaults: bool) -> Result<String, FormatError> {
    let mut writer = Writer { text: String::new(), emit_defaults };
    writer.fields(message, 0)?;
    Ok(writer.text)
}

struct Writer {
    text: String,
    emit_defaults: bool,
}

impl Writer {
    fn fields(&mut self, message: &DynamicMessage, depth: usize) -> Result<(), FormatError> {
        too_deep(depth, message)?;
        if well_known::well_known(&message.descriptor()) == Some(WellKnown::Any) {
            let (url, bytes) = any::parts(message);
            // The parser takes a name between the brackets, and no other characters.
            let plain =
                url.contains('/') && url.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./-_".contains(&byte));
            if let Some(payload) = any::payload(&message.descriptor(), &url, &bytes).filter(|_| plain) {
                return self.message(&format!("[{url}]"), &payload, depth);
            }
        }
        for (slot, value) in Slot::of(message, self.emit_defaults) {
            let kind = slot.kind();
            let name = match &kind {
                Kind::Message(group) if slot.is_group() && matches!(slot, Slot::Field(_)) => group.name().to_owned(),
                _ => slot.name(),
            };
            match (value, slot.map()) {
                (None, _) if kind.as_message().is_some() || slot.is_list() => {}
                (None, _) => self.value(&name, &kind, &slot.default(), depth)?,
                (Some(Value::Map(map)), Some((key_kind, value_kind))) => {
                    let mut entries: Vec<_> = map.iter().collect();
                    entries.sort_by_key(|(key, _)| *key);
                    for (key, value) in entries {
                        self.line(depth, &format!("{name} {{"));
                        self.value("key", &key_kind, &Value::from(key.clone()), depth + 1)?;
                        self.value("value", &value_kind, value, depth + 1)?;
                        self.line(depth, "}");
                    }
                }
                (Some(Value::List(values)), _) => {
                    for value in values {
                        self.value(&name, &kind, value, depth)?;
                    }
                }
                (Some(value), _) => self.value(&name, &kind, value, depth)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, name: &str, kind: &Kind, value: &Value, depth: usize) -> Result<(), FormatError> {
        let text = match value {
            Value::Message(message) => return self.message(name, message, depth),
            Value::String(text) => quote(text.chars(), |c| c.is_ascii_control()),
            // Bytes beyond ASCII are no characters.
            Value::Bytes(bytes) => quote(bytes.iter().map(|&byte| char::from(byte)), |c| !(' '..='~').contains(&c)),
            Value::F32(number) if !number.is_finite() => special(f64::from(*number)),
            Value::F64(number) if !number.is_finite() => special(*number),
            _ => scalar::text(kind, value).unwrap_or_default(),
        };
        self.line(depth, &format!("{name}: {text}"));
        Ok(())
    }

    fn message(&mut self, name: &str, message: &DynamicMessage, depth: usize) -> Result<(), FormatError> {
        self.line(depth, &format!("{name} {{"));
        let inside = self.text.len();
        self.fields(message, depth + 1)?;
        if self.text.len() == inside {
            self.text.truncate(inside - 1);
            self.text.push_str("}\n");
        } else {
            self.line(depth, "}");
        }
        Ok(())
    }

    fn line(&mut self, depth: usize, line: &str) {
        self.text.extend(std::iter::repeat_n("  ", depth));
        self.text.push_str(line);
        self.text.push('\n');
    }
}

fn special(number: f64) -> String {
    let name = if number.is_nan() {
        "nan"
    } else if number > 0.0 {
        "inf"
    } else {
        "-inf"
    };
    name.into()
}

fn quote(letters: impl Iterator<Item = char>, escaped: impl Fn(char) -> bool) -> String {
    let mut text = String::from("\"");
    for letter in letters {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            _ if escaped(letter) => text.push_str(&format!("\\{:03o}", letter as u32)),
            _ => text.push(letter),
        }
    }
    text.push('"');
    text
}
