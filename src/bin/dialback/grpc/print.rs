//! Symbols as `.proto` source, in grpcurl's form: full names, members in the order of their numbers, doc comments if the
//! schema has them.

use std::collections::HashMap;
use std::fmt::Write as _;

use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{
    Cardinality, DynamicMessage, EnumDescriptor, EnumValueDescriptor, ExtensionDescriptor, FieldDescriptor,
    FileDescriptor, Kind, MessageDescriptor, MethodDescriptor, OneofDescriptor, ServiceDescriptor, Syntax,
};

use super::literal::{json_name, quoted, rendered, type_name};
use super::schema::Symbol;

/// The greatest number of a field, written `max` (https://protobuf.dev/reference/protobuf/proto3-spec/#reserved).
const LAST_FIELD: i32 = (1 << 29) - 1;

/// Options get lines of their own when they are more, or longer.
const FEW: usize = 3;
const SHORT: usize = 50;

/// A symbol's full name.
pub(super) fn full_name(symbol: &Symbol) -> String {
    match symbol {
        Symbol::Service(it) => it.full_name(),
        Symbol::Method(it) => it.full_name(),
        Symbol::Message(it) => it.full_name(),
        Symbol::Field(it) => it.full_name(),
        Symbol::Oneof(it) => it.full_name(),
        Symbol::Extension(it) => it.full_name(),
        Symbol::Enum(it) => it.full_name(),
        Symbol::EnumValue(it) => it.full_name(),
    }
    .to_owned()
}

/// A symbol's source, without a line feed after it.
pub(super) fn source(symbol: &Symbol) -> String {
    let write = |file: FileDescriptor, write: &dyn Fn(&mut Printer)| {
        let mut printer = Printer::of(&file);
        write(&mut printer);
        printer.text.trim_end_matches('\n').to_owned()
    };
    match symbol {
        Symbol::Service(it) => write(it.parent_file(), &|p| p.service(it)),
        Symbol::Method(it) => write(it.parent_file(), &|p| p.method(it)),
        Symbol::Message(it) => write(it.parent_file(), &|p| p.message(it)),
        Symbol::Field(it) => write(it.parent_file(), &|p| p.field(&Field::of(it))),
        Symbol::Oneof(it) => write(it.parent_file(), &|p| p.oneof(it)),
        Symbol::Extension(it) => write(it.parent_file(), &|p| p.extend(std::slice::from_ref(it))),
        Symbol::Enum(it) => write(it.parent_file(), &|p| p.enumeration(it)),
        Symbol::EnumValue(it) => write(it.parent_file(), &|p| p.enum_value(it)),
    }
}

/// A method's source.
pub(super) fn method(method: &MethodDescriptor) -> String {
    source(&Symbol::Method(method.clone()))
}

/// What fields and extensions have in common.
struct Field {
    name: String,
    number: u32,
    kind: Kind,
    cardinality: Cardinality,
    is_map: bool,
    is_group: bool,
    in_oneof: bool,
    optional: bool,
    syntax: Syntax,
    json_name: Option<String>,
    default: Option<String>,
    options: DynamicMessage,
    path: Vec<i32>,
}

impl Field {
    fn of(field: &FieldDescriptor) -> Self {
        let proto = field.field_descriptor_proto();
        Self {
            name: field.name().to_owned(),
            number: field.number(),
            kind: field.kind(),
            cardinality: field.cardinality(),
            is_map: field.is_map(),
            is_group: field.is_group(),
            in_oneof: proto.oneof_index.is_some(),
            optional: proto.proto3_optional(),
            syntax: field.parent_file().syntax(),
            json_name: proto.json_name.clone(),
            default: proto.default_value.clone(),
            options: field.options(),
            path: field.path().to_vec(),
        }
    }

    fn of_extension(field: &ExtensionDescriptor) -> Self {
        let proto = field.field_descriptor_proto();
        Self {
            name: proto.name().to_owned(),
            number: field.number(),
            kind: field.kind(),
            cardinality: field.cardinality(),
            is_map: false,
            is_group: field.is_group(),
            in_oneof: false,
            optional: proto.proto3_optional(),
            syntax: field.parent_file().syntax(),
            // The compiler's own makes no sense for an extension, whose name in JSON is its full name in brackets.
            json_name: None,
            default: proto.default_value.clone(),
            options: field.options(),
            path: field.path().to_vec(),
        }
    }

