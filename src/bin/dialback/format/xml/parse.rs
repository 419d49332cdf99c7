//! XML as a tree of elements, and where each root element ends.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use crate::format::input::{Cut, Framing};
use crate::format::{MAX_DEPTH, MAX_VALUES};

/// Root elements one after the other.
#[derive(Debug, Default)]
pub(in crate::format) struct Elements {
    /// Where the piece of markup or text began that is being looked at.
    token: usize,
    seen: usize,
    depth: usize,
    state: State,
    quote: Option<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Text,
    Tag,
    Comment,
    CData,
    Instruction,
}

impl Framing for Elements {
    fn cut(&mut self, rest: &[u8], last: bool) -> Cut {
        loop {
            match self.step(rest) {
                Some(Cut::More) => {}
                Some(cut) => {
                    if matches!(cut, Cut::Skip(_) | Cut::Message(_)) {
                        *self = Self::default();
                    }
                    return cut;
                }
                // What is missing the parser says.
                None if last && !rest.is_empty() => {
                    *self = Self::default();
                    return if rest.trim_ascii().is_empty() { Cut::Skip(rest.len()) } else { Cut::Message(rest.len()) };
                }
                None => return Cut::More,
            }
        }
    }
}

impl Elements {
    /// One piece of markup or text, or `None` if its end is not there.
    fn step(&mut self, rest: &[u8]) -> Option<Cut> {
        let terminator: &[u8] = match self.state {
            State::Text => return self.text(rest),
            State::Tag => return self.tag(rest),
            State::Comment => b"-->",
            State::CData => b"]]>",
            State::Instruction => b"?>",
        };
        let from = self.seen;
        match rest[from..].windows(terminator.len()).position(|window| window == terminator) {
            Some(length) => Some(self.done(from + length + terminator.len())),
            None => {
                // The terminator may have begun.
                self.seen = (rest.len() + 1).saturating_sub(terminator.len()).max(from);
                None
            }
        }
    }

    fn done(&mut self, end: usize) -> Cut {
        (self.token, self.seen, self.state) = (end, end, State::Text);
        if self.depth == 0 { Cut::Skip(end) } else { Cut::More }
    }

    fn text(&mut self, rest: &[u8]) -> Option<Cut> {
        let next = rest[self.seen..].iter().position(|&byte| byte == b'<').map(|length| self.seen + length);
        let until = next.unwrap_or(rest.len());
        if self.depth == 0 {
            // Between the roots nothing is kept, so this is the beginning of what is there.
            if let Some(at) = rest[..until].iter().position(|byte| !byte.is_ascii_whitespace()) {
                return Some(Cut::Wrong(at, "expected an element, found text".into()));
            }
            if until > 0 {
                return Some(Cut::Skip(until));
            }
        }
        self.seen = until;
        let start = next?;
        let markup = &rest[start..];
        for (opening, state) in
            [(&b"<!--"[..], State::Comment), (b"<![CDATA[", State::CData), (b"<?", State::Instruction)]
        {
            if markup.starts_with(opening) {
                if state == State::CData && self.depth == 0 {
                    return Some(Cut::Wrong(start, "expected an element, found CDATA".into()));
                }
                (self.token, self.seen, self.state) = (start, start + opening.len(), state);
                return Some(Cut::More);
            }
            if opening.starts_with(markup) {
                return None;
            }
        }
        if markup.starts_with(b"<!") {
            return Some(Cut::Wrong(start, "document types are not read".into()));
        }
        if markup.starts_with(b"</") && self.depth == 0 {
            return Some(Cut::Wrong(start, "an end tag without a start tag".into()));
        }
        (self.token, self.seen, self.state) = (start, start + 1, State::Tag);
        Some(Cut::More)
    }

