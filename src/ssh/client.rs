//! The agent's end of a session.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{ChannelOpenHandle, Config, DisconnectReason, Handle, Handler, Msg, Session as RusshSession};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelId, ChannelOpenFailure, Error, Names, Sig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use super::config::{self, TunnelConfig};
use super::greeting::Greeted;
use super::host_keys::{HostKeyError, HostKeys};
use super::identity::{AuthError, Identity};
use super::io::TunnelIo;
use super::session::{DialBack, Opener, Session, SessionParts, TUNNEL_PATH};
use super::write_behind::{Carrier, WriteBehind};
use crate::carrier::HostPort;
use crate::close::CloseReason;
use crate::incoming::{Acceptor, NotTaken};
use crate::labels::{self, Labels};

/// The private channel type that a hub built on Go's x/crypto/ssh opens.
const PRIVATE_TYPE: &str = "grpc-tunnel";

/// What an agent needs to log in.
pub(crate) struct Login {
    pub(crate) host_keys: HostKeys,
    pub(crate) identity: Identity,
    pub(crate) config: TunnelConfig,
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) forward: ForwardRequest,
    /// What the agent says of itself.
    pub(crate) labels: Labels,
    /// What a stock server is to listen on, in place of the tunnel's path.
    pub(crate) remote: Option<DialBack>,
    /// Which agent process this is, among those that the same key may start.
    pub(crate) instance: u64,
}

/// What an agent makes of a hub that refuses to dial back through a forwarded path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ForwardRequest {
    /// The connection fails: a hub of this crate and a stock `sshd` always answer.
    #[default]
    Required,
    /// The refusal is ignored. For hubs that open channels of type `grpc-tunnel` and know no forward requests, such as
    /// those built on Go's x/crypto/ssh.
    Optional,
}

/// Why a login failed, once the network connection stood.
#[derive(Debug)]
pub(crate) enum LoginError {
    NotSsh,
    NoCommonAlgorithm(String),
    NotStrict,
    HostKey(HostKeyError),
    Auth(AuthError),
    ForwardRefused { remote: Option<DialBack> },
    Disconnected { message: String },
    TimedOut { step: &'static str, after: Duration },
    Failed { step: &'static str, source: Error },
}

/// Logs in; `hub` is the name that its host key is looked up by, and `slot` the connection's number in the agent. Dropping
/// the future closes the connection.
pub(crate) async fn connect<S>(
    stream: S,
    parts: SessionParts,
    login: &Login,
    hub: &HostPort,
    slot: u16,
) -> Result<LoggedIn, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let session = Session::new(parts);
    let path = || DialBack::Path(labels::write(TUNNEL_PATH, &login.labels).into());
    session.set_dial_back(login.remote.clone().unwrap_or_else(path));
    let carrier = session.carrier.clone();
    let guard = KillOnDrop(Some(carrier.clone()));
    let stream = Box::new(WriteBehind::new(Greeted::by_server(stream), carrier, login.config.silence()));
    let deadline = Instant::now() + login.config.login_timeout;
    let fault = Arc::new(Mutex::new(None));
    let handle = log_in(stream, &session, login, hub, slot, deadline, &fault).await?;
    Ok(LoggedIn { session, handle, guard, deadline, fault })
}

/// A connection that the hub has let in, and that is still to be offered as a tunnel. Dropping it closes it.
pub(crate) struct LoggedIn {
    session: Arc<Session>,
    handle: Handle<ClientHandler>,
    guard: KillOnDrop,
    /// When the login has to be done.
    deadline: Instant,
    fault: Fault,
}

impl LoggedIn {
    /// Offers the tunnel's path, or what else the agent wants to be dialled on. Dropping the future closes the connection.
    pub(crate) async fn offer(self, login: &Login) -> Result<Arc<Session>, LoginError> {
        let Self { session, handle, mut guard, deadline, fault } = self;
        let (step, after) = ("forward request", login.config.login_timeout);
        let offer = async {
            match session.dial_back() {
                Some(DialBack::Port { address, port }) => handle.tcpip_forward(&**address, *port).await.map(|_| ()),
                _ => handle.streamlocal_forward(session.path()).await,
            }
        };
        let may_be_refused = login.forward == ForwardRequest::Optional && login.remote.is_none();
        match timeout_at(deadline, offer).await.map_err(|_| LoginError::TimedOut { step, after })? {
            Ok(()) => {}
            Err(Error::RequestDenied) if may_be_refused => {}
            Err(Error::RequestDenied) => return Err(LoginError::ForwardRefused { remote: login.remote.clone() }),
            Err(error) => {
                // A hub that refuses the tunnel says why and disconnects: let that arrive.
                let _ = timeout_at(deadline, session.closed()).await;
                return Err(found(&fault, step, error, &session.carrier));
            }
        }
        session.set_opener(Opener::Client(Arc::new(handle)));
        guard.0 = None;
        Ok(session)
    }
}

/// What the handler found wrong: it knows better than the step that fails for it.
type Fault = Arc<Mutex<Option<LoginError>>>;

fn found(fault: &Fault, step: &'static str, error: Error, carrier: &Carrier) -> LoginError {
    let known = fault.lock().unwrap_or_else(PoisonError::into_inner).take();
    known.unwrap_or_else(|| explain(step, error, carrier))
}

/// A login that fails or is given up must not leave its session behind.
struct KillOnDrop(Option<Arc<Carrier>>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(carrier) = &self.0 {
            carrier.kill(CloseReason::ClosedLocally);
        }
    }
}

