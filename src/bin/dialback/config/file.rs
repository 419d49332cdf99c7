//! The file: `dialback.toml`.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::{Form, Kind};
use super::{Given, Key, Origin, Values, all_keys, nearest};
use crate::failure::Failure;
use crate::file;

/// Larger than any configuration.
const MAX_FILE: u64 = 1 << 20;

const TABLES: [&str; 4] = ["hub", "agent", "log", "admin"];

/// # Errors
/// When it cannot be read, or something in it is no setting; with where.
pub(super) fn read(path: &Path) -> Result<Values, Failure> {
    let failed = |error: std::io::Error| {
        Failure::misconfigured(format!("cannot read the configuration {}", path.display()), &error)
    };
    let text = String::from_utf8(file::up_to(path, MAX_FILE).map_err(failed)?);
    let text = text.map_err(|_| failed(std::io::Error::other("it is no UTF-8")))?;
    let whole = std::path::absolute(path).map_err(failed)?;
    parse(&whole, &text)
}

/// What the text of a file says. `path` is absolute.
pub(super) fn parse(path: &Path, text: &str) -> Result<Values, Failure> {
    let file = File { path, text };
    let document = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        file.wrong(at, error.message())
    })?;
    let mut values = Values::new();
    for (name, table) in document.get_ref() {
        let (table_name, at) = (name.get_ref().as_ref(), name.span().start);
        if !TABLES.contains(&table_name) {
            return Err(file.wrong(at, unknown("table", table_name, &TABLES)));
        }
        let Some(entries) = table.get_ref().as_table() else {
            return Err(file.wrong(at, format!("`{table_name}` is a table: write [{table_name}]")));
        };
        for (name, value) in entries {
            let (id, given) = file.entry(table_name, name.get_ref(), name.span().start, value)?;
            values.insert(id, given);
        }
    }
    Ok(values)
}

fn unknown<N: AsRef<str>>(what: &str, name: &str, names: &[N]) -> String {
    let name = name.escape_debug().to_string();
    match nearest(&name, names.iter().map(AsRef::as_ref)) {
        Some(near) => format!("there is no {what} `{name}`: did you mean `{near}`?"),
        None => {
            let all: Vec<_> = names.iter().map(AsRef::as_ref).collect();
            format!("there is no {what} `{name}`; there are {}", all.join(", "))
        }
    }
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    /// Line and column, from 1.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.rfind('\n').map_or(before, |end| &before[end + 1..]);
        (before.matches('\n').count() + 1, line.chars().count() + 1)
    }

    fn wrong(&self, at: usize, what: impl std::fmt::Display) -> Failure {
        let (line, column) = self.place(at);
        Failure::usage(format!("{}:{line}:{column}: {what}", self.path.display()))
    }

    fn entry(
        &self,
        table: &str,
        name: &str,
        at: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(String, Given), Failure> {
        let Some(key) = all_keys().find(|key| key.table == table && key.name() == name) else {
            let names: Vec<_> = all_keys().filter(|key| key.table == table).map(Key::name).collect();
            return Err(self.wrong(at, unknown(&format!("key in [{table}]"), name, &names)));
        };
        let texts = match (key.kind, value.get_ref()) {
            (Kind::List(form), DeValue::Array(items)) => {
                items.iter().map(|item| self.text(key, form, item)).collect::<Result<_, _>>()?
            }
            // A list of one may be written without its brackets.
            (kind, _) => vec![self.text(key, kind.form(), value)?],
        };
        let (line, column) = self.place(value.span().start);
        Ok((key.id(), Given { texts, origin: Origin::File { path: self.path.to_owned(), line, column } }))
    }

    fn text(&self, key: &Key, form: Form, value: &Spanned<DeValue<'_>>) -> Result<String, Failure> {
        let wanted = match (form, value.get_ref()) {
            (_, DeValue::Boolean(yes)) if key.kind == Kind::Switch => return Ok(yes.to_string()),
            (Form::Number | Form::Size, DeValue::Integer(number)) if number.radix() == 10 => {
                return Ok(number.as_str().to_owned());
            }
            _ if key.kind == Kind::Switch => "true or false",
            (Form::Number, _) => "a whole number",
            (_, DeValue::String(text)) => return Ok(text.clone().into_owned()),
            (Form::Size, _) => "a size, such as \"32MiB\" or a number of bytes",
            (Form::Time, _) => "a time in quotes, such as \"10s\"",
            _ if matches!(key.kind, Kind::List(_)) => "a text in quotes, or a list of such",
            _ => "a text in quotes",
        };
        let is = value.get_ref().type_str();
        Err(self.wrong(value.span().start, format!("`{}` is {wanted}, and this is of type {is}", key.name())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        let error = parse(Path::new("/etc/dialback.toml"), text).expect_err("it is wrong");
        format!("{error:?}")
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let cases = [
            (
                "[hub]\nlisen = \"x\"",
                "/etc/dialback.toml:2:1: there is no key in [hub] `lisen`: did you mean `listen`?",
            ),
            ("[hbu]\n", "/etc/dialback.toml:1:2: there is no table `hbu`: did you mean `hub`?"),
            ("[log]\ncolour = 1", "/etc/dialback.toml:2:1: there is no key in [log] `colour`; there are"),
            ("[agent]\nid = 5", "/etc/dialback.toml:2:6: `id` is a text in quotes, and this is of type integer"),
            ("[hub]\nkeepalive = 10", "/etc/dialback.toml:2:13: `keepalive` is a time in quotes"),
            ("[hub]\nlisten = [\"a\", 1]", "/etc/dialback.toml:2:16: `listen` is a text in quotes, or a list of such"),
            ("[hub]\nno-reverse = \"yes\"", "/etc/dialback.toml:2:14: `no-reverse` is true or false"),
            ("[hub]\nmax-calls = 1.5", "/etc/dialback.toml:2:13: `max-calls` is a whole number"),
            ("[hub\n", "/etc/dialback.toml:1:5: "),
            ("hub = 1", "/etc/dialback.toml:1:1: `hub` is a table: write [hub]"),
            ("[hub]\nlisten = \"a\"\nlisten = \"b\"", "/etc/dialback.toml:3:1: "),
        ];
        for (text, expected) in cases {
            let said = wrong(text).replace("\\\"", "\"");
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }
}
