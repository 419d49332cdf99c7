//! Messages come out as soon as they are there, and what is too large or too deep does not come in.

use std::time::{Duration, Instant};

use super::{Decoder, Encoder, Format, FormatError, decode, decode_all, decode_pieces, formats, json, kinds, read};
use crate::format::MAX_MESSAGE;

/// What has come out after each piece.
fn counts(format: Format, pieces: &[&str]) -> Vec<usize> {
    let mut decoder = Decoder::new(format, kinds());
    let count = |decoder: &mut Decoder| std::iter::from_fn(|| decoder.next().unwrap()).count();
    let mut counts: Vec<_> = pieces
        .iter()
        .map(|piece| {
            decoder.push(piece.as_bytes());
            count(&mut decoder)
        })
        .collect();
    counts.push(std::iter::from_fn(|| decoder.finish().unwrap()).count());
    counts
}

#[test]
fn a_message_comes_with_its_last_byte() {
    assert_eq!(counts(Format::Json, &["{\"fInt32\":1", "}", "{}{}", "\n{", "}"]), [0, 1, 2, 0, 1, 0]);
    assert_eq!(counts(Format::Ndjson, &["{}", "\n{}\n\n", "{}"]), [0, 2, 0, 1]);
    assert_eq!(
        counts(Format::Yaml, &["f_int32: 1\n", "--", "-\n", "f_int32: 2\n", "...\n", "{}\n"]),
        [0, 0, 1, 0, 1, 0, 1]
    );
    let xml = ["<Kinds>", "</Kinds", ">", "<Kinds/><Kinds", "/>\n"];
    assert_eq!(counts(Format::Xml, &xml), [0, 0, 1, 1, 1, 0]);
    assert_eq!(counts(Format::Text, &["f_int32: 1", "\u{1e}f_int32: 2\u{1e}", "\n"]), [0, 2, 0, 1]);
    assert_eq!(counts(Format::Binary, &["\u{2}\u{18}", "\u{1}\u{0}", "\u{0}"]), [0, 2, 1, 0]);
}

#[test]
fn nothing_is_no_message() {
    for (format, inputs) in [
        (Format::Json, &["", " \n\t", "\u{feff}"][..]),
        (Format::Ndjson, &["", "\n\r\n\n"]),
        (Format::Yaml, &["", "\n", "---\n", "# nothing\n---\n\n---\n# more\n...\n", "%YAML 1.2\n---\n"]),
        (Format::Xml, &["", " \n", "<?xml version=\"1.0\"?>\n<!-- nothing > -->\n"]),
        (Format::Binary, &[""]),
    ] {
        for input in inputs {
            assert_eq!(decode_all(format, &kinds(), input.as_bytes()).unwrap().len(), 0, "{format:?} {input:?}");
        }
    }
}

/// As with grpcurl.
#[test]
fn text_without_anything_is_an_empty_message() {
    for (input, count) in [("", 1), ("\u{1e}", 2), ("f_int32: 1\u{1e}", 2), ("\u{1e}\u{1e}# nothing", 3)] {
        assert_eq!(decode_all(Format::Text, &kinds(), input.as_bytes()).unwrap().len(), count, "{input:?}");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    for (format, input) in [
        (Format::Json, "\u{feff}{\"fInt32\": x}"),
        (Format::Yaml, "\u{feff}f_int32: [}\n"),
        (Format::Xml, "\u{feff}<Kinds>&x;</Kinds>"),
        (Format::Text, "\u{feff}f_int32: x"),
    ] {
        let (messages, error) = decode_pieces(format, &kinds(), input.as_bytes().chunks(1));
        assert!(messages.is_empty());
        let error = error.unwrap().to_string();
        let column = error.strip_prefix("line 1, column ").and_then(|rest| rest.split(':').next()).unwrap();
        assert!((8..=13).contains(&column.parse::<usize>().unwrap()), "{error}");
    }
}

#[test]
fn a_place_is_counted_from_the_beginning_of_the_stream() {
    let (messages, error) = decode_pieces(Format::Json, &kinds(), [&b"{}\n{}\n  {\"f_int32\":\n \"x\"}"[..]]);
    assert_eq!(messages.len(), 2);
    assert!(error.unwrap().to_string().starts_with("line 4, column 2: f_int32: "));
    let (messages, error) =
        decode_pieces(Format::Yaml, &kinds(), [&b"f_int32: 1\n---\nf_int32: 2\n---\n\nf_int32: x\n"[..]]);
    assert_eq!(messages.len(), 2);
    assert!(error.unwrap().to_string().starts_with("line 6, column 10: f_int32: "));
}

#[test]
fn after_an_error_there_is_nothing() {
    let mut decoder = Decoder::new(Format::Json, kinds());
    decoder.push(b"{]{}");
    assert!(decoder.next().is_err());
    decoder.push(b"{}");
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.finish(), Ok(None));
}

