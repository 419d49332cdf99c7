//! Descriptors that are known, added file by file under bounds: most of them come from a server.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{DecodeContext, bytes as length_delimited, decode_key, encode_key, skip_field, string};
use prost_reflect::{DescriptorPool, FileDescriptor};
use prost_types::FileDescriptorProto;

use super::sound::sound;

/// What one session may load, and how many steps it may take to find out which file sees which: far more than any schema
/// needs.
const MOST_FILES: usize = 10_000;
const MOST_BYTES: usize = 64 << 20;
const MOST_STEPS: usize = 4_000_000;

const TOO_MANY: &str = "its files import more than any schema's do";

/// Files that are to be added, by name.
pub(super) type Batch = BTreeMap<String, File>;

/// A file as it came.
pub(super) struct File {
    bytes: Bytes,
    pub(super) imports: Vec<String>,
    /// Those of the imports that whoever imports this file sees as well.
    public: Vec<String>,
}

/// Descriptors, and the files that they are from.
#[derive(Default)]
pub(super) struct Pool {
    pool: DescriptorPool,
    files: Batch,
    /// How much was read, whether it was of use or not.
    count: usize,
    bytes: usize,
    steps: usize,
    /// Bytes of names that stand for a file in the list of another.
    names: usize,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncodedSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

impl Pool {
    /// What an encoded `FileDescriptorSet` holds.
    pub(super) fn of_set(set: Bytes) -> Result<Self, String> {
        let set = EncodedSet::decode(set).map_err(|error| error.to_string())?;
        let (mut pool, mut batch) = (Self::default(), Batch::new());
        for file in set.file {
            pool.read(file, &mut batch)?;
        }
        pool.add(batch)?;
        Ok(pool)
    }

    pub(super) fn descriptors(&self) -> &DescriptorPool {
        &self.pool
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }

    /// Puts an encoded file into a batch, and gives its name. One that is known already is passed over.
    pub(super) fn read(&mut self, bytes: Bytes, batch: &mut Batch) -> Result<Option<String>, String> {
        let head = FileDescriptorProto::decode(bytes.clone()).map_err(|error| error.to_string())?;
        if self.has(head.name()) || batch.contains_key(head.name()) {
            return Ok(None);
        }
        self.count += 1;
        self.bytes += bytes.len();
        if self.count > MOST_FILES || self.bytes > MOST_BYTES {
            return Err(format!("it has more than {MOST_FILES} files or {} MiB", MOST_BYTES >> 20));
        }
        sound(&head)?;
        let is_public = |at: usize| head.public_dependency.iter().any(|&public| usize::try_from(public) == Ok(at));
        let public = head.dependency.iter().enumerate().filter(|(at, _)| is_public(*at));
        let public = public.map(|(_, name)| name.clone()).collect();
        let name = head.name().to_owned();
        batch.insert(name.clone(), File { bytes, imports: head.dependency, public });
        Ok(Some(name))
    }

    /// Puts a file of another pool into a batch, with those that it sees.
    pub(super) fn read_from(&mut self, file: &FileDescriptor, batch: &mut Batch) -> Result<(), String> {
        let mut open = vec![file.clone()];
        while let Some(file) = open.pop() {
            if !self.has(file.name()) && !batch.contains_key(file.name()) {
                self.read(file.encode_to_vec().into(), batch)?;
                open.extend(file.dependencies());
            }
        }
        Ok(())
    }

    /// Adds the files of a batch, all or none. What they import and is nowhere is left out.
    pub(super) fn add(&mut self, mut batch: Batch) -> Result<(), String> {
        let mut visible = Vec::new();
        for file in batch.values() {
            visible.push(self.visible(file, &batch)?);
        }
        // A FileDescriptorSet, whose only field has the number 1. Custom options would be lost on another way.
        let mut set = Vec::new();
        for (file, visible) in batch.values_mut().zip(visible) {
            file.bytes = with_imports(file.bytes.clone(), &visible).map_err(|error| error.to_string())?;
            file.imports = visible;
            length_delimited::encode(1, &file.bytes, &mut set);
        }
        let all = |name: &String| batch.get(name).or_else(|| self.files.get(name)).map_or(0, |file| file.imports.len());
        // prost-reflect looks at the imports of each import.
        let steps = batch.values().flat_map(|file| &file.imports).map(|name| 1 + all(name)).sum();
        self.step(steps)?;
        match self.pool.decode_file_descriptor_set(set.as_slice()) {
            Ok(()) => {
                self.files.extend(batch);
                Ok(())
            }
            Err(error) => {
                self.restore();
                Err(error.to_string())
            }
        }
    }

