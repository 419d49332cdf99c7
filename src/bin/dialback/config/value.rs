//! The types that settings have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::absolute;

/// What a setting's text is, as the file and the help have to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// True or false.
    Switch,
    One(Form),
    List(Form),
}

/// What one text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    /// Has a password in it, perhaps.
    Url,
    Path,
    /// An address, with a path in it if it is that of a Unix socket.
    Address,
    /// A path, or `ssh-agent`.
    Key,
    Number,
    Size,
    Time,
    Choice(&'static [&'static str]),
}

impl Kind {
    pub(crate) fn form(self) -> Form {
        match self {
            Self::Switch => Form::Choice(&["true", "false"]),
            Self::One(form) | Self::List(form) => form,
        }
    }

    /// The text with its path, if it has one, made absolute.
    pub(super) fn in_place(self, text: &str, base: Option<&Path>) -> String {
        let path = |text: &str| absolute(text, base).to_string_lossy().into_owned();
        match self.form() {
            _ if text.is_empty() => text.to_owned(),
            Form::Path => path(text),
            Form::Key if text != "ssh-agent" && !text.starts_with("ssh-agent:") => path(text),
            Form::Address => match text.split_once("unix:") {
                Some((before, rest)) if before.is_empty() || before.ends_with('=') => {
                    format!("{before}unix:{}", path(rest.strip_prefix("//").unwrap_or(rest)))
                }
                _ => text.to_owned(),
            },
            _ => text.to_owned(),
        }
    }

    /// Some value, as the file has it.
    #[cfg(test)]
    pub(super) fn sample(self) -> String {
        let one = match self.form() {
            Form::Text | Form::Url | Form::Path | Form::Address | Form::Key => "\"a\"",
            Form::Number => "1",
            Form::Size => "\"1MiB\"",
            Form::Time => "\"1s\"",
            Form::Choice(choices) => {
                return if self == Self::Switch { "true".into() } else { format!("{:?}", choices[0]) };
            }
        };
        if matches!(self, Self::List(_)) { format!("[{one}]") } else { one.into() }
    }
}

/// A type that a setting can have.
pub(crate) trait Setting: Sized {
    const KIND: Kind;

    /// `None` for a setting that was not given. `Err` says what is wrong.
    fn read(texts: Option<&[String]>) -> Result<Self, String>;
}

/// A type of one text.
pub(crate) trait Scalar: Sized {
    const FORM: Form;

    fn parse(text: &str) -> Result<Self, String>;
}

impl Setting for bool {
    const KIND: Kind = Kind::Switch;

    fn read(texts: Option<&[String]>) -> Result<Self, String> {
        match texts.and_then(<[String]>::last).map(String::as_str) {
            None | Some("false" | "no" | "off" | "0") => Ok(false),
            Some("true" | "yes" | "on" | "1") => Ok(true),
            Some(other) => Err(format!("`{}` is neither true nor false", other.escape_debug())),
        }
    }
}

impl<S: Scalar> Setting for Option<S> {
    const KIND: Kind = Kind::One(S::FORM);

    fn read(texts: Option<&[String]>) -> Result<Self, String> {
        texts.and_then(<[String]>::last).map(|text| S::parse(text)).transpose()
    }
}

impl<S: Scalar> Setting for Vec<S> {
    const KIND: Kind = Kind::List(S::FORM);

    fn read(texts: Option<&[String]>) -> Result<Self, String> {
        texts.unwrap_or_default().iter().map(|text| S::parse(text)).collect()
    }
}

impl Scalar for String {
    const FORM: Form = Form::Text;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Scalar for PathBuf {
    const FORM: Form = Form::Path;

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("it is empty: name a file".into()) } else { Ok(text.into()) }
    }
}

