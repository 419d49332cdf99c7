//! A message with something in every field, to begin a request from.

use prost_reflect::prost::bytes::Bytes;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::slot::Slot;
use super::well_known::{self, WellKnown, set};
use super::{Encoder, FormatError};

/// How many messages a sample has at most. Types that hold others many times over would grow without end.
const MOST: usize = 200;

/// A request in which every field has a typical value, each oneof its first member, and a type that holds itself ends
/// where it begins again.
///
/// # Errors
///
/// [`FormatError::Unwritable`] for types that nest too deep.
pub(crate) fn sample(descriptor: &MessageDescriptor, encoder: &mut Encoder) -> Result<Vec<u8>, FormatError> {
    let mut sampler = Sampler { open: Vec::new(), left: MOST };
    let message = sampler.message(descriptor).unwrap_or_else(|| DynamicMessage::new(descriptor.clone()));
    encoder.encode(&message)
}

struct Sampler {
    /// The types around the one that is being filled.
    open: Vec<String>,
    left: usize,
}

impl Sampler {
    /// `None` where a type would begin again.
    fn message(&mut self, descriptor: &MessageDescriptor) -> Option<DynamicMessage> {
        let mut message = DynamicMessage::new(descriptor.clone());
        match well_known::well_known(descriptor) {
            Some(WellKnown::Timestamp) => return well_known::parse(descriptor, "2006-01-02T15:04:05Z").ok(),
            Some(WellKnown::Duration) => return well_known::parse(descriptor, "1.500s").ok(),
            Some(WellKnown::FieldMask) => return well_known::parse(descriptor, "name,createdAt").ok(),
            Some(WellKnown::Any) => {
                set(&mut message, 1, Value::String(format!("type.googleapis.com/{}", self.in_any(descriptor))));
                return Some(message);
            }
            Some(WellKnown::Value) => {
                set(&mut message, 3, Value::String("value".into()));
                return Some(message);
            }
            Some(WellKnown::Struct) => {
                let Kind::Message(entry) = descriptor.get_field(1)?.kind() else { return None };
                let Kind::Message(value) = entry.map_entry_value_field().kind() else { return None };
                let value = Value::Message(self.message(&value)?);
                set(&mut message, 1, Value::Map([(MapKey::String("key".into()), value)].into()));
                return Some(message);
            }
            _ => {}
        }
        if self.left == 0 || self.open.iter().any(|open| open == descriptor.full_name()) {
            return None;
        }
        self.left -= 1;
        self.open.push(descriptor.full_name().to_owned());
        for field in descriptor.fields() {
            if let Some(value) = self.field(&field) {
                // Another member of the same oneof may have been first.
                let _ = Slot::Field(field).set(&mut message, value);
            }
        }
        self.open.pop();
        Some(message)
    }

    fn field(&mut self, field: &FieldDescriptor) -> Option<Value> {
        if let Some((key, value)) = Slot::Field(field.clone()).map() {
            let key = self.scalar(&key, "key").into_map_key()?;
            let value = self.value(&value, "value")?;
            return Some(Value::Map([(key, value)].into()));
        }
        let value = self.value(&field.kind(), field.name())?;
        Some(if field.is_list() { Value::List(vec![value]) } else { value })
    }

    fn value(&mut self, kind: &Kind, name: &str) -> Option<Value> {
        match kind {
            Kind::Message(descriptor) => self.message(descriptor).map(Value::Message),
            _ => Some(self.scalar(kind, name)),
        }
    }

    fn scalar(&self, kind: &Kind, name: &str) -> Value {
        match kind {
            Kind::Double => Value::F64(1.5),
            Kind::Float => Value::F32(1.5),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(1),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(1),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(1),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(1),
            Kind::Bool => Value::Bool(true),
            Kind::String => Value::String(name.to_owned()),
            Kind::Bytes => Value::Bytes(Bytes::copy_from_slice(name.as_bytes())),
            // The value zero is mostly "unspecified", and would not be written.
            Kind::Enum(descriptor) => {
                let number = descriptor.values().map(|value| value.number()).find(|&number| number != 0);
                Value::EnumNumber(number.unwrap_or(0))
            }
            Kind::Message(_) => Value::String(String::new()),
        }
    }

    /// A type that whoever reads the sample knows too.
    fn in_any(&self, descriptor: &MessageDescriptor) -> String {
        let known = |name: &&str| descriptor.parent_pool().get_message_by_name(name).is_some();
        let simple = ["google.protobuf.Empty"].into_iter().find(known);
        let around = self.open.last().map_or(descriptor.full_name(), String::as_str);
        simple.unwrap_or(around).to_owned()
    }
}