    fn label(&self) -> &'static str {
        let needed = self.optional
            || (!self.is_map
                && !self.in_oneof
                && (self.cardinality != Cardinality::Optional || self.syntax == Syntax::Proto2));
        match (needed, self.cardinality) {
            (false, _) => "",
            (true, Cardinality::Optional) => "optional ",
            (true, Cardinality::Required) => "required ",
            (true, Cardinality::Repeated) => "repeated ",
        }
    }
}

struct Printer {
    text: String,
    depth: usize,
    comments: HashMap<Vec<i32>, String>,
}

impl Printer {
    fn of(file: &FileDescriptor) -> Self {
        let proto: &FileDescriptorProto = file.file_descriptor_proto();
        let places = proto.source_code_info.iter().flat_map(|info| &info.location);
        let comments = places.filter_map(|place| Some((place.path.clone(), place.leading_comments.clone()?)));
        Self { text: String::new(), depth: 0, comments: comments.collect() }
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.text, "{}{text}", "  ".repeat(self.depth)); // a String takes all
    }

    fn comment(&mut self, path: &[i32]) {
        let Some(comment) = self.comments.get(path).cloned() else { return };
        let comment = comment.strip_prefix('\n').unwrap_or(&comment);
        let comment = comment.strip_suffix('\n').unwrap_or(comment);
        for line in comment.split('\n') {
            let gap = if line.is_empty() || line.starts_with(' ') { "" } else { " " };
            self.line(format!("//{gap}{line}").trim_end());
        }
    }

    /// `head {`, what is inside, `}`.
    fn block(&mut self, head: &str, inside: impl FnOnce(&mut Self)) {
        self.line(&format!("{head} {{"));
        self.depth += 1;
        inside(self);
        self.depth -= 1;
        self.line("}");
    }

    fn service(&mut self, service: &ServiceDescriptor) {
        self.comment(service.path());
        self.block(&format!("service {}", service.name()), |p| {
            p.long_options(&service.options());
            let mut methods: Vec<_> = service.methods().collect();
            methods.sort_by(|a, b| a.name().cmp(b.name()));
            methods.iter().for_each(|method| p.method(method));
        });
    }

    fn method(&mut self, method: &MethodDescriptor) {
        self.comment(method.path());
        let stream = |is: bool| if is { "stream " } else { "" };
        let head = format!(
            "rpc {} ( {}.{} ) returns ( {}.{} )",
            method.name(),
            stream(method.is_client_streaming()),
            method.input().full_name(),
            stream(method.is_server_streaming()),
            method.output().full_name()
        );
        let options = method.options();
        if rendered(&options, &[]).is_empty() {
            self.line(&format!("{head};"));
        } else {
            self.block(&head, |p| p.long_options(&options));
        }
    }

    fn message(&mut self, message: &MessageDescriptor) {
        self.comment(message.path());
        self.block(&format!("message {}", message.name()), |p| p.message_body(message));
    }

    fn message_body(&mut self, message: &MessageDescriptor) {
        self.long_options(&message.options());
        let mut fields: Vec<_> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        let mut printed = Vec::new();
        for field in &fields {
            match field.containing_oneof().filter(|oneof| !oneof.is_synthetic()) {
                None => self.field(&Field::of(field)),
                Some(oneof) if printed.contains(&oneof) => {}
                Some(oneof) => {
                    self.oneof(&oneof);
                    printed.push(oneof);
                }
            }
        }
        let shown_by_field = |inner: &MessageDescriptor| {
            inner.is_map_entry()
                || fields.iter().any(|field| field.is_group() && field.kind().as_message() == Some(inner))
        };
        let mut messages: Vec<_> = message.child_messages().filter(|inner| !shown_by_field(inner)).collect();
        messages.sort_by(|a, b| a.name().cmp(b.name()));
        messages.iter().for_each(|message| self.message(message));
        let mut enums: Vec<_> = message.child_enums().collect();
        enums.sort_by(|a, b| a.name().cmp(b.name()));
        enums.iter().for_each(|inner| self.enumeration(inner));

        let proto = message.descriptor_proto();
        let range = |start: Option<i32>, end: Option<i32>| {
            (start.unwrap_or_default(), end.unwrap_or_default().saturating_sub(1))
        };
        let extensions = proto.extension_range.iter().map(|r| range(r.start, r.end)).collect();
        self.ranges("extensions", extensions, LAST_FIELD);
        let mut extensions: Vec<_> = message.child_extensions().collect();
        let key = |e: &ExtensionDescriptor| (e.containing_message().full_name().to_owned(), e.number());
        extensions.sort_by_key(key);
        for group in extensions.chunk_by(|a, b| a.containing_message() == b.containing_message()) {
            self.extend(group);
        }
        self.ranges("reserved", proto.reserved_range.iter().map(|r| range(r.start, r.end)).collect(), LAST_FIELD);
        self.reserved_names(proto.reserved_name.clone());
    }

    fn extend(&mut self, extensions: &[ExtensionDescriptor]) {
        let Some(first) = extensions.first() else { return };
        self.block(&format!("extend .{}", first.containing_message().full_name()), |p| {
            extensions.iter().for_each(|extension| p.field(&Field::of_extension(extension)));
        });
    }

    fn oneof(&mut self, oneof: &OneofDescriptor) {
        self.comment(oneof.path());
        self.block(&format!("oneof {}", oneof.name()), |p| {
            p.long_options(&oneof.options());
            let mut fields: Vec<_> = oneof.fields().collect();
            fields.sort_by_key(FieldDescriptor::number);
            fields.iter().for_each(|field| p.field(&Field::of(field)));
        });
    }

    fn field(&mut self, field: &Field) {
        self.comment(&field.path);
        let mut more = Vec::new();
        if let Some(default) = &field.default {
            let text = match field.kind {
                Kind::String => quoted(default.as_bytes(), true),
                // In the descriptor it is escaped already.
                Kind::Bytes => format!("\"{default}\""),
                _ => default.clone(),
            };
            more.push(("default".to_owned(), text));
        }
        if let Some(name) = field.json_name.as_ref().filter(|name| **name != json_name(&field.name)) {
            more.push(("json_name".to_owned(), quoted(name.as_bytes(), true)));
        }
        let options = self.short_options(rendered(&field.options, &more));
        match field.kind.as_message().filter(|_| field.is_group) {
            Some(group) => {
                let head = format!("{}group {} = {}{options}", field.label(), group.name(), field.number);
                self.block(&head, |p| p.message_body(group));
            }
            None => {
                let kind = type_name(&field.kind, field.is_map);
                self.line(&format!("{}{kind} {} = {}{options};", field.label(), field.name, field.number));
            }
        }
    }

    fn enumeration(&mut self, item: &EnumDescriptor) {
        self.comment(item.path());
        self.block(&format!("enum {}", item.name()), |p| {
            p.long_options(&item.options());
            let mut values: Vec<_> = item.values().collect();
            // An open enum begins with 0, whatever else it has.
            let open = item.parent_file().syntax() != Syntax::Proto2;
            let key =
                |value: &EnumValueDescriptor| (!(open && value.number() == 0), value.number(), value.name().to_owned());
            values.sort_by_key(key);
            values.iter().for_each(|value| p.enum_value(value));
            let proto = item.enum_descriptor_proto();
            let ranges = proto.reserved_range.iter().map(|r| (r.start(), r.end())).collect();
            p.ranges("reserved", ranges, i32::MAX);
            p.reserved_names(proto.reserved_name.clone());
        });
    }

    fn enum_value(&mut self, value: &EnumValueDescriptor) {
        self.comment(value.path());
        let options = self.short_options(rendered(&value.options(), &[]));
        self.line(&format!("{} = {}{options};", value.name(), value.number()));
    }

    fn ranges(&mut self, what: &str, mut ranges: Vec<(i32, i32)>, max: i32) {
        ranges.sort_unstable();
        let text: Vec<_> = ranges
            .into_iter()
            .map(|(start, end)| match end {
                end if end == start => format!("{start}"),
                end if end == max => format!("{start} to max"),
                end => format!("{start} to {end}"),
            })
            .collect();
        if !text.is_empty() {
            self.line(&format!("{what} {};", text.join(", ")));
        }
    }

    fn reserved_names(&mut self, mut names: Vec<String>) {
        names.sort();
        let names: Vec<_> = names.iter().map(|name| quoted(name.as_bytes(), true)).collect();
        if !names.is_empty() {
            self.line(&format!("reserved {};", names.join(", ")));
        }
    }

    fn long_options(&mut self, options: &DynamicMessage) {
        for (name, value) in rendered(options, &[]) {
            self.line(&format!("option {name} = {value};"));
        }
    }

    /// ` [a = 1, b = 2]`, or each in a line of its own.
    fn short_options(&self, options: Vec<(String, String)>) -> String {
        if options.is_empty() {
            return String::new();
        }
        let parts: Vec<_> = options.into_iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let line = parts.join(", ");
        if parts.len() <= FEW && line.len() <= SHORT {
            return format!(" [{line}]");
        }
        let margin = "  ".repeat(self.depth);
        format!(" [\n{margin}  {}\n{margin}]", parts.join(&format!(",\n{margin}  ")))
    }
}
