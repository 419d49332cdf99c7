//! Whether a schema can be used. It may come from a server, and prost-reflect takes for granted what protoc sees to.

use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

/// What is wrong with a pool that was just made, or has just grown.
pub(super) fn sound(pool: &DescriptorPool) -> Result<(), String> {
    for message in pool.all_messages() {
        let name = message.full_name();
        if message.is_map_entry() && !is_entry(&message) {
            return Err(format!("{name} is no entry of a map"));
        }
        if name == "google.protobuf.Struct" && !message.get_field(1).is_some_and(|field| field.is_map()) {
            return Err(format!("{name} is another than Protobuf's own"));
        }
        // The message of a group is declared with it, so that none has itself inside.
        let elsewhere = |field: &FieldDescriptor| match field.kind() {
            Kind::Message(group) => field.is_group() && group.parent_message().as_ref() != Some(&message),
            _ => false,
        };
        if let Some(field) = message.fields().find(elsewhere) {
            return Err(format!("the group {} is declared elsewhere", field.full_name()));
        }
    }
    Ok(())
}

fn is_entry(message: &MessageDescriptor) -> bool {
    let is_key = |field: FieldDescriptor| {
        !field.is_list()
            && !matches!(field.kind(), Kind::Message(_) | Kind::Enum(_) | Kind::Bytes | Kind::Float | Kind::Double)
    };
    message.fields().len() == 2
        && message.get_field(1).is_some_and(is_key)
        && message.get_field(2).is_some_and(|field| !field.is_list() && !field.is_map())
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::field_descriptor_proto::{Label, Type};
    use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MessageOptions};

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

    fn pool(package: &str, messages: Vec<DescriptorProto>) -> DescriptorPool {
        let (name, package) = (Some("a.proto".into()), Some(package.into()));
        let file = FileDescriptorProto { name, package, message_type: messages, ..FileDescriptorProto::default() };
        let set = FileDescriptorSet { file: vec![file] };
        DescriptorPool::decode(set.encode_to_vec().as_slice()).unwrap()
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
            pool("a", vec![outer])
        };
        let (key, value) = (field("key", 1, Type::String, None), field("value", 2, Type::String, None));
        assert_eq!(sound(&entry(vec![key.clone(), value.clone()])), Ok(()));
        for fields in
            [vec![], vec![key], vec![value.clone()], vec![field("key", 1, Type::Message, Some(".a.A")), value]]
        {
            assert!(sound(&entry(fields)).unwrap_err().contains("no entry of a map"));
        }
        let group = pool("a", vec![message("A", vec![field("a", 1, Type::Group, Some(".a.A"))])]);
        assert!(sound(&group).unwrap_err().contains("a.A.a"));
        let forged = vec![field("fields", 1, Type::Message, Some(".google.protobuf.Struct"))];
        assert!(sound(&pool("google.protobuf", vec![message("Struct", forged)])).is_err());
    }

    #[test]
    fn schemas_of_protoc_are_taken() {
        let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
        for name in ["kinds.proto", "kinds_legacy.proto"] {
            let set = protox::compile([name], [protos]).unwrap();
            assert_eq!(sound(&DescriptorPool::decode(set.encode_to_vec().as_slice()).unwrap()), Ok(()), "{name}");
        }
    }
}
