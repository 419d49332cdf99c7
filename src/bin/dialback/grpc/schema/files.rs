//! Schemas from files, encoded or as source.

use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use protox::file::{ChainFileResolver, FileResolver, GoogleFileResolver, IncludeFileResolver};

use super::pool::Pool;
use crate::failure::Failure;
use crate::file;
use crate::grpc::args::SchemaArgs;

/// The largest file with descriptors or source, in bytes.
const LARGEST: u64 = 64 << 20;

/// What the arguments name. None if they name no file.
pub(super) fn from_files(args: &SchemaArgs) -> Result<Option<Pool>, Failure> {
    let set = if !args.protoset.is_empty() {
        from_sets(args)?
    } else if !args.proto.is_empty() {
        from_sources(args)?
    } else {
        return Ok(None);
    };
    let failed = "the descriptors cannot be used (protoc --include_imports writes all)";
    Pool::of_set(set).map(Some).map_err(|why| Failure::new(format!("{failed}: {why}")))
}

fn from_sets(args: &SchemaArgs) -> Result<Bytes, Failure> {
    let mut all = Vec::new();
    for path in &args.protoset {
        let set = file::read(path, LARGEST)?;
        // Two sets one after the other are one: https://protobuf.dev/programming-guides/encoding/#last-one-wins
        prost::Message::decode(set.as_slice())
            .map(|_: prost_types::FileDescriptorSet| all.extend(set))
            .map_err(|error| Failure::because(format!("{} is no FileDescriptorSet", path.display()), &error))?;
    }
    Ok(all.into())
}

fn from_sources(args: &SchemaArgs) -> Result<Bytes, Failure> {
    let mut places = args.import_path.clone();
    if places.is_empty() {
        places.push(".".into());
        // A file is also found by its path alone, and beside it what it imports.
        let beside = args.proto.iter().filter_map(|file| file.parent());
        places.extend(beside.filter(|dir| !dir.as_os_str().is_empty()).map(ToOwned::to_owned));
    }
    let mut resolver = ChainFileResolver::new();
    places.into_iter().for_each(|place| resolver.add(Directory(place)));
    resolver.add(GoogleFileResolver::new());
    // protox explains with the line at fault in its Debug form.
    let failed = |error: protox::Error| Failure::new(format!("{error:?}").trim_end());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&args.proto).map_err(failed)?;
    Ok(compiler.encode_file_descriptor_set().into())
}

/// An error whose Debug form is its text, as protox's own are.
#[derive(thiserror::Error)]
#[error("{0}")]
struct Unreadable(String);

impl fmt::Debug for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A directory with sources, as protox knows it; but protox reads files of up to 2 GiB, and devices.
struct Directory(PathBuf);

impl FileResolver for Directory {
    fn resolve_path(&self, path: &Path) -> Option<String> {
        IncludeFileResolver::new(self.0.clone()).resolve_path(path)
    }

    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        let path = self.0.join(name);
        let wrong = match path.metadata() {
            Ok(there) if !there.is_file() => Some("it is no file".to_owned()),
            Ok(there) if there.len() > LARGEST => Some(file::too_large(LARGEST).to_string()),
            _ => None,
        };
        match wrong {
            Some(why) => Err(protox::Error::new(Unreadable(format!("{} cannot be read: {why}", path.display())))),
            None => IncludeFileResolver::new(self.0.clone()).open_file(name),
        }
    }
}
