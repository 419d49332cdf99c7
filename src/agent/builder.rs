//! How an agent is set up.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::driver::{self, Connected, Shared, Way};
use super::error::ConnectError;
use crate::carrier::{Address, Dialer, Egress, HostPort, Proxy, To};
use crate::id::AgentId;
use crate::incoming::Acceptor;
use crate::labels::{self, Labels};
use crate::ssh::{DialBack, ForwardRequest, HostKeys, Identity, Login, RENEW_AFTER, TunnelConfig};

/// A hub allows an agent twice as many, for those that are being renewed.
const TUNNELS_MAX: u16 = 8;

/// Sets up an [`Agent`]. What is required: an id, a key, and how to recognise the hub.
#[must_use = "a builder does nothing until `connect`"]
pub struct AgentBuilder {
    id: String,
    identity: Identity,
    host_keys: Option<HostKeys>,
    config: TunnelConfig,
    forward: ForwardRequest,
    backoff: Backoff,
    renew_after: u64,
    labels: Vec<(String, String)>,
    remote: Option<String>,
    fallbacks: Vec<String>,
    egress: Result<Egress, ConnectError>,
    #[cfg(feature = "websocket")]
    tls_roots: Option<std::path::PathBuf>,
    tunnels: u16,
}

impl Agent {
    /// Starts to set up an agent: the id that it claims, and what it proves it with.
    pub fn builder(id: impl Into<String>, identity: impl Into<Identity>) -> AgentBuilder {
        AgentBuilder {
            id: id.into(),
            identity: identity.into(),
            host_keys: None,
            config: TunnelConfig::default(),
            forward: ForwardRequest::default(),
            backoff: Backoff::default(),
            renew_after: RENEW_AFTER,
            labels: Vec::new(),
            remote: None,
            fallbacks: Vec::new(),
            egress: Ok(Egress::Environment),
            #[cfg(feature = "websocket")]
            tls_roots: None,
            tunnels: 1,
        }
    }
}

impl AgentBuilder {
    /// How to recognise the hub. Required.
    pub fn host_keys(mut self, host_keys: HostKeys) -> Self {
        self.host_keys = Some(host_keys);
        self
    }

    /// How a dead hub is found out: after `interval` of silence it is asked whether it lives, and after `max`
    /// unanswered questions the tunnel ends, so within `interval × (max + 1)`. Default: 10 s, 3. `interval` is at
    /// least 100 ms, `max` at least 1.
    pub fn keepalive(mut self, interval: Duration, max: usize) -> Self {
        self.config.set_keepalive(interval, max);
        self
    }

    /// The waits between attempts to reconnect: a random part of as long as the hub has been away, of `min` at least and
    /// of `max` at most. After a tunnel that stood for `stable` they start over with `min`. Default: 200 ms, 30 s, 30 s.
    pub fn backoff(mut self, min: Duration, max: Duration, stable: Duration) -> Self {
        self.backoff = Backoff::new(min, max, stable);
        self
    }

    /// How long reaching the hub may take, and then how long logging in may. Default: 20 s each.
    pub fn login_timeout(mut self, timeout: Duration) -> Self {
        self.config.login_timeout = timeout;
        self
    }

