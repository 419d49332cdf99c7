//! `dialback hub`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dialback::gateway::{Gateway, GatewayError, PolicyFile};
use dialback::{AuthorizedKeys, BindError, EventsError, Hub, HubBuilder, PrivateKey, PublicKey};

use crate::config::{Balance, Config, ConfigArgs, HubKeys, Key, TunnelPolicy};
use crate::daemon::admin::{Readiness, is_no_address, no_address, readiness};
use crate::daemon::keys::{Passphrase, certify};
use crate::daemon::{self, Service, notify};
use crate::failure::Failure;
use crate::tokens::{KeysAndTokens, Tokens};
use crate::tunnel;

pub(crate) type HubArgs = ConfigArgs<HubKeys>;

/// What stands below the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  dialback hub --host-key keys/hub_key --authorized-keys keys/authorized_keys --gateway 127.0.0.1:8080
      agents dial port 2222, and gRPC clients on this machine call them on port 8080
  dialback hub --listen 0.0.0.0:2222 --websocket wss://0.0.0.0:443/tunnel --tls-cert hub.crt --tls-key hub.key
      --host-key hub_key --authorized-keys 'keys/%u.pub' --gateway 0.0.0.0:8443 --gateway-tls-cert hub.crt
      --gateway-tls-key hub.key --policy policy.toml
      agents come by SSH or through HTTPS ports, and clients with a token or certificate from everywhere
  dialback hub --listen grpcs://0.0.0.0:8443 --tls-cert hub.crt --tls-key hub.key --agent-tokens agent_tokens
      --gateway 127.0.0.1:8080
      agents come by grpctunnel, where nothing but gRPC passes; those of other libraries show the same metadata:
      dialback-agent-id: ID, authorization: Bearer TOKEN
  dialback hub --config /etc/dialback/dialback.toml

Signals: SIGTERM and SIGINT end it when the calls in flight have ended, a second one at once; SIGHUP reads the
configuration again. Files of keys, tokens, certificates and policy are followed anyway.
Every flag is a key of the file, too, and a variable, in which the items of a list are separated by commas.
Exit codes: 0 it was told to end, 1 it did not work, 64 the arguments or the configuration are wrong.";

pub(crate) async fn run(args: HubArgs) -> Result<(), Failure> {
    daemon::run(args, |own| own.grace, start).await
}

struct Running {
    hub: Hub,
    gateway: Option<Gateway>,
    /// How a URL of the gateway begins.
    scheme: &'static str,
    /// Where agents connect, with real ports.
    listens: Vec<String>,
    /// Of the first host key, if agents come by SSH.
    fingerprint: Option<String>,
    admin: Option<SocketAddr>,
    is_draining: Arc<AtomicBool>,
}

async fn start(config: Config<HubKeys>, admin: Option<SocketAddr>) -> Result<Running, Failure> {
    let keys = &config.own;
    check_settings(&config)?;
    let (builder, host_key) = builder(keys).map_err(Failure::of_configuration)?;
    let because = |error| match error {
        error @ BindError::InvalidAddress { .. } => Failure::usage(error),
        BindError::TrustedProxies { why } => Failure::usage(format!("--trusted-proxies: {why}")),
        error @ BindError::Listen { .. } => Failure::because("the hub cannot start", &error),
        error => Failure::misconfigured("the hub cannot start", &error),
    };
    let hub = builder.start().map_err(because)?;
    drop(hub.incoming()); // agents are called here, and call nothing
    let mut listens = Vec::new();
    for address in keys.listen.iter().chain(&keys.websocket) {
        let listening = match (is_secure(address), &keys.tls_cert, &keys.tls_key) {
            (true, Some(certificates), Some(key)) => hub.listen_tls(address, certificates, key).await,
            _ => hub.listen(address).await,
        };
        listens.push(listening.map_err(because)?);
    }
    let gateway = match &keys.gateway {
        Some(address) => Some(gateway(keys, &hub, address).await?),
        None => None,
    };
    let fingerprint = host_key.map(|key| key.fingerprint());
    let scheme = if keys.gateway_tls_cert.is_some() { "https" } else { "http" };
    Ok(Running { hub, gateway, scheme, listens, fingerprint, admin, is_draining: Arc::default() })
}

fn is_secure(address: &str) -> bool {
    address.starts_with("wss://") || address.starts_with("grpcs://")
}

