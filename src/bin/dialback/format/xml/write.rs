//! From a message to XML.

use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

use super::is_xml;
use crate::format::error::FormatError;
use crate::format::slot::Slot;
use crate::format::well_known::{self, WellKnown};
use crate::format::write::too_deep;
use crate::format::{any, json, scalar};

/// The root element of a message, and a line feed.
pub(in crate::format) fn write(message: &DynamicMessage, emit_defaults: bool) -> Result<String, FormatError> {
    let mut writer = Writer { text: String::new(), emit_defaults };
    let name = message.descriptor().full_name().to_owned();
    writer.message(&Tag { name, attributes: String::new() }, message, 0)?;
    Ok(writer.text)
}

struct Writer {
    text: String,
    emit_defaults: bool,
}

struct Tag {
    name: String,
    attributes: String,
}

impl Tag {
    fn with(&self, name: &str, value: &str) -> Self {
        let attributes = format!("{} {name}=\"{}\"", self.attributes, escape(value, true));
        Self { name: self.name.clone(), attributes }
    }
}

impl Writer {
    fn message(&mut self, tag: &Tag, message: &DynamicMessage, depth: usize) -> Result<(), FormatError> {
        too_deep(depth, message)?;
        let known = well_known::well_known(&message.descriptor());
        match known {
            Some(WellKnown::Any) => return self.any(tag, message, depth),
            Some(WellKnown::Timestamp | WellKnown::Duration | WellKnown::FieldMask) => {
                if let Some(text) = well_known::text(message) {
                    self.leaf(tag, depth, &text);
                    return Ok(());
                }
            }
            Some(WellKnown::Struct | WellKnown::Value | WellKnown::ListValue) => {
                let tree = crate::format::write::message(message, self.emit_defaults)?;
                self.leaf(tag, depth, &json::compact(&tree));
                return Ok(());
            }
            Some(WellKnown::Wrapper) => {
                if let Some(field) = message.descriptor().get_field(1) {
                    return self.value(tag, &field.kind(), &message.get_field(&field), depth);
                }
            }
            Some(WellKnown::Empty) | None => {}
        }
        self.parent(tag, depth, |writer| writer.fields(message, depth + 1))
    }

    fn fields(&mut self, message: &DynamicMessage, depth: usize) -> Result<(), FormatError> {
        for (slot, value) in Slot::of(message, self.emit_defaults) {
            let tag = match &slot {
                Slot::Field(field) => Tag { name: field.name().to_owned(), attributes: String::new() },
                Slot::Extension(extension) => {
                    Tag { name: "extension".into(), attributes: String::new() }.with("name", extension.full_name())
                }
            };
            let kind = slot.kind();
            match (value, slot.map()) {
                // A message that is absent has no element.
                (None, _) if kind.as_message().is_some() => {}
                (None, _) if slot.is_list() => {}
                (None, _) => self.value(&tag, &kind, &slot.default(), depth)?,
                (Some(Value::Map(map)), Some((_, kind))) => {
                    let mut entries: Vec<_> = map.iter().collect();
                    entries.sort_by_key(|(key, _)| *key);
                    for (key, value) in entries {
                        let key = scalar::key_text(key);
                        let tag = if is_xml(&key) {
                            tag.with("key", &key)
                        } else {
                            tag.with("key", &scalar::to_base64(key.as_bytes())).with("key-encoding", "base64")
                        };
                        self.value(&tag, &kind, value, depth)?;
                    }
                }
                (Some(Value::List(values)), _) => {
                    for value in values {
                        self.value(&tag, &kind, value, depth)?;
                    }
                }
                (Some(value), _) => self.value(&tag, &kind, value, depth)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, tag: &Tag, kind: &Kind, value: &Value, depth: usize) -> Result<(), FormatError> {
        match value {
            Value::Message(message) => return self.message(tag, message, depth),
            _ => self.leaf(tag, depth, &scalar::text(kind, value).unwrap_or_default()),
        }
        Ok(())
    }

    fn any(&mut self, tag: &Tag, message: &DynamicMessage, depth: usize) -> Result<(), FormatError> {
        let (url, bytes) = any::parts(message);
        if url.is_empty() && bytes.is_empty() {
            self.leaf(tag, depth, "");
            return Ok(());
        }
        if !is_xml(&url) {
            let path = message.descriptor().full_name().to_owned();
            let what = "the type has characters that XML cannot hold".to_owned();
            return Err(FormatError::Unwritable { path, what });
        }
        let tag = tag.with("type", &url);
        match any::payload(&message.descriptor(), &url, &bytes) {
            None => {
                self.leaf(&tag.with("value", &scalar::to_base64(&bytes)), depth, "");
                Ok(())
            }
            Some(inner) if well_known::well_known(&inner.descriptor()) == Some(WellKnown::Any) => {
                let value = Tag { name: "value".into(), attributes: String::new() };
                self.parent(&tag, depth, |writer| writer.message(&value, &inner, depth + 1))
            }
            Some(inner) => self.message(&tag, &inner, depth),
        }
    }

    /// An element with text in it, and no white space around that.
    fn leaf(&mut self, tag: &Tag, depth: usize, text: &str) {
        if !is_xml(text) {
            return self.leaf(&tag.with("encoding", "base64"), depth, &scalar::to_base64(text.as_bytes()));
        }
        self.indent(depth);
        let Tag { name, attributes } = tag;
        if text.is_empty() {
            self.text.push_str(&format!("<{name}{attributes}/>\n"));
        } else {
            self.text.push_str(&format!("<{name}{attributes}>{}</{name}>\n", escape(text, false)));
        }
    }

    /// An element with elements in it.
    fn parent(
        &mut self,
        tag: &Tag,
        depth: usize,
        children: impl FnOnce(&mut Self) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let Tag { name, attributes } = tag;
        self.indent(depth);
        let start = self.text.len();
        self.text.push_str(&format!("<{name}{attributes}>\n"));
        let inside = self.text.len();
        children(self)?;
        if self.text.len() == inside {
            self.text.truncate(start);
            self.text.push_str(&format!("<{name}{attributes}/>\n"));
        } else {
            self.indent(depth);
            self.text.push_str(&format!("</{name}>\n"));
        }
        Ok(())
    }

    fn indent(&mut self, depth: usize) {
        self.text.extend(std::iter::repeat_n("  ", depth));
    }
}

/// White space that a reader would change is written as a character reference: a carriage return, and in an attribute
/// all but the space.
fn escape(text: &str, attribute: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' if attribute => escaped.push_str("&quot;"),
            '\r' => escaped.push_str("&#13;"),
            '\n' if attribute => escaped.push_str("&#10;"),
            '\t' if attribute => escaped.push_str("&#9;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}
