//! What both daemons have: a log, signals, an admin address, a service manager.

pub(crate) mod admin;
pub(crate) mod keys;
pub(crate) mod logs;
#[cfg_attr(not(unix), path = "unnotified.rs")]
pub(crate) mod notify;
pub(crate) mod signals;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinSet;

use self::admin::{Admin, Readiness};
use self::logs::Logs;
use self::signals::{Signals, Told};
use crate::config::{Config, ConfigArgs, Key, Table};
use crate::failure::Failure;
use crate::grpc::print;

/// What runs.
pub(crate) trait Service<T> {
    /// Whether it does its work.
    fn readiness(&self) -> Readiness;

    /// Says in the log that it is ready, where, and what comes next.
    fn announce(&self);

    /// One line for the service manager.
    fn status(&self) -> String;

    /// Takes what it can of a new configuration; of the settings that are `changed`, gives those back that it could not.
    ///
    /// # Errors
    /// When something in it is wrong; then nothing of it was taken.
    fn reload(&self, config: &Config<T>, changed: Vec<&'static Key>) -> Result<Vec<&'static Key>, Failure>;

    /// Tells as it goes what happens, for as long as it is polled; returns when it has ended by itself.
    fn watch(&self) -> impl Future<Output = Result<(), Failure>>;

    /// Ends politely. Called again after its future was dropped, it cuts off what is left at the end of `grace`.
    fn shutdown(&self, grace: Duration) -> impl Future<Output = ()>;
}

/// Runs a daemon until it is told to end: reads the configuration, begins to log, starts it, and looks after it.
///
/// # Errors
/// When the configuration is wrong, or it cannot start, or ends by itself.
pub(crate) async fn run<T, S, F>(
    args: ConfigArgs<T>,
    grace: impl Fn(&T) -> Option<Duration>,
    start: impl FnOnce(Config<T>, Option<SocketAddr>) -> F,
) -> Result<(), Failure>
where
    T: Table + Clone,
    S: Service<T>,
    F: Future<Output = Result<S, Failure>>,
{
    let mut config = Config::load(&args)?;
    if args.print {
        return print(config.print().as_bytes());
    }
    let logs = Logs::start(&config.log)?;
    let mut signals = Signals::listen()?;
    let ready = Arc::new(OnceLock::<Readiness>::new());
    let mut admin_address = None;
    let mut beside = JoinSet::new();
    if let Some(address) = config.admin.listen.as_deref() {
        let admin = Admin::bind(address).await?;
        admin_address = Some(admin.local_addr);
        beside.spawn(admin.serve(ready.clone()));
    }
    beside.spawn(notify::watchdog());
    let starting = start(config.clone(), admin_address);
    tokio::pin!(starting);
    let mut again = false;
    let service = loop {
        tokio::select! {
            started = &mut starting => break started?,
            told = signals.next() => match told {
                // Nothing runs yet.
                Told::Stop => return Ok(()),
                Told::Reload => {
                    tracing::info!("the configuration is read again once it has started");
                    again = true;
                }
            },
        }
    };
    let _ = ready.set(service.readiness()); // it was empty
    notify::ready(&service.status());
    service.announce();
    if again {
        reload(&args, &mut config, &logs, &service);
    }
    {
        let watching = service.watch();
        tokio::pin!(watching);
        loop {
            tokio::select! {
                told = signals.next() => match told {
                    Told::Stop => break,
                    Told::Reload => reload(&args, &mut config, &logs, &service),
                },
                ended = &mut watching => return ended,
            }
        }
    }
    let grace = grace(&config.own).unwrap_or_default();
    tracing::info!(?grace, "stopping: waits for the calls in flight; a second signal cuts them off");
    notify::stopping(grace);
    let drained = tokio::select! {
        () = service.shutdown(grace) => true,
        () = signals.stop() => false,
    };
    if !drained {
        tracing::warn!("stopping at once: what was in flight is cut off");
        service.shutdown(Duration::ZERO).await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Reads the configuration again. What is wrong with it leaves the one in force as it is.
fn reload<T: Table, S: Service<T>>(args: &ConfigArgs<T>, config: &mut Config<T>, logs: &Logs, service: &S) {
    notify::reloading();
    let taken = Config::load(args).and_then(|new| {
        let changed = config.changed(&new);
        Logs::check(&new.log)?;
        // The level and the grace are nobody's business but this module's.
        let (own, others) =
            changed.into_iter().partition::<Vec<_>, _>(|key| key.id() == "log.level" || key.name() == "grace");
        let left = service.reload(&new, others)?;
        if own.iter().any(|key| key.id() == "log.level") {
            logs.set(&new.log)?;
        }
        Ok((new, left))
    });
    match taken {
        Ok((mut new, left)) => {
            for key in &left {
                tracing::warn!(key = key.name(), "changed, and counts from the next start on");
                // The next time it is compared with what is in force.
                match config.values.get(&key.id()) {
                    Some(before) => new.values.insert(key.id(), before.clone()),
                    None => new.values.remove(&key.id()),
                };
            }
            *config = new;
            tracing::info!(file = ?args.file(), "configuration read");
        }
        Err(error) => tracing::error!(%error, "the configuration was not taken; the one before stays in force"),
    }
    notify::ready(&service.status());
}
