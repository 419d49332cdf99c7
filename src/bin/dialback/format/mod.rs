//! JSON alone, until the formats are there.

use std::path::Path;

use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Format {
    Json,
    Binary,
}

impl Format {
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        (path.extension()? == "json").then_some(Self::Json)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct FormatError(String);

pub(crate) struct Encoder {
    defaults: bool,
}

impl Encoder {
    pub(crate) fn new(_format: Format, defaults: bool) -> Self {
        Self { defaults }
    }

    pub(crate) fn encode(&mut self, message: &DynamicMessage) -> Result<Vec<u8>, FormatError> {
        let options = SerializeOptions::new().skip_default_fields(!self.defaults);
        let mut out = Vec::new();
        let mut json = serde_json::Serializer::pretty(&mut out);
        message.serialize_with_options(&mut json, &options).map_err(|e| FormatError(e.to_string()))?;
        out.push(b'\n');
        Ok(out)
    }
}

pub(crate) struct Decoder {
    descriptor: MessageDescriptor,
    data: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new(_format: Format, descriptor: MessageDescriptor) -> Self {
        Self { descriptor, data: Vec::new() }
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        self.data.extend_from_slice(data);
    }

    pub(crate) fn next(&mut self) -> Result<Option<DynamicMessage>, FormatError> {
        let mut values = serde_json::Deserializer::from_slice(&self.data).into_iter::<serde_json::Value>();
        let value = match values.next() {
            None => return Ok(None),
            Some(Err(error)) if error.is_eof() => return Ok(None),
            Some(value) => value.map_err(|e| FormatError(e.to_string()))?,
        };
        let used = values.byte_offset();
        self.data.drain(..used);
        let message =
            DynamicMessage::deserialize_with_options(self.descriptor.clone(), value, &DeserializeOptions::new());
        message.map(Some).map_err(|e| FormatError(e.to_string()))
    }

    pub(crate) fn finish(&mut self) -> Result<Option<DynamicMessage>, FormatError> {
        let next = self.next()?;
        if next.is_none() && !self.data.trim_ascii().is_empty() {
            return Err(FormatError("the JSON ends too early".into()));
        }
        Ok(next)
    }
}

pub(crate) fn sample(descriptor: &MessageDescriptor, format: Format) -> Result<Vec<u8>, FormatError> {
    Encoder::new(format, true).encode(&DynamicMessage::new(descriptor.clone()))
}

pub(crate) fn set(message: &mut DynamicMessage, assignment: &str) -> Result<(), FormatError> {
    let (name, value) = assignment.split_once('=').ok_or_else(|| FormatError("no =".into()))?;
    message
        .try_set_field_by_name(name, prost_reflect::Value::String(value.into()))
        .map_err(|e| FormatError(e.to_string()))
}
