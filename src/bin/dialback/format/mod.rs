//! Messages as text and back: JSON, lines of JSON, YAML, XML, protobuf's text format, and bytes.
//!
//! | format | several messages in one stream | mapping |
//! |---|---|---|
//! | `json` | one after the other, with white space or without | protojson's, printed as grpcurl does |
//! | `ndjson` | each in a line | the same |
//! | `yaml` | `---` between them | the same |
//! | `xml` | root elements one after the other | [`xml`] |
//! | `text` | the record separator 0x1E between them, as with grpcurl | protobuf's text format |
//! | `binary` | the length of each before it, as a varint | [`binary`] |
//!
//! JSON is protojson's, and strict: some of what grpcurl's own reader takes beyond it is refused, with the place.
//!
//! A message may be 64 MiB and nest 100 deep. All else that is wrong with one is in [`FormatError`].

mod any;
mod binary;
mod error;
mod input;
mod json;
mod lenient;
mod read;
mod sample;
mod scalar;
mod set;
mod slot;
mod terminal;
#[cfg(test)]
mod tests;
mod text;
mod tree;
mod well_known;
mod write;
mod xml;
mod yaml;

use std::fmt;
use std::path::Path;

use prost_reflect::{DynamicMessage, MessageDescriptor};

use self::error::Fault;
pub(crate) use self::error::FormatError;
use self::input::{Cut, Framing, Input};
pub(crate) use self::sample::sample;
pub(crate) use self::set::set;
pub(crate) use self::terminal::{escape, is_safe};

/// The largest message, in bytes of its format.
const MAX_MESSAGE: usize = 64 << 20;
/// How deep objects, lists and elements may nest. What a gRPC library takes is 100 messages, and a list or a map is
/// another level.
const MAX_DEPTH: usize = 200;
/// How many values one message may have, as each takes more memory than text.
const MAX_VALUES: usize = 4 << 20;

/// How messages are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Format {
    /// With an indent of two spaces.
    Json,
    /// Each message in a line.
    Ndjson,
    /// Documents separated by `---`.
    Yaml,
    /// Elements named after the fields.
    Xml,
    /// Protobuf's text format; messages separated by the character 0x1E.
    Text,
    /// Protobuf's binary form, each message after its length as a varint.
    Binary,
}

impl Format {
    /// What a file holds, by the extension of its name.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        Some(match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "json" => Self::Json,
            "ndjson" | "jsonl" => Self::Ndjson,
            "yaml" | "yml" => Self::Yaml,
            "xml" => Self::Xml,
            "txt" | "textproto" | "pbtxt" => Self::Text,
            "bin" | "pb" => Self::Binary,
            _ => return None,
        })
    }
}

/// Writes messages.
#[derive(Debug)]
pub(crate) struct Encoder {
    format: Format,
    emit_defaults: bool,
    terminal: bool,
    first: bool,
}

impl Encoder {
    /// `emit_defaults` writes the fields too that have their default value; the binary format has no such thing.
    pub(crate) fn new(format: Format, emit_defaults: bool) -> Self {
        Self { format, emit_defaults, terminal: false, first: true }
    }

    /// For a terminal: what it would obey is escaped.
    pub(crate) fn for_terminal(self, terminal: bool) -> Self {
        Self { terminal, ..self }
    }

    /// One message, with what separates it from the one before.
    ///
    /// # Errors
    ///
    /// [`FormatError::Unwritable`] for a message that nests too deep.
    pub(crate) fn encode(&mut self, message: &DynamicMessage) -> Result<Vec<u8>, FormatError> {
        let tree = || write::message(message, self.emit_defaults);
        let text = match self.format {
            Format::Json => json::pretty(&tree()?) + "\n",
            Format::Ndjson => json::compact(&tree()?) + "\n",
            Format::Yaml => {
                let tree = tree()?;
                let text =
                    yaml::write(&tree).map_err(|what| FormatError::Unwritable { path: message_name(message), what })?;
                // YAML has escapes in double quotes alone, as JSON has, which is YAML too.
                let plain = !self.terminal || text.chars().all(is_safe);
                let text = if plain { text } else { json::pretty(&tree) + "\n" };
                if self.first { text } else { format!("---\n{text}") }
            }
            Format::Xml => xml::write(message, self.emit_defaults)?,
            Format::Text => {
                let mut text = text::write(message, self.emit_defaults)?;
                // What has no field is a line, too.
                if text.is_empty() {
                    text.push('\n');
                }
                if self.first { text } else { format!("\u{1e}{text}") }
            }
            Format::Binary => return Ok(binary::encode(message)),
        };
        self.first = false;
        let text = if self.terminal { escape(&text, self.format) } else { text };
        Ok(text.into_bytes())
    }
}

fn message_name(message: &DynamicMessage) -> String {
    use prost_reflect::ReflectMessage;
    message.descriptor().full_name().to_owned()
}

