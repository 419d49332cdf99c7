//! `dialback check`: whether an agent would reach its hub, step by step, and what to do if not.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use dialback::ConnectError;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::agent::{builder, explain, forwards};
use crate::config::{Address, AgentKeys, Config, ConfigArgs};
use crate::failure::Failure;
use crate::grpc::print;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dialback check --config dialback.toml
  dialback check --hub hub.example.com:2222 --id laptop-1 --identity laptop-1 --known-hosts known_hosts

It takes the flags, variables and file of `dialback agent`, and looks at each hub on its own. For that it logs in as the
agent, and leaves at once: where this agent runs already, calls that come in that moment may have to be made again.

Exit codes: 0 all is well; 1 something is not; 64 the configuration is wrong.")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    agent: ConfigArgs<AgentKeys>,
}

/// What has to go well, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Name,
    Proxy,
    Connection,
    Tls,
    WebSocket,
    Ssh,
    HostKey,
    Login,
    Forward,
    RoundTrip,
}

impl Step {
    const ALL: [Self; 10] = [
        Self::Name,
        Self::Proxy,
        Self::Connection,
        Self::Tls,
        Self::WebSocket,
        Self::Ssh,
        Self::HostKey,
        Self::Login,
        Self::Forward,
        Self::RoundTrip,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Proxy => "proxy",
            Self::Connection => "connection",
            Self::Tls => "TLS",
            Self::WebSocket => "WebSocket",
            Self::Ssh => "SSH",
            Self::HostKey => "host key",
            Self::Login => "login",
            Self::Forward => "forward",
            Self::RoundTrip => "round trip",
        }
    }

    /// Whether the way to this hub has such a step.
    fn is_on_the_way(self, hub: &str, proxied: bool) -> bool {
        let socket = hub.starts_with("unix:");
        match self {
            // A proxy looks the name up itself.
            Self::Name => !socket && !proxied,
            Self::Proxy => proxied,
            Self::Tls => hub.starts_with("wss://"),
            Self::WebSocket => hub.starts_with("wss://") || hub.starts_with("ws://"),
            _ => true,
        }
    }

    /// Where an attempt to connect came to its end.
    fn of(error: &ConnectError) -> Self {
        match error {
            ConnectError::Resolve { .. } => Self::Name,
            ConnectError::Proxy { .. } | ConnectError::InvalidProxy { .. } => Self::Proxy,
            ConnectError::Unreachable { .. } => Self::Connection,
            ConnectError::Tls { .. } | ConnectError::TlsRoots(_) => Self::Tls,
            ConnectError::NotWebSocket { .. } => Self::WebSocket,
            ConnectError::HostKey { .. } => Self::HostKey,
            ConnectError::Auth { .. } => Self::Login,
            ConnectError::ForwardRefused { .. } | ConnectError::RemoteRefused { .. } => Self::Forward,
            // It took too long, was cut off, or no two sides of SSH have met.
            _ => Self::Ssh,
        }
    }
}

/// Runs `dialback check`.
pub(crate) async fn run(args: CheckArgs) -> Result<(), Failure> {
    let config = Config::load(&args.agent)?;
    if args.agent.print {
        return print(config.print().as_bytes());
    }
    let file = args.agent.file().map_or("no file, flags and environment alone".into(), display);
    // What is missing or cannot be read is told before anything is dialled.
    let (_, first) = builder(&config.own).await?;
    let mut well = true;
    tick(true, "config", &file);

    let hubs = if config.own.hub.is_empty() { vec![Address(first)] } else { config.own.hub.clone() };
    for hub in hubs {
        anstream::println!("\n{}", hub.0);
        well &= check_hub(&config.own, &hub).await?;
    }
    if config.own.forward.is_empty() {
        anstream::println!("\nno --forward is set, so no local server was looked at");
    } else {
        anstream::println!("\nlocal servers");
        for (server, reached) in forwards(&config.own)?.check(PATIENCE).await {
            match reached {
                Ok(()) => tick(true, &server, "accepts connections"),
                Err(why) => {
                    tick(false, &server, &format!("{why}\n  start the server, or mend --forward"));
                    well = false;
                }
            }
        }
    }
    if well { Ok(()) } else { Err(Failure::told()) }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

fn tick(well: bool, what: &str, text: &str) {
    let (mark, colour) = if well { ("✓", "\x1b[32m") } else { ("✗", "\x1b[31m") };
    // Where stdout is no terminal the colours are left out.
    anstream::println!("{colour}{mark}\x1b[0m {what:<11}  {text}");
}

/// Goes all the way to one hub.
async fn check_hub(keys: &AgentKeys, hub: &Address) -> Result<bool, Failure> {
    let mut keys = keys.clone();
    keys.hub = vec![hub.clone()];
    let proxied = keys.proxy.is_some() || keys.proxy_command.is_some();
    let (builder, address) = builder(&keys).await?;

    let passed = async |until: Step, id: &str| {
        for step in Step::ALL.into_iter().filter(|step| *step < until && step.is_on_the_way(&hub.0, proxied)) {
            let text = match step {
                Step::Name => match resolve(&hub.0).await {
                    Ok(addresses) => addresses,
                    // There may be a proxy in the environment, which looks it up.
                    Err(why) => format!("not known here ({why}), but to the proxy"),
                },
                Step::Login => format!("as {id}"),
                _ => String::new(),
            };
            tick(true, step.name(), &text);
        }
    };
    let agent = match builder.connect(&address).await {
        Ok(agent) => agent,
        Err(error) => {
            let failed = Step::of(&error);
            passed(failed, keys.id.as_deref().unwrap_or_default()).await;
            tick(false, failed.name(), &explain(&error, &keys).to_string());
            return Ok(false);
        }
    };
    // Nobody serves here.
    drop(agent.incoming());
    passed(Step::RoundTrip, agent.id().as_str()).await;
    let trip = timeout(PATIENCE, agent.round_trip()).await.ok().flatten();
    match trip {
        Some(took) => tick(true, Step::RoundTrip.name(), &format!("{:.1} ms", took.as_secs_f64() * 1000.0)),
        None => {
            tick(false, Step::RoundTrip.name(), &format!("no answer within {PATIENCE:?}\n  is the path overloaded?"))
        }
    }
    agent.shutdown(Duration::ZERO).await;
    Ok(trip.is_some())
}

/// The addresses of a hub's host.
async fn resolve(hub: &str) -> Result<String, String> {
    let rest = hub.split_once("://").map_or(hub, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.parse::<IpAddr>().is_ok() {
        return Ok(format!("{host}, an address"));
    }
    let found = timeout(PATIENCE, lookup_host((host, 0))).await;
    let found = found.map_err(|_| format!("{host} was not found within {PATIENCE:?}"))?;
    let addresses: Vec<_> = found.map_err(|error| error.to_string())?.map(|to| to.ip().to_string()).collect();
    Ok(format!("{host} is {}", addresses.join(", ")))
}
