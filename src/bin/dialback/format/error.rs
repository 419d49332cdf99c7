//! What is wrong with a message, and where.

use std::fmt;

/// Why a message cannot be read or written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum FormatError {
    /// The text is not JSON, YAML, XML or text format.
    #[error("{place}: {what}")]
    Syntax { place: Place, what: String },
    /// The text is well formed, and does not fit the message type.
    #[error("{}{problem}", prefix(place, path))]
    Content { place: Option<Place>, path: String, problem: Problem },
    /// A message in binary form does not decode.
    #[error("byte {offset}: {what}")]
    Binary { offset: u64, what: String },
    /// One message is larger than the limit.
    #[error("{place}: a message is larger than the limit of {} MiB", super::MAX_MESSAGE >> 20)]
    TooLarge { place: Place },
    /// The message cannot be written in this format.
    #[error("{path}: {what}")]
    Unwritable { path: String, what: String },
    /// A `--set` assignment that is none.
    #[error("{assignment:?}: {what}")]
    Assignment { assignment: String, what: String },
}

/// What does not fit the message type. Each says what was expected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("{message} has no field with this name{}", suggest(nearest))]
    UnknownField { message: String, nearest: Vec<String> },
    #[error("the enum {name} has no value {value:?}{}", suggest(nearest))]
    UnknownEnumValue { name: String, value: String, nearest: Vec<String> },
    #[error("no message type {name:?} is known here{}", suggest(nearest))]
    UnknownType { name: String, nearest: Vec<String> },
    #[error("expected {expected}, found {found}")]
    Wrong { expected: String, found: String },
    #[error("given twice")]
    Twice,
    #[error("{other} is given too, and the oneof {oneof} holds one of them")]
    Oneof { oneof: String, other: String },
    #[error("{path}: {problem}")]
    Inside { path: String, problem: Box<Self> },
    #[error("nested deeper than {}", super::MAX_DEPTH)]
    TooDeep,
}

impl Problem {
    pub(super) fn wrong(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Wrong { expected: expected.into(), found: found.into() }
    }
}

/// A place in text, both counted from 1; the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl Place {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    /// The place that is `text` further on.
    pub(super) fn after(self, text: &[u8]) -> Self {
        let lines = text.iter().filter(|&&byte| byte == b'\n').count() as u64;
        let last = text.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
        // Bytes that continue a UTF-8 sequence are no characters of their own.
        let characters = last.iter().filter(|&&byte| byte & 0xC0 != 0x80).count() as u64;
        let column = if lines == 0 { self.column } else { 1 };
        Self { line: self.line + lines, column: column + characters }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

fn prefix(place: &Option<Place>, path: &str) -> String {
    let mut text = String::new();
    if let Some(place) = place {
        text = format!("{place}: ");
    }
    if !path.is_empty() {
        text.push_str(path);
        text.push_str(": ");
    }
    text
}

fn suggest(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        [one] => format!(", did you mean {one}?"),
        [most @ .., last] => format!(", did you mean {} or {last}?", most.join(", ")),
    }
}

/// What was found wrong in a document, before it is known where the document stands in the input.
#[derive(Debug)]
pub(super) struct Fault {
    /// What [`Node::at`](super::tree::Node) says.
    pub(super) at: u64,
    /// From the inside out, as it is filled on the way back.
    pub(super) path: Vec<Step>,
    pub(super) problem: Problem,
}

#[derive(Debug)]
pub(super) enum Step {
    Field(String),
    Index(usize),
    Key(String),
}

impl Fault {
    pub(super) fn new(at: u64, problem: Problem) -> Self {
        Self { at, path: Vec::new(), problem }
    }

    pub(super) fn within(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    pub(super) fn path(&self) -> String {
        let mut text = String::new();
        for step in self.path.iter().rev() {
            match step {
                Step::Field(name) if text.is_empty() => text.push_str(name),
                Step::Field(name) => text.push_str(&format!(".{name}")),
                Step::Index(index) => text.push_str(&format!("[{index}]")),
                Step::Key(key) => text.push_str(&format!("[{key:?}]")),
            }
        }
        text
    }

    pub(super) fn into_error(self, place: Option<Place>) -> FormatError {
        FormatError::Content { place, path: self.path(), problem: self.problem }
    }
}

/// Up to three of the names that are spelled much like this one, the nearest first.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let plain = |name: &str| -> Vec<char> {
        name.chars().filter(|c| *c != '_' && *c != '-').flat_map(char::to_lowercase).take(64).collect()
    };
    let wanted = plain(name);
    // A third of the letters may be wrong.
    let limit = (wanted.len() / 3).max(1);
    let mut found: Vec<_> = names
        .map(|candidate| {
            let letters = plain(candidate);
            let distance = distance(&wanted, &letters);
            // Who typed the beginning meant it.
            let begun = !wanted.is_empty() && letters.starts_with(&wanted);
            (if begun { distance.min(limit) } else { distance }, candidate)
        })
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// How many letters must be added, removed, replaced or swapped with their neighbour.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}