async fn log_in<S>(
    stream: Box<WriteBehind<Greeted<S>>>,
    session: &Arc<Session>,
    login: &Login,
    hub: &HostPort,
    slot: u16,
    deadline: Instant,
    fault: &Fault,
) -> Result<Handle<ClientHandler>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let after = login.config.login_timeout;
    let timed_out = |step| move |_| LoginError::TimedOut { step, after };
    let found = |step, error| found(fault, step, error, &session.carrier);
    let handler = ClientHandler {
        session: session.clone(),
        hub: hub.clone(),
        host_keys: login.host_keys.clone(),
        acceptor: login.acceptor.clone(),
        max_channels: login.config.max_channels,
        fault: fault.clone(),
        negotiated: false,
        private: false,
    };
    let config: Arc<Config> = {
        let wanted = login.host_keys.host_key_algorithms(&hub.host, hub.port).await;
        config::client(&login.config, wanted.map_err(LoginError::HostKey)?, (login.instance, slot))
    };

    let step = "key exchange";
    let connected = timeout_at(deadline, russh::client::connect_stream(config, stream, handler)).await;
    let mut handle: Handle<ClientHandler> = connected.map_err(timed_out(step))?.map_err(|error| found(step, error))?;

    let step = "authentication";
    let authenticated = timeout_at(deadline, login.identity.authenticate(&mut handle, session.agent.as_str())).await;
    match authenticated.map_err(timed_out(step))? {
        Ok(()) => session.carrier.authenticated(),
        Err(AuthError::ConnectionEnded { .. }) => return Err(found(step, Error::Disconnect)),
        Err(error) => return Err(LoginError::Auth(error)),
    }
    Ok(handle)
}

fn explain(step: &'static str, error: Error, carrier: &Carrier) -> LoginError {
    match error {
        Error::Version | Error::Kex if step == "key exchange" => LoginError::NotSsh,
        Error::IO(error) if error.kind() == std::io::ErrorKind::InvalidData && step == "key exchange" => {
            LoginError::NotSsh
        }
        Error::NoCommonAlgo { .. } => LoginError::NoCommonAlgorithm(error.to_string()),
        source => match carrier.reason() {
            Some(CloseReason::ConnectionLost { error }) => {
                LoginError::Failed { step, source: Error::IO(std::io::Error::other(error)) }
            }
            _ => LoginError::Failed { step, source },
        },
    }
}

/// russh's callbacks on the agent.
pub(crate) struct ClientHandler {
    session: Arc<Session>,
    hub: HostPort,
    host_keys: HostKeys,
    acceptor: Arc<Acceptor>,
    max_channels: usize,
    /// Why this side ended the login, for the caller: russh only carries its own errors.
    fault: Arc<Mutex<Option<LoginError>>>,
    negotiated: bool,
    /// The channel of an unknown type that is being opened is of the [private one](PRIVATE_TYPE).
    private: bool,
}

impl Drop for ClientHandler {
    /// The session owns its handler, so this is its end, however it came.
    fn drop(&mut self) {
        let reason = self.session.carrier.reason();
        self.session.finish(reason.unwrap_or(CloseReason::ClosedByPeer { message: None }));
    }
}

impl ClientHandler {
    fn fail(&self, fault: LoginError) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    }

    async fn accept(&self, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        if self.session.ledger.open_channels() >= self.max_channels {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        }
        match self.acceptor.reserve() {
            Ok(permit) => {
                let io = TunnelIo::from_client(self.session.clone(), channel);
                reply.accept().await;
                permit.send(io);
            }
            Err(NotTaken::Full) => reply.reject(ChannelOpenFailure::ResourceShortage).await,
            Err(NotTaken::NoServer) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
    }

    async fn reject(&self, what: &str, reply: ChannelOpenHandle, reason: ChannelOpenFailure) {
        self.session.span.in_scope(|| tracing::debug!(kind = %what.escape_debug(), "channel rejected"));
        reply.reject(reason).await;
    }

    async fn charge(&self, id: ChannelId, len: usize, session: &mut RusshSession) -> Result<(), Error> {
        let verdict = self.session.ledger.charge(id, len).await;
        self.session.obey(verdict, |id| session.close(id))
    }

    fn charge_request(&self, id: ChannelId, len: usize, session: &mut RusshSession) -> Result<(), Error> {
        let verdict = self.session.ledger.charge_request(id, len);
        self.session.obey(verdict, |id| session.close(id))
    }
}

impl Handler for ClientHandler {
    type Error = Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Error> {
        match self.host_keys.check(&self.hub.host, self.hub.port, key).await {
            Ok(()) => Ok(true),
            Err(error) => {
                self.fail(LoginError::HostKey(error));
                Ok(false)
            }
        }
    }

