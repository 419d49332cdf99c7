//! What a command knows of services and messages, and where it learns more.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, EnumValueDescriptor, ExtensionDescriptor, FieldDescriptor,
    FileDescriptor, MessageDescriptor, MethodDescriptor, OneofDescriptor, ReflectMessage as _, ServiceDescriptor,
    Value,
};
use tonic::Status;

use super::args::SchemaArgs;
use super::reflection::{Reflection, Unanswered};
use super::sound::sound;
use crate::failure::Failure;

/// What one server may make a client load: far more than any schema has.
const MOST_FILES: usize = 10_000;
const MOST_BYTES: usize = 64 << 20;

/// A thing that has a full name.
#[derive(Clone)]
pub(super) enum Symbol {
    Service(ServiceDescriptor),
    Method(MethodDescriptor),
    Message(MessageDescriptor),
    Field(FieldDescriptor),
    Oneof(OneofDescriptor),
    Extension(ExtensionDescriptor),
    Enum(EnumDescriptor),
    EnumValue(EnumValueDescriptor),
}

/// Why something is not known.
#[derive(Debug)]
pub(super) enum Unknown {
    NotFound,
    NoReflection,
    Failed(Status),
    /// The schema contradicts itself.
    Invalid(String),
}

impl From<Unanswered> for Unknown {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::NoReflection => Self::NoReflection,
            Unanswered::NotFound => Self::NotFound,
            Unanswered::Failed(status) => Self::Failed(status),
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => write!(f, "it is not known"),
            Self::NoReflection => {
                write!(f, "the server has no reflection: pass its schema with -proto FILE or -protoset FILE")
            }
            Self::Failed(status) => {
                write!(f, "reflection failed: {}: {}", super::status::code_name(status.code()), status.message())
            }
            Self::Invalid(why) => write!(f, "the schema cannot be used: {why}"),
        }
    }
}

/// What is known so far, and where more can be learned.
pub(super) struct Schema {
    pool: DescriptorPool,
    server: Option<Reflection>,
    files: Option<DescriptorPool>,
    /// Types that nobody knows.
    hopeless: HashSet<String>,
}

impl Schema {
    /// Without an address there is no `reflection`.
    pub(super) fn open(args: &SchemaArgs, reflection: Option<Reflection>) -> Result<Self, Failure> {
        let files = if !args.protoset.is_empty() {
            Some(from_sets(args)?)
        } else if !args.proto.is_empty() {
            Some(from_sources(args)?)
        } else {
            None
        };
        // Files that are asked second stay apart until they are needed: the server may have others of the same names.
        let pool = if reflection.is_none() { files.clone().unwrap_or_default() } else { DescriptorPool::new() };
        Ok(Self { pool, server: reflection, files, hopeless: HashSet::new() })
    }

    /// The full names of all services, in alphabetical order.
    pub(super) async fn services(&mut self) -> Result<Vec<String>, Unknown> {
        match &mut self.server {
            Some(server) => Ok(server.services().await?),
            None => {
                let mut names: Vec<_> = self.pool.services().map(|service| service.full_name().to_owned()).collect();
                names.sort();
                Ok(names)
            }
        }
    }