    /// The files whose names a file can use: its imports, and what these import publicly, and so on.
    fn visible(&mut self, file: &File, batch: &Batch) -> Result<Vec<String>, String> {
        let mut visible = BTreeSet::new();
        let mut open: Vec<&String> = file.imports.iter().collect();
        let (mut steps, mut names) = (0, self.names);
        while let Some(name) = open.pop() {
            steps += 1;
            let Some(import) = batch.get(name).or_else(|| self.files.get(name)) else { continue };
            if !visible.contains(name) {
                // A name may be long, and be seen by every file.
                names += name.len();
                if names > MOST_BYTES {
                    break;
                }
                visible.insert(name.clone());
                open.extend(&import.public);
            }
            if steps > MOST_STEPS {
                break;
            }
        }
        self.names = names;
        if names > MOST_BYTES {
            return Err(TOO_MANY.into());
        }
        self.step(steps)?;
        Ok(visible.into_iter().collect())
    }

    fn step(&mut self, steps: usize) -> Result<(), String> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > MOST_STEPS { Err(TOO_MANY.into()) } else { Ok(()) }
    }

    /// Makes the descriptors anew from the files. What prost-reflect leaves of those that failed is in disorder. It takes
    /// as long as to read them once more, and counts as that.
    fn restore(&mut self) {
        let mut set = Vec::new();
        for file in self.files.values() {
            self.bytes += file.bytes.len();
            length_delimited::encode(1, &file.bytes, &mut set);
        }
        let mut pool = DescriptorPool::new();
        // They were taken before.
        let _ = pool.decode_file_descriptor_set(set.as_slice());
        self.pool = pool;
    }
}

/// The numbers of fields in `FileDescriptorProto`
/// (https://github.com/protocolbuffers/protobuf/blob/main/src/google/protobuf/descriptor.proto).
const DEPENDENCY: u32 = 3;
const PUBLIC_DEPENDENCY: u32 = 10;
const WEAK_DEPENDENCY: u32 = 11;