    async fn kex_done(&mut self, _: Option<&[u8]>, names: &Names, _: &mut RusshSession) -> Result<(), Error> {
        // Only the first exchange says whether the peer knows strict key exchange (the Terrapin defence).
        if !std::mem::replace(&mut self.negotiated, true) && !names.strict_kex() {
            self.fail(LoginError::NotStrict);
            return Err(Error::Disconnect);
        }
        Ok(())
    }

    async fn auth_banner(&mut self, banner: &str, _: &mut RusshSession) -> Result<(), Error> {
        let banner: String = banner.chars().take(1000).collect();
        self.session.span.in_scope(|| tracing::info!(banner = %banner.escape_debug(), "the hub says"));
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Error>) -> Result<(), Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                let reason = CloseReason::closed_by_peer(&info.message);
                if let CloseReason::ClosedByPeer { message: Some(message) } = &reason {
                    self.fail(LoginError::Disconnected { message: message.clone() });
                }
                self.session.finish(self.session.carrier.blamed().cloned().unwrap_or(reason));
                Ok(())
            }
            DisconnectReason::Error(error) => {
                self.session.finish(end_of(&error, &self.session.carrier));
                Err(error)
            }
        }
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        if path == self.session.path() {
            self.accept(channel, reply).await;
        } else {
            self.reject(path, reply, ChannelOpenFailure::AdministrativelyProhibited).await;
        }
        Ok(())
    }

    /// All are taken, to be refused below: what is refused here, russh answers twice, and at the second answer Go's
    /// and OpenSSH's servers end the connection.
    async fn should_accept_unknown_server_channel(&mut self, _: ChannelId, channel_type: &str) -> bool {
        self.private = channel_type == PRIVATE_TYPE;
        true
    }

    async fn server_channel_open_unknown(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        if self.private {
            self.accept(channel, reply).await;
        } else {
            self.reject("unknown type", reply, ChannelOpenFailure::UnknownChannelType).await;
        }
        Ok(())
    }

    // russh accepts all of the following by default.

    /// The server may write the address in another way than it was asked for.
    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        match self.session.dial_back() {
            Some(DialBack::Port { port: wanted, .. }) if *wanted == port => self.accept(channel, reply).await,
            _ => self.reject("forwarded-tcpip", reply, ChannelOpenFailure::AdministrativelyProhibited).await,
        }
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("auth-agent", reply, ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("session", reply, ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("direct-tcpip", reply, ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("direct-streamlocal", reply, ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("x11", reply, ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    // Every message that russh queues for a channel is charged.

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        session: &mut RusshSession,
    ) -> Result<(), Error> {
        // Data may follow before the opener's task runs. A peer may confirm again and again, and russh queues it.
        self.session.ledger.open(id);
        self.charge_request(id, 0, session)
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut RusshSession) -> Result<(), Error> {
        self.charge(id, data.len(), session).await
    }

    async fn extended_data(
        &mut self,
        id: ChannelId,
        _: u32,
        data: &[u8],
        session: &mut RusshSession,
    ) -> Result<(), Error> {
        self.charge(id, data.len(), session).await
    }

    async fn window_adjusted(&mut self, id: ChannelId, _: u32, session: &mut RusshSession) -> Result<(), Error> {
        self.charge(id, 0, session).await
    }

    async fn channel_eof(&mut self, id: ChannelId, session: &mut RusshSession) -> Result<(), Error> {
        self.charge(id, 0, session).await
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut RusshSession) -> Result<(), Error> {
        self.session.ledger.closed_by_peer(id);
        Ok(())
    }

    async fn channel_success(&mut self, id: ChannelId, session: &mut RusshSession) -> Result<(), Error> {
        self.charge_request(id, 0, session)
    }

    async fn channel_failure(&mut self, id: ChannelId, session: &mut RusshSession) -> Result<(), Error> {
        self.charge_request(id, 0, session)
    }

    async fn xon_xoff(&mut self, id: ChannelId, _: bool, session: &mut RusshSession) -> Result<(), Error> {
        self.charge_request(id, 0, session)
    }

    async fn exit_status(&mut self, id: ChannelId, _: u32, session: &mut RusshSession) -> Result<(), Error> {
        self.charge_request(id, 0, session)
    }

    async fn exit_signal(
        &mut self,
        id: ChannelId,
        _: Sig,
        _: bool,
        message: &str,
        language: &str,
        session: &mut RusshSession,
    ) -> Result<(), Error> {
        self.charge_request(id, message.len() + language.len(), session)
    }
}

/// What a russh error means for the tunnel: what this side decided, else what russh or the socket says.
pub(super) fn end_of(error: &Error, carrier: &Carrier) -> CloseReason {
    if let Some(decided) = carrier.blamed() {
        return decided.clone();
    }
    match error {
        Error::Disconnect | Error::HUP | Error::IO(_) | Error::SendError => {
            carrier.reason().unwrap_or(CloseReason::ClosedByPeer { message: None })
        }
        other => CloseReason::Protocol { error: other.to_string().escape_debug().to_string() },
    }
}
