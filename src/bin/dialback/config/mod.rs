//! The configuration of a daemon: flags, environment, file and defaults, in this order.
//!
//! Each setting is written once, in [`keys`]: its flag, its environment variable and its key in the file follow from that,
//! and so do the help and what `--print-config` prints.

mod args;
mod file;
mod keys;
mod print;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub(crate) use self::args::ConfigArgs;
pub(crate) use self::keys::{AdminKeys, AgentKeys, HubKeys, LogKeys};
pub(crate) use self::print::without_secrets;
pub(crate) use self::value::{Address, Balance, KeyName, Kind, LogFormat, Setting, TunnelPolicy};

use crate::failure::Failure;

/// One setting.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) table: &'static str,
    /// As the code has it, with underscores.
    pub(crate) field: &'static str,
    pub(crate) value_name: &'static str,
    /// The lines of its text.
    pub(crate) help: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) default: Option<&'static str>,
}

impl Key {
    /// As the file has it: `login-timeout`.
    pub(crate) fn name(&self) -> String {
        self.field.replace('_', "-")
    }

    /// Without the dashes before it. Those of a role are as in the file; those that both roles have, with their table.
    pub(crate) fn flag(&self) -> String {
        match self.table {
            "hub" | "agent" => self.name(),
            table => format!("{table}-{}", self.name()),
        }
    }

    /// `DIALBACK_HUB_LOGIN_TIMEOUT`.
    pub(crate) fn variable(&self) -> String {
        format!("DIALBACK_{}_{}", self.table, self.field).to_uppercase()
    }

    /// In the program: `hub.login_timeout`.
    pub(crate) fn id(&self) -> String {
        format!("{}.{}", self.table, self.field)
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag,
    Variable(String),
    File { path: PathBuf, line: usize, column: usize },
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line, .. } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value as it was given: one text, or those of a list.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) texts: Vec<String>,
    pub(crate) origin: Origin,
}

/// The values of some settings, by [`Key::id`].
pub(crate) type Values = BTreeMap<String, Given>;

/// A table of the file, as the program has it.
pub(crate) trait Table: Sized {
    const KEYS: &'static [Key];

    /// # Errors
    /// When a value is not of its type.
    fn read(values: &Values) -> Result<Self, Failure>;
}

/// Every setting there is, whichever command it is of.
pub(crate) fn all_keys() -> impl Iterator<Item = &'static Key> {
    HubKeys::KEYS.iter().chain(AgentKeys::KEYS).chain(LogKeys::KEYS).chain(AdminKeys::KEYS)
}

/// The configuration in force.
#[derive(Debug, Clone)]
pub(crate) struct Config<T> {
    /// What is of the command itself.
    pub(crate) own: T,
    pub(crate) log: LogKeys,
    pub(crate) admin: AdminKeys,
    pub(crate) values: Values,
    keys: Vec<&'static Key>,
}

impl<T: Table> Config<T> {
    /// Puts flags, environment and file together, and reads the file for that.
    ///
    /// # Errors
    /// When the file cannot be read, has something in it that is no setting, or a value is not of its type.
    pub(crate) fn load(args: &ConfigArgs<T>) -> Result<Self, Failure> {
        let file = match &args.file {
            Some(path) => file::read(path)?,
            None => Values::new(),
        };
        let keys: Vec<_> = T::KEYS.iter().chain(LogKeys::KEYS).chain(AdminKeys::KEYS).collect();
        let mut values = Values::new();
        for key in &keys {
            let id = key.id();
            let given = args.given.get(&id).or_else(|| file.get(&id)).cloned();
            let given = match (&*id, given) {
                // What every program of this kind listens to, too.
                ("log.level", found @ (None | Some(Given { origin: Origin::File { .. }, .. }))) => {
                    let variable = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
                    let origin = Origin::Variable("RUST_LOG".into());
                    variable.map(|text| Given { texts: vec![text], origin }).or(found)
                }
                (_, given) => given,
            };
            let default = || key.default.map(|text| Given { texts: vec![text.into()], origin: Origin::Default });
            if let Some(mut given) = given.or_else(default) {
                let base = match &given.origin {
                    Origin::File { path, .. } => path.parent(),
                    _ => None,
                };
                for text in &mut given.texts {
                    *text = key.kind.in_place(text, base);
                }
                values.insert(id, given);
            }
        }
        let (own, log, admin) = (T::read(&values)?, LogKeys::read(&values)?, AdminKeys::read(&values)?);
        Ok(Self { own, log, admin, values, keys })
    }

    /// The configuration as a file of it would be, with where each value comes from.
    pub(crate) fn print(&self) -> String {
        print::print(&self.keys, &self.values)
    }