/// What cannot be together, is missing, or would be passed over in silence.
///
/// # Errors
/// The first of these, with what to do.
pub(crate) fn check_settings(config: &Config<HubKeys>) -> Result<(), Failure> {
    let keys = &config.own;
    let addresses = || keys.listen.iter().chain(&keys.websocket);
    let secure = addresses().find(|address| is_secure(address));
    if let Some(address) = secure.filter(|_| keys.tls_cert.is_none() || keys.tls_key.is_none()) {
        return Err(Failure::usage(format!("{} needs certificates: --tls-cert and --tls-key", address.0)));
    }
    if secure.is_none() {
        let why = "no --listen and no --websocket is wss:// or grpcs://: set one, or leave this out";
        config.refuse(|field| matches!(field, "tls_cert" | "tls_key"), why)?;
    }
    match addresses().find(|address| tunnel::is_meant(address)) {
        Some(address) if keys.agent_tokens.is_none() => {
            return Err(Failure::usage(format!(
                "say which tokens may be which agents at {}: --agent-tokens FILE; `dialback keygen token NAME` makes one",
                address.0
            )));
        }
        Some(_) => {}
        None => {
            let why = "it is for agents by grpctunnel: set --listen grpcs://HOST:PORT, too, or leave this out";
            config.refuse(|field| field == "agent_tokens", why)?;
        }
    }
    if addresses().any(|address| !tunnel::is_meant(address)) {
        if keys.host_key.is_empty() {
            return Err(Failure::usage("name the hub's own key: --host-key FILE; `dialback keygen` makes one"));
        }
        if keys.authorized_keys.is_none() && keys.user_ca.is_none() {
            let text = "say which keys may be which agents: --authorized-keys FILE (with %u, one file for each agent), or --user-ca FILE";
            return Err(Failure::usage(text));
        }
    } else {
        let of_ssh = [
            "host_key",
            "host_certificate",
            "host_key_passphrase_file",
            "authorized_keys",
            "user_ca",
            "revoked_keys",
            "accept_labels",
            "max_auth_attempts",
            "open_timeout",
            "max_channels",
            "rekey_bytes",
            "rekey_interval",
        ];
        let why = "no --listen and no --websocket is for agents by SSH: set one, or leave this out";
        config.refuse(|field| of_ssh.contains(&field), why)?;
    }
    let needed = [
        "login_timeout",
        "open_timeout",
        "max_auth_attempts",
        "unauthenticated",
        "unauthenticated_per_source",
        "max_channels",
        "max_calls",
        "gateway_max_calls_per_caller",
        "gateway_max_connections",
        "gateway_max_calls_per_connection",
        "gateway_max_header_list",
        "gateway_max_held",
        "gateway_stall_timeout",
        "gateway_max_duration",
        "gateway_idle_timeout",
    ];
    config.refuse_zero(&needed)?;
    if keys.gateway.is_none() {
        let why = "it is for the gateway: set --gateway HOST:PORT, too, or leave this out";
        config.refuse(|field| field == "policy" || field.starts_with("gateway_"), why)?;
    }
    if keys.gateway_tls_cert.is_some() != keys.gateway_tls_key.is_some() {
        return Err(Failure::usage("--gateway-tls-cert and --gateway-tls-key go together"));
    }
    if keys.gateway_tls_cert.is_none() {
        let why = "client certificates need TLS: set --gateway-tls-cert and --gateway-tls-key, too, or leave this out";
        config.refuse(|field| field == "gateway_client_ca", why)?;
    }
    if keys.trusted_proxies.is_empty() {
        let why = "say which proxies speak it: --trusted-proxies NETWORK";
        config.refuse(|field| field == "proxy_protocol", why)?;
    }
    let by_websocket = addresses().any(|address| address.starts_with("ws"));
    if !keys.proxy_protocol && !by_websocket {
        let why = "what a proxy says counts with --proxy-protocol, or at ws:// and wss://: set one, or leave this out";
        config.refuse(|field| field == "trusted_proxies", why)?;
    }
    Ok(())
}

/// An address as somebody else has to write it.
fn reachable(address: &str) -> String {
    address.replace("//0.0.0.0:", "//THIS-HOST:").replace("//[::]:", "//THIS-HOST:")
}

pub(crate) fn passphrase(keys: &HubKeys) -> Passphrase<'_> {
    Passphrase {
        file: keys.host_key_passphrase_file.as_deref(),
        variable: "DIALBACK_HOST_KEY_PASSPHRASE",
        flag: "host-key-passphrase-file",
    }
}

