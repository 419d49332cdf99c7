//! From the tree of a JSON or YAML document to a message, by the rules of protojson.

use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MapKey, MessageDescriptor, Value};

use super::MAX_DEPTH;
use super::any;
use super::error::{Fault, Problem, Step};
use super::scalar;
use super::slot::Slot;
use super::tree::{Data, Key, Node};
use super::well_known::{self, WellKnown, set};

/// Reads a whole message.
pub(super) fn message(node: &Node, descriptor: &MessageDescriptor) -> Result<DynamicMessage, Fault> {
    read_message(node, descriptor, 0)
}

/// Reads one value of a field: an element of a list, not the list.
pub(super) fn value(node: &Node, kind: &Kind) -> Result<Value, Fault> {
    read_value(node, kind, 0)
}

fn read_message(node: &Node, descriptor: &MessageDescriptor, depth: usize) -> Result<DynamicMessage, Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::new(node.at, Problem::TooDeep));
    }
    let mut message = DynamicMessage::new(descriptor.clone());
    match (well_known::well_known(descriptor), &node.data) {
        (Some(WellKnown::Any), Data::Map(entries)) => return read_any(node, entries, descriptor, depth),
        (Some(WellKnown::Timestamp | WellKnown::Duration | WellKnown::FieldMask), data) => {
            if let Some(text) =
                node.literal.as_deref().or(if let Data::String(text) = data { Some(text) } else { None })
            {
                return well_known::parse(descriptor, text).map_err(|problem| Fault::new(node.at, problem));
            }
            // Else as the message that it is, which is how one is written that has no valid text.
        }
        (Some(WellKnown::Wrapper), data) if !matches!(data, Data::Map(_)) => {
            if let Some(field) = descriptor.get_field(1) {
                Slot::Field(field.clone())
                    .set(&mut message, read_value(node, &field.kind(), depth)?)
                    .map_err(|problem| Fault::new(node.at, problem))?;
            }
            return Ok(message);
        }
        (Some(WellKnown::Struct), Data::Map(_)) => {
            if let Some(field) = descriptor.get_field(1) {
                read_field(&mut message, &Slot::Field(field), node, depth)?;
            }
            return Ok(message);
        }
        (Some(WellKnown::ListValue), Data::List(_)) => {
            if let Some(field) = descriptor.get_field(1) {
                read_field(&mut message, &Slot::Field(field), node, depth)?;
            }
            return Ok(message);
        }
        (Some(WellKnown::Value), data) => {
            let number = match data {
                Data::Null => 1,
                Data::Number(_) => 2,
                Data::String(_) => 3,
                Data::Bool(_) => 4,
                Data::Map(_) => 5,
                Data::List(_) => 6,
            };
            if let Some(field) = descriptor.get_field(number) {
                let value = match data {
                    Data::String(text) => Value::String(text.clone()),
                    _ => read_value(node, &field.kind(), depth + 1)?,
                };
                set(&mut message, number, value);
            }
            return Ok(message);
        }
        _ => {}
    }
    match &node.data {
        Data::Map(entries) => read_fields(&mut message, entries, depth)?,
        data => return Err(Fault::new(node.at, Problem::wrong(expected_message(descriptor), data.describe()))),
    }
    Ok(message)
}

fn expected_message(descriptor: &MessageDescriptor) -> String {
    match well_known::well_known(descriptor) {
        Some(WellKnown::Timestamp) => "a time such as \"2006-01-02T15:04:05.000Z\"".into(),
        Some(WellKnown::Duration) => "a duration in seconds such as \"1.5s\"".into(),
        Some(WellKnown::FieldMask) => "a field mask such as \"user.name,createdAt\"".into(),
        Some(WellKnown::ListValue) => "a list".into(),
        _ => format!("an object ({})", descriptor.full_name()),
    }
}

fn read_fields(message: &mut DynamicMessage, entries: &[(Key, Node)], depth: usize) -> Result<(), Fault> {
    use prost_reflect::ReflectMessage;
    let descriptor = message.descriptor();
    // A field may be given by either of its names, and not by both.
    let mut seen = std::collections::HashSet::new();
    for (key, node) in entries {
        let step = || Step::Field(key.name.clone());
        let slot = Slot::find(&descriptor, &key.name).map_err(|problem| Fault::new(key.at, problem).within(step()))?;
        if !seen.insert(slot.number()) {
            return Err(Fault::new(key.at, Problem::Twice).within(step()));
        }
        read_field(message, &slot, node, depth).map_err(|fault| fault.within(step()))?;
    }
    Ok(())
}

