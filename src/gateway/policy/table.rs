//! The tables of a policy's text, as TOML has them.
//!
//! They are read by hand, not by serde: its messages show what a wrong value was, which may be a token.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Fault, Parsed};
use super::pattern::Glob;

/// A key, and how to write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) example: &'static str,
}

pub(super) const CALLER: Field = Field { key: "caller", example: "[[caller]]" };
pub(super) const NAME: Field = Field { key: "name", example: r#"name = "billing""# };
pub(super) const TOKEN: Field = Field { key: "token-sha256", example: r#"token-sha256 = ["<64 hex digits>"]"# };
pub(super) const CERTIFICATE: Field = Field { key: "certificate", example: r#"certificate = ["billing.example.com"]"# };
pub(super) const ALLOW: Field = Field { key: "allow", example: "[[allow]]" };
pub(super) const CALLERS: Field = Field { key: "callers", example: r#"callers = ["billing"]"# };
pub(super) const AGENTS: Field = Field { key: "agents", example: r#"agents = ["laptop-*"]"# };
pub(super) const LABELS: Field = Field { key: "labels", example: r#"labels = { site = "berlin-*" }"# };
pub(super) const METHODS: Field = Field { key: "methods", example: r#"methods = ["/package.Service/*"]"# };

/// A table without unknown keys.
pub(super) struct Table<'t> {
    entries: &'t DeTable<'t>,
    pub(super) start: usize,
}

impl<'t> Table<'t> {
    pub(super) fn new(entries: &'t DeTable<'t>, start: usize, known: &[Field]) -> Parsed<Self> {
        for key in entries.keys() {
            if !known.iter().any(|field| field.key == key.get_ref()) {
                let known: Vec<String> = known.iter().map(|field| format!("`{}`", field.key)).collect();
                let fault = Fault::UnknownKey(key.get_ref().as_ref().into(), known.join(", "));
                return Err((key.span().start, fault));
            }
        }
        Ok(Self { entries, start })
    }

    pub(super) fn get(&self, field: Field) -> Option<&'t Spanned<DeValue<'t>>> {
        self.entries.get(field.key)
    }

    /// The elements of a list, of which there must be some; none if there is no list.
    fn list(&self, field: Field) -> Parsed<&'t [Spanned<DeValue<'t>>]> {
        let Some(value) = self.get(field) else { return Ok(&[]) };
        match value.get_ref().as_array() {
            Some(list) if list.is_empty() => Err((value.span().start, Fault::field(field, "is empty"))),
            Some(list) => Ok(list),
            None => Err((value.span().start, Fault::field(field, "is not a list"))),
        }
    }

    pub(super) fn tables(&self, field: Field, known: &[Field]) -> Parsed<Vec<Self>> {
        let table = |value: &'t Spanned<DeValue<'t>>| {
            let start = value.span().start;
            let entries = value.get_ref().as_table().ok_or((start, Fault::field(field, "only takes tables")))?;
            Self::new(entries, start, known)
        };
        self.list(field)?.iter().map(table).collect()
    }

    /// Strings and where they are.
    pub(super) fn strings(&self, field: Field) -> Parsed<Vec<(usize, &'t str)>> {
        self.list(field)?.iter().map(|value| string(field, value)).collect()
    }

    /// The same, and there must be some.
    pub(super) fn required(&self, field: Field) -> Parsed<Vec<(usize, &'t str)>> {
        let strings = self.strings(field)?;
        if strings.is_empty() { Err((self.start, Fault::field(field, "is missing"))) } else { Ok(strings) }
    }

    /// The patterns for labels, by name; none if there are no `labels`.
    pub(super) fn labels(&self) -> Parsed<Vec<(String, Glob)>> {
        let Some(value) = self.get(LABELS) else { return Ok(vec![]) };
        let wrong = |why| (value.span().start, Fault::field(LABELS, why));
        let labels = value.get_ref().as_table().ok_or_else(|| wrong("is not a table"))?;
        if labels.is_empty() {
            return Err(wrong("is empty"));
        }
        let label = |(name, value): (&Spanned<Cow<'_, str>>, _)| {
            let (_, pattern) = string(LABELS, value)?;
            Ok((name.get_ref().to_string(), Glob::new(pattern)))
        };
        labels.iter().map(label).collect()
    }
}

/// A string and where it is.
pub(super) fn string<'t>(field: Field, value: &'t Spanned<DeValue<'_>>) -> Parsed<(usize, &'t str)> {
    let start = value.span().start;
    let text = value.get_ref().as_str().ok_or((start, Fault::field(field, "only takes strings")))?;
    Ok((start, text))
}
