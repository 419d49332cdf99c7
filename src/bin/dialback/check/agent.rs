//! Whether an agent would reach its hub.

use std::net::IpAddr;
use std::time::Duration;

use dialback::ConnectError;
use dialback::grpctunnel::OpenError;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tonic::Code;
use tonic::service::Routes;

use super::Report;
use crate::agent::{builder, check_settings, explain, forwards};
use crate::config::{Address, AgentKeys, Config, without_secrets};
use crate::failure::Failure;
use crate::tunnel::{self, Failed, Way};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

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
    Grpc,
    Login,
    Forward,
    RoundTrip,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Name,
        Self::Proxy,
        Self::Connection,
        Self::Tls,
        Self::WebSocket,
        Self::Ssh,
        Self::HostKey,
        Self::Grpc,
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
            Self::Grpc => "gRPC",
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
            Self::Tls => hub.starts_with("wss://") || hub.starts_with("grpcs://"),
            Self::Ssh | Self::HostKey | Self::Forward | Self::RoundTrip => !tunnel::is_meant(hub),
            Self::Grpc => tunnel::is_meant(hub),
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

/// Goes to each hub, and to the local servers.
pub(super) async fn check(config: &Config<AgentKeys>, report: &mut Report) -> Result<(), Failure> {
    // What is missing or cannot be read is told before anything is dialled.
    check_settings(config)?;
    let forwards =
        if config.own.forward.is_empty() { None } else { Some(forwards(config).map_err(Failure::of_configuration)?) };
    match Way::of(&config.own).map_err(Failure::of_configuration)? {
        Some(way) => {
            report.begin();
            report.title(&way.url);
            check_way(&way, report).await;
        }
        None => {
            let (_, first) = builder(&config.own).await.map_err(Failure::of_configuration)?;
            report.begin();
            let hubs = if config.own.hub.is_empty() { vec![Address(first)] } else { config.own.hub.clone() };
            for hub in hubs {
                report.title(&without_secrets(&hub));
                check_hub(&config.own, &hub, report).await?;
            }
        }
    }
    match forwards {
        None => report.title("no --forward is set, so no local server was looked at"),
        Some(forwards) => {
            report.title("local servers");
            for (server, reached) in forwards.check(PATIENCE).await {
                let reached = reached.map(|()| "accepts connections".to_owned());
                report.step(&server, reached.map_err(|why| format!("{why}\n  start the server, or mend --forward")));
            }
        }
    }
    Ok(())
}

/// Goes all the way to a hub of `grpctunnel`.
async fn check_way(way: &Way, report: &mut Report) {
    let opened = way.open(Routes::default()).await;
    let failed = opened.as_ref().err().map(|failed| match failed {
        Failed::Name { .. } => Step::Name,
        Failed::Connection { .. } => Step::Connection,
        Failed::Tls { .. } => Step::Tls,
        Failed::Tunnel { source: OpenError::Refused(status), .. }
            if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) =>
        {
            Step::Login
        }
        Failed::NotGrpc { .. } | Failed::Tunnel { .. } => Step::Grpc,
    });
    let until = failed.unwrap_or(Step::Forward);
    for step in Step::ALL.into_iter().filter(|step| *step < until && step.is_on_the_way(&way.url, false)) {
        report.step(step.name(), Ok(passed(step, &way.url, way.id.as_str(), None).await));
    }
    match (opened, failed) {
        (Ok(tunnel), _) => tunnel.shutdown(Duration::ZERO).await,
        (Err(error), failed) => {
            report.step(failed.unwrap_or(Step::Grpc).name(), Err(way.explain(&error).to_string()));
        }
    }
}

/// What is said of a step that went well.
async fn passed(step: Step, hub: &str, id: &str, proxy: Option<&str>) -> String {
    match step {
        Step::Name => resolve(hub).await.unwrap_or_else(|why| format!("not known here ({why})")),
        Step::Proxy => proxy.unwrap_or_default().to_owned(),
        Step::Login => format!("as {id}"),
        _ => String::new(),
    }
}

/// Whether nothing was dialled, and so no step was taken.
fn is_configured_wrong(error: &ConnectError) -> bool {
    use ConnectError::{InvalidAddress, InvalidAgentId, InvalidLabel, InvalidProxy, InvalidRemote};
    matches!(
        error,
        InvalidAgentId(_) | InvalidAddress { .. } | InvalidRemote { .. } | InvalidLabel(_) | InvalidProxy { .. }
    )
}

/// Goes all the way to one hub of SSH.
async fn check_hub(keys: &AgentKeys, hub: &Address, report: &mut Report) -> Result<(), Failure> {
    let mut keys = keys.clone();
    keys.hub = vec![hub.clone()];
    let (builder, address) = builder(&keys).await?;
    let proxy = match &keys.proxy_command {
        Some(_) => Some("--proxy-command".to_owned()),
        None => builder.proxy_to(&address).map(|proxy| match &keys.proxy {
            Some(_) => proxy,
            None => format!("{proxy}, from the environment or ~/.ssh/config"),
        }),
    };
    let connected = builder.connect(&address).await;
    if let Err(error) = &connected
        && is_configured_wrong(error)
    {
        return Err(explain(error, &keys));
    }
    let id = match &connected {
        Ok(agent) => agent.id().to_string(),
        Err(_) => keys.id.clone().unwrap_or_default(),
    };
    let failed = connected.as_ref().err().map(Step::of);
    let until = failed.unwrap_or(Step::RoundTrip);
    let on_the_way = |step: &Step| *step < until && step.is_on_the_way(&address, proxy.is_some());
    for step in Step::ALL.into_iter().filter(on_the_way) {
        report.step(step.name(), Ok(passed(step, &address, &id, proxy.as_deref()).await));
    }
    let agent = match connected {
        Ok(agent) => agent,
        Err(error) => {
            report.step(Step::of(&error).name(), Err(explain(&error, &keys).to_string()));
            return Ok(());
        }
    };
    // Nobody serves here.
    drop(agent.incoming());
    let trip = timeout(PATIENCE, agent.round_trip()).await.ok().flatten();
    let said = trip.map(|took| format!("{:.1} ms", took.as_secs_f64() * 1000.0));
    report.step(
        Step::RoundTrip.name(),
        said.ok_or_else(|| format!("no answer within {PATIENCE:?}\n  is the path overloaded?")),
    );
    agent.shutdown(Duration::ZERO).await;
    Ok(())
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
