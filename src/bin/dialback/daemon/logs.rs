//! What a daemon logs, and how that looks.

use std::io::IsTerminal;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::{LogFormat, LogKeys};
use crate::failure::Failure;

/// The log of this process; its level can be changed.
pub(crate) struct Logs(reload::Handle<EnvFilter, Registry>);

impl Logs {
    /// Begins to log, on stderr. Colours are for terminals alone, and not where `NO_COLOR` is set.
    ///
    /// # Errors
    /// When the level makes no sense.
    pub(crate) fn start(keys: &LogKeys) -> Result<Self, Failure> {
        let (filter, handle) = reload::Layer::new(filter(keys)?);
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let layer = match keys.format {
            Some(LogFormat::Json) => layer.json().flatten_event(true).with_span_list(false).boxed(),
            _ => {
                let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                layer.with_ansi(std::io::stderr().is_terminal() && !unwanted).with_target(false).boxed()
            }
        };
        let started = Registry::default().with(filter).with(layer).try_init();
        started.map_err(|error| Failure::because("cannot log", &error))?;
        Ok(Self(handle))
    }

    /// # Errors
    /// When the level makes no sense.
    pub(crate) fn check(keys: &LogKeys) -> Result<(), Failure> {
        filter(keys).map(drop)
    }

    /// Goes by another level from now on.
    ///
    /// # Errors
    /// When the level makes no sense; then the one before stays.
    pub(crate) fn set(&self, keys: &LogKeys) -> Result<(), Failure> {
        let filter = filter(keys)?;
        self.0.reload(filter).map_err(|error| Failure::because("cannot change the log level", &error))
    }
}

/// What russh warns of there are requests that are no extension of SSH that it knows: the hub's question how long a round trip
/// takes is one.
const QUIET: &str = "russh::client::encrypted=error";

fn filter(keys: &LogKeys) -> Result<EnvFilter, Failure> {
    let level = keys.level.as_deref().unwrap_or("info");
    let wrong = |why: String| {
        let advice = "write error, warn, info, debug, trace or off, or such as info,dialback=debug";
        Failure::usage(format!("`{}` is no log level: {why}; {advice}", level.escape_debug()))
    };
    for word in level.split(',').map(str::trim).filter(|word| !word.contains(['=', '[', '"'])) {
        // As the name of a target it would switch all others off.
        if !word.is_empty() && word.parse::<LevelFilter>().is_err() {
            return Err(wrong(format!(
                "`{0}` is none; if it is the name of a target, write {0}=trace",
                word.escape_debug()
            )));
        }
    }
    let quiet = if level.contains("russh") { String::new() } else { format!(",{QUIET}") };
    EnvFilter::try_new(format!("{level}{quiet}")).map_err(|error| wrong(error.to_string()))
}
