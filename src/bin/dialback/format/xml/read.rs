//! From a tree of elements to a message.

use std::collections::HashSet;

use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value};

use super::parse::Element;
use crate::format::error::{Fault, FormatError, Place, Problem, Step};
use crate::format::slot::Slot;
use crate::format::tree::excerpt;
use crate::format::well_known::{self, WellKnown, set};
use crate::format::{any, json, read, scalar};

/// The root, which is named after the message type, with its package or without.
pub(super) fn root(element: &Element, descriptor: &MessageDescriptor) -> Result<DynamicMessage, Fault> {
    if element.name != descriptor.full_name() && element.name != descriptor.name() {
        let problem = Problem::wrong(
            format!("the element <{}>", descriptor.full_name()),
            format!("<{}>", excerpt(&element.name)),
        );
        return Err(Fault::new(element.at as u64, problem));
    }
    allow(element, &[], &Kind::Message(descriptor.clone()))?;
    message(element, descriptor)
}

fn wrong(element: &Element, expected: impl Into<String>, found: impl Into<String>) -> Fault {
    Fault::new(element.at as u64, Problem::wrong(expected, found))
}

/// Attributes that mean nothing are mistakes, save those of namespaces.
fn allow(element: &Element, names: &[&str], kind: &Kind) -> Result<(), Fault> {
    let of_kind: &[&str] = match kind {
        Kind::String => &["encoding"],
        Kind::Message(descriptor) => match well_known::well_known(descriptor) {
            Some(WellKnown::Any) => &["type", "value", "encoding"],
            Some(_) => &["encoding"],
            None => &[],
        },
        _ => &[],
    };
    let stray = element.attributes.iter().find(|(name, _)| {
        !names.contains(&name.as_str()) && !of_kind.contains(&name.as_str()) && !name.starts_with("xml")
    });
    match stray {
        None => Ok(()),
        Some((name, _)) => {
            let known: Vec<_> = names.iter().chain(of_kind).copied().collect();
            let expected = if known.is_empty() { "no attributes".into() } else { format!("only {}", known.join(", ")) };
            Err(wrong(element, expected, format!("the attribute {}", excerpt(name))))
        }
    }
}

fn message(element: &Element, descriptor: &MessageDescriptor) -> Result<DynamicMessage, Fault> {
    let at = element.at as u64;
    let mut message = DynamicMessage::new(descriptor.clone());
    match well_known::well_known(descriptor) {
        Some(WellKnown::Any) => return read_any(element, descriptor),
        Some(WellKnown::Timestamp | WellKnown::Duration | WellKnown::FieldMask) if element.children.is_empty() => {
            let text = text(element)?;
            return well_known::parse(descriptor, text.trim()).map_err(|problem| Fault::new(at, problem));
        }
        Some(WellKnown::Struct | WellKnown::Value | WellKnown::ListValue) => {
            let text = text(element)?;
            let tree = json::parse(&text, Place::START).map_err(|error| match error {
                FormatError::Syntax { what, .. } => wrong(element, "JSON", format!("{:?}: {what}", excerpt(&text))),
                other => wrong(element, "JSON", other.to_string()),
            })?;
            // Where it is inside of the JSON is no place of this document.
            return read::message(&tree, descriptor).map_err(|fault| Fault { at, ..fault });
        }
        Some(WellKnown::Wrapper) => {
            if let Some(field) = descriptor.get_field(1) {
                let value = value(element, &field.kind())?;
                Slot::Field(field).set(&mut message, value).map_err(|problem| Fault::new(at, problem))?;
            }
            return Ok(message);
        }
        _ => {}
    }
    fields(element, &mut message)?;
    Ok(message)
}

fn fields(element: &Element, message: &mut DynamicMessage) -> Result<(), Fault> {
    if !element.text.trim().is_empty() {
        let expected = format!("the fields of {}", message.descriptor().full_name());
        return Err(wrong(element, expected, format!("the text {:?}", excerpt(element.text.trim()))));
    }
    let mut seen = HashSet::new();
    for child in &element.children {
        field(child, message, &mut seen).map_err(|fault| fault.within(Step::Field(child.name.clone())))?;
    }
    Ok(())
}