/// Reads messages, each as soon as its last byte is there.
///
/// After an error there is nothing more.
pub(crate) struct Decoder {
    format: Format,
    descriptor: MessageDescriptor,
    input: Input,
    framing: Box<dyn Framing + Send>,
    lenient: bool,
    failed: bool,
}

impl fmt::Debug for Decoder {
    /// Without the descriptor, whose `Debug` does not end if the type holds itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, descriptor, failed, .. } = self;
        let descriptor = descriptor.full_name();
        f.debug_struct("Decoder")
            .field("format", format)
            .field("descriptor", &descriptor)
            .field("failed", failed)
            .finish()
    }
}

impl Decoder {
    pub(crate) fn new(format: Format, descriptor: MessageDescriptor) -> Self {
        let framing: Box<dyn Framing + Send> = match format {
            Format::Json => Box::new(json::Values::default()),
            Format::Ndjson => Box::new(json::Lines::default()),
            Format::Yaml => Box::new(yaml::Documents::default()),
            Format::Xml => Box::new(xml::Elements::default()),
            Format::Text => Box::new(text::Records::default()),
            Format::Binary => Box::new(binary::Delimited),
        };
        Self { format, descriptor, input: Input::default(), framing, lenient: false, failed: false }
    }

    /// Passes over the fields of a JSON or YAML document that the schema does not have.
    pub(crate) fn allow_unknown_fields(self, allow: bool) -> Self {
        Self { lenient: allow, ..self }
    }

    /// Takes what came, in pieces of any size.
    pub(crate) fn push(&mut self, data: &[u8]) {
        if !self.failed {
            self.input.push(data);
        }
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the input. Then there is nothing more.
    pub(crate) fn next(&mut self) -> Result<Option<DynamicMessage>, FormatError> {
        self.advance(false)
    }

    /// The next message, when no more input comes. Call it until there is none.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the input, and that it ends within a message.
    pub(crate) fn finish(&mut self) -> Result<Option<DynamicMessage>, FormatError> {
        self.advance(true)
    }

    fn advance(&mut self, last: bool) -> Result<Option<DynamicMessage>, FormatError> {
        if self.failed {
            return Ok(None);
        }
        let result = self.find(last);
        if result.is_err() {
            self.failed = true;
            self.input.clear();
        }
        result
    }

    fn find(&mut self, last: bool) -> Result<Option<DynamicMessage>, FormatError> {
        const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
        loop {
            let rest = self.input.rest();
            if self.input.offset() == 0 && self.format != Format::Binary {
                if rest.starts_with(BYTE_ORDER_MARK) {
                    self.input.take(BYTE_ORDER_MARK.len());
                    self.input.restart();
                    continue;
                }
                if BYTE_ORDER_MARK.starts_with(rest) && !last {
                    return Ok(None);
                }
            }
            let place = self.input.place();
            match self.framing.cut(rest, last) {
                // One that is there is measured as well, so that the size of the pieces makes no difference.
                Cut::More if rest.len() > MAX_MESSAGE => return Err(FormatError::TooLarge { place }),
                Cut::Message(length) if length > MAX_MESSAGE + 10 => return Err(FormatError::TooLarge { place }),
                Cut::More => return Ok(None),
                Cut::Skip(length) => {
                    self.input.take(length);
                }
                Cut::Wrong(at, what) if self.format == Format::Binary => {
                    return Err(FormatError::Binary { offset: self.input.offset() + at as u64, what });
                }
                Cut::Wrong(at, what) => {
                    return Err(FormatError::Syntax { place: place.after(&rest[..at]), what });
                }
                Cut::Message(length) => {
                    let offset = self.input.offset();
                    let frame = self.input.take(length);
                    return self::decode(self.format, frame, place, offset, &self.descriptor, self.lenient).map(Some);
                }
            }
        }
    }
}

fn decode(
    format: Format,
    frame: &[u8],
    place: error::Place,
    offset: u64,
    descriptor: &MessageDescriptor,
    lenient: bool,
) -> Result<DynamicMessage, FormatError> {
    if format == Format::Binary {
        return binary::decode(frame, offset, descriptor);
    }
    let text = input::utf8(frame, place)?;
    let in_text = |fault: Fault| {
        let at = place.after(&frame[..usize::try_from(fault.at).unwrap_or(usize::MAX).min(frame.len())]);
        fault.into_error(Some(at))
    };
    match format {
        Format::Yaml => {
            let mut node = yaml::parse(text, place)?;
            if lenient {
                lenient::prune(&mut node, descriptor);
            }
            read::message(&node, descriptor).map_err(|fault| {
                let at = yaml::place(place, fault.at);
                fault.into_error(Some(at))
            })
        }
        Format::Xml => xml::parse(text, place, descriptor),
        Format::Text => text::parse(text, place, descriptor),
        Format::Json | Format::Ndjson | Format::Binary => {
            let mut node = json::parse(text, place)?;
            if lenient {
                lenient::prune(&mut node, descriptor);
            }
            read::message(&node, descriptor).map_err(in_text)
        }
    }
}
