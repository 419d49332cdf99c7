//! What a daemon logs, and how that looks.

use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;
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

fn filter(keys: &LogKeys) -> Result<EnvFilter, Failure> {
    let level = keys.level.as_deref().unwrap_or("info");
    EnvFilter::try_new(level).map_err(|error| {
        let advice = "write error, warn, info, debug, trace or off, or such as info,dialback=debug";
        Failure::usage(format!("`{}` is no log level: {error}; {advice}", level.escape_debug()))
    })
}
