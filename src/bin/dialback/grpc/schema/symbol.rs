//! Things that have a full name, and how they are found.

use prost_reflect::{
    DescriptorPool, EnumDescriptor, EnumValueDescriptor, ExtensionDescriptor, FieldDescriptor, FileDescriptor,
    MessageDescriptor, MethodDescriptor, OneofDescriptor, ServiceDescriptor,
};

/// A thing that has a full name.
#[derive(Clone)]
pub(in crate::grpc) enum Symbol {
    Service(ServiceDescriptor),
    Method(MethodDescriptor),
    Message(MessageDescriptor),
    Field(FieldDescriptor),
    Oneof(OneofDescriptor),
    Extension(ExtensionDescriptor),
    Enum(EnumDescriptor),
    EnumValue(EnumValueDescriptor),
}

impl Symbol {
    pub(super) fn file(&self) -> FileDescriptor {
        match self {
            Self::Service(it) => it.parent_file(),
            Self::Method(it) => it.parent_file(),
            Self::Message(it) => it.parent_file(),
            Self::Field(it) => it.parent_file(),
            Self::Oneof(it) => it.parent_file(),
            Self::Extension(it) => it.parent_file(),
            Self::Enum(it) => it.parent_file(),
            Self::EnumValue(it) => it.parent_file(),
        }
    }
}

pub(super) fn lookup(pool: &DescriptorPool, name: &str) -> Option<Symbol> {
    let whole = pool.get_service_by_name(name).map(Symbol::Service);
    let whole = whole.or_else(|| pool.get_message_by_name(name).map(Symbol::Message));
    let whole = whole.or_else(|| pool.get_enum_by_name(name).map(Symbol::Enum));
    let whole = whole.or_else(|| pool.get_extension_by_name(name).map(Symbol::Extension));
    if whole.is_some() {
        return whole;
    }
    let (parent, last) = name.rsplit_once('.').unwrap_or(("", name));
    if let Some(service) = pool.get_service_by_name(parent) {
        return service.methods().find(|method| method.name() == last).map(Symbol::Method);
    }
    if let Some(message) = pool.get_message_by_name(parent) {
        if let Some(field) = message.get_field_by_name(last) {
            return Some(Symbol::Field(field));
        }
        if let Some(oneof) = message.oneofs().find(|oneof| oneof.name() == last) {
            return Some(Symbol::Oneof(oneof));
        }
    }
    // A value is a sibling of its enum (https://protobuf.dev/programming-guides/proto3/#enum), and both ways are written.
    let mut enums = pool.all_enums().filter(|e| {
        let sibling = e.full_name().rsplit_once('.').map_or("", |(scope, _)| scope);
        sibling == parent || e.full_name() == parent
    });
    enums.find_map(|e| e.get_value_by_name(last)).map(Symbol::EnumValue)
}
