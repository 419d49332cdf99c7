//! The messages of `google/protobuf/*.proto` that have a form of their own in JSON, and their text.

use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage, Value};

use super::error::Problem;
use super::tree::excerpt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WellKnown {
    Any,
    Timestamp,
    Duration,
    FieldMask,
    Struct,
    Value,
    ListValue,
    Wrapper,
    /// As any other message, except inside of `Any`.
    Empty,
}

pub(super) fn well_known(descriptor: &MessageDescriptor) -> Option<WellKnown> {
    let name = descriptor.full_name().strip_prefix("google.protobuf.")?;
    Some(match name {
        "Any" => WellKnown::Any,
        "Timestamp" => WellKnown::Timestamp,
        "Duration" => WellKnown::Duration,
        "FieldMask" => WellKnown::FieldMask,
        "Struct" => WellKnown::Struct,
        "Value" => WellKnown::Value,
        "ListValue" => WellKnown::ListValue,
        "Empty" => WellKnown::Empty,
        "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value" | "BoolValue"
        | "StringValue" | "BytesValue" => WellKnown::Wrapper,
        _ => return None,
    })
}

const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// 0001-01-01 and the end of 9999-12-31.
const TIMESTAMP: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
/// Ten thousand years.
const LONGEST: i64 = 315_576_000_000;

/// The text of a Timestamp, Duration or FieldMask, if it is one and valid.
pub(super) fn text(message: &DynamicMessage) -> Option<String> {
    match well_known(&message.descriptor())? {
        WellKnown::Timestamp => timestamp_text(seconds_and_nanos(message)?),
        WellKnown::Duration => duration_text(seconds_and_nanos(message)?),
        WellKnown::FieldMask => field_mask_text(message),
        _ => None,
    }
}

/// Reads a Timestamp, Duration or FieldMask from its text.
pub(super) fn parse(descriptor: &MessageDescriptor, text: &str) -> Result<DynamicMessage, Problem> {
    let mut message = DynamicMessage::new(descriptor.clone());
    let (parsed, expected) = match well_known(descriptor) {
        Some(WellKnown::Timestamp) => (parse_timestamp(text), "a time such as 2006-01-02T15:04:05.000Z"),
        Some(WellKnown::Duration) => (parse_duration(text), "a duration in seconds such as 1.5s"),
        Some(WellKnown::FieldMask) => {
            let paths = parse_field_mask(text)
                .ok_or_else(|| Problem::wrong("a field mask such as user.name,createdAt", format!("{text:?}")))?;
            set(&mut message, 1, Value::List(paths));
            return Ok(message);
        }
        _ => (None, "another type"),
    };
    let (seconds, nanos) = parsed.ok_or_else(|| Problem::wrong(expected, format!("{:?}", excerpt(text))))?;
    // What is zero is absent, as from the wire.
    if seconds != 0 {
        set(&mut message, 1, Value::I64(seconds));
    }
    if nanos != 0 {
        set(&mut message, 2, Value::I32(nanos));
    }
    Ok(message)
}

/// Somebody may have given a message of this name other fields; then they are not set.
pub(super) fn set(message: &mut DynamicMessage, number: u32, value: Value) {
    let _ = message.try_set_field_by_number(number, value);
}

fn seconds_and_nanos(message: &DynamicMessage) -> Option<(i64, i32)> {
    let seconds = message.get_field_by_number(1)?.as_i64()?;
    let nanos = message.get_field_by_number(2)?.as_i32()?;
    Some((seconds, nanos))
}

fn timestamp_text((seconds, nanos): (i64, i32)) -> Option<String> {
    if !TIMESTAMP.contains(&seconds) || !(0..NANOS).contains(&i64::from(nanos)) {
        return None;
    }
    let (year, month, day) = date(seconds.div_euclid(DAY));
    let time = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{}Z", fraction(nanos.unsigned_abs())))
}

fn duration_text((seconds, nanos): (i64, i32)) -> Option<String> {
    let valid = (-LONGEST..=LONGEST).contains(&seconds)
        && (-NANOS + 1..NANOS).contains(&i64::from(nanos))
        && seconds.signum() * i64::from(nanos.signum()) >= 0;
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    valid.then(|| format!("{sign}{}{}s", seconds.unsigned_abs(), fraction(nanos.unsigned_abs())))
}

