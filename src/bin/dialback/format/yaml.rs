//! YAML 1.2: the same names and values as in JSON, in documents that `---` separates.
//!
//! A field that is a string takes a scalar without quotes as it is spelled: `version: 1.10` and `country: no` lose
//! nothing. What is written has quotes wherever a reader of YAML 1.1 or 1.2 would see something other than a string.
//! A document without content is no message; an empty message is `{}`.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_saphyr::{Location, Spanned};

use super::error::{FormatError, Place};
use super::input::{Cut, Framing};
use super::tree::{Data, Key, Node};
use super::{MAX_DEPTH, MAX_MESSAGE, MAX_VALUES};

/// Documents, which end before `---`, after `...`, and where the input ends.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// The first line that was not seen to its end.
    line: usize,
    /// How far that was looked at.
    seen: usize,
    /// Whether there is more than comments, directives and the marker at the beginning.
    content: bool,
}

impl Framing for Documents {
    fn cut(&mut self, rest: &[u8], last: bool) -> Cut {
        loop {
            let end = match rest[self.seen..].iter().position(|&byte| byte == b'\n') {
                Some(length) => self.seen + length + 1,
                None if last && self.line < rest.len() => rest.len(),
                None => {
                    self.seen = rest.len();
                    break;
                }
            };
            let start = std::mem::replace(&mut self.line, end);
            self.seen = end;
            let line = &rest[start..end];
            if let Some(after) = marker(line, b"---") {
                if start > 0 {
                    // The marker begins the next document.
                    return self.end(start);
                }
                self.content = has_content(after);
            } else if marker(line, b"...").is_some() {
                return self.end(end);
            } else if has_content(line) && (self.content || !line.starts_with(b"%")) {
                self.content = true;
            }
        }
        match last {
            true if !rest.is_empty() => self.end(rest.len()),
            _ => Cut::More,
        }
    }
}

impl Documents {
    fn end(&mut self, length: usize) -> Cut {
        let Self { content, .. } = std::mem::take(self);
        if content { Cut::Message(length) } else { Cut::Skip(length) }
    }
}

/// What follows the marker, if the line is one.
fn marker<'a>(line: &'a [u8], marker: &[u8]) -> Option<&'a [u8]> {
    let after = line.strip_prefix(marker)?;
    after.first().is_none_or(|byte| byte.is_ascii_whitespace()).then_some(after)
}

fn has_content(line: &[u8]) -> bool {
    !matches!(line.trim_ascii_start().first(), None | Some(b'#'))
}

/// A level of nesting takes tens of kilobytes of stack where nothing is optimised, which is more than a thread of the
/// runtime has for [`MAX_DEPTH`] of them.
const STACK: usize = 48 << 20;

/// Reads one document, on a thread of its own. [`Node::at`] is the line and the column in `text`, which [`place`] makes a place of.
pub(super) fn parse(text: &str, base: Place) -> Result<Node, FormatError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || parse_here(text, base));
        let parsed = thread.map(std::thread::ScopedJoinHandle::join);
        match parsed {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(FormatError::Syntax { place: base, what: "the YAML parser panicked".into() }),
            Err(error) => Err(FormatError::Syntax { place: base, what: format!("no thread to parse on: {error}") }),
        }
    })
}

fn parse_here(text: &str, base: Place) -> Result<Node, FormatError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_events: 3 * MAX_VALUES,
            max_nodes: MAX_VALUES,
            max_total_scalar_bytes: MAX_MESSAGE,
        },
        // What aliases repeat is no part of the text, whose size is limited.
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        strict_booleans: true,
        ignore_binary_tag_for_string: true,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
        emit_comments: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Tree>>(text, options) {
        Ok(tree) => Ok(node(tree, text)),
        Err(error) => {
            let location = error.location().unwrap_or(Location::UNKNOWN);
            let what = words(&error);
            Err(FormatError::Syntax { place: place(base, position(location)), what })
        }
    }
}

