//! JSON, written with an indent of two spaces or in one line, and read from a stream of values or lines.

use super::error::{FormatError, Place};
use super::input::{Cut, Framing};
use super::tree::{Data, Key, Node};
use super::{MAX_DEPTH, MAX_VALUES};

/// JSON values one after the other, with white space between them or without.
#[derive(Debug, Default)]
pub(super) struct Values {
    seen: usize,
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Framing for Values {
    fn cut(&mut self, rest: &[u8], last: bool) -> Cut {
        if self.seen == 0 {
            let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            if blank > 0 {
                return Cut::Skip(blank);
            }
        }
        match rest.first() {
            None => Cut::More,
            Some(b'{' | b'[' | b'"') => self.nested(rest, last),
            Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'-' => self.bare(rest, last),
            Some(byte) => Cut::Wrong(0, format!("expected a JSON value, found {:?}", char::from(*byte))),
        }
    }
}

impl Values {
    fn nested(&mut self, rest: &[u8], last: bool) -> Cut {
        for (at, &byte) in rest.iter().enumerate().skip(self.seen) {
            if self.escaped {
                self.escaped = false;
            } else if self.string {
                match byte {
                    b'"' => self.string = false,
                    b'\\' => self.escaped = true,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => self.string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth -= 1,
                    _ => {}
                }
            }
            if self.depth == 0 && !self.string {
                *self = Self::default();
                return Cut::Message(at + 1);
            }
        }
        self.seen = rest.len();
        // What is missing the parser says.
        if last { Cut::Message(rest.len()) } else { Cut::More }
    }

    /// A number, or a word as `true`.
    fn bare(&mut self, rest: &[u8], last: bool) -> Cut {
        let belongs = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._".contains(byte);
        match rest[self.seen..].iter().position(|byte| !belongs(byte)) {
            Some(length) => Cut::Message(std::mem::take(&mut self.seen) + length),
            None if last => Cut::Message(rest.len()),
            None => {
                self.seen = rest.len();
                Cut::More
            }
        }
    }
}

/// A value in each line. Empty lines are nothing.
#[derive(Debug, Default)]
pub(super) struct Lines {
    seen: usize,
}

impl Framing for Lines {
    fn cut(&mut self, rest: &[u8], last: bool) -> Cut {
        let end = match rest[self.seen..].iter().position(|&byte| byte == b'\n') {
            Some(length) => self.seen + length + 1,
            None if last && !rest.is_empty() => rest.len(),
            None => {
                self.seen = rest.len();
                return Cut::More;
            }
        };
        self.seen = 0;
        if rest[..end].trim_ascii().is_empty() { Cut::Skip(end) } else { Cut::Message(end) }
    }
}

/// Reads one value, with nothing but white space around it. [`Node::at`] is an offset in `text`.
pub(super) fn parse(text: &str, place: Place) -> Result<Node, FormatError> {
    let mut parser = Parser { text, at: 0, values: 0 };
    let parsed = parser.value(0).and_then(|node| {
        parser.blank();
        if parser.at < text.len() { Err(parser.wrong("the end of the value")) } else { Ok(node) }
    });
    parsed.map_err(|what| FormatError::Syntax { place: place.after(&text.as_bytes()[..parser.at]), what })
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    values: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blank(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn wrong(&self, expected: &str) -> String {
        match self.text.get(self.at..).and_then(|rest| rest.chars().next()) {
            Some(found) => format!("expected {expected}, found {found:?}"),
            None => format!("expected {expected}, found the end"),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node, String> {
        self.blank();
        self.values += 1;
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        if self.values > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values in one message"));
        }
        let at = self.at as u64;
        let data = match self.peek() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Data::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        };
        Ok(Node { at, data, literal: None })
    }

    fn word(&mut self) -> Result<Data, String> {
        for (word, data) in [("null", Data::Null), ("true", Data::Bool(true)), ("false", Data::Bool(false))] {
            let rest = &self.text[self.at..];
            let longer = |next: Option<char>| next.is_some_and(|next| next.is_alphanumeric() || next == '_');
            if rest.strip_prefix(word).is_some_and(|after| !longer(after.chars().next())) {
                self.at += word.len();
                return Ok(data);
            }
        }
        Err(self.wrong("a JSON value"))
    }

    fn map(&mut self, depth: usize) -> Result<Data, String> {
        self.at += 1;
        let mut entries = Vec::new();
        self.blank();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Data::Map(entries));
        }
        loop {
            self.blank();
            if self.peek() != Some(b'"') {
                return Err(self.wrong("a name in double quotes"));
            }
            let at = self.at as u64;
            let name = self.string()?;
            self.blank();
            if self.peek() != Some(b':') {
                return Err(self.wrong("':' after the name"));
            }
            self.at += 1;
            entries.push((Key { at, name }, self.value(depth + 1)?));
            if !self.goes_on(b'}', "',' or '}'")? {
                return Ok(Data::Map(entries));
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Data, String> {
        self.at += 1;
        let mut nodes = Vec::new();
        self.blank();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Data::List(nodes));
        }
        loop {
            nodes.push(self.value(depth + 1)?);
            if !self.goes_on(b']', "',' or ']'")? {
                return Ok(Data::List(nodes));
            }
        }
    }

    fn goes_on(&mut self, end: u8, expected: &str) -> Result<bool, String> {
        self.blank();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == end => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.wrong(expected)),
        }
    }

    /// RFC 8259, section 6.
    fn number(&mut self) -> Result<Data, String> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        if self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'.') {
            return Err(self.wrong("the end of the number"));
        }
        Ok(Data::Number(self.text[start..self.at].to_owned()))
    }

    fn digits(&mut self) -> Result<(), String> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { Err(self.wrong("a digit")) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ').unwrap_or(rest.len());
            text.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                Some(_) => return Err("a control character in a string must be escaped".into()),
                None => return Err(self.wrong("'\"' at the end of the string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let letter = self.text.as_bytes().get(self.at + 1).copied();
        let plain = match letter {
            Some(b'"' | b'\\' | b'/') => char::from(letter.unwrap_or_default()),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err("unknown escape sequence".into()),
        };
        self.at += 2;
        Ok(plain)
    }

    /// `\u00e4`, or two of them where the character is beyond U+FFFF.
    fn unicode(&mut self) -> Result<char, String> {
        let high = self.unit(self.at).ok_or("expected four hexadecimal digits after \\u")?;
        let (code, length) = match high {
            0xD800..=0xDBFF => match self.unit(self.at + 6) {
                Some(low @ 0xDC00..=0xDFFF) => (0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00), 12),
                _ => return Err("half of a surrogate pair".into()),
            },
            _ => (high, 6),
        };
        let found = char::from_u32(code).ok_or("half of a surrogate pair")?;
        self.at += length;
        Ok(found)
    }

    fn unit(&self, at: usize) -> Option<u32> {
        let digits = self.text.get(at..at + 6)?.strip_prefix("\\u")?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| u32::from_str_radix(digits, 16).ok())?
    }
}

