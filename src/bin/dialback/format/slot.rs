//! A field or an extension of a message, by any of its names.

use prost_reflect::{
    DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};

use super::error::{Problem, nearest};

// No `Debug`: that of a descriptor does not end if the type holds itself.
#[derive(Clone, PartialEq)]
pub(super) enum Slot {
    Field(FieldDescriptor),
    Extension(ExtensionDescriptor),
}

impl Slot {
    /// By the name in the `.proto` file, the name in JSON, or `[package.extension]`.
    pub(super) fn find(descriptor: &MessageDescriptor, name: &str) -> Result<Self, Problem> {
        if let Some(full) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if let Some(extension) = descriptor.get_extension_by_full_name(full) {
                return Ok(Self::Extension(extension));
            }
            // As grpcurl prints them: `[package.jsonName]`.
            if let Some(extension) = descriptor.get_extension_by_json_name(name) {
                return Ok(Self::Extension(extension));
            }
        }
        let field = descriptor.get_field_by_json_name(name).or_else(|| descriptor.get_field_by_name(name));
        field.map(Self::Field).ok_or_else(|| {
            let fields: Vec<_> = descriptor.fields().collect();
            let extensions: Vec<_> = descriptor.extensions().map(|it| format!("[{}]", it.full_name())).collect();
            let names = fields.iter().map(FieldDescriptor::json_name).chain(extensions.iter().map(String::as_str));
            Problem::UnknownField { message: descriptor.full_name().to_owned(), nearest: nearest(name, names) }
        })
    }

    /// All fields that are set, by number, and after them the extensions.
    pub(super) fn of(message: &DynamicMessage, with_defaults: bool) -> Vec<(Self, Option<&Value>)> {
        let mut set: Vec<_> = message.fields().map(|(field, value)| (Self::Field(field), Some(value))).collect();
        if with_defaults {
            let fields: Vec<_> = message.descriptor().fields().collect();
            let absent = fields.into_iter().filter(|field| !message.has_field(field));
            // A member of a oneof that is not set has no default: nothing was chosen.
            let absent = absent.filter(|field| field.containing_oneof().is_none());
            set.extend(absent.map(|field| (Self::Field(field), None)));
        }
        set.sort_by_key(|(slot, _)| slot.number());
        set.extend(message.extensions().map(|(extension, value)| (Self::Extension(extension), Some(value))));
        set
    }

    pub(super) fn number(&self) -> u32 {
        match self {
            Self::Field(field) => field.number(),
            Self::Extension(extension) => extension.number(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Field(field) => field.kind(),
            Self::Extension(extension) => extension.kind(),
        }
    }

    pub(super) fn is_list(&self) -> bool {
        match self {
            Self::Field(field) => field.is_list(),
            Self::Extension(extension) => extension.is_list(),
        }
    }

    /// The kinds of key and value, if it is a map.
    pub(super) fn map(&self) -> Option<(Kind, Kind)> {
        match (self, self.kind()) {
            (Self::Field(field), Kind::Message(entry)) if field.is_map() => {
                Some((entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind()))
            }
            _ => None,
        }
    }

    pub(super) fn is_group(&self) -> bool {
        match self {
            Self::Field(field) => field.is_group(),
            Self::Extension(extension) => extension.is_group(),
        }
    }

    pub(super) fn json_name(&self) -> String {
        match self {
            Self::Field(field) => field.json_name().to_owned(),
            Self::Extension(extension) => format!("[{}]", extension.full_name()),
        }
    }

    /// The name in the `.proto` file.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Field(field) => field.name().to_owned(),
            Self::Extension(extension) => format!("[{}]", extension.full_name()),
        }
    }

    pub(super) fn default(&self) -> Value {
        match self {
            Self::Field(field) => Value::default_value_for_field(field),
            Self::Extension(extension) => Value::default_value_for_extension(extension),
        }
    }

    pub(super) fn is_set(&self, message: &DynamicMessage) -> bool {
        match self {
            Self::Field(field) => message.has_field(field),
            Self::Extension(extension) => message.has_extension(extension),
        }
    }

    pub(super) fn get_mut<'a>(&self, message: &'a mut DynamicMessage) -> &'a mut Value {
        match self {
            Self::Field(field) => message.get_field_mut(field),
            Self::Extension(extension) => message.get_extension_mut(extension),
        }
    }

    /// Sets it, if no other member of the same oneof is.
    pub(super) fn set(&self, message: &mut DynamicMessage, value: Value) -> Result<(), Problem> {
        self.alone(message)?;
        match self {
            Self::Field(field) => {
                // An absent field and one with the default cannot be told apart without presence: the same in memory.
                if !field.supports_presence() && value.is_default_for_field(field) {
                    message.clear_field(field);
                } else if message.try_set_field(field, value).is_err() {
                    return Err(Problem::wrong(super::scalar::expected(&field.kind()), "another type"));
                }
            }
            Self::Extension(extension) => message.set_extension(extension, value),
        }
        Ok(())
    }

    /// Whether no other member of the same oneof is set.
    fn alone(&self, message: &DynamicMessage) -> Result<(), Problem> {
        let Self::Field(field) = self else { return Ok(()) };
        let Some(oneof) = field.containing_oneof() else { return Ok(()) };
        match oneof.fields().find(|other| other != field && message.has_field(other)) {
            None => Ok(()),
            Some(other) => Err(Problem::Oneof { oneof: oneof.name().to_owned(), other: other.json_name().to_owned() }),
        }
    }
}