/// The hub, and its key if there is one. Agents of `grpctunnel` alone need none.
fn builder(keys: &HubKeys) -> Result<(HubBuilder, Option<PublicKey>), Failure> {
    let host_keys = certify(passphrase(keys).open(&keys.host_key, "dialback keygen")?, &keys.host_certificate)?;
    let mut host_keys = host_keys.into_iter();
    let first = host_keys.next();
    let public = first.as_ref().map(PrivateKey::public_key);
    let tokens = keys.agent_tokens.as_deref().map(Tokens::open).transpose()?;
    let authorizer = KeysAndTokens { keys: authorizer(keys)?, tokens };
    let mut builder = Hub::builder(first.unwrap_or_else(PrivateKey::generate)).authorizer(authorizer);
    for key in host_keys {
        builder = builder.host_key(key);
    }
    if keys.keepalive.is_some() || keys.keepalive_max.is_some() {
        builder = builder.keepalive(keys.keepalive.unwrap_or(Duration::from_secs(10)), keys.keepalive_max.unwrap_or(3));
    }
    if keys.unauthenticated.is_some() || keys.unauthenticated_per_source.is_some() {
        builder = builder
            .unauthenticated_limits(keys.unauthenticated.unwrap_or(128), keys.unauthenticated_per_source.unwrap_or(16));
    }
    if keys.rekey_bytes.is_some() || keys.rekey_interval.is_some() {
        let bytes = keys.rekey_bytes.map_or(usize::MAX, |size| size.as_usize());
        builder = builder.rekey(bytes, keys.rekey_interval.unwrap_or(Duration::from_secs(3600)));
    }
    if !keys.trusted_proxies.is_empty() {
        builder = builder.trusted_proxies(keys.trusted_proxies.join(","));
    }
    if keys.proxy_protocol {
        builder = builder.proxy_protocol();
    }
    if keys.no_reverse {
        builder = builder.no_reverse();
    }
    let builder = set(builder, keys.login_timeout, HubBuilder::login_timeout);
    let builder = set(builder, keys.max_auth_attempts, HubBuilder::max_auth_attempts);
    let builder = set(builder, keys.rejection_time, HubBuilder::rejection_time);
    let builder = set(builder, keys.open_timeout, HubBuilder::open_timeout);
    let builder = set(builder, keys.max_channels, HubBuilder::max_channels);
    let builder = set(builder, keys.window.map(|size| size.as_u32()), HubBuilder::window);
    let builder = set(builder, keys.max_unread.map(|size| size.as_usize()), HubBuilder::max_unread);
    let builder = set(builder, keys.max_calls, HubBuilder::max_calls);
    let builder = set(builder, keys.drain_timeout, HubBuilder::drain_timeout);
    let policy = keys.tunnel_policy.map(|policy| match policy {
        TunnelPolicy::Pool => dialback::TunnelPolicy::Pool,
        TunnelPolicy::Replace => dialback::TunnelPolicy::Replace,
        TunnelPolicy::Reject => dialback::TunnelPolicy::Reject,
    });
    let balance = keys.balance.map(|balance| match balance {
        Balance::LeastBusy => dialback::Balance::LeastBusy,
        Balance::RoundRobin => dialback::Balance::RoundRobin,
    });
    let builder = set(builder, policy, HubBuilder::tunnel_policy);
    Ok((set(builder, balance, HubBuilder::balance), public))
}

/// Sets what was given.
pub(crate) fn set<B, V>(builder: B, value: Option<V>, set: impl FnOnce(B, V) -> B) -> B {
    match value {
        Some(value) => set(builder, value),
        None => builder,
    }
}

/// Whose keys are let in.
///
/// # Errors
/// When a file cannot be used.
pub(crate) fn authorizer(keys: &HubKeys) -> Result<AuthorizedKeys, Failure> {
    let because = |error| Failure::because("the agents' keys cannot be used", &error);
    let mut authorizer = match &keys.authorized_keys {
        Some(path) => AuthorizedKeys::open(path).map_err(because)?,
        None => AuthorizedKeys::none(),
    };
    if let Some(path) = &keys.user_ca {
        authorizer = authorizer.trusted_user_ca_keys(path).map_err(because)?;
    }
    if let Some(path) = &keys.revoked_keys {
        authorizer = authorizer.revoked_keys(path).map_err(because)?;
    }
    Ok(authorizer.accept_labels(keys.accept_labels.iter().cloned()))
}

