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
        Form::Url | Form::Address => toml::Value::from(without_secrets(text)).to_string(),
        _ => toml::Value::from(text).to_string(),
    }
}

/// `socks5://***@proxy:1080`: a user's name may be a token, too. And `wss://hub/tunnel?…`.
pub(crate) fn without_secrets(url: &str) -> String {
    if url.starts_with("unix:") || url.contains("=unix:") {
        return url.to_owned();
    }
    let (before, rest) = url.split_at(url.find("://").map_or(0, |at| at + 3));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let has_no_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_err());
    // A password may have any of these in it; an address with one is none.
    let is_odd = authority.contains('@') || has_no_port && !authority.ends_with(']');
    let (user, rest) = match rest.rsplit_once('@').filter(|_| is_odd) {
        Some((_, host)) => ("***@", host),
        None => ("", rest),
    };
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?…"));
    format!("{before}{user}{rest}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        for (given, shown) in [
            ("http://me:secret@proxy:3128", "http://***@proxy:3128"),
            ("http://me:se@cr:et@proxy:3128", "http://***@proxy:3128"),
            ("http://me:se/cr?et@proxy:3128", "http://***@proxy:3128"),
            ("me:secret@proxy:3128", "***@proxy:3128"),
            ("http://tok3n@proxy:3128", "http://***@proxy:3128"),
            ("socks5://proxy:1080", "socks5://proxy:1080"),
            ("wss://hub/t?token=s3cret@x", "wss://hub/t?…"),
            ("wss://[::1]/@t", "wss://[::1]/@t"),
            ("a.B=unix:/run/a?b@c", "a.B=unix:/run/a?b@c"),
        ] {
            assert_eq!(without_secrets(given), shown);
        }
    }
}