#[test]
fn an_input_that_ends_in_a_message_is_an_error() {
    for (format, input) in [
        (Format::Json, "{\"fString\": \"x"),
        (Format::Yaml, "f_string: \"x"),
        (Format::Xml, "<Kinds><f_string>x"),
        (Format::Text, "f_nested { text: \"x\""),
        (Format::Binary, "\u{3}\u{18}"),
        (Format::Binary, "\u{7f}"),
    ] {
        assert!(decode(format, &kinds(), input).is_err(), "{format:?}");
    }
}

#[test]
fn a_message_that_is_too_large_is_refused() {
    let blank = vec![b' '; 1 << 20];
    for (format, start) in [
        (Format::Json, "{\"fString\": \""),
        (Format::Ndjson, "{\"fString\": \""),
        (Format::Yaml, "f_string: \""),
        (Format::Xml, "<Kinds><f_string>"),
        (Format::Text, "f_string: \""),
    ] {
        let mut decoder = Decoder::new(format, kinds());
        decoder.push(start.as_bytes());
        let taken = (0..).find(|_| {
            decoder.push(&blank);
            decoder.next().is_err()
        });
        // One that is not complete is given up as soon as it is larger than the limit.
        assert_eq!(taken, Some((MAX_MESSAGE >> 20) - 1), "{format:?}");
    }
    let mut length = Vec::new();
    prost_reflect::prost::encoding::encode_varint(MAX_MESSAGE as u64 + 1, &mut length);
    assert!(matches!(decode(Format::Binary, &kinds(), length), Err(FormatError::Binary { offset: 0, .. })));
}

#[test]
fn what_nests_too_deep_is_refused() {
    let deep = 100_000;
    for (format, input) in [
        (Format::Json, "{\"fSelf\":".repeat(deep)),
        (Format::Json, format!("{}{}", "[".repeat(deep), "]".repeat(deep))),
        (Format::Json, format!("{{\"wList\":{}{}}}", "[".repeat(deep), "]".repeat(deep))),
        (Format::Yaml, format!("w_list: {}{}", "[".repeat(deep), "]".repeat(deep))),
        (Format::Yaml, format!("w_list:\n{}x", "- ".repeat(deep))),
        (Format::Xml, format!("<Kinds>{}{}</Kinds>", "<f_self>".repeat(deep), "</f_self>".repeat(deep))),
        (Format::Text, format!("{}{}", "f_self{".repeat(deep), "}".repeat(deep))),
        (Format::Text, format!("w_any{{{}", "[type.googleapis.com/google.protobuf.Any]{".repeat(deep))),
    ] {
        let error = decode(format, &kinds(), &input).unwrap_err().to_string();
        assert!(
            error.contains("deep") || error.contains("depth") || error.contains("recursion"),
            "{format:?}: {error}"
        );
    }
}

/// Nothing that decodes is too deep to be written, and what was written can be read.
#[test]
fn the_deepest_message_is_written_and_read() {
    let mut bytes = Vec::new();
    for _ in 0..99 {
        let mut outer = Vec::new();
        // Field 62, `map<string, Kinds>`, with the key absent: the most levels for the least messages.
        let mut entry = vec![0x12];
        prost_reflect::prost::encoding::encode_varint(bytes.len() as u64, &mut entry);
        entry.extend(&bytes);
        prost_reflect::prost::encoding::encode_varint(62 << 3 | 2, &mut outer);
        prost_reflect::prost::encoding::encode_varint(entry.len() as u64, &mut outer);
        outer.extend(entry);
        bytes = outer;
        let Ok(message) = prost_reflect::DynamicMessage::decode(kinds(), &bytes[..]) else { break };
        for &format in formats() {
            let encoded = Encoder::new(format, false).encode(&message).unwrap();
            let again = decode(format, &kinds(), &encoded).unwrap_or_else(|error| panic!("{format:?}: {error}"));
            assert_eq!(json(&again), json(&message));
        }
    }
}