/// What is wrong, for somebody who wrote the document and no program.
fn words(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::{Error, budget::BudgetBreach};
    let words = match error {
        Error::AliasError { error, .. } => return words(error),
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => return format!("nested deeper than {MAX_DEPTH}"),
        Error::Budget { breach: BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. }, .. } => {
            return format!("too large: a message has at most {MAX_VALUES} values");
        }
        Error::Budget { breach: BudgetBreach::ScalarBytes { .. }, .. } => {
            return format!("too large: the limit is {} MiB", MAX_MESSAGE >> 20);
        }
        Error::Budget { breach: BudgetBreach::MergeKeys { .. }, .. } => "too many merge keys (<<)",
        Error::Budget { .. } => "too many anchors or aliases (& and *)",
        Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => "too large: the aliases (*) repeat too much",
        Error::RecursiveReferencesRequireWeakTypes { .. } => "an anchor (&) that refers to itself",
        // Only names are read as strings.
        Error::NullIntoString { .. } => "a name that is null: if it is one, put it into quotes",
        Error::Unexpected { expected: "string scalar", .. } => "a name that is a list or an object",
        other => {
            let what = other.to_string();
            if what.contains("recursion limit exceeded") {
                return format!("nested deeper than {MAX_DEPTH}");
            }
            // It says the place itself, as seen from the beginning of this document.
            let what = what.split(" at line ").next().unwrap_or_default();
            // Nor is there a program to be changed by who gave the input.
            let what = what.trim_start_matches("error: ").split(", set DuplicateKeyPolicy").next();
            return what.unwrap_or_default().trim().to_owned();
        }
    };
    words.to_owned()
}

pub(super) fn place(base: Place, at: u64) -> Place {
    let (line, column) = ((at >> 32).max(1), (at & 0xFFFF_FFFF).max(1));
    Place { line: base.line + line - 1, column: if line == 1 { base.column + column - 1 } else { column } }
}

fn position(location: Location) -> u64 {
    location.line() << 32 | location.column()
}

thread_local! {
    /// How deep the visitors are. The budget counts what is in the text, and not what aliases repeat of it.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// One more level, until it is dropped.
struct Level;

impl Level {
    fn enter<E: serde::de::Error>() -> Result<Self, E> {
        let depth = DEPTH.get() + 1;
        if depth > MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH}")));
        }
        DEPTH.set(depth);
        Ok(Self)
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// A document as serde sees it.
#[derive(Debug)]
enum Tree {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

fn node(tree: Spanned<Tree>, text: &str) -> Node {
    let at = position(tree.referenced);
    let span = tree.defined.span();
    let literal = || {
        let start = usize::try_from(span.byte_offset()?).ok()?;
        let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
        Some(text.get(start..end)?.trim().to_owned())
    };
    let (data, literal) = match tree.value {
        Tree::Null => (Data::Null, None),
        Tree::Bool(value) => (Data::Bool(value), literal()),
        Tree::Number(number) => {
            let literal = literal();
            // The digits as they were written, if JSON has such a number too: a double would not hold them all.
            let plain = |text: &&str| {
                let digits = text.strip_prefix('-').unwrap_or(text);
                digits.starts_with(|c: char| c.is_ascii_digit())
                    && (!digits.starts_with('0') || digits.len() == 1 || digits.starts_with("0."))
                    && digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte))
            };
            (Data::Number(literal.as_deref().filter(plain).unwrap_or(&number).to_owned()), literal)
        }
        Tree::String(text) => (Data::String(text), None),
        Tree::List(values) => (Data::List(values.into_iter().map(|value| node(value, text)).collect()), None),
        Tree::Map(entries) => {
            let entry = |(key, value): (Spanned<String>, Spanned<Tree>)| {
                (Key { at: position(key.referenced), name: key.value }, node(value, text))
            };
            (Data::Map(entries.into_iter().map(entry).collect()), None)
        }
    };
    Node { at, data, literal }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML document")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Tree, E> {
        Ok(Tree::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Tree, E> {
        Ok(Tree::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        let text = super::scalar::float_text(value);
        Ok(if value.is_finite() { Tree::Number(text) } else { Tree::String(text) })
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let _level = Level::enter()?;
        let mut values = Vec::new();
        while let Some(value) = access.next_element()? {
            values.push(value);
        }
        Ok(Tree::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let _level = Level::enter()?;
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}

/// One document, without a marker.
pub(super) fn write(node: &Node) -> Result<String, String> {
    serde_saphyr::to_string(node).map_err(|error| error.to_string())
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.data {
            Data::Null => serializer.serialize_unit(),
            Data::Bool(value) => serializer.serialize_bool(*value),
            Data::Number(text) => {
                // An integer has no minus zero.
                if let Some(number) = text.parse::<i64>().ok().filter(|_| text != "-0") {
                    serializer.serialize_i64(number)
                } else if let Ok(number) = text.parse::<u64>() {
                    serializer.serialize_u64(number)
                } else {
                    serializer.serialize_f64(text.parse().map_err(S::Error::custom)?)
                }
            }
            Data::String(text) => serializer.serialize_str(text),
            Data::List(nodes) => {
                let mut list = serializer.serialize_seq(Some(nodes.len()))?;
                for node in nodes {
                    list.serialize_element(node)?;
                }
                list.end()
            }
            Data::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, node) in entries {
                    map.serialize_entry(&key.name, node)?;
                }
                map.end()
            }
        }
    }
}