/// With an indent of two spaces, as grpcurl does.
pub(super) fn pretty(node: &Node) -> String {
    let mut text = String::new();
    write(&mut text, node, Some(0));
    text
}

/// In one line, without spaces.
pub(super) fn compact(node: &Node) -> String {
    let mut text = String::new();
    write(&mut text, node, None);
    text
}

fn write(text: &mut String, node: &Node, indent: Option<usize>) {
    match &node.data {
        Data::Null => text.push_str("null"),
        Data::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Data::Number(number) => text.push_str(number),
        Data::String(string) => quote(text, string),
        Data::List(nodes) => {
            text.push('[');
            for (index, node) in nodes.iter().enumerate() {
                separate(text, index, indent);
                write(text, node, indent.map(|indent| indent + 1));
            }
            close(text, nodes.is_empty(), indent, ']');
        }
        Data::Map(entries) => {
            text.push('{');
            for (index, (key, node)) in entries.iter().enumerate() {
                separate(text, index, indent);
                quote(text, &key.name);
                text.push_str(if indent.is_some() { ": " } else { ":" });
                write(text, node, indent.map(|indent| indent + 1));
            }
            close(text, entries.is_empty(), indent, '}');
        }
    }
}

fn separate(text: &mut String, index: usize, indent: Option<usize>) {
    if index > 0 {
        text.push(',');
    }
    if let Some(indent) = indent {
        new_line(text, indent + 1);
    }
}

fn close(text: &mut String, empty: bool, indent: Option<usize>, bracket: char) {
    if let Some(indent) = indent.filter(|_| !empty) {
        new_line(text, indent);
    }
    text.push(bracket);
}

fn new_line(text: &mut String, indent: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", indent));
}

/// With the escapes of Go's `encoding/json`, which are safe inside of HTML and JavaScript too.
fn quote(text: &mut String, string: &str) {
    text.push('"');
    for letter in string.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\0'..' ' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text.push_str(&format!("\\u{:04x}", letter as u32))
            }
            _ => text.push(letter),
        }
    }
    text.push('"');
}