/// With none, three, six or nine digits.
fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        _ if nanos.is_multiple_of(1_000_000) => format!(".{:03}", nanos / 1_000_000),
        _ if nanos.is_multiple_of(1_000) => format!(".{:06}", nanos / 1_000),
        _ => format!(".{nanos:09}"),
    }
}

fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    // All positions below are of ASCII characters.
    if !text.is_ascii() || text.len() < "2006-01-02T15:04:05Z".len() {
        return None;
    }
    let (clock, rest) = text.split_at(19);
    let number = |from: usize, to: usize| digits(&clock[from..to]);
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !marks.iter().all(|&(at, mark)| clock.as_bytes()[at] == mark) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let end = rest.find(['Z', '+', '-'])?;
    let nanos = match rest[..end].strip_prefix('.') {
        Some(fraction) => parse_fraction(fraction)?,
        None if end == 0 => 0,
        None => return None,
    };
    let zone = &rest[end..];
    let offset = if zone == "Z" {
        0
    } else {
        let (hours, minutes) = zone[1..].split_once(':')?;
        if hours.len() != 2 || minutes.len() != 2 {
            return None;
        }
        let (hours, minutes) = (digits(hours)?, digits(minutes)?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        let size = hours * 3600 + minutes * 60;
        if zone.starts_with('-') { -size } else { size }
    };
    let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset;
    TIMESTAMP.contains(&seconds).then_some((seconds, nanos))
}

fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let size = text.strip_suffix('s')?;
    let (sign, size) = match size.strip_prefix('-') {
        Some(size) => (-1, size),
        None => (1, size),
    };
    let (whole, nanos) = match size.split_once('.') {
        Some((whole, fraction)) => (whole, parse_fraction(fraction)?),
        None => (size, 0),
    };
    let seconds = digits(whole)?;
    (seconds <= LONGEST).then_some((sign * seconds, sign as i32 * nanos))
}

fn parse_fraction(text: &str) -> Option<i32> {
    if text.len() > 9 {
        return None;
    }
    let value = digits(text)?;
    Some((value * 10_i64.pow(9 - text.len() as u32)) as i32)
}

/// Digits alone, which `parse` does not insist on.
fn digits(text: &str) -> Option<i64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok())?
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date from the year 0 on. Years are counted from March, so that a leap day is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let since_march = (153 * month + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + since_march - 719_468
}

/// The reverse, for the years of [`TIMESTAMP`].
fn date(day: i64) -> (i64, i64, i64) {
    let mut year = 1970 + day / 366;
    while days(year + 1, 1, 1) <= day {
        year += 1;
    }
    while days(year, 1, 1) > day {
        year -= 1;
    }
    let mut rest = day - days(year, 1, 1);
    let mut month = 1;
    while rest >= days_in(year, month) {
        rest -= days_in(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

/// In lowerCamelCase, if that can be read back.
fn field_mask_text(message: &DynamicMessage) -> Option<String> {
    let paths = message.get_field_by_number(1)?;
    let mut texts = Vec::new();
    for path in paths.as_list()? {
        let path = path.as_str()?;
        let text = camel(path)?;
        if path.is_empty() || path.contains(',') || snake(&text)? != path {
            return None;
        }
        texts.push(text);
    }
    Some(texts.join(","))
}

fn parse_field_mask(text: &str) -> Option<Vec<Value>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(|path| snake(path.trim()).filter(|path| !path.is_empty()).map(Value::String)).collect()
}

fn camel(path: &str) -> Option<String> {
    let mut text = String::new();
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '_' => text.push(letters.next().filter(char::is_ascii_lowercase)?.to_ascii_uppercase()),
            _ if letter.is_ascii_uppercase() => return None,
            _ => text.push(letter),
        }
    }
    Some(text)
}

fn snake(path: &str) -> Option<String> {
    let mut text = String::new();
    for letter in path.chars() {
        match letter {
            '_' => return None,
            _ if letter.is_ascii_uppercase() => text.extend(['_', letter.to_ascii_lowercase()]),
            _ => text.push(letter),
        }
    }
    Some(text)
}