    fn tag(&mut self, rest: &[u8]) -> Option<Cut> {
        for (at, &byte) in rest.iter().enumerate().skip(self.seen) {
            match (self.quote, byte) {
                (Some(quote), _) if quote == byte => self.quote = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => self.quote = Some(byte),
                (None, b'>') => {
                    let tag = &rest[self.token..at];
                    match tag {
                        [b'<', b'/', ..] => self.depth -= 1,
                        [.., b'/'] => {}
                        _ => self.depth += 1,
                    }
                    let end = at + 1;
                    (self.token, self.seen, self.state) = (end, end, State::Text);
                    return Some(if self.depth == 0 { Cut::Message(end) } else { Cut::More });
                }
                (None, _) => {}
            }
        }
        self.seen = rest.len();
        None
    }
}

/// An element with everything in it.
#[derive(Debug, Default)]
pub(super) struct Element {
    /// Offset of the start tag.
    pub(super) at: usize,
    pub(super) name: String,
    pub(super) attributes: Vec<(String, String)>,
    pub(super) children: Vec<Self>,
    /// All text that is directly in it.
    pub(super) text: String,
}

impl Element {
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The one root element of a text, or what is wrong and at which byte.
pub(super) fn parse(text: &str) -> Result<Element, (usize, String)> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut count = 0;
    loop {
        let at = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        let event = reader
            .read_event()
            .map_err(|error| (usize::try_from(reader.error_position()).unwrap_or(at), error.to_string()))?;
        let wrong = |what: &str| (at, what.to_owned());
        match event {
            Event::Start(_) | Event::Empty(_) if count == MAX_VALUES => {
                return Err((at, format!("more than {MAX_VALUES} elements in one message")));
            }
            Event::Start(_) if open.len() >= MAX_DEPTH => return Err((at, format!("nested deeper than {MAX_DEPTH}"))),
            Event::Start(start) => {
                count += 1;
                open.push(element(&start, at)?);
            }
            Event::Empty(start) => {
                count += 1;
                let element = element(&start, at)?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Ok(element),
                }
            }
            Event::End(_) => {
                let closed = open.pop().ok_or_else(|| wrong("an end tag without a start tag"))?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(closed),
                    None => return Ok(closed),
                }
            }
            Event::Text(piece) => {
                if let Some(parent) = open.last_mut() {
                    parent.text.push_str(&piece.xml10_content());
                }
            }
            Event::CData(piece) => {
                if let Some(parent) = open.last_mut() {
                    parent.text.push_str(&piece.xml10_content());
                }
            }
            Event::GeneralRef(reference) => {
                let letter = match reference.resolve_char_ref() {
                    Ok(Some(letter)) => letter,
                    Ok(None) => match &*reference.xml10_content() {
                        "lt" => '<',
                        "gt" => '>',
                        "amp" => '&',
                        "quot" => '"',
                        "apos" => '\'',
                        name => return Err((at, format!("the entity &{name}; is not known"))),
                    },
                    Err(error) => return Err((at, error.to_string())),
                };
                if let Some(parent) = open.last_mut() {
                    parent.text.push(letter);
                }
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::DocType(_) => return Err(wrong("document types are not read")),
            Event::Eof => {
                return Err(match open.last() {
                    Some(element) => (text.len(), format!("the element <{}> is not closed", element.name)),
                    None => wrong("expected an element"),
                });
            }
        }
    }
}

fn element(start: &BytesStart<'_>, at: usize) -> Result<Element, (usize, String)> {
    /// More than any element here has. Each is compared with those before it.
    const MOST: usize = 16;
    let mut attributes: Vec<(String, String)> = Vec::new();
    for attribute in start.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| {
            let text = error.to_string();
            // Its position is in the tag.
            let what = text.strip_prefix("position ").and_then(|rest| rest.split_once(": "));
            (at, what.map_or(text.as_str(), |(_, what)| what).to_owned())
        })?;
        let key = attribute.key.as_ref();
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| (at, error.to_string()))?;
        if attributes.len() == MOST {
            return Err((at, format!("more than {MOST} attributes")));
        }
        if attributes.iter().any(|(other, _)| other == key) {
            return Err((at, format!("the attribute {key} is given twice")));
        }
        attributes.push((key.to_owned(), value.into_owned()));
    }
    Ok(Element { at, name: start.name().as_ref().to_owned(), attributes, ..Element::default() })
}
