//! From text format to a message.

use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value};

use super::SEPARATOR;
use crate::format::error::{Fault, FormatError, Place, Problem, Step};
use crate::format::slot::Slot;
use crate::format::tree::excerpt;
use crate::format::well_known::{self, WellKnown, set};
use crate::format::{MAX_DEPTH, any, scalar};

/// Reads a message, with or without the separator behind it.
pub(in crate::format) fn parse(
    text: &str,
    place: Place,
    descriptor: &MessageDescriptor,
) -> Result<DynamicMessage, FormatError> {
    let text = text.strip_suffix(char::from(SEPARATOR)).unwrap_or(text);
    let mut parser = Parser { text, at: 0 };
    parser.message(descriptor, None, 0).map_err(|fault| {
        let at = usize::try_from(fault.at).unwrap_or(usize::MAX).min(text.len());
        let place = place.after(&text.as_bytes()[..at]);
        fault.into_error(Some(place))
    })
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// The next character that is neither white space nor in a comment.
    fn peek(&mut self) -> Option<char> {
        loop {
            let rest = self.rest().trim_start();
            self.at = self.text.len() - rest.len();
            if !rest.starts_with('#') {
                return rest.chars().next();
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn takes(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn fault(&self, at: usize, problem: Problem) -> Fault {
        Fault::new(at as u64, problem)
    }

    fn wrong(&mut self, expected: impl Into<String>) -> Fault {
        let found = self.peek().map_or_else(|| "the end".into(), |found| format!("{found:?}"));
        self.fault(self.at, Problem::wrong(expected, found))
    }

    /// Letters, digits and what else is in names and numbers.
    fn word(&mut self, also: &[char]) -> &'a str {
        self.peek();
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || also.contains(&c)));
        let word = &rest[..end.unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        close: Option<char>,
        depth: usize,
    ) -> Result<DynamicMessage, Fault> {
        if depth > MAX_DEPTH {
            return Err(self.fault(self.at, Problem::TooDeep));
        }
        let mut message = DynamicMessage::new(descriptor.clone());
        loop {
            match (self.peek(), close) {
                (None, None) => return Ok(message),
                (None, Some(close)) => return Err(self.wrong(format!("a field or {close:?}"))),
                (Some(found), Some(close)) if found == close => {
                    self.at += close.len_utf8();
                    return Ok(message);
                }
                _ => {}
            }
            let start = self.at;
            if self.takes('[') {
                let name = self.bracketed()?;
                if name.contains('/') {
                    self.any(&mut message, &name, start, depth)?;
                } else {
                    self.field(&mut message, &format!("[{name}]"), start, depth)?;
                }
            } else {
                let name = self.word(&[]);
                if name.is_empty() {
                    return Err(self.wrong("the name of a field"));
                }
                self.field(&mut message, name, start, depth)?;
            }
            if !self.takes(',') {
                self.takes(';');
            }
        }
    }

    /// What is before the closing bracket: the name of an extension, or the type URL of an `Any`.
    fn bracketed(&mut self) -> Result<String, Fault> {
        let mut name = String::new();
        loop {
            let word = self.word(&['.', '/', '-', '%', '~']);
            name.push_str(word);
            if self.takes(']') {
                return Ok(name);
            }
            if word.is_empty() {
                return Err(self.wrong("a name and ']'"));
            }
        }
    }

    fn any(&mut self, message: &mut DynamicMessage, url: &str, start: usize, depth: usize) -> Result<(), Fault> {
        let descriptor = message.descriptor();
        let step = || Step::Field(format!("[{url}]"));
        if well_known::well_known(&descriptor) != Some(WellKnown::Any) {
            let problem = Problem::wrong(format!("a field of {}", descriptor.full_name()), "a type");
            return Err(self.fault(start, problem).within(step()));
        }
        if message.fields().next().is_some() {
            return Err(self.fault(start, Problem::Twice).within(step()));
        }
        let payload = any::resolve(&descriptor, url).map_err(|problem| self.fault(start, problem).within(step()))?;
        self.takes(':');
        let inner = self.braced(&payload, depth).map_err(|fault| fault.within(step()))?;
        set(message, 1, Value::String(url.to_owned()));
        let bytes = inner.encode_to_vec();
        if !bytes.is_empty() {
            set(message, 2, Value::Bytes(bytes.into()));
        }
        Ok(())
    }

    fn field(&mut self, message: &mut DynamicMessage, name: &str, start: usize, depth: usize) -> Result<(), Fault> {
        let step = || Step::Field(name.trim_matches(['[', ']']).to_owned());
        let descriptor = message.descriptor();
        let slot = match group(&descriptor, name) {
            Some(slot) => slot,
            None => Slot::find(&descriptor, name).map_err(|problem| self.fault(start, problem).within(step()))?,
        };
        let kind = slot.kind();
        if !self.takes(':') && kind.as_message().is_none() {
            return Err(self.wrong("':'").within(step()));
        }
        if !slot.is_list() && slot.map().is_none() {
            if slot.is_set(message) {
                return Err(self.fault(start, Problem::Twice).within(step()));
            }
            let value = self.value(&kind, depth).map_err(|fault| fault.within(step()))?;
            return slot.set(message, value).map_err(|problem| self.fault(start, problem).within(step()));
        }
        if !self.takes('[') {
            return self.element(message, &slot, depth).map_err(|fault| fault.within(step()));
        }
        if self.takes(']') {
            return Ok(());
        }
        loop {
            self.element(message, &slot, depth).map_err(|fault| fault.within(step()))?;
            if self.takes(']') {
                return Ok(());
            }
            if !self.takes(',') {
                return Err(self.wrong("',' or ']'").within(step()));
            }
        }
    }

    /// One value of a list, or an entry of a map.
    fn element(&mut self, message: &mut DynamicMessage, slot: &Slot, depth: usize) -> Result<(), Fault> {
        self.peek();
        let start = self.at;
        match slot.get_mut(message) {
            Value::List(values) => {
                let index = values.len();
                let value = self.value(&slot.kind(), depth).map_err(|fault| fault.within(Step::Index(index)))?;
                values.push(value);
            }
            Value::Map(map) => {
                let entry = self.value(&slot.kind(), depth)?;
                let fields = entry.as_message().and_then(|entry| {
                    let key = entry.get_field_by_number(1)?.into_owned().into_map_key()?;
                    Some((key, entry.get_field_by_number(2)?.into_owned()))
                });
                let (key, value) = fields.ok_or_else(|| self.wrong("an entry of a map"))?;
                let name = scalar::key_text(&key);
                if map.insert(key, value).is_some() {
                    return Err(self.fault(start, Problem::Twice).within(Step::Key(name)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn braced(&mut self, descriptor: &MessageDescriptor, depth: usize) -> Result<DynamicMessage, Fault> {
        let close = if self.takes('{') {
            '}'
        } else if self.takes('<') {
            '>'
        } else {
            return Err(self.wrong(format!("'{{' ({})", descriptor.full_name())));
        };
        self.message(descriptor, Some(close), depth + 1)
    }

    fn value(&mut self, kind: &Kind, depth: usize) -> Result<Value, Fault> {
        self.peek();
        let start = self.at;
        match kind {
            Kind::Message(descriptor) => return self.braced(descriptor, depth).map(Value::Message),
            Kind::Bytes => return Ok(Value::Bytes(self.strings()?.into())),
            Kind::String => {
                let text = String::from_utf8(self.strings()?);
                let invalid = |_| self.fault(start, Problem::wrong("a string in UTF-8", "other bytes"));
                return text.map(Value::String).map_err(invalid);
            }
            _ => {}
        }
        let negative = self.takes('-');
        self.peek();
        let digits = self.at;
        let word = self.word(&['.']);
        // The sign of an exponent.
        let hexadecimal = word.starts_with("0x") || word.starts_with("0X");
        if word.ends_with(['e', 'E']) && !hexadecimal && self.rest().starts_with(['+', '-']) {
            self.at += 1;
            let rest = self.rest();
            self.at += rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        }
        let word = &self.text[digits..self.at];
        if word.is_empty() {
            return Err(self.wrong(scalar::expected(kind)));
        }
        let text = normal(kind, word).unwrap_or_else(|| word.to_owned());
        let text = if negative { negate(&text) } else { text };
        scalar::parse(kind, &text).map_err(|problem| match problem {
            Problem::Wrong { expected, .. } => {
                let found = excerpt(&self.text[start..self.at]);
                self.fault(start, Problem::wrong(expected, found))
            }
            other => self.fault(start, other),
        })
    }

    /// One string or several in a row, which are one.
    fn strings(&mut self) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        match self.peek() {
            Some('"' | '\'') => {}
            _ => return Err(self.wrong("a string in quotes")),
        }
        while let Some(quote @ ('"' | '\'')) = self.peek() {
            self.at += 1;
            self.string(quote, &mut bytes)?;
        }
        Ok(bytes)
    }

    fn string(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        loop {
            let rest = self.rest();
            let end = rest.find([quote, '\\', '\n']).unwrap_or(rest.len());
            bytes.extend_from_slice(&rest.as_bytes()[..end]);
            self.at += end;
            match self.rest().chars().next() {
                Some('\\') => self.escape(bytes)?,
                Some(found) if found == quote => {
                    self.at += 1;
                    return Ok(());
                }
                _ => {
                    let problem = Problem::wrong(format!("{quote} at the end of the string"), "the end of the line");
                    return Err(self.fault(self.at, problem));
                }
            }
        }
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let rest = &self.rest()[1..];
        let digits =
            |text: &str, most: usize, radix: u32| text.chars().take(most).take_while(|c| c.is_digit(radix)).count();
        let number = |text: &str, radix: u32| u32::from_str_radix(text, radix).ok();
        let letter = rest.chars().next().unwrap_or_default();
        let mut used = 1;
        let known = match letter {
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'a' => Some(7),
            'b' => Some(8),
            'v' => Some(11),
            'f' => Some(12),
            '\\' | '\'' | '"' | '?' => Some(letter as u8),
            '0'..='7' => {
                used = digits(rest, 3, 8);
                number(&rest[..used], 8).and_then(|code| u8::try_from(code).ok())
            }
            'x' | 'X' => {
                used = 1 + digits(&rest[1..], 2, 16);
                number(&rest[1..used], 16).and_then(|code| u8::try_from(code).ok())
            }
            'u' | 'U' => {
                let most = if letter == 'u' { 4 } else { 8 };
                used = 1 + digits(&rest[1..], most, 16);
                let code = number(&rest[1..used], 16).filter(|_| used == 1 + most).and_then(char::from_u32);
                if let Some(code) = code {
                    bytes.extend_from_slice(code.encode_utf8(&mut [0; 4]).as_bytes());
                    self.at += 1 + used;
                    return Ok(());
                }
                None
            }
            _ => None,
        };
        match known {
            Some(byte) => {
                bytes.push(byte);
                self.at += 1 + used;
                Ok(())
            }
            None => {
                let problem = Problem::wrong("an escape sequence", format!("\\{letter}"));
                Err(self.fault(self.at, problem))
            }
        }
    }
}

/// A group by the name of its type, as text format has it.
fn group(descriptor: &MessageDescriptor, name: &str) -> Option<Slot> {
    let field = descriptor.get_field_by_name(&name.to_ascii_lowercase())?;
    let is_it = field.is_group() && field.kind().as_message()?.name() == name;
    is_it.then_some(Slot::Field(field))
}

/// What text format writes in another way than JSON: hexadecimal and octal integers, infinity, booleans.
fn normal(kind: &Kind, word: &str) -> Option<String> {
    match kind {
        Kind::Bool => match word {
            "true" | "True" | "t" | "1" => Some("true".into()),
            "false" | "False" | "f" | "0" => Some("false".into()),
            _ => None,
        },
        Kind::Float | Kind::Double => match word.to_ascii_lowercase().as_str() {
            "inf" | "infinity" => Some("Infinity".into()),
            "nan" => Some("NaN".into()),
            number if number.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
                Some(number.strip_suffix('f').unwrap_or(number).to_owned())
            }
            // Other words are no numbers, also those that JSON has.
            _ => Some(String::new()),
        },
        _ => {
            let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
            let (digits, radix) = match digits {
                Some(digits) => (digits, 16),
                None => (word.strip_prefix('0').filter(|digits| !digits.is_empty())?, 8),
            };
            // A sign is no digit, though the function takes one.
            let plain = digits.chars().all(|c| c.is_digit(radix));
            plain.then(|| u64::from_str_radix(digits, radix).ok())?.map(|number| number.to_string())
        }
    }
}

fn negate(text: &str) -> String {
    match text {
        // It has no sign that anybody could see.
        "NaN" => text.to_owned(),
        _ => format!("-{text}"),
    }
}
