//! Every setting of the daemons, once. Its text is the help of its flag.

use std::path::PathBuf;
use std::time::Duration;

use super::value::{Address, Balance, KeyName, LogFormat, Setting, Size, TunnelPolicy, Url};
use super::{Key, Table, Values};
use crate::failure::Failure;

/// Makes a table's type and its list of keys. A default is written as in the file.
macro_rules! keys {
    ($(
        $(#[doc = $about:literal])+
        $table:ident = $name:literal {
            $( $(#[doc = $help:literal])+ $field:ident ($value_name:literal) : $type:ty $(= $default:literal)?; )*
        }
    )*) => { $(
        $(#[doc = $about])+
        #[derive(Debug, Clone)]
        pub(crate) struct $table { $( $(#[doc = $help])+ pub(crate) $field: $type, )* }

        impl Table for $table {
            const KEYS: &'static [Key] = &[$( Key {
                table: $name,
                field: stringify!($field),
                value_name: $value_name,
                help: &[$($help),+],
                kind: <$type as Setting>::KIND,
                default: keys!(@default $($default)?),
            } ),*];

            fn read(values: &Values) -> Result<Self, Failure> {
                let mut keys = Self::KEYS.iter();
                // One for each field, in the same order.
                let mut next = || keys.next().ok_or_else(|| Failure::usage("a setting is missing from the list"));
                Ok(Self { $( $field: super::read(values, next()?)?, )* })
            }
        }
    )* };
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
}

keys! {
    /// `[hub]`
    HubKeys = "hub" {
        /// Where agents connect; may be repeated: HOST:PORT or ssh://HOST:PORT, ws://HOST:PORT/PATH, wss://HOST:PORT/PATH
        /// (with --tls-cert and --tls-key) or unix:/PATH. Or, for agents of grpctunnel, with --agent-tokens:
        /// grpcs://HOST:PORT (with --tls-cert and --tls-key), or grpc://HOST:PORT on a loopback address.
        listen ("ADDRESS"): Vec<Address> = "0.0.0.0:2222";
        /// One more place of that kind, beside those of --listen: wss://0.0.0.0:443/tunnel, for example.
        websocket ("URL"): Vec<Address>;
        /// Certificates for wss:// and grpcs://, in PEM; read again when they change.
        tls_cert ("FILE"): Option<PathBuf>;
        /// The key of --tls-cert, in PEM.
        tls_key ("FILE"): Option<PathBuf>;
        /// The hub's private key, by which agents recognise it; repeated, one of another type each. Make one with
        /// `dialback keygen`.
        host_key ("FILE"): Vec<PathBuf>;
        /// A certificate for one of the host keys, for agents that know its authority.
        host_certificate ("FILE"): Vec<PathBuf>;
        /// A file with the passphrase of an encrypted host key. Or set DIALBACK_HOST_KEY_PASSPHRASE.
        host_key_passphrase_file ("FILE"): Option<PathBuf>;
        /// Which keys may be which agents: an OpenSSH authorized_keys file, or one for each agent with %u for its id.
        /// Changes count at once.
        authorized_keys ("FILE"): Option<PathBuf>;
        /// Authorities whose user certificates are let in, one public key on each line.
        user_ca ("FILE"): Option<PathBuf>;
        /// Keys and certificates that are not let in, whatever else says: as RevokedKeys of sshd.
        revoked_keys ("FILE"): Option<PathBuf>;
        /// Which tokens may be which agents, for grpcs:// and grpc://: a line for each, the id and the SHA-256 of the token, as
        /// `dialback keygen token` prints it. Changes count at once: write another file and rename it to this one. While it
        /// is faulty or missing, the tokens before stay in force, and the log says so.
        agent_tokens ("FILE"): Option<PathBuf>;
        /// A label that agents may set themselves; may be repeated.
        accept_labels ("NAME"): Vec<String>;
        /// Where gRPC clients call agents. Without --policy a loopback address alone.
        gateway ("HOST:PORT"): Option<String>;
        /// Who may call what, as TOML; changes count at once.
        policy ("FILE"): Option<PathBuf>;
        /// Agents have names below this domain: ID.DOMAIN is the authority of calls to ID.
        gateway_suffix ("DOMAIN"): Option<String>;
        /// Certificates for the gateway's TLS, in PEM; read again when they change.
        gateway_tls_cert ("FILE"): Option<PathBuf>;
        /// The key of --gateway-tls-cert, in PEM.
        gateway_tls_key ("FILE"): Option<PathBuf>;
        /// Authorities of client certificates at the gateway, in PEM.
        gateway_client_ca ("FILE"): Option<PathBuf>;
        /// Calls that one caller may have in flight (10000).
        gateway_max_calls_per_caller ("N"): Option<usize>;
        /// Connections to the gateway (10000).
        gateway_max_connections ("N"): Option<usize>;
        /// Calls on one connection to the gateway; more wait (1000).
        gateway_max_calls_per_connection ("N"): Option<u32>;
        /// Headers of one call at the gateway (32KiB).
        gateway_max_header_list ("SIZE"): Option<Size>;
        /// What a client may send ahead of the agent in one call (4MiB).
        gateway_window ("SIZE"): Option<Size>;
        /// What a client may send ahead of the agent on one connection (16MiB).
        gateway_connection_window ("SIZE"): Option<Size>;
        /// What may wait for slow readers at the gateway, in all calls together (256MiB).
        gateway_max_held ("SIZE"): Option<Size>;
        /// How long a reader may take nothing while something waits for it (30s).
        gateway_stall_timeout ("TIME"): Option<Duration>;
        /// How long a call through the gateway may take (for ever).
        gateway_max_duration ("TIME"): Option<Duration>;
        /// How long a call through the gateway may be silent in both directions (for ever).
        gateway_idle_timeout ("TIME"): Option<Duration>;
        /// After how much silence an agent is asked whether it lives (10s).
        keepalive ("TIME"): Option<Duration>;
        /// After how many unanswered questions its tunnel ends (3).
        keepalive_max ("N"): Option<usize>;
        /// How long a connection may take to authenticate (20s).
        login_timeout ("TIME"): Option<Duration>;
        /// Connections that have not authenticated, in total (128).
        unauthenticated ("N"): Option<usize>;
        /// Connections that have not authenticated, from one source (16).
        unauthenticated_per_source ("N"): Option<usize>;
        /// Keys that a connection may try (3).
        max_auth_attempts ("N"): Option<usize>;
        /// How long a refusal takes (1s).
        rejection_time ("TIME"): Option<Duration>;
        /// How long a channel to an agent may take to open (10s).
        open_timeout ("TIME"): Option<Duration>;
        /// Channels that one tunnel may have (256).
        max_channels ("N"): Option<usize>;
        /// What a channel may have under way towards the hub (32MiB).
        window ("SIZE"): Option<Size>;
        /// What one agent may have sent that nobody has read (twice the window).
        max_unread ("SIZE"): Option<Size>;
        /// The hub's calls to one agent in flight (10000).
        max_calls ("N"): Option<usize>;
        /// After how many bytes a tunnel's keys are renewed (4GiB).
        rekey_bytes ("SIZE"): Option<Size>;
        /// After how long a tunnel's keys are renewed (1h).
        rekey_interval ("TIME"): Option<Duration>;
        /// How long a tunnel that a newer one has replaced may finish its calls (10m).
        drain_timeout ("TIME"): Option<Duration>;
        /// What becomes of several tunnels of one id (pool).
        tunnel_policy ("POLICY"): Option<TunnelPolicy>;
        /// Which of several tunnels a call takes (least-busy).
        balance ("WAY"): Option<Balance>;
        /// Reverse proxies before the hub, as an address or network; may be repeated.
        trusted_proxies ("NETWORK"): Vec<String>;
        /// The trusted proxies speak the PROXY protocol.
        proxy_protocol (""): bool;
        /// Take no reverse tunnels: agents call what the hub serves, and are not called.
        no_reverse (""): bool;
        /// How long calls in flight may take to finish when the hub is told to end.
        grace ("TIME"): Option<Duration> = "30s";
    }

    /// `[agent]`
    AgentKeys = "agent" {
        /// The hub: HOST:PORT or ssh://HOST:PORT, wss://HOST/PATH, ws://HOST/PATH or unix:/PATH. Repeated: other ways to
        /// it, or other hubs, in this order. Or, by grpctunnel with --token-file and nothing beside it: grpcs://HOST:PORT.
        hub ("URL"): Vec<Address>;
        /// The name that the hub knows this agent by.
        id ("NAME"): Option<String>;
        /// The agent's private key; may be repeated. Or `ssh-agent`, or ssh-agent:SOCKET: its keys, or those of the public
        /// keys (FILE.pub) that are named beside it. Make one with `dialback keygen`.
        identity ("FILE"): Vec<KeyName>;
        /// An OpenSSH certificate for one of the keys; may be repeated.
        certificate ("FILE"): Vec<PathBuf>;
        /// A file with the passphrase of an encrypted key. Or set DIALBACK_IDENTITY_PASSPHRASE.
        identity_passphrase_file ("FILE"): Option<PathBuf>;
        /// A file with the agent's token, for a hub at grpcs://. Or set DIALBACK_AGENT_TOKEN. Make one with
        /// `dialback keygen token`.
        token_file ("FILE"): Option<PathBuf>;
        /// A file with the hub's key, as OpenSSH's known_hosts; may be repeated.
        known_hosts ("FILE"): Vec<PathBuf>;
        /// The fingerprint of the hub's key, SHA256:…, as the hub prints it; may be repeated.
        host_key_fingerprint ("FINGERPRINT"): Vec<String>;
        /// A file with the public key of an authority that certifies hubs' keys; may be repeated.
        host_ca ("FILE"): Vec<PathBuf>;
        /// Take hub, id, identity, known hosts and proxy from ~/.ssh/config for this host.
        ssh_config ("HOST"): Option<String>;
        /// Another file than ~/.ssh/config.
        ssh_config_file ("FILE"): Option<PathBuf>;
        /// The local gRPC server: HOST:PORT, unix:/PATH, or https://HOST:PORT for one with TLS. Repeated, with what goes
        /// there: greeter.v1.Greeter=HOST:PORT for a service, greeter.*=unix:/PATH for all below; the longest match counts.
        /// Reflection and health go to the one without a service, unless they are named.
        forward ("[SERVICE=]ADDRESS"): Vec<Address>;
        /// Authorities that certify local servers with TLS, in PEM, beside the system's.
        forward_ca ("FILE"): Option<PathBuf>;
        /// What the agent shows to local servers with TLS that ask for a certificate, in PEM; read at each connection.
        forward_cert ("FILE"): Option<PathBuf>;
        /// The key of --forward-cert, in PEM.
        forward_key ("FILE"): Option<PathBuf>;
        /// What the agent says of itself; may be repeated. A hub takes what it accepts.
        label ("NAME=VALUE"): Vec<String>;
        /// How many tunnels to open at once, from 1 to 8 (1).
        tunnels ("N"): Option<u16>;
        /// The proxy on the way out: http://, https:// or socks5://[USER:PASSWORD@]HOST:PORT. Without it HTTPS_PROXY,
        /// HTTP_PROXY, ALL_PROXY and NO_PROXY count. A password is better placed in a variable or the file.
        proxy ("URL"): Option<Url>;
        /// No proxy, whatever the environment says.
        no_proxy (""): bool;
        /// A command whose input and output lead to the hub, as OpenSSH's ProxyCommand: %h is the host, %p the port.
        /// --print-config shows it as it is: leave secrets to the command.
        proxy_command ("COMMAND"): Option<String>;
        /// Authorities that certify the hub's wss:// or grpcs://, in PEM, beside the system's.
        tls_roots ("FILE"): Option<PathBuf>;
        /// For a stock sshd in place of a hub: what it is to listen on, unix:/PATH or tcp:PORT.
        remote ("ADDRESS"): Option<String>;
        /// For hubs that know no forward requests, such as those on Go's x/crypto/ssh.
        forward_request_optional (""): bool;
        /// After how much silence the hub is asked whether it lives (10s). A hub at grpcs:// or grpc:// on Go's library, as it
        /// is set by default, ends connections that ask more often than every 5m: write 6m for it.
        keepalive ("TIME"): Option<Duration>;
        /// After how many unanswered questions the tunnel ends (3).
        keepalive_max ("N"): Option<usize>;
        /// The first wait before trying again, at most (200ms).
        backoff_min ("TIME"): Option<Duration>;
        /// The longest wait before trying again (30s).
        backoff_max ("TIME"): Option<Duration>;
        /// How long a tunnel has to stand until the waits begin anew (30s).
        backoff_stable ("TIME"): Option<Duration>;
        /// How long reaching the hub may take, and then logging in (20s).
        login_timeout ("TIME"): Option<Duration>;
        /// Channels that the hub may have open (256).
        max_channels ("N"): Option<usize>;
        /// What a channel may have under way towards the agent (32MiB).
        window ("SIZE"): Option<Size>;
        /// After how many bytes the tunnel's keys are renewed (4GiB).
        rekey_bytes ("SIZE"): Option<Size>;
        /// After how long the tunnel's keys are renewed (1h).
        rekey_interval ("TIME"): Option<Duration>;
        /// After how many closed channels the tunnel is renewed (1024).
        renew_after ("N"): Option<u64>;
        /// How long calls in flight may take to finish when the agent is told to end.
        grace ("TIME"): Option<Duration> = "30s";
    }

    /// `[log]`
    LogKeys = "log" {
        /// What is logged: error, warn, info, debug, trace or off, also for parts: info,dialback=debug. RUST_LOG says it
        /// too.
        level ("LEVEL"): Option<String> = "info";
        /// How log lines look.
        format ("FORMAT"): Option<LogFormat> = "human";
    }

    /// `[admin]`
    AdminKeys = "admin" {
        /// Where to answer HTTP: GET /livez and GET /readyz. It asks nobody who they are: a loopback address is best.
        listen ("HOST:PORT"): Option<String>;
    }
}
