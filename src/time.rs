//! Points in time as `expiry-time` writes them, and back.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 UTC; a clock set before that counts as 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Reads `YYYYMMDD[HHMM[SS]]`, which may end in `Z` or `UTC`, as seconds since 1970 UTC.
///
/// Without a suffix OpenSSH means the system's own zone; here it is UTC too, so that a file means the same on every
/// machine.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let digits = upper.strip_suffix("UTC").or_else(|| upper.strip_suffix('Z')).unwrap_or(&upper);
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let field = |from: usize, to: usize| match digits.get(from..to) {
        Some(part) => part.parse::<u64>().ok(),
        None => Some(0),
    };
    let (year, month, day) = (field(0, 4)?, field(4, 6)?, field(6, 8)?);
    let (hour, minute, second) = (field(8, 10)?, field(10, 12)?, field(12, 14)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_to_year(year)? + days_to_month(year, month)? + days_in_month(year, month, day)?;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Displays seconds since 1970 as `2030-01-31 23:59:59 UTC`.
pub(crate) struct Utc(pub(crate) u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        // No year is longer than 366 days, so this is never too late, and at most a few years too early.
        let mut year = 1970 + days / 366;
        if year > 9_999 {
            return f.write_str("a time after the year 9999");
        }
        while days_to_year(year + 1).is_some_and(|start| start <= days) {
            year += 1;
        }
        let day_of_year = days - days_to_year(year).unwrap_or(days);
        let mut month = 1;
        while days_to_month(year, month + 1).is_some_and(|start| start <= day_of_year) {
            month += 1;
        }
        let day = day_of_year - days_to_month(year, month).unwrap_or(day_of_year) + 1;
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_lengths(year: u64) -> [u64; 12] {
    [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

/// Days from 1970 to the start of a year, none for a year before.
fn days_to_year(year: u64) -> Option<u64> {
    let leaps_before = |year: u64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    (year >= 1970).then(|| (year - 1970) * 365 + leaps_before(year) - leaps_before(1970))
}

/// Days from the start of a year to the start of its month 1 to 12.
fn days_to_month(year: u64, month: u64) -> Option<u64> {
    let before = usize::try_from(month).ok()?.checked_sub(1)?;
    (before < 12).then(|| month_lengths(year).iter().take(before).sum())
}

/// Days of a month before this one, none if the month has no such day.
fn days_in_month(year: u64, month: u64, day: u64) -> Option<u64> {
    let index = usize::try_from(month).ok()?.checked_sub(1)?;
    let length = *month_lengths(year).get(index)?;
    (1..=length).contains(&day).then(|| day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_as_utc() {
        for (text, seconds) in [
            ("19700101", 0),
            ("20000229", 951_782_400),
            ("20300131", 1_896_048_000),
            ("203001312359", 1_896_134_340),
            ("20300131235959", 1_896_134_399),
            ("20300131Z", 1_896_048_000),
            ("203001312359z", 1_896_134_340),
            ("20300131235959UTC", 1_896_134_399),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_time() {
        for text in [
            "",
            "Z",
            "2030",
            "2030013",
            "20300132",
            "20301301",
            "20300001",
            "20300100",
            "20310229",
            "19000101",
            "21000229",
            "203001312460",
            "203001312400",
            "20300131235960",
            "+2030013",
            "2030-01-31",
            "20300131 Z",
            "20300131ZZ",
            "２０３００１３１",
            "always",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_displayed_reads_back() {
        for seconds in [0, 86_399, 951_782_400, 1_709_251_199, 1_735_689_599, 253_402_300_799] {
            let shown = Utc(seconds).to_string();
            let digits: String = shown.chars().filter(char::is_ascii_digit).collect();
            assert_eq!(parse(&digits), Some(seconds), "{shown}");
        }
        assert_eq!(Utc(1_896_134_399).to_string(), "2030-01-31 23:59:59 UTC");
        assert_eq!(Utc(u64::MAX).to_string(), "a time after the year 9999");
    }
}