    /// Refuses settings that would be passed over in silence, by the names of their fields.
    ///
    /// # Errors
    /// When one of them is set.
    pub(crate) fn refuse(&self, is_one: impl Fn(&str) -> bool, why: &str) -> Result<(), Failure> {
        for key in T::KEYS.iter().filter(|key| is_one(key.field)) {
            let Some(given) = self.values.get(&key.id()).filter(|given| given.origin != Origin::Default) else {
                continue;
            };
            // What is switched off is not asked for.
            if key.kind != Kind::Switch || <bool as Setting>::read(Some(&given.texts)) == Ok(true) {
                return Err(Failure::usage(format!("{}: {why}", place(key, Some(given)))));
            }
        }
        Ok(())
    }

    /// Refuses nothing at all where nothing would work with it, by the names of fields.
    ///
    /// # Errors
    /// When one of them is 0.
    pub(crate) fn refuse_zero(&self, fields: &[&str]) -> Result<(), Failure> {
        for key in T::KEYS.iter().filter(|key| fields.contains(&key.field)) {
            let given = self.values.get(&key.id());
            let text = given.and_then(|given| given.texts.last());
            // Whatever its unit is.
            if text.is_some_and(|text| text.chars().filter(char::is_ascii_digit).all(|digit| digit == '0')) {
                let place = place(key, given);
                return Err(Failure::usage(format!("{place}: with 0 nothing works: leave it out, or write more")));
            }
        }
        Ok(())
    }

    /// The settings that another configuration has otherwise.
    pub(crate) fn changed(&self, other: &Self) -> Vec<&'static Key> {
        let texts = |of: &Self, key: &Key| of.values.get(&key.id()).map(|given| given.texts.clone());
        self.keys.iter().copied().filter(|key| texts(self, key) != texts(other, key)).collect()
    }
}

/// Reads one value.
pub(crate) fn read<S: Setting>(values: &Values, key: &Key) -> Result<S, Failure> {
    let given = values.get(&key.id());
    S::read(given.map(|given| &*given.texts)).map_err(|why| Failure::usage(format!("{}: {why}", place(key, given))))
}

/// Where a setting was set.
fn place(key: &Key, given: Option<&Given>) -> String {
    match given.map(|given| &given.origin) {
        Some(Origin::File { path, line, column }) => format!("{}:{line}:{column}: `{}`", path.display(), key.name()),
        Some(Origin::Variable(name)) => name.clone(),
        _ => format!("--{}", key.flag()),
    }
}

/// A path as it is from everywhere: relative to `base`, or to the working directory; `~/` is the user's home.
fn absolute(text: &str, base: Option<&Path>) -> PathBuf {
    let path = match (text.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => base.map_or_else(|| PathBuf::from(text), |base| base.join(text)),
    };
    std::path::absolute(&path).unwrap_or(path)
}

/// Of some names the one that is most like another, if it is at all.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + name.chars().count() / 3;
    names.map(|other| (distance(name, other), other)).filter(|(far, _)| *far <= limit).min().map(|(_, other)| other)
}

/// How many letters have to be changed, added or left out (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_flag_a_variable_and_a_place_in_the_file() {
        use clap::CommandFactory;
        let root = crate::Cli::command();
        for key in all_keys() {
            for role in
                ["hub", "agent"].into_iter().filter(|role| *role == key.table || matches!(key.table, "log" | "admin"))
            {
                let command = root.find_subcommand(role).expect("the command");
                let argument = command.get_arguments().find(|argument| argument.get_id() == &*key.id());
                let argument = argument.unwrap_or_else(|| panic!("{role} has no {}", key.id()));
                assert_eq!(argument.get_long(), Some(&*key.flag()));
                assert_eq!(argument.get_env().and_then(std::ffi::OsStr::to_str), Some(&*key.variable()));
                assert!(argument.get_help().is_some(), "{} has no help", key.id());
            }
            let text = format!("[{}]\n{} = {}\n", key.table, key.name(), key.kind.sample());
            let read = file::parse(Path::new("/etc/dialback.toml"), &text).expect("it is taken");
            assert_eq!(read.keys().collect::<Vec<_>>(), [&key.id()], "{text}");
        }
        let mut flags: Vec<_> = all_keys().map(|key| (key.table, key.flag())).collect();
        flags.sort();
        flags.dedup();
        assert_eq!(flags.len(), all_keys().count(), "two have the same name");
    }

    #[test]
    fn misspelt_names_are_recognised() {
        let names = ["listen", "login-timeout", "host-key"];
        assert_eq!(nearest("lisen", names.into_iter()), Some("listen"));
        assert_eq!(nearest("login_timeout", names.into_iter()), Some("login-timeout"));
        assert_eq!(nearest("colour", names.into_iter()), None);
    }
}
