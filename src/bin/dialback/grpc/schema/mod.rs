//! What a command knows of services and messages, and where it learns more.

mod any;
mod files;
mod names;
mod pool;
mod reflection;
mod sound;
mod symbol;

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use bytes::Bytes;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use tonic::{Code, Status};

pub(super) use self::any::may_hold_any;
use self::any::{unknown_types, visit};
pub(super) use self::names::{nearest, perhaps};
use self::pool::{Batch, Pool};
pub(super) use self::reflection::Reflection;
use self::reflection::{SERVICE, Unanswered};
pub(super) use self::symbol::Symbol;
use self::symbol::lookup;
use super::args::SchemaArgs;
use crate::failure::Failure;

/// How many types that nobody knows are remembered, and how long their names may be. All others are not asked for.
const MOST_UNKNOWN: usize = 1000;
const LONGEST_NAME: usize = 512;

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
                write!(f, "reflection failed: {}: {}", super::status::code_name(status.code()), status.message())?;
                if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented) {
                    let remedy = "pass the schema with -proto FILE or -protoset FILE";
                    write!(f, ": {remedy}; at a hub's gateway its policy has to allow /{SERVICE}/* for reflection")?;
                }
                Ok(())
            }
            Self::Invalid(why) => write!(f, "the schema cannot be used: {why}"),
        }
    }
}

/// What is known so far, and where more can be learned.
pub(super) struct Schema {
    pool: Pool,
    server: Option<Reflection>,
    files: Option<Pool>,
    /// Types that nobody knows.
    hopeless: HashSet<String>,
}

impl Schema {
    /// Without an address there is no `reflection`.
    pub(super) fn open(args: &SchemaArgs, reflection: Option<Reflection>) -> Result<Self, Failure> {
        let files = files::from_files(args)?;
        // Files that are asked second stay apart until they are needed: the server may have others of the same names.
        let (pool, files) = match reflection {
            Some(_) => (Pool::default(), files),
            None => (files.unwrap_or_default(), None),
        };
        Ok(Self { pool, server: reflection, files, hopeless: HashSet::new() })
    }

    /// The full names of all services, in alphabetical order.
    pub(super) async fn services(&mut self) -> Result<Vec<String>, Unknown> {
        match &mut self.server {
            Some(server) => Ok(server.services().await?),
            None => {
                let mut names: Vec<_> =
                    self.pool.descriptors().services().map(|service| service.full_name().to_owned()).collect();
                names.sort();
                Ok(names)
            }
        }
    }

    /// Looks a symbol up by its full name.
    pub(super) async fn find(&mut self, name: &str) -> Result<Symbol, Unknown> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some(symbol) = lookup(self.pool.descriptors(), name) {
            return Ok(symbol);
        }
        self.learn(name).await?;
        lookup(self.pool.descriptors(), name).ok_or(Unknown::NotFound)
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

    /// Learns of all that the server's services use.
    pub(super) async fn learn_services(&mut self) {
        for service in self.services().await.unwrap_or_default() {
            let _ = self.find(&service).await; // one that is not described has no types to tell of
        }
    }

    /// The same, and of the types that a text names, for an `Any` in a request.
    pub(super) async fn learn_for_any(&mut self, text: &[u8]) {
        self.learn_services().await;
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
        if self.message(name).is_some() {
            return true;
        }
        if self.is_hopeless(name) {
            return false;
        }
        let learned = self.learn(name).await.is_ok() || self.adopt(&common_types(), name).is_ok();
        let known = learned && self.message(name).is_some();
        if !known {
            self.hopeless.insert(name.to_owned());
        }
        known
    }

    fn is_hopeless(&self, name: &str) -> bool {
        name.len() > LONGEST_NAME || self.hopeless.len() >= MOST_UNKNOWN || self.hopeless.contains(name)
    }

