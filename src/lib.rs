//! Call gRPC services that run behind NAT as if you had dialled them: the machine behind NAT dials out once, over SSH,
//! and every gRPC connection runs back through that one connection.
//!
//! ```text
//!    agent (behind NAT)                         hub (cloud)
//!  ┌────────────────────┐   dials, once    ┌────────────────────┐
//!  │ SSH client         │ ───────────────▶ │ SSH server         │
//!  │ tonic Server       │ ◀═══ channel ═══ │ tonic client       │   opened by the hub: it calls the agent
//!  │ tonic client       │ ═══ channel ═══▶ │ tonic Server       │   the same tunnel, the other way
//!  └────────────────────┘                  └────────────────────┘
//! ```
//!
//! ```
//! # mod greeter {
//! #     #![allow(dead_code, unused_qualifications)]
//! #     include!(concat!(env!("CARGO_MANIFEST_DIR"), "/proto/gen/dialback.greeter.v1.rs"));
//! # }
//! # use greeter::{HelloReply, HelloRequest, greeter_client::GreeterClient, greeter_server::{Greeter, GreeterServer}};
//! # type Replies = tokio_stream::Empty<Result<HelloReply, tonic::Status>>;
//! # struct Laptop;
//! # #[tonic::async_trait]
//! # impl Greeter for Laptop {
//! #     type LotsOfRepliesStream = Replies;
//! #     type ChatStream = Replies;
//! #     async fn say_hello(&self, r: tonic::Request<HelloRequest>) -> Result<tonic::Response<HelloReply>, tonic::Status> {
//! #         Ok(tonic::Response::new(HelloReply { message: format!("Hello {}", r.into_inner().name) }))
//! #     }
//! #     async fn lots_of_replies(&self, _: tonic::Request<HelloRequest>) -> Result<tonic::Response<Replies>, tonic::Status> {
//! #         Err(tonic::Status::unimplemented(""))
//! #     }
//! #     async fn chat(&self, _: tonic::Request<tonic::Streaming<HelloRequest>>) -> Result<tonic::Response<Replies>, tonic::Status> {
//! #         Err(tonic::Status::unimplemented(""))
//! #     }
//! # }
//! use dialback::{Agent, AllowedKeys, HostKeys, Hub, PrivateKey, tune_server};
//! use tonic::transport::Server;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (hub_key, laptop_key) = (PrivateKey::generate(), PrivateKey::generate());
//!
//! // The cloud: which key may be which agent.
//! let hub = Hub::builder(hub_key.clone())
//!     .authorizer(AllowedKeys::new().allow("laptop-1", laptop_key.public_key())?)
//!     .bind("127.0.0.1:0")
//!     .await?;
//!
//! // The laptop: dials out, and serves what the hub opens.
//! let agent = Agent::builder("laptop-1", laptop_key)
//!     .host_keys(HostKeys::public_key(hub_key.public_key()))
//!     .connect(hub.local_addr().to_string())
//!     .await?;
//! let server = tune_server(Server::builder()).add_service(GreeterServer::new(Laptop));
//! tokio::spawn(server.serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));
//!
//! // The cloud calls the laptop.
//! hub.wait_for("laptop-1").await?;
//! let mut greeter = GreeterClient::new(hub.channel("laptop-1")?);
//! let reply = greeter.say_hello(HelloRequest { name: "cloud".into() }).await?;
//! assert_eq!(reply.into_inner().message, "Hello cloud");
//! # Ok(())
//! # }
//! ```
//!
//! # Tunnel
//! A [`Tunnel`] is one authenticated SSH connection of one agent, known by its [`TunnelId`]. An agent that reconnects
//! keeps its [`AgentId`] and gets a new tunnel. [`Hub::wait_for`], [`Hub::get`], [`Hub::tunnels`] and [`Hub::events`]
//! tell what there is, and [`Tunnel::disconnected`] why and when it ended.
//!
//! # Many agents
//! Several tunnels of one id are a pool: each call takes the less busy of two random ones ([`Balance`]), a dead one is
//! never picked, and a call that never reached its agent is sent once more, on another. [`TunnelPolicy`] says otherwise. The
//! tunnels of one id are all opened with the same key, or under the same authority: what *another* key opens is refused
//! while one of them lives, so replicas with keys of their own have ids of their own and a label in common. Who
//! counts as the same is yours to say: [`Grant::holder`].
//!
//! An agent that comes back takes the place of the tunnel it lost, even if the hub has not noticed the loss: an agent's
//! first line on the wire says which of its connections this is. Where that says nothing (a stock `ssh -R`, or an agent
//! that was started anew), every tunnel that was there before has to show within 5 s that it is alive, and is not called
//! until it has. One agent may open several tunnels at once, for more than one core of encryption
//! ([`AgentBuilder::tunnels`]).
//!
//! | a channel to | for any tonic stub |
//! |---|---|
//! | an agent | [`Hub::channel`] |
//! | whichever agents have a label | [`Hub::channel_with_label`] |
//! | whichever agents have a key of yours | [`Hub::channel_for`], [`HubBuilder::affinity_key`] |
//! | whichever agents there are | [`Hub::any_channel`] |
//!
//! Labels come with the [`Grant`]: from your own [`Authorizer`], or from `environment="name=value"` in an
//! `authorized_keys` file. What an agent says of itself ([`AgentBuilder::label`], or the path that a stock client asks for:
//! `ssh -R '/grpc-tunnel?region=eu:localhost:50051'`) counts only where the grant accepts labels of that name
//! ([`Grant::accept_labels`]), and never against the grant's own.
//!
//! A call to an agent that is away fails at once and says since when, or waits ([`TunnelChannel::wait_for_ready`]).
//! [`HubBuilder::no_reverse`] makes a hub that only serves.
//!
//! # Carrier
//! A carrier is the byte stream under a tunnel. The agent says by a URL which it wants ([`AgentBuilder::connect`]), of several
//! [in turn](AgentBuilder::fallback), through a [proxy](AgentBuilder::proxy) if need be, or brings streams of its own
//! ([`AgentBuilder::connect_with`]); the hub [listens](Hub::listen) for each, or is [handed](Hub::accept_stream) what a server
//! of yours has accepted. SSH authenticates and encrypts on all of them. [`TunnelInfo::carrier`] says what a tunnel runs over.
//!
//! # Channel
//! A channel is one byte stream inside a tunnel and carries one HTTP/2 connection, so any number of calls. On the wire it
//! is OpenSSH's forwarding of the path `/grpc-tunnel`: the agent sends `streamlocal-forward@openssh.com`, the hub opens
//! `forwarded-streamlocal@openssh.com`, and for calls the other way the agent opens `direct-streamlocal@openssh.com`
//! (OpenSSH PROTOCOL §2.4). A stock `ssh -R` can therefore be the agent. For clients that forward ports alone, as Dropbear
//! and PuTTY, the hub takes `tcpip-forward` as well (RFC 4254 §7): the port is a name then, and none is opened. An agent also takes channels of the private type
//! `grpc-tunnel`, which a hub on Go's x/crypto/ssh opens; see [`ForwardRequest::Optional`].
//!
//! | | for | opens |
//! |---|---|---|
//! | [`Hub::channel`], [`Tunnel::channel`], [`Agent::channel`] | any tonic stub | a long-lived channel for each tunnel, shared by all |
//! | [`Hub::connector`], [`Tunnel::connector`], [`Agent::connector`] | tonic's `Endpoint`, other protocols | one channel for each dial |
//! | [`Agent::incoming`], [`Hub::incoming`] | tonic's `Server` | none: yields those that the other side opens |
//!
//! With the feature `gateway`, `Forwards` serves what comes in from ordinary gRPC servers of any language beside the agent.
//!
//! A connection that is full, by its peer's limit or at 256 calls, gets another beside it, on a channel of its own. What a
//! tunnel's `connector` and `channel` make belongs to that tunnel; those of a hub or an agent look for the tunnel
//! anew at each dial or call. [`TunnelConnectInfo`], in a request's extensions, tells a handler who is calling. A closed
//! channel costs the side that closed it about 4 kB for the rest of the tunnel's life, so an agent renews a tunnel that
//! has closed many ([`AgentBuilder::renew_after`]): first the new tunnel, then the old one is drained.
//!
//! # Identity
//! An agent claims an id as its SSH user name and proves a key: a [`PrivateKey`] file, encrypted or not, with an OpenSSH
//! certificate or not, or the keys of a running ssh-agent ([`Identity`]). An [`Authorizer`] says which ids that grants:
//! [`AuthorizedKeys`] reads OpenSSH files (`authorized_keys`, the keys of user CAs, and what is revoked) and follows
//! their changes, [`AllowedKeys`] is a list in memory, and the trait takes anything else. A key never gets an id that it
//! was not granted, and whoever is refused is not told why. The hub asks again while a tunnel lives ([`Authorizer::recheck_every`]): what is taken back ends it.
//!
//! # Host keys
//! [`HostKeys`] is how an agent recognises its hub: `known_hosts` files, a fingerprint, a key or a callback. There is no
//! default, nothing is trusted on first use, and what cannot be read is refused. It is asked before the agent sends its
//! id or any signature.
//!
//! # Reconnecting
//! [`AgentBuilder::connect`] fails fast, with a [`ConnectError`] that says what to mend;
//! [`AgentBuilder::connect_when_available`] waits for a hub that is not there yet, and fails for what waiting does not
//! cure. After the first success an agent never gives up: a backoff that grows with the outage, with full jitter
//! ([`AgentBuilder::backoff`]), the hub's name resolved anew each time. [`Agent::status`] shows it, [`Agent::incoming`]
//! and [`Agent::channel`] outlive it, and meanwhile calls fail at once, `UNAVAILABLE`.
//!
//! # Draining
//! [`Agent::shutdown`] asks the hub for no more calls, lets those that run finish, and closes the tunnel;
//! [`Hub::shutdown`] does so with every tunnel and stops listening. A second call, or the end of the grace period, cuts
//! off what is left. Dropping an [`Agent`] or the last clone of a [`Hub`] closes everything at once.
//!
//! # Dead peers
//! A cable that is pulled says nothing. Both sides ask a silent peer every 10 s whether it lives, and end the tunnel after
//! three unanswered questions, so within 40 s ([`AgentBuilder::keepalive`], [`HubBuilder::keepalive`]). Every byte that
//! arrives is an answer, and so is one that is taken after it had to wait: behind bulk on a slow path the answers come
//! late. A peer that lives but takes no byte for 30 s while some are waiting loses its tunnel too. Calls in flight then
//! fail `UNAVAILABLE`, with the agent and the [`CloseReason`]; through tonic's own channel, [`Tunnel::explain`] puts the
//! same name to them. A [`stats::DisconnectDetector`] tells of the end of one connection. Under all this lie TCP
//! keepalive, from 60 s of silence, and, on Linux, an end after 60 s without acknowledgement.
//!
//! # Limits and memory
//! Every queue has a bound, and what goes over it loses the smallest thing that helps: a channel before its tunnel, a
//! tunnel before its hub. These are the defaults; what names no setting is fixed.
//!
//! | what | bound | setting |
//! |---|---|---|
//! | unauthenticated connections | 128 in total, 16 from one source, up to 300 kB each, by WebSocket a message of 256 KiB more, and at `grpc://` 4 MiB, with the heads of 64 calls | [`HubBuilder::unauthenticated_limits`] |
//! | their time | 20 s | [`HubBuilder::login_timeout`] |
//! | keys that one may try, or tokens at `grpc://` | 3; at most 8 keys may be named without proof | [`HubBuilder::max_auth_attempts`] |
//! | tunnels of one agent | 16, and 64 with those that are being drained | |
//! | the hub's calls to one agent | 10,000, in all its tunnels | [`HubBuilder::max_calls`] |
//! | open channels, beyond which neither side may open more | 256 for each tunnel, both sides' together | [`HubBuilder::max_channels`], [`AgentBuilder::max_channels`] |
//! | channels that no server has taken yet | 128 for each `incoming` | |
//! | opens that wait for the peer's answer | 64 for each tunnel; others wait in line, each caller for 10 s at most | [`HubBuilder::open_timeout`], [`AgentBuilder::open_timeout`] |
//! | received and not read | 64 MiB for each tunnel, twice the window, and on a hub for all tunnels of one agent; then the longest queue's channel is closed | [`HubBuilder::window`], [`HubBuilder::max_unread`], [`AgentBuilder::window`] |
//! | the same, of channels closed for it that their reader still holds | 128 MiB more; then the tunnel ends | the same |
//! | received by HTTP/2 and not read | 28 MiB for each connection | [`tuning`] |
//! | calls that a server takes on one connection | 256; more wait at the caller | [`tuning`] |
//! | written and not sent | writes wait from 256 KiB for each tunnel; at 32 MiB (32 KiB before authentication), or after 30 s without a byte taken, it ends | |
//! | SSH requests on a channel | 16 KiB in all; then it is closed | |
//! | closed channels | 1,024, so 4 MB, then the agent renews the tunnel; the hub ends it at 4,096 | [`AgentBuilder::renew_after`] |
//! | events that a slow listener may be behind | 1,024; then it is told how many it missed | |
//! | agents whose last goodbye a hub remembers | 65,536 | |
//! | at a gateway: connections | 10,000, with 1,000 calls and 16 MiB each; 10 s until HTTP/2, and 30 s until a call that a policy lets in | `GatewayBuilder::max_connections`, `window` |
//! | calls of one caller | 10,000 | `max_calls_per_caller` |
//! | what waits for slow readers | a call's window each (24 MiB from an agent, 4 MiB from a caller), 256 MiB in all, for 30 s without a byte taken | `max_held`, `stall_timeout` |
//! | at an agent that [forwards](#features): what waits for slow readers | a call's window each (24 MiB), 256 MiB in all | |
//! | in a tunnel of `grpctunnel`: calls that are taken at once | 10,000; more are refused | `max_calls` |
//! | what a peer may send of one call before it is read | 64 KiB; as its reader reads, and for a message that needs it, up to 1 MiB, as long as all calls together have no more than half of the next bound beyond their 64 KiB | `window` |
//! | received and not read, with metadata | 64 MiB for each tunnel, and on a hub for all tunnels of one agent, of SSH or not; then the tunnel is not read for 1 s at most, and after that the call that holds most ends | `max_unread`, [`HubBuilder::max_unread`] |
//! | metadata of a call, each of its headers, its answer's and the trailers | 64 KiB, as HTTP/2 counts | |
//! | one message; one frame of the carrier | 64 MiB; 4 MiB, one at a time | `max_message` |
//! | written and not sent | 128 KiB for each call; then its writer waits | |
//!
//! The bounds on calls and on what HTTP/2 holds are those of servers and endpoints that went through [`tune_server`] and
//! [`tune_endpoint`], and of [`TunnelChannel`]. The windows are sized so that one call fills 1 Gbit/s at 100 ms, and one of
//! `grpctunnel` 80 Mbit/s; a window is no memory until its reader is slow. For many agents that are not trusted, set smaller ones.
//!
//! # Features
//! | feature | default | what it adds |
//! |---|---|---|
//! | `aws-lc-rs` | yes | [AWS-LC](https://docs.rs/aws-lc-rs) for the cryptography of SSH and TLS: constantly maintained, fastest on servers with AVX-512 or Arm Neoverse; TLS has post-quantum key exchange only with it |
//! | `cli` | no | the command `dialback`: a hub and an agent as daemons, and a gRPC client; no API |
//! | `ring` | no | [ring](https://docs.rs/ring) instead, if `aws-lc-rs` is off: builds for more machines, and is faster where a CPU has VAES without AVX-512, as AMD's Zen 3. One of the two is needed |
//! | `gateway` | no | `dialback::gateway`: a front door for ordinary gRPC clients of any language, which name the agent that they call; and `dialback::Forwards`: at the agent, local servers of any language |
//! | `grpctunnel` | no | `dialback::grpctunnel`: tunnels that are gRPC calls themselves, wire-compatible with the Go library [grpctunnel](https://github.com/jhump/grpctunnel) and its Python port |
//! | `websocket` | no | `ws://` and `wss://` hubs ([`Hub::listen`], `Hub::listen_tls`, `Hub::accept_websocket`), and proxies that are spoken to over TLS |
//! | `rsa` | no | RSA keys of agents and hubs, with SHA-2 signatures only. The `rsa` crate has an unfixed timing side channel ([RUSTSEC-2023-0071](https://rustsec.org/advisories/RUSTSEC-2023-0071.html)) |