/// A text of its own form.
macro_rules! texts {
    ($($(#[doc = $doc:literal])+ $name:ident $form:ident;)*) => { $(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) String);

        impl Scalar for $name {
            const FORM: Form = Form::$form;

            fn parse(text: &str) -> Result<Self, String> {
                if text.is_empty() { Err("it is empty".into()) } else { Ok(Self(text.to_owned())) }
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }
    )* };
}

texts! {
    /// An address; that of a Unix socket has a path in it.
    Address Address;
    /// A private key's file, or `ssh-agent`, or `ssh-agent:SOCKET`.
    KeyName Key;
    /// An address that may have a password in it.
    Url Url;
}

macro_rules! numbers {
    ($($type:ty)*) => { $(
        impl Scalar for $type {
            const FORM: Form = Form::Number;

            fn parse(text: &str) -> Result<Self, String> {
                let digits = text.replace('_', "");
                digits.parse().map_err(|_| {
                    format!("`{}` is no whole number from 0 to {}", text.escape_debug(), Self::MAX)
                })
            }
        }
    )* };
}

numbers!(u16 u32 u64 usize);

/// So many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// As far as it fits.
    pub(crate) fn as_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }

    /// As far as it fits.
    pub(crate) fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Scalar for Size {
    const FORM: Form = Form::Size;

    fn parse(text: &str) -> Result<Self, String> {
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len()));
        let factor = match unit.trim() {
            "" | "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let number: Option<u64> = digits.replace('_', "").parse().ok();
        let bytes = factor.and_then(|factor: u64| number?.checked_mul(factor));
        bytes
            .map(Self)
            .ok_or_else(|| format!("`{}` is no size: write 65536, 64KiB, 32MiB or 4GiB", text.escape_debug()))
    }
}

impl Scalar for Duration {
    const FORM: Form = Form::Time;

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{}` is no time: write 500ms, 10s, 5m, 2h or 1m30s", text.escape_debug());
        let (mut rest, mut sum) = (text.trim(), Self::ZERO);
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let (digits, more) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
            let (unit, after) = more.split_at(more.find(|c: char| c.is_ascii_digit()).unwrap_or(more.len()));
            let number: u64 = digits.parse().map_err(|_| wrong())?;
            let seconds = |each: u64| number.checked_mul(each).map(Self::from_secs);
            let part = match unit.trim() {
                "ms" => Some(Self::from_millis(number)),
                "s" => seconds(1),
                "m" => seconds(60),
                "h" => seconds(3600),
                "d" => seconds(86_400),
                _ => None,
            };
            sum = part.and_then(|part| sum.checked_add(part)).ok_or_else(wrong)?;
            rest = after;
        }
        Ok(sum)
    }
}

/// Some choices, each by its name.
macro_rules! choices {
    ($($(#[doc = $doc:literal])+ $name:ident { $($text:literal $variant:ident),+ })*) => { $(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl Scalar for $name {
            const FORM: Form = Form::Choice(&[$($text),+]);

            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(format!("`{}` is none of {}", other.escape_debug(), [$($text),+].join(", "))),
                }
            }
        }
    )* };
}

choices! {
    /// How log lines look.
    LogFormat { "human" Human, "json" Json }
    /// Of several tunnels of one id.
    TunnelPolicy { "pool" Pool, "replace" Replace, "reject" Reject }
    /// Which of several tunnels a call takes.
    Balance { "least-busy" LeastBusy, "round-robin" RoundRobin }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units() {
        let time = |text| Duration::parse(text).ok();
        assert_eq!(time("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(time("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(time("2h"), Some(Duration::from_secs(7200)));
        for bad in ["", "10", "s", "1.5s", "-1s", "1w", "99999999999999999999s", "9999999999999999999h"] {
            assert_eq!(time(bad), None, "{bad}");
        }
        let size = |text| Size::parse(text).ok().map(|size| size.0);
        assert_eq!(size("1_024"), Some(1024));
        assert_eq!(size("32MiB"), Some(32 << 20));
        for bad in ["", "MiB", "1MB", "-1", "1.5KiB", "99999999999GiB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn paths_are_relative_to_where_they_were_written() {
        let base = Some(Path::new("/etc/dialback"));
        let (path, address, key) = (Kind::List(Form::Path), Kind::One(Form::Address), Kind::List(Form::Key));
        assert_eq!(path.in_place("keys/%u.pub", base), "/etc/dialback/keys/%u.pub");
        assert_eq!(path.in_place("/keys", base), "/keys");
        assert_eq!(address.in_place("a.B=unix:app.sock", base), "a.B=unix:/etc/dialback/app.sock");
        assert_eq!(address.in_place("unix:///run/app", base), "unix:/run/app");
        assert_eq!(address.in_place("127.0.0.1:1", base), "127.0.0.1:1");
        assert_eq!(key.in_place("ssh-agent", base), "ssh-agent");
        assert_eq!(key.in_place("id", base), "/etc/dialback/id");
    }
}
