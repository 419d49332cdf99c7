//! `--print-config`: the configuration in force, as a file of it.

use super::value::{Form, Kind};
use super::{Given, Key, Values};

pub(super) fn print(keys: &[&'static Key], values: &Values) -> String {
    let mut text = String::new();
    let mut table = "";
    for key in keys {
        if key.table != table {
            table = key.table;
            text.push_str(&format!("{}[{table}]\n", if text.is_empty() { "" } else { "\n" }));
        }
        match values.get(&key.id()) {
            Some(given) => text.push_str(&format!("{} = {} # {}\n", key.name(), literal(key, given), given.origin)),
            None => text.push_str(&format!("# {} is not set\n", key.name())),
        }
    }
    text
}

fn literal(key: &Key, given: &Given) -> String {
    let last = || given.texts.last().map_or("", String::as_str);
    match key.kind {
        Kind::Switch => matches!(last(), "true" | "yes" | "on" | "1").to_string(),
        Kind::One(form) => quoted(form, last()),
        Kind::List(form) => {
            let items: Vec<_> = given.texts.iter().map(|text| quoted(form, text)).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

fn quoted(form: Form, text: &str) -> String {
    match form {
        Form::Number => text.to_owned(),
        Form::Url | Form::Address => toml::Value::from(without_password(text)).to_string(),
        _ => toml::Value::from(text).to_string(),
    }
}

/// `socks5://user:***@proxy:1080`.
fn without_password(url: &str) -> String {
    let hidden = || {
        let (before, rest) = url.split_at(url.find("://").map_or(0, |at| at + 3));
        let (user, host) = rest.rsplit_once('@')?;
        let (user, _) = user.split_once(':')?;
        Some(format!("{before}{user}:***@{host}"))
    };
    hidden().unwrap_or_else(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_printed() {
        assert_eq!(without_password("http://me:secret@proxy:3128"), "http://me:***@proxy:3128");
        assert_eq!(without_password("http://me:se@cr:et@proxy:3128"), "http://me:***@proxy:3128");
        assert_eq!(without_password("me:secret@proxy:3128"), "me:***@proxy:3128");
        assert_eq!(without_password("socks5://proxy:1080"), "socks5://proxy:1080");
    }
}
