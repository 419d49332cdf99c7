//! What an agent says about itself, beside its id: names and values, and how they travel.
//!
//! They are the query of the path that the agent asks its hub to dial back on: `/grpc-tunnel?region=eu&rack=4`. So
//! they go through the encrypted connection, after authentication, and a stock `ssh -R` can give them too.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What an agent or an authorizer calls an agent's properties: names and values.
pub(crate) type Labels = BTreeMap<String, String>;

/// How many an agent may give itself.
const MAX_LABELS: usize = 32;

/// The longest name, in characters, and the longest value, in bytes.
const MAX_NAME: usize = 64;
const MAX_VALUE: usize = 256;

/// What a value may show on the wire as it is; `:` is not among them, for `ssh -R` splits its argument there.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A label that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidLabel {
    /// The name is not one.
    #[error("`{}` is not a label's name: use 1 to 64 characters of A-Z, a-z, 0-9, `.`, `_`, `-`, `/`", .name.escape_debug())]
    Name {
        /// What was given, cut to 80 characters.
        name: String,
    },
    /// The value cannot be sent.
    #[error("the value of label `{}` is longer than 256 bytes or has control characters", .name.escape_debug())]
    Value {
        /// The label.
        name: String,
    },
    /// There are too many.
    #[error("more than 32 labels")]
    TooMany,
}

pub(crate) fn check(name: &str, value: &str) -> Result<(), InvalidLabel> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        return Err(InvalidLabel::Name { name: name.chars().take(80).collect() });
    }
    if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
        return Err(InvalidLabel::Value { name: name.into() });
    }
    Ok(())
}

/// Adds a label, or replaces the one of that name.
pub(crate) fn add(labels: &mut Labels, name: String, value: String) -> Result<(), InvalidLabel> {
    check(&name, &value)?;
    labels.insert(name, value);
    if labels.len() > MAX_LABELS { Err(InvalidLabel::TooMany) } else { Ok(()) }
}

/// A path with labels behind it.
pub(crate) fn write(path: &str, labels: &Labels) -> String {
    let mut text = path.to_owned();
    for (n, (name, value)) in labels.iter().enumerate() {
        text.push(if n == 0 { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        text.extend(utf8_percent_encode(value, PLAIN));
    }
    text
}

/// The labels behind a path; none if what was asked for is another path.
pub(crate) fn read(text: &str, path: &str) -> Option<Result<Labels, InvalidLabel>> {
    let query = match text.strip_prefix(path)? {
        "" => return Some(Ok(Labels::new())),
        rest => rest.strip_prefix('?')?,
    };
    Some(parse(query))
}

fn parse(query: &str) -> Result<Labels, InvalidLabel> {
    let mut labels = Labels::new();
    for label in query.split('&').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        let value = percent_decode_str(value).decode_utf8();
        let value = value.map_err(|_| InvalidLabel::Value { name: name.chars().take(80).collect() })?;
        add(&mut labels, name.into(), value.into_owned())?;
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/grpc-tunnel";

    fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn labels_arrive_as_they_were_given() {
        let given = labels(&[("region", "eu-1"), ("a/b", "ü & = ? % : /"), ("empty", "")]);
        let text = write(PATH, &given);
        assert!(text.is_ascii() && !text.contains(':'), "{text}");
        assert_eq!(read(&text, PATH), Some(Ok(given)));
        assert_eq!(write(PATH, &Labels::new()), PATH);
        assert_eq!(read(PATH, PATH), Some(Ok(Labels::new())));
    }

    #[test]
    fn other_paths_are_not_taken_for_it() {
        for path in ["", "/grpc-tunnel2", "/grpc-tunnel/", "/other?region=eu", "grpc-tunnel"] {
            assert_eq!(read(path, PATH), None, "{path}");
        }
    }

    #[test]
    fn bad_labels_are_named() {
        let long = format!("?a={}", "x".repeat(257));
        let many: String = (0..33).map(|n| format!("&l{n}=x")).collect();
        let cases = [
            ("?a b=x", InvalidLabel::Name { name: "a b".into() }),
            ("?=x", InvalidLabel::Name { name: String::new() }),
            ("?a=%0A", InvalidLabel::Value { name: "a".into() }),
            ("?a=%ff", InvalidLabel::Value { name: "a".into() }),
            (&*long, InvalidLabel::Value { name: "a".into() }),
            (&*format!("?{many}"), InvalidLabel::TooMany),
        ];
        for (query, error) in cases {
            assert_eq!(read(&format!("{PATH}{query}"), PATH), Some(Err(error)), "{query}");
        }
    }
}
