//! How a hub is set up.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, ToSocketAddrs};
use tokio::sync::{mpsc, watch};

use super::accept::{Listener, Reception};
use super::proxy_protocol::ProxyProtocol;
use super::registry::{Registry, RegistryGate, Rules};
use super::roster::{Balance, TunnelPolicy};
use super::strangers::StrangerLimits;
use super::tunnel::TunnelInfo;
use super::{Hub, Inner, Stage, recheck};
use crate::incoming::Acceptor;
use crate::ssh::{self, Authorizer, Door, LoginConfig, PrivateKey, TunnelConfig};

/// Streams that a user may hand over before the first of them is taken.
const HANDED_OVER: usize = 16;

/// Sets up a [`Hub`]. What is required: a host key and an authorizer.
#[must_use = "a builder does nothing until `bind`"]
pub struct HubBuilder {
    host_keys: Vec<PrivateKey>,
    authorizer: Option<Arc<dyn Authorizer>>,
    config: TunnelConfig,
    login: LoginConfig,
    limits: StrangerLimits,
    rules: Rules,
    max_unread: Option<usize>,
    trusted_proxies: Option<String>,
    proxy_protocol: bool,
}

/// Why a hub could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// No authorizer was set, so no agent could ever log in.
    #[error("no authorizer is set: call `authorizer(AuthorizedKeys::open(…)?)` to say which keys may be which agents")]
    NoAuthorizer,
    /// The hub was shut down.
    #[error("the hub was shut down")]
    Shutdown,
    /// The text is no address to listen on.
    #[error("`{}` cannot be listened on: {why}", .given.escape_debug())]
    InvalidAddress {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The list of proxies is none.
    #[error("the list of trusted proxies is not one: {why}")]
    TrustedProxies {
        /// What is wrong.
        why: String,
    },
    /// Proxies are to speak the PROXY protocol, and it is not said which.
    #[error("no proxy is trusted to speak the PROXY protocol: call `trusted_proxies(\"10.0.0.0/8\")` to say which are")]
    NoTrustedProxies,
    /// TLS cannot be set up.
    #[cfg(feature = "websocket")]
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: is another hub running, or the port taken or privileged?")]
    Listen {
        /// The address.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Hub {
    /// Starts to set up a hub that proves itself with a host key.
    pub fn builder(host_key: PrivateKey) -> HubBuilder {
        HubBuilder {
            host_keys: vec![host_key],
            authorizer: None,
            config: TunnelConfig::default(),
            login: LoginConfig::default(),
            limits: StrangerLimits::default(),
            rules: Rules::default(),
            max_unread: None,
            trusted_proxies: None,
            proxy_protocol: false,
        }
    }
}

impl HubBuilder {
    /// Which keys may be which agents. Required.
    pub fn authorizer(mut self, authorizer: impl Authorizer) -> Self {
        self.authorizer = Some(Arc::new(authorizer));
        self
    }

    /// One more host key, of another type, for agents that pin that one.
    pub fn host_key(mut self, key: PrivateKey) -> Self {
        self.host_keys.push(key);
        self
    }

    /// How a dead agent is found out: after `interval` of silence it is asked whether it lives, and after `max`
    /// unanswered questions the tunnel ends, so within `interval × (max + 1)`. Default: 10 s, 3. A shorter interval
    /// costs traffic from every idle agent. `interval` is at least 100 ms, `max` at least 1.
    pub fn keepalive(mut self, interval: Duration, max: usize) -> Self {
        self.config.set_keepalive(interval, max);
        self
    }

    /// How long a connection may take to authenticate. Default: 20 s.
    pub fn login_timeout(mut self, timeout: Duration) -> Self {
        self.config.login_timeout = timeout;
        self
    }

    /// How many connections may be unauthenticated, in total and from one source (an IPv4 address or an IPv6 /64).
    /// Default: 128 and 16. Each costs up to 300 kB, at `grpc://` up to 4 MiB. A source at its limit is refused; raise the second where
    /// many agents share one address. When all places are taken, the newest of the source that has most gives way to a
    /// newcomer whose source has fewer; else the oldest that has not begun a key exchange within half a
    /// second (one round trip; by WebSocket two seconds), or has not logged in within five; else the newcomer is refused.
    pub fn unauthenticated_limits(mut self, total: usize, per_source: usize) -> Self {
        self.limits = StrangerLimits { total: total.max(1), per_source: per_source.max(1) };
        self
    }

    /// How many keys a connection may try, or at `grpc://` how many tunnels it may be refused. Default: 3. An ssh-agent with more keys needs more.
    pub fn max_auth_attempts(mut self, attempts: usize) -> Self {
        self.login.max_auth_attempts = attempts.max(1);
        self
    }

    /// How long a refusal takes, so that its time tells nothing. Default: 1 s.
    pub fn rejection_time(mut self, time: Duration) -> Self {
        self.login.rejection_time = time;
        self
    }

    /// How long a channel may take to open. Default: 10 s.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.config.open_timeout = timeout;
        self
    }

    /// How many channels one tunnel may have, the hub's and the agent's together; a dial beyond fails
    /// `RESOURCE_EXHAUSTED`. Default: 256.
    pub fn max_channels(mut self, channels: usize) -> Self {
        self.config.max_channels = channels;
        self
    }

    /// How many bytes a channel may have under way towards this side. Default: 32 MiB, enough for one stream to fill
    /// 1 Gbit/s at 100 ms. An agent can make the hub hold twice this unread; lower it for many untrusted agents.
    /// Below 8 MiB, three or more saturated channels at once can end a tunnel when its keys are renewed.
    pub fn window(mut self, bytes: u32) -> Self {
        self.config.set_window(bytes);
        self
    }

    /// After how many bytes, and after how long, a tunnel's keys are renewed. Default: 4 GiB (1 GiB where
    /// addresses have 32 bits) and one hour. More bytes than the default are not allowed: a cipher's counter would repeat.
    pub fn rekey(mut self, bytes: usize, interval: Duration) -> Self {
        self.config.set_rekey(bytes, interval);
        self
    }

    /// How long a tunnel that a newer one of its agent has replaced may finish its calls. Default: 10 minutes.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.rules.drain_timeout = timeout;
        self
    }

    /// What becomes of several live tunnels of one agent id. Default: [`TunnelPolicy::Pool`].
    pub fn tunnel_policy(mut self, policy: TunnelPolicy) -> Self {
        self.rules.policy = policy;
        self
    }

    /// Which of several tunnels a call takes. Default: [`Balance::LeastBusy`].
    pub fn balance(mut self, balance: Balance) -> Self {
        self.rules.balance = balance;
        self
    }

    /// Groups tunnels by a key of your own, for [`Hub::channel_for`]: a site, a tenant, a version. Asked once for each
    /// tunnel, when its agent can be called. Keys are the same when their texts are. Default: the agent's id.
    ///
    /// ```no_run
    /// # use dialback::{AllowedKeys, Hub, PrivateKey};
    /// # fn run(host_key: PrivateKey, allowed: AllowedKeys) -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::builder(host_key)
    ///     .authorizer(allowed.accept_labels(["site"]))
    ///     .affinity_key(|tunnel| tunnel.label("site").unwrap_or("nowhere").to_owned());
    /// # Ok(()) }
    /// ```
    pub fn affinity_key<K: fmt::Display>(mut self, key: impl Fn(&TunnelInfo) -> K + Send + Sync + 'static) -> Self {
        self.rules.affinity_key = Some(Arc::new(move |tunnel| key(tunnel).to_string()));
        self
    }

    /// How many of the hub's calls an agent may have in flight, in all its tunnels; more fail `RESOURCE_EXHAUSTED`.
    /// Default: 10,000.
    pub fn max_calls(mut self, calls: usize) -> Self {
        self.rules.max_calls = calls;
        self
    }

    /// How many bytes an agent may have sent, in all its tunnels, of SSH or `grpctunnel`, that the hub has not read. A tunnel
    /// that goes beyond it is not read for a second at most, so that readers who only lag catch up. Then the channel with the
    /// longest queue is closed, if it is one of SSH, and else of all the agent's calls by `grpctunnel` the one that holds most
    /// ends, `RESOURCE_EXHAUSTED`. It comes before what HTTP/2 holds ([`tuning`](crate::tuning)). Default: twice the
    /// [`window`](HubBuilder::window).
    pub fn max_unread(mut self, bytes: usize) -> Self {
        self.max_unread = Some(bytes);
        self
    }

    /// Reverse proxies before the hub, as addresses and networks: `"127.0.0.1,10.0.0.0/8"`. Where a WebSocket's connection
    /// comes by one of these, its agent comes from where the proxy's `X-Forwarded-For` says: the last address there that is
    /// not a trusted proxy itself. Without this, from anybody else, the header means nothing. Proxies that pass on TCP
    /// as it is can speak the [PROXY protocol](HubBuilder::proxy_protocol) instead. Default: none.
    pub fn trusted_proxies(mut self, networks: impl Into<String>) -> Self {
        self.trusted_proxies = Some(networks.into());
        self
    }

    /// The [trusted proxies](HubBuilder::trusted_proxies) speak the PROXY protocol of HAProxy, version 1 or 2: each
    /// connection by TCP from one of them, for SSH or for a WebSocket, has to begin with its header, before TLS, and its
    /// agent comes from the address that this names; from nowhere, as by a Unix socket, if it names none (`UNKNOWN`, `LOCAL`).
    /// `X-Forwarded-For` counts only if that address is a trusted proxy's.
    ///
    /// Nothing is guessed: a trusted proxy's connection without the header is closed, and from anybody else a header is no
    /// way to begin. All of the trusted proxies have to speak it, then, at all of the hub's own listeners. What you
    /// [hand over](Hub::accept_stream) is taken as it is. Default: off. With it and without trusted proxies a hub does not
    /// start ([`BindError::NoTrustedProxies`]).
    pub fn proxy_protocol(mut self) -> Self {
        self.proxy_protocol = true;
        self
    }

    /// Takes no reverse tunnels: agents may call the hub and are not called. An agent that
    /// [requires](crate::ForwardRequest::Required) to be called is told so.
    pub fn no_reverse(mut self) -> Self {
        self.rules.no_reverse = true;
        self
    }

    /// Listens, and accepts agents from then on.
    ///
    /// # Errors
    /// [`BindError`]: no authorizer, no such proxies, or the address cannot be listened on.
    ///
    /// # Cancel safety
    /// Safe: without the returned hub nothing is left running.
    pub async fn bind(self, address: impl ToSocketAddrs + fmt::Debug) -> Result<Hub, BindError> {
        let failed = |source| BindError::Listen { address: format!("{address:?}").replace('"', ""), source };
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let hub = self.start_at(local_addr)?;
        hub.inner.listen(Listener::Tcp(listener));
        tracing::info!(address = %local_addr, "hub listens");
        Ok(hub)
    }

    /// A hub that listens nowhere yet: [`Hub::listen`] says where it does, and [`Hub::accept_stream`] brings it agents. Its
    /// [`Hub::local_addr`] is `0.0.0.0:0`.
    ///
    /// # Errors
    /// [`BindError`]: no authorizer, or no such proxies.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Result<Hub, BindError> {
        self.start_at(SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    fn start_at(self, local_addr: SocketAddr) -> Result<Hub, BindError> {
        let Some(authorizer) = self.authorizer else { return Err(BindError::NoAuthorizer) };
        let trusted_proxies = match self.trusted_proxies.as_deref().map(ssh::Sources::network_list) {
            Some(Err(error)) => return Err(BindError::TrustedProxies { why: error.to_string() }),
            trusted => trusted.and_then(Result::ok),
        };
        let proxy_protocol = match (self.proxy_protocol, &trusted_proxies) {
            (false, _) => None,
            (true, Some(trusted)) => Some(ProxyProtocol::of(trusted.clone())),
            (true, None) => return Err(BindError::NoTrustedProxies),
        };
        let max_unread = self.max_unread.unwrap_or(2 * self.config.window as usize);
        let registry = Arc::new(Registry::new(Rules { max_unread, ..self.rules }));
        let acceptor = Arc::new(Acceptor::new());
        let rechecking = tokio::spawn(recheck::run(registry.clone(), authorizer.clone())).abort_handle();
        let door = Arc::new(Door {
            russh: ssh::server_config(&self.config, &self.login, &self.host_keys),
            config: self.config,
            max_auth_attempts: self.login.max_auth_attempts,
            authorizer,
            gate: Arc::new(RegistryGate(registry.clone())),
            acceptor: acceptor.clone(),
        });
        let reception = Arc::new(Reception::new(door, self.limits, proxy_protocol));
        let (streams, handed_over) = mpsc::channel(HANDED_OVER);
        let inner = Inner {
            local_addr,
            registry,
            acceptor,
            stage: watch::Sender::new(Stage::Open),
            reception,
            streams,
            #[cfg(feature = "websocket")]
            trusted_proxies,
            listeners: Mutex::default(),
            rechecking,
        };
        inner.listen(Listener::Streams(handed_over));
        Ok(Hub { inner: Arc::new(inner) })
    }
}

impl fmt::Debug for HubBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubBuilder").field("config", &self.config).field("limits", &self.limits).finish_non_exhaustive()
    }
}