    /// Looks a symbol up by its full name.
    pub(super) async fn find(&mut self, name: &str) -> Result<Symbol, Unknown> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some(symbol) = lookup(&self.pool, name) {
            return Ok(symbol);
        }
        self.learn(name).await?;
        lookup(&self.pool, name).ok_or(Unknown::NotFound)
    }

    /// Learns of extensions of these messages, and of the messages in them, if there can be any.
    pub(super) async fn learn_extensions(&mut self, messages: [&MessageDescriptor; 2]) {
        let mut extended = HashSet::new();
        for message in messages {
            visit(message, &mut |message| {
                if message.extension_ranges().len() > 0 {
                    extended.insert(message.full_name().to_owned());
                }
            });
        }
        for message in extended {
            let Some(server) = &mut self.server else { return };
            // A server that cannot tell has told of none.
            for number in server.extensions(&message).await.unwrap_or_default() {
                let Some(server) = &mut self.server else { return };
                if let Ok(files) = server.file_of_extension(&message, number).await {
                    let _ = self.add(files).await; // the extension stays an unknown field
                }
            }
        }
    }

    /// Learns of all that the server's services use, and of the types that a text names, for an `Any` in a request.
    pub(super) async fn learn_for_any(&mut self, text: &[u8]) {
        if let Ok(services) = self.services().await {
            for service in services {
                let _ = self.find(&service).await; // one that is not described has no types to tell of
            }
        }
        let text = String::from_utf8_lossy(text);
        for part in text.split('/').skip(1) {
            let end = part.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.')).unwrap_or(part.len());
            if part[..end].contains('.') {
                self.knows_type(&part[..end]).await;
            }
        }
    }

    /// Whether a message is known, having asked for it.
    pub(super) async fn knows_type(&mut self, name: &str) -> bool {
        if self.pool.get_message_by_name(name).is_some() {
            return true;
        }
        if self.hopeless.contains(name) {
            return false;
        }
        let known = self.learn(name).await.is_ok() || self.adopt(&common_types(), name).is_ok();
        let known = known && self.pool.get_message_by_name(name).is_some();
        if !known {
            self.hopeless.insert(name.to_owned());
        }
        known
    }

    /// A message by its full name, as it is known now.
    pub(super) fn message(&self, name: &str) -> Option<MessageDescriptor> {
        self.pool.get_message_by_name(name)
    }

    /// Decodes a message, having learned of the types that are in its `Any`s.
    pub(super) async fn decode(&mut self, name: &str, bytes: Bytes) -> Result<DynamicMessage, Unknown> {
        loop {
            let descriptor = self.message(name).ok_or(Unknown::NotFound)?;
            let has_any = may_hold_any(&descriptor);
            let message = DynamicMessage::decode(descriptor, bytes.clone())
                .map_err(|error| Unknown::Failed(Status::internal(format!("a message cannot be read: {error}"))))?;
            let mut missing = HashSet::new();
            if has_any {
                unknown_types(&message, &mut missing);
            }
            let mut learned = false;
            for name in missing {
                learned |= self.knows_type(&name).await;
            }
            // What was learned may be a message with another `Any` in it.
            if !learned {
                return Ok(message);
            }
        }
    }

    /// Full names like this one.
    pub(super) async fn nearest(&mut self, name: &str) -> Vec<String> {
        let mut names = self.services().await.unwrap_or_default();
        for pool in [Some(&self.pool), self.files.as_ref()].into_iter().flatten() {
            names.extend(pool.services().map(|service| service.full_name().to_owned()));
            names.extend(
                pool.all_messages().filter(|m| !m.is_map_entry()).map(|message| message.full_name().to_owned()),
            );
            names.extend(pool.all_enums().map(|e| e.full_name().to_owned()));
        }
        nearest(name, names)
    }

    /// Learns of a symbol: from the server, or from files.
    async fn learn(&mut self, name: &str) -> Result<(), Unknown> {
        let asked = match &mut self.server {
            Some(server) => server.file_of_symbol(name).await.map_err(Unknown::from),
            None => Err(Unknown::NotFound),
        };
        let learned = match asked {
            Ok(files) => self.add(files).await,
            Err(why) => Err(why),
        };
        match (learned, self.files.clone()) {
            (Err(why), Some(files)) => self.adopt(&files, name).map_err(|_| why),
            (learned, _) => learned,
        }
    }

    /// Takes the file of a symbol over from another pool, with those that it needs.
    fn adopt(&mut self, from: &DescriptorPool, name: &str) -> Result<(), Unknown> {
        let file = lookup(from, name).map(|symbol| symbol.file()).ok_or(Unknown::NotFound)?;
        let mut files = BTreeMap::new();
        with_dependencies(&file, &mut files);
        self.extend(files)
    }

    /// Adds files from the server, with those that they need and that it did not send.
    async fn add(&mut self, files: Vec<Bytes>) -> Result<(), Unknown> {
        let mut gathered = BTreeMap::new();
        let mut new = files;
        let mut absent = HashSet::new();
        let mut size = 0;
        while let Some(file) = new.pop() {
            size += file.len();
            if size > MOST_BYTES || gathered.len() >= MOST_FILES {
                return Err(Unknown::Invalid("the server describes more than this client takes".into()));
            }
            let head = prost_types::FileDescriptorProto::decode(file.clone())
                .map_err(|error| Unknown::Invalid(error.to_string()))?;
            gathered.insert(head.name().to_owned(), file);
            for name in &head.dependency {
                let known = gathered.contains_key(name) || self.pool.get_file_by_name(name).is_some();
                if known || absent.contains(name) || new.iter().any(|file| is_named(file, name)) {
                    continue;
                }
                let asked = match &mut self.server {
                    Some(server) => server.file(name).await,
                    None => Err(Unanswered::NotFound),
                };
                match asked {
                    Ok(files) => new.extend(files),
                    // Some servers leave out what everybody has, and some what only an unused import is for.
                    Err(_) => {
                        match common_types().get_file_by_name(name) {
                            Some(file) => with_dependencies(&file, &mut gathered),
                            None => drop(absent.insert(name.clone())),
                        };
                    }
                }
            }
        }
        if !absent.is_empty() {
            for file in gathered.values_mut() {
                *file = without_imports(file.clone(), &absent)?;
            }
        }
        self.extend(gathered)
    }

    /// Adds encoded files; those that are there already stay as they are.
    fn extend(&mut self, files: BTreeMap<String, Bytes>) -> Result<(), Unknown> {
        let mut set = Vec::new();
        for file in files.into_values() {
            // A FileDescriptorSet, whose only field has the number 1. Custom options would be lost on another way.
            prost::encoding::bytes::encode(1, &file, &mut set);
        }
        // One that fails may leave its pool in disorder.
        let mut pool = self.pool.clone();
        pool.decode_file_descriptor_set(set.as_slice()).map_err(|error| Unknown::Invalid(error.to_string()))?;
        sound(&pool).map_err(Unknown::Invalid)?;
        self.pool = pool;
        Ok(())
    }
}

