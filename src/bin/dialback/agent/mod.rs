//! `dialback agent`.

mod ssh;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dialback::grpctunnel::ReverseTunnel;
use dialback::{Agent, AgentBuilder, AgentId, AgentStatus, ForwardTls, Forwards};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

pub(crate) use self::ssh::{builder, explain};

use crate::config::{AgentKeys, Config, ConfigArgs, Key, without_secrets};
use crate::daemon::admin::{Readiness, readiness};
use crate::daemon::{self, Service, notify};
use crate::failure::Failure;
use crate::grpc::{certificates, check_pair};
use crate::hub::set;
use crate::tunnel::{self, Way};

pub(crate) type AgentArgs = ConfigArgs<AgentKeys>;

/// What stands below the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  dialback agent --hub hub.example.com:2222 --id laptop-1 --identity keys/laptop-1 --known-hosts keys/known_hosts
      --forward 127.0.0.1:50051
      the hub's clients call the gRPC server on port 50051 as `laptop-1`
  dialback agent --hub hub.example.com:2222 --hub wss://hub.example.com/tunnel --id laptop-1 --identity ssh-agent
      --host-key-fingerprint SHA256:... --forward unix:/run/app.sock --forward metrics.v1.Metrics=127.0.0.1:9100
      by HTTPS where SSH does not get out; one service is another server's
  dialback agent --hub grpcs://hub.example.com:8443 --id laptop-1 --token-file laptop-1.token --forward 127.0.0.1:50051
      by grpctunnel, where nothing but gRPC passes
  dialback agent --ssh-config hub --forward https://localhost:50051 --forward-ca ca.pem
      hub, id, key and known hosts are those of `Host hub` in ~/.ssh/config

It waits for a hub that is not there yet, and gives up on what waiting does not cure, such as a wrong key. By
grpctunnel, once it was let in, it tries for ever, also when it is refused later. Its token is read at the start: one that
has changed needs a restart.
Signals: SIGTERM and SIGINT end it when the calls in flight have ended, a second one at once; SIGHUP reads the
configuration again, of which --log-level, --forward, --forward-ca, --forward-cert and --forward-key count at once.
Ready (GET /readyz of --admin) is an agent that is connected and whose local servers accept connections.
Every flag is a key of the file, too, and a variable, in which the items of a list are separated by commas.
Exit codes: 0 it was told to end, 1 it did not work, 64 the arguments or the configuration are wrong.";

/// How long a local server may take to accept a connection, when somebody asks whether the agent is ready.
const REACH: Duration = Duration::from_secs(2);

/// For how long what was found out about local servers is told again.
const FRESH: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: AgentArgs) -> Result<(), Failure> {
    daemon::run(args, |own| own.grace, start).await
}

struct Running {
    link: Link,
    forwards: Forwards,
    is_draining: Arc<AtomicBool>,
}

/// How the hub is to be reached.
enum Plan {
    Ssh(Box<AgentBuilder>, String),
    Grpc(Box<Way>),
}

impl Plan {
    fn hub(&self) -> &str {
        match self {
            Self::Ssh(_, hub) => hub,
            Self::Grpc(way) => &way.url,
        }
    }
}

/// What leads to the hub.
enum Link {
    Ssh {
        agent: Box<Agent>,
        /// Ends with the agent.
        serving: Mutex<JoinHandle<()>>,
    },
    Grpc {
        tunnel: ReverseTunnel,
        id: AgentId,
    },
}

impl Link {
    fn id(&self) -> &AgentId {
        match self {
            Self::Ssh { agent, .. } => agent.id(),
            Self::Grpc { id, .. } => id,
        }
    }

    fn status(&self) -> watch::Receiver<AgentStatus> {
        match self {
            Self::Ssh { agent, .. } => agent.status(),
            Self::Grpc { tunnel, .. } => tunnel.status(),
        }
    }
}

