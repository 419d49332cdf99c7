//! Messages on a terminal.

use super::{Format, decode, formats, json, kinds, read};
use crate::format::{Encoder, is_safe};

/// Escape, control sequence introducers of both kinds, a bell, delete, characters that turn the direction, and neighbours.
const DANGEROUS: &str =
    "a\u{1b}[2J\u{9b}31m\u{7}\u{7f}\u{80}\u{85}\u{9f}\u{a0}\u{202e}\u{2066}\u{200f}\r\n\tb: \u{1f600}";

#[test]
fn what_a_terminal_would_obey_is_escaped_and_read_back() {
    let text = serde_json::Value::from(DANGEROUS);
    let mut map = serde_json::Map::new();
    map.insert(DANGEROUS.into(), text.clone());
    let any = serde_json::json!({ "@type": "type.googleapis.com/dialback.kinds.v1.Kinds.Nested", "text": text });
    let all = serde_json::json!({
        "fString": text, "rString": ["\u{9b}", "one\ntwo\u{9b}\nthree\n", "x\u{7f}"], "mText": map,
        "wStruct": map, "wValue": text, "wString": text, "wAny": any,
    });
    let message = read(Format::Json, &all.to_string());
    for &format in formats().iter().filter(|format| **format != Format::Binary) {
        let mut encoder = Encoder::new(format, false).for_terminal(true);
        let written = String::from_utf8(encoder.encode(&message).unwrap()).unwrap();
        assert!(written.chars().all(is_safe), "{format:?}: {written:?}");
        assert_eq!(json(&decode(format, &kinds(), &written).unwrap()), json(&message), "{format:?}: {written}");
    }
}

#[test]
fn what_a_terminal_does_not_obey_is_written_as_elsewhere() {
    let message = read(Format::Json, r#"{"fString": "a\u00e4\n\"<\ud83d\ude00", "rString": ["b", "no"], "fInt32": 1}"#);
    for &format in formats() {
        let elsewhere = Encoder::new(format, false).encode(&message).unwrap();
        assert_eq!(Encoder::new(format, false).for_terminal(true).encode(&message).unwrap(), elsewhere, "{format:?}");
    }
}