fn field(element: &Element, message: &mut DynamicMessage, seen: &mut HashSet<u32>) -> Result<(), Fault> {
    let at = |problem| Fault::new(element.at as u64, problem);
    let extension = element.attribute("name").filter(|_| element.name == "extension");
    let name = extension.map_or_else(|| element.name.clone(), |name| format!("[{name}]"));
    let slot = Slot::find(&message.descriptor(), &name).map_err(at)?;
    let mut attributes = Vec::new();
    if extension.is_some() {
        attributes.push("name");
    }
    if let Some((key_kind, value_kind)) = slot.map() {
        attributes.extend(["key", "key-encoding"]);
        allow(element, &attributes, &value_kind)?;
        let key = element.attribute("key").ok_or_else(|| wrong(element, "the attribute key", "none"))?;
        let key = decode(element, "key-encoding", key.to_owned())?;
        let parsed = scalar::parse_key(&key_kind, &key).map_err(at)?;
        let value = value(element, &value_kind).map_err(|fault| fault.within(Step::Key(key.clone())))?;
        if let Value::Map(map) = slot.get_mut(message)
            && map.insert(parsed, value).is_some()
        {
            return Err(at(Problem::Twice).within(Step::Key(key)));
        }
        return Ok(());
    }
    allow(element, &attributes, &slot.kind())?;
    if slot.is_list() {
        let Value::List(values) = slot.get_mut(message) else { return Ok(()) };
        let index = values.len();
        values.push(value(element, &slot.kind()).map_err(|fault| fault.within(Step::Index(index)))?);
        return Ok(());
    }
    if !seen.insert(slot.number()) {
        return Err(at(Problem::Twice));
    }
    let value = value(element, &slot.kind())?;
    slot.set(message, value).map_err(at)
}

fn value(element: &Element, kind: &Kind) -> Result<Value, Fault> {
    if let Kind::Message(descriptor) = kind {
        return message(element, descriptor).map(Value::Message);
    }
    let mut text = text(element)?;
    match kind {
        Kind::String => {}
        // Others break long lines.
        Kind::Bytes => text.retain(|c| !c.is_ascii_whitespace()),
        _ => text = text.trim().to_owned(),
    }
    scalar::parse(kind, &text).map_err(|problem| Fault::new(element.at as u64, problem))
}

/// What is in an element that has no elements in it.
fn text(element: &Element) -> Result<String, Fault> {
    match element.children.first() {
        Some(child) => Err(wrong(element, "text", format!("the element <{}>", excerpt(&child.name)))),
        None => decode(element, "encoding", element.text.clone()),
    }
}

/// A text that is in base64 if an attribute says so.
fn decode(element: &Element, attribute: &str, text: String) -> Result<String, Fault> {
    match element.attribute(attribute) {
        None => Ok(text),
        Some("base64") => scalar::from_base64(text.trim())
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| wrong(element, "a string as base64", format!("{:?}", excerpt(text.trim())))),
        Some(other) => {
            Err(wrong(element, format!("the attribute {attribute} to be base64"), format!("{:?}", excerpt(other))))
        }
    }
}

fn read_any(element: &Element, descriptor: &MessageDescriptor) -> Result<DynamicMessage, Fault> {
    let mut message = DynamicMessage::new(descriptor.clone());
    let Some(url) = element.attribute("type") else {
        return match element.children.is_empty()
            && element.text.trim().is_empty()
            && element.attribute("value").is_none()
        {
            true => Ok(message),
            false => Err(wrong(element, "the attribute type of a google.protobuf.Any", "none")),
        };
    };
    if !url.is_empty() {
        set(&mut message, 1, Value::String(url.to_owned()));
    }
    if let Some(value) = element.attribute("value") {
        let bytes = scalar::parse(&Kind::Bytes, value).map_err(|problem| Fault::new(element.at as u64, problem))?;
        set(&mut message, 2, bytes);
        return Ok(message);
    }
    let payload = any::resolve(descriptor, url).map_err(|problem| Fault::new(element.at as u64, problem))?;
    let inner = if well_known::well_known(&payload) == Some(WellKnown::Any) {
        match &element.children[..] {
            [value] if value.name == "value" => {
                self::message(value, &payload).map_err(|fault| fault.within(Step::Field("value".into())))?
            }
            _ => return Err(wrong(element, "the element <value>, which holds the google.protobuf.Any", "others")),
        }
    } else {
        self::message(element, &payload)?
    };
    let bytes = inner.encode_to_vec();
    if !bytes.is_empty() {
        set(&mut message, 2, Value::Bytes(bytes.into()));
    }
    Ok(message)
}
