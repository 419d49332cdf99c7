//! Scalars as text, the same in every format: numbers, booleans, bytes in base64, enum values by their names.

use std::fmt::{Display, LowerExp};
use std::str::FromStr;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::{EnumDescriptor, Kind, MapKey, Value};

use super::error::{Problem, nearest};
use super::tree::excerpt;

/// Writes with padding, reads with and without.
const STANDARD: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a value of this kind looks like, for error messages.
pub(super) fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Double => "a number (double)".into(),
        Kind::Float => "a number (float)".into(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => format!("an integer from {} to {}", i32::MIN, i32::MAX),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => format!("an integer from {} to {}", i64::MIN, i64::MAX),
        Kind::Uint32 | Kind::Fixed32 => format!("an integer from 0 to {}", u32::MAX),
        Kind::Uint64 | Kind::Fixed64 => format!("an integer from 0 to {}", u64::MAX),
        Kind::Bool => "true or false".into(),
        Kind::String => "a string".into(),
        Kind::Bytes => "bytes as base64".into(),
        Kind::Enum(descriptor) => format!("a value of the enum {}", descriptor.full_name()),
        Kind::Message(descriptor) => format!("a message {}", descriptor.full_name()),
    }
}

/// Reads a scalar from its text. A message is none.
pub(super) fn parse(kind: &Kind, text: &str) -> Result<Value, Problem> {
    let value = match kind {
        Kind::Double => float(text).map(Value::F64),
        Kind::Float => float(text).map(Value::F32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => integer(text).map(Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => integer(text).map(Value::I64),
        Kind::Uint32 | Kind::Fixed32 => integer(text).map(Value::U32),
        Kind::Uint64 | Kind::Fixed64 => integer(text).map(Value::U64),
        Kind::Bool => text.parse().ok().map(Value::Bool),
        Kind::String => Some(Value::String(text.to_owned())),
        Kind::Bytes => from_base64(text).map(|bytes| Value::Bytes(bytes.into())),
        Kind::Enum(descriptor) => return enum_value(descriptor, text),
        Kind::Message(_) => None,
    };
    value.ok_or_else(|| Problem::wrong(expected(kind), format!("{:?}", excerpt(text))))
}

/// Reads the key of a map, which JSON, YAML and XML have as text.
pub(super) fn parse_key(kind: &Kind, text: &str) -> Result<MapKey, Problem> {
    parse(kind, text)?
        .into_map_key()
        .ok_or_else(|| Problem::wrong("a key that is a string, an integer or a boolean", excerpt(text)))
}

/// The text of a scalar, as [`parse`] reads it. A message, list or map is none.
pub(super) fn text(kind: &Kind, value: &Value) -> Option<String> {
    Some(match value {
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::F32(value) => float_text(*value),
        Value::F64(value) => float_text(*value),
        Value::String(value) => value.clone(),
        Value::Bytes(value) => to_base64(value),
        Value::EnumNumber(number) => enum_text(kind, *number),
        Value::Message(_) | Value::List(_) | Value::Map(_) => return None,
    })
}

/// The text of a map's key.
pub(super) fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(value) => value.to_string(),
        MapKey::I32(value) => value.to_string(),
        MapKey::I64(value) => value.to_string(),
        MapKey::U32(value) => value.to_string(),
        MapKey::U64(value) => value.to_string(),
        MapKey::String(value) => value.clone(),
    }
}

/// A value's name, or its number if it has none.
pub(super) fn enum_text(kind: &Kind, number: i32) -> String {
    match kind.as_enum().and_then(|descriptor| descriptor.get_value(number)) {
        Some(value) => value.name().to_owned(),
        None => number.to_string(),
    }
}

pub(super) fn enum_value(descriptor: &EnumDescriptor, text: &str) -> Result<Value, Problem> {
    if let Some(value) = descriptor.get_value_by_name(text) {
        return Ok(Value::EnumNumber(value.number()));
    }
    if let Some(number) = integer(text) {
        return Ok(Value::EnumNumber(number));
    }
    let values: Vec<_> = descriptor.values().collect();
    Err(Problem::UnknownEnumValue {
        name: descriptor.full_name().to_owned(),
        value: excerpt(text),
        nearest: nearest(text, values.iter().map(|value| value.name())),
    })
}

pub(super) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Both alphabets, with padding and without.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let engine = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    engine.decode(text).ok()
}

/// A number of either width, with the fewest digits that give it back: as JavaScript and Go's `encoding/json` have it.
pub(super) fn float_text<F: Float>(value: F) -> String {
    finite_text(value, |digits, exponent| (!(-6..21).contains(&exponent)).then(|| format!("{digits}e{exponent:+}")))
}

/// The same in the form of Go's `%g`, in which grpcurl prints the fields of a message: an exponent from a million on.
pub(super) fn go_float_text<F: Float>(value: F) -> String {
    finite_text(value, |digits, exponent| {
        let sign = if exponent < 0 { '-' } else { '+' };
        (!(-4..6).contains(&exponent)).then(|| format!("{digits}e{sign}{:02}", exponent.abs()))
    })
}

/// Either width.
pub(super) trait Float: Display + LowerExp + Copy + Into<f64> {}

impl<F: Display + LowerExp + Copy + Into<f64>> Float for F {}

fn finite_text<F: Float>(value: F, scientific: impl FnOnce(&str, i32) -> Option<String>) -> String {
    let wide: f64 = value.into();
    if wide.is_nan() {
        return "NaN".into();
    }
    if wide.is_infinite() {
        return if wide > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent = exponent.parse().unwrap_or(0);
    scientific(digits, exponent).unwrap_or_else(|| value.to_string())
}

/// JSON's numbers, and the names of those that are none.
fn float<F: FromStr + Copy + Into<f64>>(text: &str) -> Option<F> {
    let plain = match text {
        "NaN" | "Infinity" | "-Infinity" => true,
        // What Rust reads beyond that: `inf`, `nan`, `+1`.
        _ => text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) && !text.starts_with('+'),
    };
    let value: F = plain.then(|| text.parse().ok())??;
    // 1e999 is a mistake and not infinity.
    let finite = value.into().is_finite() || text.ends_with(['N', 'y']);
    finite.then_some(value)
}

/// An integer, also as `1.0` or `1e3`, which other languages write.
fn integer<I: TryFrom<i128>>(text: &str) -> Option<I> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return I::try_from(0).ok();
    }
    // Where the point ends up, seen from the end of the digits.
    let shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let digits = if shift < 0 {
        let (kept, dropped) = digits.split_at(digits.len().checked_sub(shift.unsigned_abs() as usize)?);
        if !dropped.bytes().all(|byte| byte == b'0') {
            return None;
        }
        kept.to_owned()
    } else if shift <= 20 {
        format!("{digits}{}", "0".repeat(shift as usize))
    } else {
        return None;
    };
    // 20 digits hold every 64-bit integer.
    if digits.len() > 20 {
        return None;
    }
    let value: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    I::try_from(if negative { -value } else { value }).ok()
}
