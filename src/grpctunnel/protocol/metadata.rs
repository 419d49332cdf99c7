//! A call's metadata, in the tunnel and in HTTP/2.
//!
//! In the tunnel a value is text, and one whose name ends in `-bin` is the bytes themselves and not base64. Bytes that are
//! no UTF-8 cannot be said: other libraries that try lose their tunnel. Here that call fails, and the error names the key.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::grpctunnel::proto::{Metadata, metadata::Values};
use crate::http2::strip_hop_by_hop;

/// gRPC writes base64 without padding and reads both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What HTTP/2 counts for each entry beside its text (RFC 9113 §6.5.2).
const ENTRY: usize = 32;

/// What a text takes beside its bytes, in a vector that has grown; and what a key takes with its place in the map and its vector.
const TEXT: usize = 64;
const KEY: usize = 192;

/// What belongs to the transport or to gRPC itself, and never to a call in a tunnel. Coming out of one, `grpc-encoding`
/// would have messages decompressed that are not compressed, and `grpc-status` would end calls that go on.
const RESERVED: [&str; 17] = [
    "connection",
    "content-length",
    "content-type",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-message",
    "grpc-message-type",
    "grpc-status",
    "grpc-status-details-bin",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// Metadata that cannot be said on the other side. It is the call's fault, and not the tunnel's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum MetadataError {
    #[error("the value of `{key}` is not UTF-8, and grpctunnel.v1 carries nothing else")]
    NotUtf8 { key: String },
    #[error("the value of `{key}` is not base64")]
    NotBase64 { key: String },
    #[error("`{}` is not the name of a header", .key.escape_debug())]
    Key { key: String },
    #[error("the value of `{key}` is not the value of a header")]
    Value { key: String },
    #[error("more entries than HTTP/2 has room for")]
    TooMany,
}

/// The metadata of request or response headers, or of trailers. Pseudo, transport and hop-by-hop headers and gRPC's own
/// stay behind; `grpc-timeout` does not.
pub(crate) fn from_headers(mut headers: HeaderMap) -> Result<Metadata, MetadataError> {
    strip_hop_by_hop(&mut headers);
    let mut metadata = Metadata::default();
    let mut name = None;
    for (next, value) in headers {
        // The second value of a name and those that follow come without it.
        name = next.or(name);
        let Some(name) = name.as_ref().filter(|name| !is_reserved(name.as_str())) else { continue };
        let key = name.as_str();
        let values = &mut metadata.md.entry(key.to_owned()).or_default().val;
        if key.ends_with("-bin") {
            // Whoever joins the values of a name does so with a comma, which base64 does not have.
            for part in value.as_bytes().split(|b| *b == b',') {
                let bytes =
                    BASE64.decode(part.trim_ascii()).map_err(|_| MetadataError::NotBase64 { key: key.to_owned() })?;
                values.push(text(key, bytes)?);
            }
        } else {
            values.push(text(key, value.as_bytes().to_vec())?);
        }
    }
    Ok(metadata)
}

/// The request or response headers that these metadata are. What [`from_headers`] leaves behind is left out here, too,
/// whatever the peer says. What is no header is an error: a handler that looked for it in vain would decide on less than
/// its caller said.
pub(crate) fn into_headers(metadata: Metadata) -> Result<HeaderMap, MetadataError> {
    let mut headers = HeaderMap::new();
    for (key, values) in metadata.md {
        add(&mut headers, key, values)?;
    }
    Ok(headers)
}

/// The trailers that these metadata are. What is no header is left out: the status that they come with matters more.
pub(crate) fn into_trailers(metadata: Metadata) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for (key, values) in metadata.md {
        let _ = add(&mut trailers, key, values); // left out
    }
    trailers
}

/// What these metadata cost, as HTTP/2 counts it.
pub(super) fn size(metadata: &Metadata) -> usize {
    let sizes = metadata.md.iter().map(|(key, values)| {
        values.val.iter().map(|value| value.len() + key.len() + ENTRY).sum::<usize>().max(key.len() + ENTRY)
    });
    sizes.fold(0, usize::saturating_add)
}

/// What these metadata take of memory, rounded up.
pub(super) fn memory(metadata: &Metadata) -> usize {
    let text = |text: &String| TEXT + text.len();
    metadata.md.iter().map(|(key, values)| KEY + text(key) + values.val.iter().map(text).sum::<usize>()).sum()
}

fn is_reserved(name: &str) -> bool {
    name.starts_with(':') || RESERVED.binary_search(&name).is_ok()
}

fn text(key: &str, bytes: Vec<u8>) -> Result<String, MetadataError> {
    String::from_utf8(bytes).map_err(|_| MetadataError::NotUtf8 { key: key.to_owned() })
}

fn add(headers: &mut HeaderMap, mut key: String, values: Values) -> Result<(), MetadataError> {
    key.make_ascii_lowercase();
    if is_reserved(&key) {
        return Ok(());
    }
    let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else { return Err(MetadataError::Key { key }) };
    let binary = key.ends_with("-bin");
    for value in values.val {
        let text = if binary { BASE64.encode(value) } else { value };
        let Ok(value) = HeaderValue::try_from(text) else { return Err(MetadataError::Value { key }) };
        headers.try_append(name.clone(), value).map_err(|_| MetadataError::TooMany)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