async fn start(config: Config<AgentKeys>, admin: Option<SocketAddr>) -> Result<Running, Failure> {
    let keys = &config.own;
    let forwards = forwards(&config).map_err(Failure::of_configuration)?;
    check_settings(&config)?;
    let plan = match Way::of(keys).map_err(Failure::of_configuration)? {
        Some(way) => Plan::Grpc(Box::new(way)),
        None => {
            let (builder, hub) = builder(keys).await.map_err(Failure::of_configuration)?;
            Plan::Ssh(Box::new(builder), hub)
        }
    };
    tracing::info!(
        hub = without_secrets(plan.hub()),
        forward = keys.forward.iter().map(|rule| &*rule.0).collect::<Vec<_>>().join(","),
        admin = admin.map(|address| address.to_string()),
        "agent starts"
    );
    if let (Plan::Grpc(way), false) = (&plan, keys.no_proxy)
        && let Some(proxy) = way.passed_proxy()
    {
        tracing::warn!(
            proxy,
            "the environment names a proxy, which a hub at grpcs:// is not reached by: --no-proxy says that this is meant"
        );
    }
    notify::status("connecting to the hub");
    let link = match plan {
        Plan::Grpc(way) => {
            let tunnel = way.open_when_available(&forwards.routes()).await?;
            Link::Grpc { tunnel, id: way.id }
        }
        Plan::Ssh(builder, hub) => {
            let agent = builder.connect_when_available(&hub).await.map_err(|error| explain(&error, keys))?;
            let incoming = agent.incoming();
            let serving = tokio::spawn({
                let forwards = forwards.clone();
                async move { forwards.serve(incoming).await }
            });
            Link::Ssh { agent: Box::new(agent), serving: Mutex::new(serving) }
        }
    };
    for (server, reached) in forwards.check(REACH).await {
        if let Err(error) = reached {
            tracing::warn!(server, %error, "the local server cannot be reached yet: calls to it fail until it is there");
        }
    }
    Ok(Running { link, forwards, is_draining: Arc::default() })
}

/// The local servers.
///
/// # Errors
/// When there is none, or something of it is wrong.
pub(crate) fn forwards(config: &Config<AgentKeys>) -> Result<Forwards, Failure> {
    let keys = &config.own;
    if keys.forward.is_empty() {
        return Err(Failure::usage("say where the local gRPC server is: --forward 127.0.0.1:50051"));
    }
    if !keys.forward.iter().any(|rule| rule.rsplit('=').next().is_some_and(|to| to.starts_with("https://"))) {
        let why =
            "no --forward is https://: write --forward https://HOST:PORT for a server with TLS, or leave this out";
        config.refuse(|field| matches!(field, "forward_ca" | "forward_cert" | "forward_key"), why)?;
    }
    if let Some(path) = &keys.forward_ca {
        // They are read at each connection; what is wrong is said now.
        certificates(path)?;
    }
    let tls = set(ForwardTls::new(), keys.forward_ca.as_ref(), ForwardTls::roots);
    let tls = match (&keys.forward_cert, &keys.forward_key) {
        (Some(certificates), Some(key)) => {
            check_pair(certificates, key)?;
            tls.client_certificate(certificates, key)
        }
        (None, None) => tls,
        _ => return Err(Failure::usage("--forward-cert and --forward-key go together")),
    };
    let rules = keys.forward.iter().map(|rule| &*rule.0);
    Forwards::with_tls(rules, tls).map_err(|error| Failure::usage(format!("--forward: {error}")))
}

/// What would be passed over in silence.
///
/// # Errors
/// The first of these, with what to do.
pub(crate) fn check_settings(config: &Config<AgentKeys>) -> Result<(), Failure> {
    let keys = &config.own;
    config.refuse_zero(&["login_timeout", "max_channels", "backoff_min"])?;
    if let Some(hub) = keys.hub.iter().find(|hub| tunnel::is_meant(hub)) {
        let why = format!("it is for hubs of SSH, and {} is none: leave it out", hub.0);
        let of_ssh = [
            "identity",
            "certificate",
            "identity_passphrase_file",
            "known_hosts",
            "host_key_fingerprint",
            "host_ca",
            "ssh_config",
            "ssh_config_file",
            "label",
            "remote",
            "forward_request_optional",
            "max_channels",
            "window",
            "rekey_bytes",
            "rekey_interval",
            "renew_after",
        ];
        config.refuse(|field| of_ssh.contains(&field), &why)?;
        let why = format!("no proxy leads to {}: through one, a hub is reached by SSH or at wss://", hub.0);
        return config.refuse(|field| matches!(field, "proxy" | "proxy_command"), &why);
    }
    let why = "it is for a hub at grpcs:// or grpc://; others are shown --identity: leave it out";
    config.refuse(|field| field == "token_file", why)?;
    if keys.ssh_config.is_none() {
        let why = "say which host of it: --ssh-config HOST";
        config.refuse(|field| field == "ssh_config_file", why)?;
    } else {
        let why = "with --ssh-config, keys are those of ~/.ssh/config (IdentityFile, CertificateFile): leave it out";
        config.refuse(|field| matches!(field, "certificate" | "identity_passphrase_file"), why)?;
    }
    let secure_proxy = match &keys.proxy {
        Some(proxy) => proxy.starts_with("https://"),
        // The environment may have one.
        None => !keys.no_proxy && keys.proxy_command.is_none(),
    };
    if !secure_proxy && !keys.hub.iter().any(|hub| hub.starts_with("wss://")) {
        let why = "nothing on the way speaks TLS: no --hub is wss:// or grpcs://: set one, or leave this out";
        config.refuse(|field| field == "tls_roots", why)?;
    }
    Ok(())
}