/// An `Any` in an `Any` in an `Any`: nobody has bounded that before.
#[test]
fn any_without_end_is_refused() {
    let mut bytes: Vec<u8> = Vec::new();
    for _ in 0..3000 {
        let mut outer = vec![0x0A, 39];
        outer.extend(b"type.googleapis.com/google.protobuf.Any");
        outer.push(0x12);
        prost_reflect::prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
        outer.extend(bytes);
        bytes = outer;
    }
    let message = prost_reflect::DynamicMessage::decode(super::descriptor("google.protobuf.Any"), &bytes[..]).unwrap();
    for &format in formats() {
        let written = Encoder::new(format, false).encode(&message);
        assert_eq!(written.is_err(), format != Format::Binary, "{format:?}");
    }
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut bomb = String::from("w_struct:\n  a: &a [x, x, x, x, x, x, x, x, x]\n");
    for (name, inner) in ('b'..='k').zip('a'..) {
        let many = vec![format!("*{inner}"); 9].join(", ");
        bomb.push_str(&format!("  {name}: &{name} [{many}]\n"));
    }
    let error = decode(Format::Yaml, &kinds(), bomb).unwrap_err().to_string();
    assert!(error.contains("alias"), "{error}");
}

/// What nests deep only by its aliases is as deep.
#[test]
fn a_ladder_of_aliases_is_refused() {
    let mut ladder = String::from("w_struct:\n  a0: &a0 [x]\n");
    for step in 1..3000 {
        ladder.push_str(&format!("  a{step}: &a{step} [*a{}]\n", step - 1));
    }
    assert!(decode(Format::Yaml, &kinds(), ladder).is_err());
}

/// Each byte is looked at once or twice, however the input comes.
#[test]
fn a_long_stream_is_read_in_linear_time() {
    let message = read(Format::Json, "{\"fInt32\": 1, \"fString\": \"x\"}");
    for &format in formats() {
        let time = |count: usize| {
            let mut encoder = Encoder::new(format, false);
            let input: Vec<u8> = (0..count).flat_map(|_| encoder.encode(&message).unwrap()).collect();
            let started = busy();
            for piece in [7, input.len()] {
                let (messages, error) = decode_pieces(format, &kinds(), input.chunks(piece));
                assert_eq!((messages.len(), error), (count, None));
            }
            busy() - started
        };
        // A document of YAML takes a hundred times as long as a message in bytes.
        let count = if format == Format::Yaml { 30 } else { 500 };
        is_linear(format, || (time(count), time(16 * count)));
    }
}

/// How long this thread has had a processor, which others do not make longer; where Linux does not say, how late it is.
fn busy() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = statistics.and_then(|text| text.split_whitespace().next()?.parse().ok());
    nanos.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// Sixteen times the input takes about sixteen times as long. A hundred times leaves room for a busy machine, as do
/// several tries; the square would be more than two hundred each time.
fn is_linear(format: Format, mut times: impl FnMut() -> (Duration, Duration)) {
    let mut tries = Vec::new();
    while tries.len() < 5 {
        let (short, long) = times();
        // The clock may go in steps of some milliseconds; the square takes seconds.
        if long < 100 * short.max(Duration::from_millis(10)) {
            return;
        }
        tries.push((short, long));
    }
    panic!("{format:?}: {tries:?}");
}

/// The same for one message that comes in small pieces.
#[test]
fn a_long_message_is_read_in_linear_time() {
    for &format in formats() {
        let time = |length: usize| {
            let text = format!("{{\"fString\": \"{}\"}}", "x\\n ".repeat(length));
            let input = Encoder::new(format, false).encode(&read(Format::Json, &text)).unwrap();
            let started = busy();
            let (messages, error) = decode_pieces(format, &kinds(), input.chunks(7));
            assert_eq!((messages.len(), error), (1, None));
            busy() - started
        };
        is_linear(format, || (time(4_000), time(64_000)));
    }
}
