//! Fields from the command line: `--set user.name=ann`.
//!
//! | assignment | does |
//! |---|---|
//! | `user.name=ann` | sets a field, in a message that is made if it is not there |
//! | `tags=x`, `tags[]=x` | appends to a repeated field |
//! | `items[0].name=pen` | in the value with this index, which may be the next one |
//! | `items[].name=pen` | in a new value |
//! | `stock[pen]=3`, `stock[pen].count=3` | the entry of a map |
//!
//! Fields go by either of their names. The value of a string is taken as it is; of numbers, booleans, enums it is what
//! JSON has, without quotes; of bytes base64, or `@FILE` for the content of a file. A message is JSON, where
//! Timestamp, Duration, FieldMask and wrappers need no quotes: `at=2006-01-02T15:04:05Z`. A `google.protobuf.Value` is
//! JSON too, or else a string.

use prost_reflect::{DynamicMessage, Kind, MapKey, ReflectMessage, Value};

use super::error::{FormatError, Place, Problem};
use super::slot::Slot;
use super::tree::Node;
use super::well_known::{self, WellKnown};
use super::{MAX_MESSAGE, json, read, scalar};
use crate::file;

/// Sets what one `--set` says.
///
/// # Errors
///
/// An assignment without `=` or with a path that leads nowhere, and a value that does not fit.
pub(crate) fn set(message: &mut DynamicMessage, assignment: &str) -> Result<(), FormatError> {
    let malformed = |what: &str| FormatError::Assignment { assignment: assignment.to_owned(), what: what.to_owned() };
    let (path, value) = split(assignment).ok_or_else(|| malformed("expected FIELD=VALUE"))?;
    let steps = parse_path(path).map_err(&malformed)?;
    assign(message, &steps, value).map_err(|problem| FormatError::Content {
        place: None,
        path: path.to_owned(),
        problem,
    })
}

/// At the first `=` that is not in brackets, as a key may have one.
fn split(assignment: &str) -> Option<(&str, &str)> {
    let mut inside = false;
    let at = assignment.find(|c| {
        inside = match c {
            '[' => true,
            ']' => false,
            _ => inside,
        };
        c == '=' && !inside
    })?;
    Some((&assignment[..at], &assignment[at + 1..]))
}

struct Step<'a> {
    field: &'a str,
    /// What is in the brackets, if there are any.
    index: Option<&'a str>,
}

fn parse_path(path: &str) -> Result<Vec<Step<'_>>, &'static str> {
    let mut steps = Vec::new();
    let mut rest = path;
    loop {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        if field.is_empty() {
            return Err("expected the name of a field");
        }
        let (index, after) = match after.strip_prefix('[') {
            None => (None, after),
            Some(inner) => {
                let (index, after) = inner.split_once(']').ok_or("expected ']'")?;
                (Some(index), after)
            }
        };
        steps.push(Step { field, index });
        match after.strip_prefix('.') {
            Some(more) => rest = more,
            None if after.is_empty() => return Ok(steps),
            None => return Err("expected '.' or the end after ']'"),
        }
    }
}

fn assign(message: &mut DynamicMessage, steps: &[Step<'_>], text: &str) -> Result<(), Problem> {
    let Some((step, deeper)) = steps.split_first() else { return Ok(()) };
    let slot = Slot::find(&message.descriptor(), step.field)?;
    let kind = slot.kind();
    if let Some((key_kind, value_kind)) = slot.map() {
        let Some(key) = step.index else {
            return Err(Problem::wrong("the key of a map in brackets", "none"));
        };
        let key: MapKey = scalar::parse_key(&key_kind, key)?;
        let Value::Map(map) = slot.get_mut(message) else { return Ok(()) };
        let before = map.get(&key).cloned();
        map.insert(key, next(before, &value_kind, deeper, text)?);
        return Ok(());
    }
    if slot.is_list() {
        let Value::List(values) = slot.get_mut(message) else { return Ok(()) };
        let index = match step.index {
            None | Some("") => values.len(),
            Some(index) => index.parse().map_err(|_| Problem::wrong("an index", format!("{index:?}")))?,
        };
        if index > values.len() {
            return Err(Problem::wrong(format!("an index from 0 to {}", values.len()), index.to_string()));
        }
        let value = next(values.get(index).cloned(), &kind, deeper, text)?;
        match values.get_mut(index) {
            Some(before) => *before = value,
            None => values.push(value),
        }
        return Ok(());
    }
    if step.index.is_some() {
        return Err(Problem::wrong("a field that is repeated or a map before the brackets", scalar::expected(&kind)));
    }
    // The last one that is set stays, of one field as of a oneof.
    let before = slot.is_set(message).then(|| slot.get_mut(message).clone());
    let value = next(before, &kind, deeper, text)?;
    *slot.get_mut(message) = value;
    Ok(())
}

/// The value, or the message that is there already with something set inside.
fn next(before: Option<Value>, kind: &Kind, deeper: &[Step<'_>], text: &str) -> Result<Value, Problem> {
    if deeper.is_empty() {
        return parse(kind, text);
    }
    let Kind::Message(descriptor) = kind else {
        return Err(Problem::wrong("a message before the dot", scalar::expected(kind)));
    };
    let mut message = match before {
        Some(Value::Message(message)) => message,
        _ => DynamicMessage::new(descriptor.clone()),
    };
    assign(&mut message, deeper, text)?;
    Ok(Value::Message(message))
}

fn parse(kind: &Kind, text: &str) -> Result<Value, Problem> {
    let descriptor = match kind {
        Kind::Message(descriptor) => descriptor,
        Kind::Bytes => {
            return match text.strip_prefix('@') {
                None => scalar::parse(kind, text),
                Some(path) => file::up_to(path.as_ref(), MAX_MESSAGE as u64)
                    .map(|bytes| Value::Bytes(bytes.into()))
                    .map_err(|error| Problem::wrong("a file that can be read", format!("{path}: {error}"))),
            };
        }
        _ => return scalar::parse(kind, text),
    };
    let known = well_known::well_known(descriptor);
    let from_json = json::parse(text, Place::START);
    let node = match (known, from_json) {
        // The content of these is text, and `"` around it is no mistake.
        (Some(WellKnown::Timestamp | WellKnown::Duration | WellKnown::FieldMask | WellKnown::Value), Err(_)) => {
            Node::string(text)
        }
        (Some(WellKnown::Wrapper), _) => {
            let mut message = DynamicMessage::new(descriptor.clone());
            if let Some(field) = descriptor.get_field(1) {
                let value = scalar::parse(&field.kind(), text)?;
                Slot::Field(field).set(&mut message, value)?;
            }
            return Ok(Value::Message(message));
        }
        (_, Ok(node)) => node,
        (_, Err(error)) => {
            let example = "as JSON such as {\"name\": \"ann\"}";
            return Err(Problem::wrong(format!("{} {example}", scalar::expected(kind)), error.to_string()));
        }
    };
    read::value(&node, kind).map_err(|fault| match fault.path() {
        path if path.is_empty() => fault.problem,
        path => Problem::Inside { path, problem: Box::new(fault.problem) },
    })
}
