//! What JSON and YAML have in common: a document as a tree, whose scalars keep their text.

/// A value, and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// A byte offset or a line and column, as the format likes; only it reads it.
    pub(super) at: u64,
    pub(super) data: Data,
    /// What a YAML scalar without quotes says literally, as it may be meant as a string: `1.10`, `0x1`, `true`.
    pub(super) literal: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Data {
    Null,
    Bool(bool),
    /// A number as it is written, so that no digit is lost.
    Number(String),
    String(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) at: u64,
    pub(super) name: String,
}

impl From<Data> for Node {
    fn from(data: Data) -> Self {
        Self { at: 0, data, literal: None }
    }
}

impl Node {
    pub(super) fn string(text: impl Into<String>) -> Self {
        Data::String(text.into()).into()
    }

    pub(super) fn number(text: impl ToString) -> Self {
        Data::Number(text.to_string()).into()
    }
}

impl Data {
    /// For "expected a string, found ...".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bool(value) => value.to_string(),
            Self::Number(text) => format!("the number {}", excerpt(text)),
            Self::String(text) => format!("the string {:?}", excerpt(text)),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "an object".into(),
        }
    }
}

/// The beginning of a text that may be long.
pub(super) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Adds a field to the map that is being written.
pub(super) fn entry(name: impl Into<String>, node: Node) -> (Key, Node) {
    (Key { at: 0, name: name.into() }, node)
}