async fn gateway(keys: &HubKeys, hub: &Hub, address: &str) -> Result<Gateway, Failure> {
    let mut builder = Gateway::builder(hub);
    if let Some(suffix) = &keys.gateway_suffix {
        builder = builder.suffix(suffix);
    }
    if let Some(path) = &keys.policy {
        let policy =
            PolicyFile::open(path).map_err(|error| Failure::misconfigured("the policy cannot be used", &error))?;
        builder = builder.policy(policy);
    }
    builder = match (&keys.gateway_tls_cert, &keys.gateway_tls_key) {
        (Some(certificates), Some(key)) => builder.tls(certificates, key),
        _ => builder,
    };
    if let Some(path) = &keys.gateway_client_ca {
        builder = builder.client_ca(path);
    }
    if keys.gateway_max_connections.is_some() || keys.gateway_max_calls_per_connection.is_some() {
        builder = builder.max_connections(
            keys.gateway_max_connections.unwrap_or(10_000),
            keys.gateway_max_calls_per_connection.unwrap_or(1_000),
        );
    }
    if keys.gateway_window.is_some() || keys.gateway_connection_window.is_some() {
        builder = builder.window(
            keys.gateway_window.map_or(4 << 20, |size| size.as_u32()),
            keys.gateway_connection_window.map_or(16 << 20, |size| size.as_u32()),
        );
    }
    let builder = set(builder, keys.gateway_max_calls_per_caller, |builder, n| builder.max_calls_per_caller(n));
    let builder = set(builder, keys.gateway_max_header_list, |builder, size| builder.max_header_list(size.as_u32()));
    let builder = set(builder, keys.gateway_max_held, |builder, size| builder.max_held(size.as_usize()));
    let builder = set(builder, keys.gateway_stall_timeout, |builder, time| builder.stall_timeout(time));
    let builder = set(builder, keys.gateway_max_duration, |builder, time| builder.max_duration(time));
    let builder = set(builder, keys.gateway_idle_timeout, |builder, time| builder.idle_timeout(time));
    builder.bind(address).await.map_err(|error| match error {
        GatewayError::NeedsPolicy { address } => needs_policy(address),
        GatewayError::Listen { source, .. } if is_no_address(&source) => no_address("gateway", address),
        error @ GatewayError::Listen { .. } => Failure::because("the gateway cannot start", &error),
        error => Failure::misconfigured("the gateway cannot start", &error),
    })
}

/// Said of a gateway that everybody could reach.
pub(crate) fn needs_policy(address: SocketAddr) -> Failure {
    Failure::usage(format!(
        "{address} is no loopback address, and without a policy everybody could call every agent: say who may call what with --policy FILE, or use --gateway 127.0.0.1:{}",
        address.port()
    ))
}

fn count(hub: &Hub) -> String {
    let mut ids: Vec<_> = hub.tunnels().iter().map(|tunnel| tunnel.agent_id().clone()).collect();
    ids.sort();
    ids.dedup();
    format!("{} {} connected", ids.len(), if ids.len() == 1 { "agent" } else { "agents" })
}

impl Service<HubKeys> for Running {
    /// It listens, and is not about to end.
    fn readiness(&self) -> Readiness {
        let (hub, is_draining) = (self.hub.clone(), self.is_draining.clone());
        readiness(move || {
            let draining = is_draining.load(Ordering::Relaxed);
            let text = count(&hub);
            async move { if draining { Err("it is about to end".into()) } else { Ok(text) } }
        })
    }

    fn announce(&self) {
        let Self { scheme, listens, fingerprint, admin, .. } = self;
        let door = self.gateway.as_ref().map(|gateway| gateway.local_addr().to_string());
        let admin = admin.map(|address| address.to_string());
        tracing::info!(listen = listens.join(","), gateway = door, admin, host_key = fingerprint, "hub ready");
        let address = reachable(listens.first().map_or("", String::as_str));
        let shown = match fingerprint {
            Some(fingerprint) if !tunnel::is_meant(&address) => {
                format!("--identity FILE --host-key-fingerprint {fingerprint}")
            }
            _ => "--token-file FILE".into(),
        };
        tracing::info!("an agent connects with: dialback agent --hub {address} --id NAME {shown} --forward HOST:PORT");
        if let Some(door) = door {
            let url = reachable(&format!("{scheme}://{door}"));
            tracing::info!("who is here: dialback agents --gateway {url}");
        }
    }

    fn status(&self) -> String {
        count(&self.hub)
    }

    /// Files of keys, tokens, certificates and policy are followed anyway; the rest is set when a hub starts.
    fn reload(&self, _: &Config<HubKeys>, changed: Vec<&'static Key>) -> Result<Vec<&'static Key>, Failure> {
        Ok(changed)
    }

    async fn watch(&self) -> Result<(), Failure> {
        let mut events = self.hub.events();
        loop {
            // The library logs them.
            match events.next().await {
                Ok(_) | Err(EventsError::Missed(_)) => notify::status(&count(&self.hub)),
                Err(error) => return Err(Failure::because("the hub has ended", &error)),
            }
        }
    }

    async fn shutdown(&self, grace: Duration) {
        self.is_draining.store(true, Ordering::Relaxed);
        let ends = Instant::now().checked_add(grace);
        if let Some(gateway) = &self.gateway {
            gateway.shutdown(grace).await;
        }
        let left = ends.map_or(grace, |ends| ends.saturating_duration_since(Instant::now()));
        self.hub.shutdown(left).await;
    }
}