    /// How long a channel to the hub may take to open. Default: 10 s.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.config.open_timeout = timeout;
        self
    }

    /// What to make of a hub that knows no forward requests. Default: [`ForwardRequest::Required`].
    pub fn forward_request(mut self, forward: ForwardRequest) -> Self {
        self.forward = forward;
        self
    }

    /// How many channels the hub may have open. Default: 256.
    pub fn max_channels(mut self, channels: usize) -> Self {
        self.config.max_channels = channels;
        self
    }

    /// How many bytes a channel may have under way towards this side. Default: 32 MiB, enough for one stream to fill
    /// 1 Gbit/s at 100 ms. A hub can make the agent hold twice this unread. Below 8 MiB, three or more
    /// saturated channels at once can end the tunnel when its keys are renewed.
    pub fn window(mut self, bytes: u32) -> Self {
        self.config.set_window(bytes);
        self
    }

    /// After how many bytes, and after how long, the tunnel's keys are renewed. Default: 4 GiB (1 GiB where
    /// addresses have 32 bits) and one hour. More bytes than the default are not allowed: a cipher's counter would repeat.
    pub fn rekey(mut self, bytes: usize, interval: Duration) -> Self {
        self.config.set_rekey(bytes, interval);
        self
    }

    /// After how many closed channels the tunnel is renewed: a new one is dialled first, then the old one is drained.
    /// Each closed channel costs about 4 kB until then. Default: 1,024, so 4 MB.
    pub fn renew_after(mut self, channels: u64) -> Self {
        self.renew_after = channels.max(1);
        self
    }

    /// What the agent says of itself, for a hub that chooses agents by it; a hub takes only labels that its authorizer
    /// [accepts](crate::Grant::accept_labels). At most 32, with names of `A-Z a-z 0-9 . _ - /`.
    ///
    /// With labels the agent asks to be dialled on the path `/grpc-tunnel?name=value&…`, so a hub that is not of this
    /// crate has to know that.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((name.into(), value.into()));
        self
    }

    /// How many connections the agent opens at once. Default: 1; at most 8. More help where one core cannot encrypt all
    /// that goes through: each is a tunnel of its own, and a hub spreads its calls over all of them.
    pub fn tunnels(mut self, tunnels: u16) -> Self {
        self.tunnels = tunnels.clamp(1, TUNNELS_MAX);
        self
    }

    /// For a cloud that runs a stock `sshd` and no hub: what it is to listen on for this agent. Any gRPC client there dials
    /// that: `unix:/run/tunnels/laptop-1.sock`, or `tcp:50051` (`tcp:ADDRESS:PORT`) on an address that `GatewayPorts` allows.
    /// The agent's id is the name of its account. Each connection of a client is a channel, and [`Agent::incoming`] serves
    /// it; calls the other way need a hub.
    ///
    /// The account has to be able to write the socket's directory, and sshd makes sockets for the account alone unless its
    /// `StreamLocalBindMask` says otherwise. Labels and [`tunnels`](AgentBuilder::tunnels) mean nothing there.
    ///
    /// Set `StreamLocalBindUnlink yes` in the server's `sshd_config`: without it, the socket that a lost connection leaves
    /// behind keeps the agent from coming back.
    ///
    /// [`Agent::incoming`]: crate::Agent::incoming
    pub fn remote(mut self, listen: impl Into<String>) -> Self {
        self.remote = Some(listen.into());
        self
    }

    /// One more way to the hub, or another hub, written as for [`connect`](AgentBuilder::connect). May be called again;
    /// the ways are tried in this order after the one that `connect` is given, each beside those before it when they have
    /// not let the agent in within half a second. The one that works is tried first from then on.
    ///
    /// ```no_run
    /// # async fn run(builder: dialback::AgentBuilder) -> Result<(), dialback::ConnectError> {
    /// let builder = builder.fallback("wss://hub.example.com/tunnel").fallback("ssh://hub2.example.com:2222");
    /// let agent = builder.connect("ssh://hub.example.com:2222").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// Each has to prove itself by a host key that the agent accepts. When none works, the error is that of the first that
    /// time does not cure, else of the first that failed.
    pub fn fallback(mut self, hub: impl Into<String>) -> Self {
        self.fallbacks.push(hub.into());
        self
    }

    /// The proxy on the way out: `http://proxy:3128` (CONNECT), `https://…` (the same over TLS, feature `websocket`) or
    /// `socks5://…`, with `USER:PASSWORD@` before the name if it asks for them. The proxy looks the hub's name up.
    ///
    /// Default: what the environment says at each dial, in capitals or not: `HTTPS_PROXY` for `wss://`, `HTTP_PROXY` for `ws://`,
    /// and for these and all else `ALL_PROXY`; but none for the names, domains and networks in `NO_PROXY`. A Unix socket and
    /// streams of your own need none.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        let proxy = Proxy::parse(&url.into()).map(Egress::Through);
        self.egress = proxy.map_err(|why| ConnectError::InvalidProxy { why });
        self
    }

    /// No proxy, whatever the environment says.
    pub fn no_proxy(mut self) -> Self {
        self.egress = Ok(Egress::Direct);
        self
    }

    /// The proxy by which this hub would be dialled now, set or from the environment, without user and password: to tell
    /// somebody. None for what is no address, too.
    pub fn proxy_to(&self, hub: &str) -> Option<String> {
        self.egress.as_ref().ok()?.proxy_for(&Address::parse(hub).ok()?).map(|proxy| proxy.to_string())
    }

    /// A command that leads to the hub, in place of a proxy: its standard input and output are the connection, as with
    /// OpenSSH's `ProxyCommand`. `/bin/sh` starts it at each dial, as `exec COMMAND`, with the hub's host for `%h`, its port
    /// for `%p`, and `%` for `%%`. It is no job of the terminal's: one that asks there stands still until the login's time is
    /// over. What it says on its standard error goes where this program's goes; a command that ends at once is
    /// [`ConnectError::Failed`]. Dropping the connection kills it and what it has started.
    ///
    /// ```no_run
    /// # async fn run(builder: dialback::AgentBuilder) -> Result<(), dialback::ConnectError> {
    /// let agent = builder.proxy_command("ssh -W [%h]:%p bastion").connect("hub.internal:2222").await?;
    /// # Ok(()) }
    /// ```
    #[cfg(unix)]
    pub fn proxy_command(mut self, command: impl Into<String>) -> Self {
        let command = command.into();
        let somewhere = HostPort { host: "hub".into(), port: 1 };
        self.egress = match crate::carrier::command::fill(&command, &somewhere) {
            Ok(_) => Ok(Egress::Command(command)),
            Err(_) => {
                let why =
                    "in a command, %h is the hub's host, %p its port and %% a percent sign, and there are no others";
                Err(ConnectError::InvalidProxy { why })
            }
        };
        self
    }

    /// Certificates of authorities in a PEM file that the hub's TLS may be certified by, at `wss://…`, beside those that
    /// the system trusts. Read at each dial. The hub proves itself by its SSH host key all the same.
    #[cfg(feature = "websocket")]
    pub fn tls_roots(mut self, file: impl Into<std::path::PathBuf>) -> Self {
        self.tls_roots = Some(file.into());
        self
    }

    /// Connects, once; from then on the agent keeps the tunnel standing by itself. Of several
    /// [`tunnels`](AgentBuilder::tunnels) this waits for the first.
    ///
    /// | hub | carrier |
    /// |---|---|
    /// | `hub.example.com:2222`, `ssh://hub.example.com:2222` | TCP |
    /// | `wss://hub.example.com/tunnel`, `ws://…` | a WebSocket, with TLS and without (feature `websocket`) |
    /// | `unix:/run/hub.sock` | a Unix socket of this machine; `known_hosts` knows its hub as `localhost` |
    ///
    /// `known_hosts` has a hub by the host and port of its URL, as ssh would: `[hub.example.com]:2222`, `[hub.example.com]:443` for
    /// `wss://hub.example.com`.
    ///
    /// # Errors
    /// [`ConnectError`] says what is misconfigured or unreachable, and what to do.
    ///
    /// # Cancel safety
    /// Safe: dropping the future drops the connection.
    pub async fn connect(self, hub: impl Into<String>) -> Result<Agent, ConnectError> {
        let (shared, backoff) = self.by_address(hub.into())?;
        connect_now(shared, backoff).await
    }

    /// As [`connect`](AgentBuilder::connect), for an agent that may start before its hub: what is
    /// [transient](ConnectError::is_transient) is tried again, with the same backoff as a reconnect, for ever.
    ///
    /// # Errors
    /// [`ConnectError`] for what time does not cure.
    ///
    /// # Cancel safety
    /// Safe: dropping the future gives up.
    pub async fn connect_when_available(self, hub: impl Into<String>) -> Result<Agent, ConnectError> {
        let (shared, mut backoff) = self.by_address(hub.into())?;
        loop {
            match shared.connect_any(0).await {
                Ok(connected) => return Ok(start(shared, connected, backoff)),
                // What lasts on one way may be cured on another.
                Err(errors) if errors.iter().any(ConnectError::is_transient) => {
                    let error = driver::most_telling(errors);
                    let wait = backoff.next(Instant::now(), rand::random());
                    tracing::info!(error = &error as &dyn std::error::Error, ?wait, "the hub is not there yet");
                    tokio::time::sleep(wait).await;
                }
                Err(errors) => return Err(driver::most_telling(errors)),
            }
        }
    }

    /// As [`connect`](AgentBuilder::connect), over streams of your own: `dial` is called for each tunnel, and again
    /// whenever one is lost. `hub` is the name that `known_hosts` and messages have for it, `host:port` or `host`.
    ///
    /// A stream should send what is written without delay (`TCP_NODELAY`), and fail when its other end is gone; SSH's
    /// keepalives find out what it does not tell. A dial may take as long as a login, 20 s.
    ///
    /// ```no_run
    /// # async fn run(builder: dialback::AgentBuilder) -> Result<(), dialback::ConnectError> {
    /// let agent = builder.connect_with("hub.example.com", || tokio::net::UnixStream::connect("/run/egress")).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`connect`](AgentBuilder::connect); what `dial` says is the source of [`ConnectError::Unreachable`].
    ///
    /// # Cancel safety
    /// Safe: dropping the future drops the connection.
    pub async fn connect_with<F, S>(
        self,
        hub: impl Into<String>,
        dial: impl Fn() -> F + Send + Sync + 'static,
    ) -> Result<Agent, ConnectError>
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (shared, backoff) = self.by_name(hub.into(), Dialer::with(dial))?;
        connect_now(shared, backoff).await
    }

    /// As [`connect_with`](AgentBuilder::connect_with), over one stream: when its tunnel ends, the agent has stopped.
    ///
    /// # Errors
    /// As [`connect`](AgentBuilder::connect).
    ///
    /// # Cancel safety
    /// Safe: dropping the future drops the stream.
    pub async fn connect_over<S>(self, hub: impl Into<String>, stream: S) -> Result<Agent, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (shared, backoff) = self.by_name(hub.into(), Dialer::once(stream))?;
        connect_now(shared, backoff).await
    }

    fn by_address(mut self, hub: String) -> Result<(Arc<Shared>, Backoff), ConnectError> {
        let egress = std::mem::replace(&mut self.egress, Ok(Egress::Direct))?;
        let way = |hub: String| {
            let shown = Address::shown(&hub);
            let address = Address::parse_to_dial(&hub)
                .map_err(|why| ConnectError::InvalidAddress { given: shown.clone(), why })?;
            let name = address.name();
            #[cfg(unix)]
            if matches!(egress, Egress::Command(_)) && !crate::carrier::command::is_plain(&name.host) {
                let why = "a command can be given a host of letters, digits, dots and dashes alone";
                return Err(ConnectError::InvalidAddress { given: shown, why });
            }
            let to = To {
                address,
                egress: egress.clone(),
                #[cfg(feature = "websocket")]
                tls_roots: self.tls_roots.clone(),
            };
            let dialer = Dialer::To(Box::new(to));
            Ok(Way { hub: shown, name, dialer })
        };
        let ways = std::iter::once(hub).chain(self.fallbacks.clone()).map(way);
        let ways = ways.collect::<Result<_, ConnectError>>()?;
        self.prepare(ways)
    }

    fn by_name(self, hub: String, dialer: Dialer) -> Result<(Arc<Shared>, Backoff), ConnectError> {
        self.prepare(vec![Way { name: HostPort::named(&hub), hub, dialer }])
    }

    fn prepare(self, ways: Vec<Way>) -> Result<(Arc<Shared>, Backoff), ConnectError> {
        let id: AgentId = self.id.parse()?;
        let mut labels = Labels::new();
        for (name, value) in self.labels {
            labels::add(&mut labels, name, value)?;
        }
        let remote = match self.remote {
            Some(given) => match DialBack::parse(&given) {
                Ok(remote) => Some(remote),
                Err(why) => return Err(ConnectError::InvalidRemote { given, why }),
            },
            None => None,
        };
        // A server listens once.
        let tunnels = if remote.is_some() { 1 } else { self.tunnels };
        let login = Login {
            host_keys: self.host_keys.ok_or(ConnectError::NoHostKeys)?,
            identity: self.identity,
            config: self.config,
            acceptor: Arc::new(Acceptor::new()),
            forward: self.forward,
            labels,
            remote,
            instance: rand::random(),
        };
        Ok((Arc::new(Shared::new(id, login, ways, self.renew_after, tunnels)), self.backoff))
    }
}

async fn connect_now(shared: Arc<Shared>, backoff: Backoff) -> Result<Agent, ConnectError> {
    let connected = shared.connect_once(0).await?;
    Ok(start(shared, connected, backoff))
}

fn start(shared: Arc<Shared>, connected: Connected, backoff: Backoff) -> Agent {
    let mut first = Some(shared.adopt(0, connected));
    let drivers =
        (0..shared.slots()).map(|slot| tokio::spawn(driver::run(shared.clone(), slot, first.take(), backoff.fresh())));
    Agent { drivers: drivers.collect(), shared }
}

impl fmt::Debug for AgentBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentBuilder").field("id", &self.id).field("config", &self.config).finish_non_exhaustive()
    }
}