fn read_field(message: &mut DynamicMessage, slot: &Slot, node: &Node, depth: usize) -> Result<(), Fault> {
    let kind = slot.kind();
    if matches!(node.data, Data::Null) && (slot.is_list() || slot.map().is_some() || !takes_null(&kind)) {
        return Ok(());
    }
    let value = if let Some((key_kind, value_kind)) = slot.map() {
        let Data::Map(entries) = &node.data else {
            return Err(Fault::new(node.at, Problem::wrong("an object (map)", node.data.describe())));
        };
        let mut map = std::collections::HashMap::new();
        for (key, node) in entries {
            let step = || Step::Key(key.name.clone());
            let parsed = scalar::parse_key(&key_kind, &key.name);
            let parsed: MapKey = parsed.map_err(|problem| Fault::new(key.at, problem).within(step()))?;
            let value = read_value(node, &value_kind, depth + 1).map_err(|fault| fault.within(step()))?;
            if map.insert(parsed, value).is_some() {
                return Err(Fault::new(key.at, Problem::Twice).within(step()));
            }
        }
        Value::Map(map)
    } else if slot.is_list() {
        let Data::List(nodes) = &node.data else {
            let expected = format!("a list, each of it {}", scalar::expected(&kind));
            return Err(Fault::new(node.at, Problem::wrong(expected, node.data.describe())));
        };
        let read = |(index, node): (usize, &Node)| {
            read_value(node, &kind, depth + 1).map_err(|fault| fault.within(Step::Index(index)))
        };
        Value::List(nodes.iter().enumerate().map(read).collect::<Result<_, _>>()?)
    } else {
        read_value(node, &kind, depth + 1)?
    };
    slot.set(message, value).map_err(|problem| Fault::new(node.at, problem))
}

fn takes_null(kind: &Kind) -> bool {
    match kind {
        Kind::Message(descriptor) => well_known::well_known(descriptor) == Some(WellKnown::Value),
        Kind::Enum(descriptor) => descriptor.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn read_value(node: &Node, kind: &Kind, depth: usize) -> Result<Value, Fault> {
    let wrong = || Fault::new(node.at, Problem::wrong(scalar::expected(kind), node.data.describe()));
    let parse = |text: &str| match scalar::parse(kind, text) {
        // The text alone would not say whether it was a number or a string.
        Err(Problem::Wrong { .. }) => Err(wrong()),
        other => other.map_err(|problem| Fault::new(node.at, problem)),
    };
    match (kind, &node.data) {
        (Kind::Message(descriptor), _) => read_message(node, descriptor, depth).map(Value::Message),
        (Kind::Bool, Data::Bool(value)) => Ok(Value::Bool(*value)),
        (Kind::Bool, _) => Err(wrong()),
        (Kind::String, Data::String(text)) => Ok(Value::String(text.clone())),
        (Kind::Bytes, Data::String(text)) => parse(text),
        (Kind::String | Kind::Bytes, _) => parse(node.literal.as_deref().ok_or_else(wrong)?),
        (Kind::Enum(_), Data::Null) if takes_null(kind) => Ok(Value::EnumNumber(0)),
        (_, Data::Number(text) | Data::String(text)) => parse(text),
        // An enum may well have a value whose name YAML reads as a boolean.
        (Kind::Enum(_), Data::Bool(_)) => parse(node.literal.as_deref().ok_or_else(wrong)?),
        _ => Err(wrong()),
    }
}

fn read_any(
    node: &Node,
    entries: &[(Key, Node)],
    descriptor: &MessageDescriptor,
    depth: usize,
) -> Result<DynamicMessage, Fault> {
    let mut message = DynamicMessage::new(descriptor.clone());
    let Some((_, url_node)) = entries.iter().find(|(key, _)| key.name == "@type") else {
        if let Some((key, _)) = entries.first() {
            let problem = Problem::wrong("\"@type\" beside the fields of a google.protobuf.Any", "none");
            return Err(Fault::new(key.at, problem));
        }
        return Ok(message);
    };
    let Data::String(url) = &url_node.data else {
        let problem =
            Problem::wrong("a type such as \"type.googleapis.com/package.Message\"", url_node.data.describe());
        return Err(Fault::new(url_node.at, problem).within(Step::Field("@type".into())));
    };
    if !url.is_empty() {
        set(&mut message, 1, Value::String(url.clone()));
    }
    // What `@value` says is what the message is, whether its type is known or not.
    if let Some((_, raw)) = entries.iter().find(|(key, _)| key.name == "@value") {
        let bytes = read_value(raw, &Kind::Bytes, depth).map_err(|fault| fault.within(Step::Field("@value".into())))?;
        set(&mut message, 2, bytes);
        return Ok(message);
    }
    let payload = any::resolve(descriptor, url)
        .map_err(|problem| Fault::new(url_node.at, problem).within(Step::Field("@type".into())))?;
    let fields: Vec<_> = entries.iter().filter(|(key, _)| key.name != "@type").cloned().collect();
    let inner = if any::has_value(&payload) {
        match &fields[..] {
            [(key, value)] if key.name == "value" => {
                read_message(value, &payload, depth + 1).map_err(|fault| fault.within(Step::Field("value".into())))?
            }
            // Some write an Empty as an object without anything.
            [] if well_known::well_known(&payload) == Some(WellKnown::Empty) => DynamicMessage::new(payload),
            _ => {
                let problem = Problem::wrong(format!("\"value\", which holds the {}", payload.full_name()), "others");
                return Err(Fault::new(node.at, problem));
            }
        }
    } else {
        let fields = Node { at: node.at, data: Data::Map(fields), literal: None };
        read_message(&fields, &payload, depth + 1)?
    };
    let bytes = inner.encode_to_vec();
    if !bytes.is_empty() {
        set(&mut message, 2, Value::Bytes(bytes.into()));
    }
    Ok(message)
}