impl Symbol {
    fn file(&self) -> FileDescriptor {
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

/// The types that everybody knows: Google's well-known ones, and those of error details.
pub(super) fn common_types() -> DescriptorPool {
    let mut pool = DescriptorPool::global();
    // It is part of this program, and a test decodes it.
    let _ = pool.decode_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
    pool
}

fn lookup(pool: &DescriptorPool, name: &str) -> Option<Symbol> {
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

fn from_sets(args: &SchemaArgs) -> Result<DescriptorPool, Failure> {
    let mut all = Vec::new();
    for path in &args.protoset {
        let set = std::fs::read(path)
            .map_err(|error| Failure::because(format!("{} cannot be read", path.display()), &error))?;
        prost_types::FileDescriptorSet::decode(set.as_slice())
            .map_err(|error| Failure::because(format!("{} is no FileDescriptorSet", path.display()), &error))?;
        // Two sets one after the other are one: https://protobuf.dev/programming-guides/encoding/#last-one-wins
        all.extend(set);
    }
    let pool = DescriptorPool::decode(all.as_slice()).map_err(|error| {
        Failure::because("the descriptors cannot be used (protoc --include_imports writes all)", &error)
    })?;
    sound(&pool).map_err(|why| Failure::new(format!("the descriptors cannot be used: {why}")))?;
    Ok(pool)
}

fn from_sources(args: &SchemaArgs) -> Result<DescriptorPool, Failure> {
    let mut places = args.import_path.clone();
    if places.is_empty() {
        places.push(".".into());
        // A file is also found by its path alone, and beside it what it imports.
        let beside = args.proto.iter().filter_map(|file| file.parent());
        places.extend(beside.filter(|dir| !dir.as_os_str().is_empty()).map(ToOwned::to_owned));
    }
    // protox explains with the line at fault in its Debug form.
    let failed = |error: protox::Error| Failure::new(format!("{error:?}").trim_end());
    let mut compiler = protox::Compiler::new(places).map_err(failed)?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&args.proto).map_err(failed)?;
    Ok(compiler.descriptor_pool())
}

fn with_dependencies(file: &FileDescriptor, files: &mut BTreeMap<String, Bytes>) {
    if !files.contains_key(file.name()) {
        files.insert(file.name().to_owned(), file.encode_to_vec().into());
        for dependency in file.dependencies() {
            with_dependencies(&dependency, files);
        }
    }
}

fn is_named(file: &Bytes, name: &str) -> bool {
    prost_types::FileDescriptorProto::decode(file.clone()).is_ok_and(|file| file.name() == name)
}

fn without_imports(file: Bytes, absent: &HashSet<String>) -> Result<Bytes, Unknown> {
    let mut head =
        prost_types::FileDescriptorProto::decode(file).map_err(|error| Unknown::Invalid(error.to_string()))?;
    // The lists of public and weak imports count positions.
    let kept: Vec<_> = head.dependency.iter().map(|name| !absent.contains(name)).collect();
    let renumber = |list: &mut Vec<i32>| {
        list.retain(|&at| usize::try_from(at).is_ok_and(|at| kept.get(at) == Some(&true)));
        for at in list {
            let before = usize::try_from(*at).unwrap_or_default();
            *at -= i32::try_from(kept[..before].iter().filter(|kept| !**kept).count()).unwrap_or_default();
        }
    };
    renumber(&mut head.public_dependency);
    renumber(&mut head.weak_dependency);
    head.dependency.retain(|name| !absent.contains(name));
    Ok(head.encode_to_vec().into())
}

/// Visits a message and all that can be in it, each once.
fn visit(message: &MessageDescriptor, look: &mut impl FnMut(&MessageDescriptor)) {
    let mut seen = HashSet::new();
    let mut open = vec![message.clone()];
    while let Some(message) = open.pop() {
        if seen.insert(message.full_name().to_owned()) {
            look(&message);
            open.extend(message.fields().filter_map(|field| field.kind().as_message().cloned()));
            open.extend(message.extensions().filter_map(|field| field.kind().as_message().cloned()));
        }
    }
}

const ANY: &str = "google.protobuf.Any";

/// Whether an `Any` can be in a message.
pub(super) fn may_hold_any(message: &MessageDescriptor) -> bool {
    let mut found = false;
    visit(message, &mut |message| found |= message.full_name() == ANY);
    found
}

/// Collects the names of types in `Any`s that the message's own pool does not have.
fn unknown_types(message: &DynamicMessage, missing: &mut HashSet<String>) {
    if message.descriptor().full_name() == ANY {
        let text = message.get_field_by_number(1);
        let url = text.as_deref().and_then(Value::as_str).unwrap_or_default();
        let name = url.rsplit_once('/').map_or(url, |(_, name)| name);
        let inner = message.get_field_by_number(2);
        match message.descriptor().parent_pool().get_message_by_name(name) {
            None if name.is_empty() => {}
            None => drop(missing.insert(name.to_owned())),
            Some(known) => {
                let bytes = inner.as_deref().and_then(Value::as_bytes).cloned().unwrap_or_default();
                // What cannot be decoded is said so when it is printed.
                if let Ok(inner) = DynamicMessage::decode(known, bytes) {
                    unknown_types(&inner, missing);
                }
            }
        }
        return;
    }
    let fields = message.fields().map(|(_, value)| value);
    for value in fields.chain(message.extensions().map(|(_, value)| value)) {
        unknown_in_value(value, missing);
    }
}

fn unknown_in_value(value: &Value, missing: &mut HashSet<String>) {
    match value {
        Value::Message(message) => unknown_types(message, missing),
        Value::List(list) => list.iter().for_each(|value| unknown_in_value(value, missing)),
        Value::Map(map) => map.values().for_each(|value| unknown_in_value(value, missing)),
        _ => {}
    }
}

/// The names that are most like one: at most three, and none that is altogether different.
pub(super) fn nearest(name: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    let last = |name: &str| name.rsplit(['.', '/']).next().unwrap_or_default().to_ascii_lowercase();
    let score = |other: &str| {
        let whole = strsim::normalized_damerau_levenshtein(&name.to_ascii_lowercase(), &other.to_ascii_lowercase());
        // Names of one package are alike as a whole, whatever comes last.
        let whole = if whole >= 0.9 { whole } else { 0.0 };
        whole.max(strsim::normalized_damerau_levenshtein(&last(name), &last(other)))
    };
    let names: HashSet<String> = names.into_iter().filter(|other| other != name).collect();
    let mut scored: Vec<_> = names.into_iter().map(|other| (score(&other), other)).collect();
    scored.retain(|(score, _)| *score >= 0.6);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// A sentence that names what was perhaps meant, to follow another; empty if there is nothing.
pub(super) fn perhaps(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(". Is it {}?", names.join(" or ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_types_are_there() {
        let pool = common_types();
        for name in ["google.rpc.Status", "google.rpc.BadRequest", "google.protobuf.Any", "google.protobuf.Struct"] {
            assert!(pool.get_message_by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_nearest_names_come_first() {
        let names = ["a.v1.Greeter", "a.v1.Echo", "grpc.health.v1.Health"].map(String::from);
        assert_eq!(nearest("a.v1.Greter", names.clone()), ["a.v1.Greeter"]);
        assert_eq!(nearest("echo", names.clone()), ["a.v1.Echo"]);
        assert_eq!(nearest("zzz", names), [""; 0]);
    }

    #[test]
    fn imports_that_are_not_there_are_left_out() {
        let file = prost_types::FileDescriptorProto {
            dependency: ["a", "b", "c"].map(String::from).into(),
            public_dependency: vec![0, 2],
            weak_dependency: vec![1],
            ..Default::default()
        };
        let absent = HashSet::from(["b".to_owned()]);
        let less = without_imports(file.encode_to_vec().into(), &absent).unwrap();
        let less = prost_types::FileDescriptorProto::decode(less).unwrap();
        assert_eq!(less.dependency, ["a", "c"]);
        assert_eq!((less.public_dependency, less.weak_dependency), (vec![0, 1], vec![]));
    }
}