mod agent;
mod carrier;
mod channel;
mod close;
mod connector;
#[cfg(any(feature = "gateway", feature = "websocket"))]
mod follow;
#[cfg(feature = "gateway")]
mod forward;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "grpctunnel")]
pub mod grpctunnel;
mod http2;
mod hub;
mod id;
mod incoming;
mod labels;
mod ssh;
#[cfg(unix)]
mod ssh_config;
mod stamp;
pub mod stats;
mod time;
#[cfg(any(feature = "gateway", feature = "websocket"))]
mod tls;
pub mod tuning;
mod tunnel;
// Tunnels of SSH count there, and have no use for the rest.
#[cfg_attr(not(feature = "grpctunnel"), allow(dead_code))]
mod unread;

pub use agent::{Agent, AgentBuilder, AgentStatus, ConnectError};
pub use carrier::CarrierKind;
pub use channel::{ResponseBody, TunnelChannel};
pub use close::{CloseReason, Disconnected};
pub use connector::{Connector, DialError};
#[cfg(feature = "gateway")]
pub use forward::{ForwardError, ForwardTls, Forwards};
pub use hub::{
    Balance, BindError, EventsError, Hub, HubBuilder, HubEvent, HubEvents, Tunnel, TunnelInfo, TunnelPolicy, WaitError,
};
pub use id::{AgentId, InvalidAgentId};
pub use incoming::Incoming;
pub use labels::InvalidLabel;
pub use ssh::{
    AllowedKeys, AuthError, AuthorizedKeys, AuthorizedKeysError, Authorizer, Certificate, CertificateProblem, Claim,
    Credential, Denied, FileLine, ForwardRequest, Grant, HostKeyError, HostKeys, HostKeysError, Identity,
    InvalidCertificate, InvalidPublicKey, KeyError, KnownHostsProblem, LineProblem, OfferedHostKey, PinnedKey,
    PrivateKey, PublicKey, Revocation, TunnelIo,
};
#[cfg(unix)]
pub use ssh_config::{SshConfig, SshConfigError};
#[cfg(feature = "websocket")]
pub use tls::TlsError;
pub use tuning::{tune_endpoint, tune_server};
pub use tunnel::{TunnelConnectInfo, TunnelId};

/// The README's code, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
