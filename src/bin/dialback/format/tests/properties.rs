//! What holds for every message and every input.

use proptest::collection::vec;
use proptest::prelude::*;

use super::random::Source;
use super::{decode, decode_pieces, descriptor, encode_bytes, formats, json, kinds};
use crate::format::{Encoder, Format};

/// JSON, YAML, XML, text, bytes, JSON again: the order in which the chain goes.
const CHAIN: [Format; 6] = [Format::Json, Format::Yaml, Format::Xml, Format::Text, Format::Binary, Format::Ndjson];

fn survives_the_chain(name: &str, bytes: &[u8]) -> Result<(), TestCaseError> {
    let descriptor = descriptor(name);
    let original = Source::new(bytes).message(&descriptor, 0);
    let expected = json(&original);
    let mut message = original;
    for format in CHAIN {
        let encoded = encode_bytes(format, &message);
        let shown = || String::from_utf8_lossy(&encoded).into_owned();
        message = decode(format, &descriptor, &encoded)
            .map_err(|error| TestCaseError::fail(format!("{format:?}: {error}\n{}\n{expected}", shown())))?;
        prop_assert_eq!(&json(&message), &expected, "{:?}\n{}", format, shown());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_format_keeps_every_message(bytes in vec(any::<u8>(), 0..600)) {
        survives_the_chain("dialback.kinds.v1.Kinds", &bytes)?;
    }

    #[test]
    fn every_format_keeps_groups_and_extensions(bytes in vec(any::<u8>(), 0..200)) {
        survives_the_chain("dialback.kinds.legacy.Legacy", &bytes)?;
    }

    /// Methods may take and give these themselves.
    #[test]
    fn every_format_keeps_a_well_known_type_at_the_top(which in 0_usize..12, bytes in vec(any::<u8>(), 0..200)) {
        let names = [
            "Any", "Timestamp", "Duration", "FieldMask", "Struct", "Value", "ListValue", "Empty", "DoubleValue",
            "Int64Value", "StringValue", "BytesValue",
        ];
        survives_the_chain(&format!("google.protobuf.{}", names[which]), &bytes)?;
    }

    /// Defaults that are written are read as what they are: nothing.
    #[test]
    fn defaults_change_nothing(bytes in vec(any::<u8>(), 0..200)) {
        let descriptor = descriptor("dialback.kinds.v1.Kinds.Nested");
        let message = Source::new(&bytes).message(&descriptor, 0);
        for &format in formats() {
            let encoded = Encoder::new(format, true).encode(&message).unwrap();
            prop_assert_eq!(json(&decode(format, &descriptor, &encoded).unwrap()), json(&message));
        }
    }

    /// A stream of messages that is cut anywhere is the same stream.
    #[test]
    fn pieces_make_no_difference(
        entropy in vec(vec(any::<u8>(), 0..150), 0..5),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cuts in vec(any::<prop::sample::Index>(), 0..10),
    ) {
        for &format in formats() {
            let mut encoder = Encoder::new(format, false);
            let mut input: Vec<u8> = Vec::new();
            for bytes in &entropy {
                input.extend(encoder.encode(&Source::new(bytes).message(&kinds(), 0)).unwrap());
            }
            for (at, byte) in &damage {
                if !input.is_empty() {
                    let at = at.index(input.len());
                    input[at] = *byte;
                }
            }
            same_in_pieces(format, &input, &cuts, damage.is_empty().then_some(entropy.len()))?;
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(input in vec(any::<u8>(), 0..300), cuts in vec(any::<prop::sample::Index>(), 0..10)) {
        for &format in formats() {
            same_in_pieces(format, &input, &cuts, None)?;
        }
    }

    /// Of the characters that mean something, more come of random input.
    #[test]
    fn any_text_is_read_without_harm(
        input in "([\\[\\]{}<>:,;\"'/?!=&*#|@%`\\\\ \n\t\u{1e}a-f0-9.-]|---|<!--|-->|<a>|</a>|]]>|f_int32|f_string|f_self|\u{e4}){0,80}",
        cuts in vec(any::<prop::sample::Index>(), 0..10),
    ) {
        for &format in formats() {
            same_in_pieces(format, input.as_bytes(), &cuts, None)?;
        }
    }
}

fn same_in_pieces(
    format: Format,
    input: &[u8],
    cuts: &[prop::sample::Index],
    count: Option<usize>,
) -> Result<(), TestCaseError> {
    let whole = decode_pieces(format, &kinds(), [input]);
    let single = decode_pieces(format, &kinds(), input.chunks(1));
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(input.len() + 1)).chain([0, input.len()]).collect();
    ends.sort_unstable();
    let pieces = decode_pieces(format, &kinds(), ends.windows(2).map(|ends| &input[ends[0]..ends[1]]));
    for other in [single, pieces] {
        prop_assert_eq!(&other.1, &whole.1, "{:?}", format);
        prop_assert_eq!(
            other.0.iter().map(json).collect::<Vec<_>>(),
            whole.0.iter().map(json).collect::<Vec<_>>(),
            "{:?}",
            format
        );
    }
    if let Some(count) = count {
        // In text format no input at all is an empty message, as with grpcurl.
        let expected = if format == Format::Text { count.max(1) } else { count };
        prop_assert_eq!(whole.1, None, "{:?}", format);
        prop_assert_eq!(whole.0.len(), expected, "{:?}", format);
    }
    Ok(())
}
