//! Whether a schema can be used. It may come from a server, and prost-reflect takes for granted what protoc sees to.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};

/// What is wrong with a file.
pub(super) fn sound(file: &FileDescriptorProto) -> Result<(), String> {
    let scope = if file.package().is_empty() { String::new() } else { format!(".{}", file.package()) };
    file.message_type.iter().try_for_each(|message| message_is_sound(message, &scope))
}

/// Messages nest no deeper than a decoder takes them.
fn message_is_sound(message: &DescriptorProto, scope: &str) -> Result<(), String> {
    let name = format!("{scope}.{}", message.name());
    if is_map_entry(message) && !is_entry(message) {
        return Err(format!("{} is no entry of a map", &name[1..]));
    }
    if name == ".google.protobuf.Struct" && !is_struct(message) {
        return Err(format!("{} is another than Protobuf's own", &name[1..]));
    }
    for field in message.field.iter().filter(|field| field.r#type() == Type::Group) {
        // The message of a group is declared with it, so that none has itself inside.
        let inside = |group: &DescriptorProto| field.type_name() == format!("{name}.{}", group.name());
        if !message.nested_type.iter().any(inside) {
            return Err(format!("the group {}.{} is declared elsewhere", &name[1..], field.name()));
        }
    }
    message.nested_type.iter().try_for_each(|inner| message_is_sound(inner, &name))
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

fn numbered(message: &DescriptorProto, number: i32) -> Option<&FieldDescriptorProto> {
    message.field.iter().find(|field| field.number() == number)
}

fn is_entry(message: &DescriptorProto) -> bool {
    let is_key = |field: &FieldDescriptorProto| {
        let others = [Type::Message, Type::Group, Type::Enum, Type::Bytes, Type::Float, Type::Double];
        // Without a type it is what its name says: a message or an enum.
        field.label() != Label::Repeated && field.r#type.is_some() && !others.contains(&field.r#type())
    };
    message.field.len() == 2
        && numbered(message, 1).is_some_and(is_key)
        && numbered(message, 2).is_some_and(|field| field.label() != Label::Repeated)
}

fn is_struct(message: &DescriptorProto) -> bool {
    let is_map = |field: &FieldDescriptorProto| {
        field.label() == Label::Repeated && field.type_name() == ".google.protobuf.Struct.FieldsEntry"
    };
    let is_its_entry = |inner: &DescriptorProto| inner.name() == "FieldsEntry" && is_map_entry(inner);
    numbered(message, 1).is_some_and(is_map) && message.nested_type.iter().any(is_its_entry)
}

#[cfg(test)]
mod tests {
    use prost_types::MessageOptions;

    use super::*;

    fn field(name: &str, number: i32, kind: Type, of: Option<&str>) -> FieldDescriptorProto {
        FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            label: Some(Label::Optional as i32),
            r#type: Some(kind as i32),
            type_name: of.map(Into::into),
            ..FieldDescriptorProto::default()
        }
    }

    fn message(name: &str, fields: Vec<FieldDescriptorProto>) -> DescriptorProto {
        DescriptorProto { name: Some(name.into()), field: fields, ..DescriptorProto::default() }
    }

    fn file(package: &str, messages: Vec<DescriptorProto>) -> FileDescriptorProto {
        let (name, package) = (Some("a.proto".into()), Some(package.into()));
        FileDescriptorProto { name, package, message_type: messages, ..FileDescriptorProto::default() }
    }

    #[test]
    fn schemas_that_nobody_can_walk_through_are_refused() {
        let entry = |fields| {
            let mut map = field("map", 1, Type::Message, Some(".a.A.MapEntry"));
            map.label = Some(Label::Repeated as i32);
            let mut outer = message("A", vec![map]);
            let mut inner = message("MapEntry", fields);
            inner.options = Some(MessageOptions { map_entry: Some(true), ..MessageOptions::default() });
            outer.nested_type.push(inner);
            file("a", vec![outer])
        };
        let (key, value) = (field("key", 1, Type::String, None), field("value", 2, Type::String, None));
        assert_eq!(sound(&entry(vec![key.clone(), value.clone()])), Ok(()));
        for fields in
            [vec![], vec![key], vec![value.clone()], vec![field("key", 1, Type::Message, Some(".a.A")), value]]
        {
            assert!(sound(&entry(fields)).unwrap_err().contains("no entry of a map"));
        }
        let group = file("a", vec![message("A", vec![field("a", 1, Type::Group, Some(".a.A"))])]);
        assert!(sound(&group).unwrap_err().contains("a.A.a"));
        let forged = vec![field("fields", 1, Type::Message, Some(".google.protobuf.Struct"))];
        assert!(sound(&file("google.protobuf", vec![message("Struct", forged)])).is_err());
    }

    #[test]
    fn schemas_of_protoc_are_taken() {
        let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
        for name in ["kinds.proto", "kinds_legacy.proto"] {
            let set = protox::compile([name], [protos]).unwrap();
            for file in &set.file {
                assert_eq!(sound(file), Ok(()), "{name}");
            }
        }
    }
}