    /// A message by its full name, as it is known now.
    pub(super) fn message(&self, name: &str) -> Option<MessageDescriptor> {
        self.pool.descriptors().get_message_by_name(name)
    }

    /// Decodes a message, having learned of the types that are in its `Any`s.
    pub(super) async fn decode(&mut self, name: &str, bytes: Bytes) -> Result<DynamicMessage, Unknown> {
        loop {
            let descriptor = self.message(name).ok_or(Unknown::NotFound)?;
            let has_any = may_hold_any(&descriptor);
            let message = DynamicMessage::decode(descriptor, bytes.clone())
                .map_err(|error| Unknown::Failed(Status::internal(format!("a message cannot be read: {error}"))))?;
            let mut missing = if has_any { unknown_types(&message) } else { HashSet::new() };
            missing.retain(|name| !self.is_hopeless(name));
            if missing.is_empty() {
                return Ok(message);
            }
            // Whoever holds descriptors while others are added makes a copy of all of them.
            drop(message);
            // What is learned may be a message with another `Any` in it.
            for name in missing {
                self.knows_type(&name).await;
            }
        }
    }

    /// Full names like this one.
    pub(super) async fn nearest(&mut self, name: &str) -> Vec<String> {
        let mut names = self.services().await.unwrap_or_default();
        for pool in [Some(&self.pool), self.files.as_ref()].into_iter().flatten().map(Pool::descriptors) {
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
        match (learned, &self.files) {
            (Err(why), Some(files)) => {
                let files = files.descriptors().clone();
                self.adopt(&files, name).map_err(|_| why)
            }
            (learned, _) => learned,
        }
    }

    /// Takes the file of a symbol over from other descriptors, with those that it needs.
    fn adopt(&mut self, from: &DescriptorPool, name: &str) -> Result<(), Unknown> {
        let file = lookup(from, name).map(|symbol| symbol.file()).ok_or(Unknown::NotFound)?;
        let mut batch = Batch::new();
        self.pool.read_from(&file, &mut batch).and_then(|()| self.pool.add(batch)).map_err(Unknown::Invalid)
    }

    /// Adds files from the server, with those that they need and that it did not send.
    async fn add(&mut self, files: Vec<Bytes>) -> Result<(), Unknown> {
        let mut batch = Batch::new();
        let mut asked = HashSet::new();
        let mut wanted = BTreeSet::new();
        let mut failed = None;
        let mut new = files;
        loop {
            for file in new.drain(..) {
                let name = self.pool.read(file, &mut batch).map_err(Unknown::Invalid)?;
                let file = name.and_then(|name| batch.get(&name));
                wanted.extend(file.into_iter().flat_map(|file| file.imports.clone()));
            }
            let missing = |name: &String| !self.pool.has(name) && !batch.contains_key(name) && !asked.contains(name);
            let Some(name) = std::iter::from_fn(|| wanted.pop_first()).find(missing) else { break };
            let answer = match &mut self.server {
                Some(server) => server.file(&name).await,
                None => Err(Unanswered::NotFound),
            };
            match answer {
                Ok(files) => new = files,
                // Some servers leave out what everybody has, and some what only an unused import is for.
                Err(why) => match common_types().get_file_by_name(&name) {
                    Some(file) => self.pool.read_from(&file, &mut batch).map_err(Unknown::Invalid)?,
                    None => failed = Some(why),
                },
            }
            asked.insert(name);
        }
        // Something is missing: why it could not be had says more than what.
        let because = |why| match failed {
            Some(Unanswered::Failed(status)) => Unknown::Failed(status),
            _ => Unknown::Invalid(why),
        };
        self.pool.add(batch).map_err(because)
    }
}

/// The types that everybody knows: Google's well-known ones, and those of error details.
pub(super) fn common_types() -> DescriptorPool {
    let mut pool = DescriptorPool::global();
    // It is part of this program, and a test decodes it.
    let _ = pool.decode_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
    pool
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
}