impl Service<AgentKeys> for Running {
    /// A tunnel stands, every local server accepts connections, and it is not about to end.
    fn readiness(&self) -> Readiness {
        type Found = Option<(Instant, Result<(), String>)>;
        let found: Arc<Mutex<Found>> = Arc::default();
        let (status, forwards, is_draining) = (self.link.status(), self.forwards.clone(), self.is_draining.clone());
        readiness(move || {
            let (status, forwards, found) = (status.clone(), forwards.clone(), found.clone());
            let is_draining = is_draining.load(Ordering::Relaxed);
            async move {
                if is_draining {
                    return Err("it is about to end".into());
                }
                let now = status.borrow().clone();
                if !now.is_connected() {
                    return Err(now.to_string());
                }
                // Whoever asks often does not connect often.
                let mut found = found.lock().await;
                if found.as_ref().is_none_or(|(at, _)| at.elapsed() >= FRESH) {
                    let checked = forwards.check(REACH).await;
                    let wrong =
                        checked.into_iter().find_map(|(server, reached)| reached.err().map(|why| (server, why)));
                    let result = match wrong {
                        Some((server, why)) => Err(format!("the local server {server} cannot be reached: {why}")),
                        None => Ok(()),
                    };
                    *found = Some((Instant::now(), result));
                }
                match &*found {
                    Some((_, Err(why))) => Err(why.clone()),
                    _ => Ok(now.to_string()),
                }
            }
        })
    }

    fn announce(&self) {
        let status = self.link.status().borrow().to_string();
        tracing::info!(id = %self.link.id(), status, "agent ready");
    }

    fn status(&self) -> String {
        self.link.status().borrow().to_string()
    }

    fn reload(&self, config: &Config<AgentKeys>, changed: Vec<&'static Key>) -> Result<Vec<&'static Key>, Failure> {
        let (taken, left): (Vec<_>, Vec<_>) = changed.into_iter().partition(|key| {
            matches!(key.field, "forward" | "forward_ca" | "forward_cert" | "forward_key") && key.table == "agent"
        });
        if !taken.is_empty() {
            self.forwards.replace(&forwards(config)?);
            tracing::info!(forward = ?self.forwards, "calls go to other servers from now on");
        }
        Ok(left)
    }

    async fn watch(&self) -> Result<(), Failure> {
        let mut status = self.link.status();
        loop {
            let text = {
                let now = status.borrow_and_update();
                if matches!(*now, AgentStatus::Stopped) {
                    return Err(Failure::new("the agent has stopped"));
                }
                now.to_string()
            };
            notify::status(&text);
            if status.changed().await.is_err() {
                return Err(Failure::new("the agent has stopped"));
            }
        }
    }

    async fn shutdown(&self, grace: Duration) {
        self.is_draining.store(true, Ordering::Relaxed);
        match &self.link {
            Link::Grpc { tunnel, .. } => tunnel.shutdown(grace).await,
            Link::Ssh { agent, serving } => {
                agent.shutdown(grace).await;
                let mut serving = serving.lock().await;
                if !serving.is_finished() {
                    // The channels are closed, so it has nothing left to do.
                    let _ = tokio::time::timeout(Duration::from_secs(1), &mut *serving).await;
                    serving.abort();
                }
            }
        }
    }
}
