//! The flags and environment variables of a daemon, made from its settings.

use std::ffi::OsString;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::keys::{AdminKeys, LogKeys};
use super::value::{Form, Kind};
use super::{Given, Key, Origin, Table, Values};

/// What was given to a daemon beside its file.
#[derive(Clone)]
pub(crate) struct ConfigArgs<T> {
    pub(super) file: Option<PathBuf>,
    /// Whether anything was given by a flag.
    pub(crate) by_flag: bool,
    /// Only say what is configured.
    pub(crate) print: bool,
    pub(super) given: Values,
    of: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for ConfigArgs<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values may have passwords.
        f.debug_struct("ConfigArgs").field("file", &self.file).field("print", &self.print).finish_non_exhaustive()
    }
}

impl<T> ConfigArgs<T> {
    pub(crate) fn file(&self) -> Option<&std::path::Path> {
        self.file.as_deref()
    }
}

fn keys<T: Table>() -> impl Iterator<Item = &'static Key> {
    T::KEYS.iter().chain(LogKeys::KEYS).chain(AdminKeys::KEYS)
}

fn argument(key: &Key) -> Arg {
    let lines: Vec<_> = key.help.iter().map(|line| line.trim()).collect();
    let mut text = lines.join(" ");
    if let Form::Choice(choices) = key.kind.form()
        && key.kind != Kind::Switch
    {
        text = format!("{text} One of {}", choices.join(", "));
    }
    if let Some(default) = key.default {
        text = format!("{} [default: {default}]", text.trim_end_matches('.'));
    }
    let argument = Arg::new(key.id()).long(key.flag()).env(key.variable()).hide_env_values(true).help(text);
    let argument = match key.table {
        "log" | "admin" => argument.help_heading("Daemon"),
        _ => argument,
    };
    let argument = if key.id() == "admin.listen" { argument.visible_alias("admin") } else { argument };
    match key.kind {
        Kind::Switch => argument
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false"),
        Kind::One(_) => argument.action(ArgAction::Set).value_name(key.value_name),
        Kind::List(_) => argument.action(ArgAction::Append).value_name(key.value_name),
    }
}

impl<T: Table> clap::Args for ConfigArgs<T> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env("DIALBACK_CONFIG")
            .hide_env_values(true)
            .value_parser(clap::builder::OsStringValueParser::new())
            .help_heading("Daemon")
            .help("A configuration file in TOML; each flag is a key in its table, what is given by flag or environment counts before it, and paths in it are relative to it");
        let print = Arg::new("print-config")
            .long("print-config")
            .action(ArgAction::SetTrue)
            .help_heading("Daemon")
            .help("Prints the configuration in force as such a file, with where each value comes from, and ends");
        command.args(keys::<T>().map(argument)).arg(file).arg(print)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Table> clap::FromArgMatches for ConfigArgs<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Values::new();
        for key in keys::<T>() {
            let id = key.id();
            let texts = matches.get_many::<String>(&id).into_iter().flatten().cloned();
            let value = match matches.value_source(&id) {
                Some(ValueSource::CommandLine) => Given { texts: texts.collect(), origin: Origin::Flag },
                Some(ValueSource::EnvVariable) => {
                    let split = |text: String| match key.kind {
                        Kind::List(_) => text.split(',').map(|item| item.trim().to_owned()).collect(),
                        _ => vec![text],
                    };
                    let texts: Vec<_> = texts.flat_map(split).filter(|text| !text.is_empty()).collect();
                    Given { texts, origin: Origin::Variable(key.variable()) }
                }
                _ => continue,
            };
            // An empty variable is none.
            if !value.texts.is_empty() {
                given.insert(id, value);
            }
        }
        let file = matches.get_one::<OsString>("config").filter(|path| !path.is_empty()).map(PathBuf::from);
        let print = matches.get_flag("print-config");
        let by_flag = print
            || matches.value_source("config") == Some(ValueSource::CommandLine)
            || given.values().any(|given| given.origin == Origin::Flag);
        Ok(Self { file, by_flag, print, given, of: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