/// The same file with other imports, none of which is public: all else, as custom options, stays as it was written.
///
/// prost-reflect follows public imports neither to their end nor only once.
fn with_imports(mut file: Bytes, imports: &[String]) -> Result<Bytes, prost::DecodeError> {
    let mut done = Vec::with_capacity(file.len());
    for name in imports {
        string::encode(DEPENDENCY, name, &mut done);
    }
    while !file.is_empty() {
        let (tag, wire_type) = decode_key(&mut file)?;
        let mut rest = file.clone();
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
        let field = file.split_to(file.len() - rest.len());
        if ![DEPENDENCY, PUBLIC_DEPENDENCY, WEAK_DEPENDENCY].contains(&tag) {
            encode_key(tag, wire_type, &mut done);
            done.extend_from_slice(&field);
        }
    }
    Ok(done.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, imports: &[&str], public: &[i32]) -> Bytes {
        let file = FileDescriptorProto {
            name: Some(name.to_owned()),
            dependency: imports.iter().map(ToString::to_string).collect(),
            public_dependency: public.to_vec(),
            weak_dependency: vec![0],
            message_type: vec![prost_types::DescriptorProto { name: Some(format!("M{name}")), ..Default::default() }],
            ..Default::default()
        };
        file.encode_to_vec().into()
    }

    fn pool(files: &[Bytes]) -> Result<Pool, String> {
        let (mut pool, mut batch) = (Pool::default(), Batch::new());
        for file in files {
            pool.read(file.clone(), &mut batch)?;
        }
        pool.add(batch).map(|()| pool)
    }

    fn imports(pool: &Pool, name: &str) -> Vec<String> {
        let file = pool.descriptors().get_file_by_name(name).unwrap();
        file.dependencies().map(|file| file.name().to_owned()).collect()
    }

    #[test]
    fn imports_that_are_not_there_are_left_out_and_public_ones_are_followed() {
        let files = [
            file("a", &["none", "b"], &[]),
            file("b", &["c", "none", "x"], &[0]),
            file("c", &["d"], &[0]),
            file("d", &["a"], &[]),
            file("x", &[], &[]),
        ];
        let pool = pool(&files).unwrap();
        assert_eq!(imports(&pool, "a"), ["b", "c", "d"]);
        assert_eq!(imports(&pool, "b"), ["c", "d", "x"]);
        assert_eq!(imports(&pool, "d"), ["a"]);
    }

    #[test]
    fn imports_in_a_circle_end() {
        let pool = pool(&[file("a", &["a", "b", "b"], &[0, 1, 2]), file("b", &["a", "b"], &[0, 1])]).unwrap();
        assert_eq!(imports(&pool, "a"), ["a", "b"]);
    }

    /// A ladder, whose ends are reached on 2^40 ways.
    #[test]
    fn imports_on_many_ways_are_followed_once() {
        let name = |rung: usize, side: &str| format!("{rung}{side}");
        let mut files = Vec::new();
        let mut all = Vec::new();
        for rung in 0..40 {
            for side in ["l", "r"] {
                let next = [name(rung + 1, "l"), name(rung + 1, "r")];
                files.push(file(&name(rung, side), &next.each_ref().map(String::as_str), &[0, 1]));
                all.insert(0, name(rung, side));
            }
        }
        files.push(file("all", &all.iter().map(String::as_str).collect::<Vec<_>>(), &[]));
        assert_eq!(imports(&pool(&files).unwrap(), "all").len(), 80);
    }

    #[test]
    fn a_session_loads_so_many_files_and_no_more() {
        let mut pool = Pool::default();
        let mut failed = None;
        for number in 0..=MOST_FILES {
            let mut batch = Batch::new();
            let file = file(&number.to_string(), &[], &[]);
            // The same once more costs nothing.
            let read = pool.read(file.clone(), &mut batch).and_then(|_| pool.read(file, &mut batch));
            failed = read.err().filter(|_| failed.is_none()).map(|why| (number, why));
        }
        let (number, why) = failed.unwrap();
        assert!(number == MOST_FILES && why.contains("more than 10000 files"), "{number} {why}");
    }

    #[test]
    fn files_that_import_each_other_all_are_refused_in_time() {
        let names: Vec<_> = (0..400).map(|number| number.to_string()).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let files: Vec<_> = names.iter().map(|name| file(name, &names, &[])).collect();
        assert!(pool(&files).err().unwrap().contains("import more"));
    }

    /// 200 names of 4 KiB that 100 files see each: few steps, and 80 MiB of names.
    #[test]
    fn long_names_that_many_files_see_are_refused() {
        let long = |number: usize| format!("{number:0>4096}");
        let names: Vec<_> = (0..200).map(long).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let all: Vec<i32> = (0..200).collect();
        let seen_by = |count: usize| {
            let mut files: Vec<_> = names.iter().map(|name| file(name, &[], &[])).collect();
            files.push(file("all", &names, &all));
            files.extend((0..count).map(|number| file(&format!("user{number}"), &["all"], &[])));
            pool(&files)
        };
        assert!(seen_by(100).err().unwrap().contains("import more"));
        assert_eq!(imports(&seen_by(10).unwrap(), "user0").len(), 201);
    }

    #[test]
    fn what_was_known_stays_when_more_of_it_fails() {
        let mut pool = pool(&[file("a", &[], &[])]).unwrap();
        let mut batch = Batch::new();
        let again = FileDescriptorProto::decode(file("a", &[], &[])).unwrap();
        let again = FileDescriptorProto { name: Some("b".into()), ..again };
        pool.read(again.encode_to_vec().into(), &mut batch).unwrap();
        assert!(pool.add(batch).unwrap_err().contains("Ma"));
        assert!(pool.descriptors().get_message_by_name("Ma").is_some() && !pool.has("b"));
    }

    #[test]
    fn custom_options_stay() {
        let mut bytes = file("a", &["b"], &[0]).to_vec();
        let options = b"\x42\x05\xc2\x3e\x02\x08\x01"; // FileOptions, an extension with the number 1000
        bytes.extend_from_slice(options);
        let done = with_imports(bytes.into(), &["c".to_owned()]).unwrap();
        assert!(done.ends_with(options), "{done:?}");
        let done = FileDescriptorProto::decode(done).unwrap();
        assert_eq!((done.dependency, done.public_dependency, done.weak_dependency), (vec!["c".into()], vec![], vec![]));
    }
}
