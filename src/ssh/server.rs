//! The hub's end of a session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use russh::keys::ssh_key;
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session as RusshSession, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, Error, Pty, Sig};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::authorized_keys::certificate::Certificate;
use super::authorizer::{Authorizer, Claim, Credential, Grant};
use super::client::end_of;
use super::config::TunnelConfig;
use super::greeting::Greeted;
use super::io::TunnelIo;
use super::key::PublicKey;
use super::session::{DialBack, Opener, Session, SessionParts, TUNNEL_PATH};
use super::write_behind::{Carrier, WriteBehind};
use crate::carrier::{Carried, CarrierKind};
use crate::close::CloseReason;
use crate::id::AgentId;
use crate::incoming::{Acceptor, NotTaken};
use crate::labels::{self, Labels};
use crate::tunnel::TunnelId;

/// Keys that a stranger may name without proving that it has them.
const MAX_PROBES: usize = 8;

/// The longest address that a forward is asked for: a host name's length.
const MAX_ADDRESS: usize = 255;

/// What is answered to those who leave the port of a forward to the hub: gRPC's customary one.
const ANY_PORT: u32 = 50051;

/// To those who expect a machine to log in to.
const NO_SHELL: &str = "this is a dialback hub: it has no shell, commands or files. To let it call a gRPC server on your \
    machine: ssh -N -R /grpc-tunnel:localhost:PORT";

/// To those who want to reach others through it.
const NO_FORWARD: &str = "this is a dialback hub: it connects to its own gRPC service, /grpc-tunnel, and nothing else";

/// The hub, as a session sees it.
#[async_trait::async_trait]
pub(crate) trait Gate: Send + Sync + 'static {
    /// An agent has proved who it is; `greeting` is its first line. `Err` says why its tunnel is not wanted all the same.
    fn admit(&self, session: &Arc<Session>, greeting: &str) -> Result<(), String>;
    /// Whether others keep an agent from being called, which [`Gate::ready`] would say later. `Err` says why.
    #[cfg(feature = "grpctunnel")]
    async fn contest(&self, session: &Arc<Session>) -> Result<(), String>;
    /// The agent can be called from now on, if the hub wants to.
    async fn ready(&self, session: &Arc<Session>, labels: Labels) -> Result<Welcome, String>;
    /// The agent does not want to be called any more.
    fn unready(&self, session: &Arc<Session>);
}

/// What a hub makes of an agent's offer to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Welcome {
    Wanted,
    /// It may stay and call, and is not called.
    NotCalled,
}

/// What an agent proved itself with.
#[derive(Debug, Clone)]
pub(crate) struct Proof {
    pub(crate) grant: Grant,
    /// To ask again while the tunnel lives; none where nobody was asked.
    pub(crate) claim: Option<Claim>,
    /// Who may take the id over.
    pub(crate) holder: Arc<str>,
}

impl Proof {
    /// `holder` is the key, the certificate's authority or the like, unless the grant says another.
    pub(crate) fn new(grant: Grant, claim: Option<Claim>, holder: String) -> Self {
        let holder = grant.holder.clone().unwrap_or(holder).into();
        Self { grant, claim, holder }
    }
}

/// What every session of one hub shares.
pub(crate) struct Door {
    pub(crate) russh: Arc<Config>,
    pub(crate) config: TunnelConfig,
    pub(crate) max_auth_attempts: usize,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) acceptor: Arc<Acceptor>,
}

/// How a connection of a stranger ended before it was an agent's.
#[derive(Debug)]
pub(crate) enum Turned {
    TimedOut { after: Duration },
    Left { error: String },
}

/// How far a stranger has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    Nothing,
    /// It has begun a key exchange.
    Begun,
    /// It is an agent.
    Done,
}

/// Serves one connection to its end. Returns early only for one that never authenticated.
///
/// `login` tells how far it has got. Dropping the future ends the session.
pub(crate) async fn serve(carried: Carried, door: Arc<Door>, login: watch::Sender<Progress>) -> Result<(), Turned> {
    let Carried { stream, kind, local, peer } = carried;
    let carrier = Arc::new(Carrier::default());
    let _end = KillOnDrop(carrier.clone());
    let after = door.config.login_timeout;
    let deadline = Instant::now() + after;
    let mut progress = login.subscribe();
    let (found, session) = watch::channel(None);
    // russh keeps room for its stream at every step of the login, for as long as the session lives: a box is small.
    let stream = WriteBehind::new(stream, carrier.clone(), door.config.silence());
    let stream = Box::new(Greeted::by_client(stream, login.clone()));
    let handler = ServerHandler {
        door: door.clone(),
        carrier: carrier.clone(),
        kind,
        local,
        peer,
        deadline,
        proof: None,
        failures: 0,
        probes: 0,
        misdirected: false,
        session: None,
        found,
        login,
    };

    let left = |error: Error| Turned::Left { error: error.to_string().escape_debug().to_string() };
    let started = timeout_at(deadline, russh::server::run_stream(door.russh.clone(), stream, handler)).await;
    let mut running = started.map_err(|_| Turned::TimedOut { after })?.map_err(left)?;

    let early = tokio::select! {
        ended = &mut running => Some(ended),
        _ = progress.wait_for(|so_far| *so_far == Progress::Done) => None,
        () = tokio::time::sleep_until(deadline) => return Err(Turned::TimedOut { after }),
    };
    let ended = match early {
        Some(ended) => ended,
        None => running.await,
    };
    // The handler is gone with its session, so this is the last word.
    let session = session.borrow().clone();
    match (session, ended) {
        (Some(session), ended) => {
            let reason = match &ended {
                // russh has read a goodbye, whatever became of what was written meanwhile.
                Ok(()) => carrier.blamed().cloned().unwrap_or(CloseReason::ClosedByPeer { message: None }),
                Err(error) => end_of(error, &carrier),
            };
            session.finish(reason);
            Ok(())
        }
        (None, Ok(())) => Err(Turned::Left { error: "left before it had authenticated".into() }),
        (None, Err(error)) => Err(left(error)),
    }
}

struct KillOnDrop(Arc<Carrier>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill(CloseReason::ClosedLocally);
    }
}

/// russh's callbacks on the hub.
struct ServerHandler {
    door: Arc<Door>,
    carrier: Arc<Carrier>,
    kind: CarrierKind,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    /// When the login has to be done.
    deadline: Instant,
    /// Set by a verified key or certificate, and by nothing else.
    proof: Option<Box<Proof>>,
    failures: usize,
    probes: usize,
    /// The agent has asked for a wrong forward before.
    misdirected: bool,
    session: Option<Arc<Session>>,
    found: watch::Sender<Option<Arc<Session>>>,
    login: watch::Sender<Progress>,
}

impl Drop for ServerHandler {
    /// The session owns its handler. When nobody is left to see how it ended, this side ended it.
    fn drop(&mut self) {
        if let (Some(session), Some(decided)) = (&self.session, self.carrier.blamed()) {
            session.finish(decided.clone());
        }
    }
}

impl ServerHandler {
    /// Asks the authorizer. What it says against a claim is for the hub's log; a stranger learns only "no".
    async fn ask(&mut self, user: &str, credential: Credential) -> Option<(Claim, Grant)> {
        if self.failures >= self.door.max_auth_attempts {
            return None;
        }
        let peer = self.peer;
        let agent_id = match user.parse::<AgentId>() {
            Ok(id) => id,
            Err(error) => {
                self.failures += 1;
                tracing::debug!(?peer, %error, "login refused");
                return None;
            }
        };
        let claim = Claim::new(agent_id.clone(), credential, peer);
        // The session's task outlives a connection that is given up, for as long as this answer takes.
        match timeout_at(self.deadline, self.door.authorizer.authorize(&claim)).await {
            Ok(Ok(grant)) => Some((claim, grant)),
            Err(_) => {
                self.failures += 1;
                tracing::warn!(?peer, agent = %agent_id, "login refused: the authorizer did not answer in time");
                None
            }
            Ok(Err(denied)) => {
                self.failures += 1;
                // A stranger can cause this at will, so it is no warning.
                tracing::info!(?peer, agent = %agent_id, why = %denied, "login refused");
                None
            }
        }
    }

    async fn accept(&self, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        let Some(session) = &self.session else { return };
        if session.ledger.open_channels() >= self.door.config.max_channels || session.is_draining() {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        }
        match self.door.acceptor.reserve() {
            Ok(permit) => {
                let io = TunnelIo::from_server(session.clone(), channel);
                reply.accept().await;
                permit.send(io);
            }
            Err(NotTaken::Full) => reply.reject(ChannelOpenFailure::ResourceShortage).await,
            Err(NotTaken::NoServer) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
    }

    async fn reject(&self, what: &str, why: &str, reply: ChannelOpenHandle) {
        tracing::debug!(peer = ?self.peer, kind = %what.escape_debug(), "channel rejected");
        let code = ChannelOpenFailure::AdministrativelyProhibited.code();
        reply.reject(ChannelOpenFailure::Other { code, reason: why.into() }).await;
    }

    /// The agent can be called, on what it asked to be forwarded. A tunnel has one service: another is refused.
    async fn forward(&mut self, wanted: DialBack, labels: Labels, russh: &mut RusshSession) -> Result<bool, Error> {
        let Some(session) = &self.session else { return Ok(false) };
        if !session.set_dial_back(wanted) {
            return Ok(self.refuse_forward("a second one", "a tunnel has one service, and one is forwarded"));
        }
        match self.door.gate.ready(session, labels).await {
            Ok(welcome) => Ok(welcome == Welcome::Wanted),
            Err(reason) => {
                session.span.in_scope(|| tracing::warn!(reason, "tunnel refused"));
                self.carrier.blame(CloseReason::Refused { reason: reason.clone() });
                russh.disconnect(Disconnect::ByApplication, &reason, "en")?;
                Ok(false)
            }
        }
    }

    /// Says so once for the operator who looks for it; an agent must not flood the log.
    fn refuse_forward(&mut self, wanted: &str, why: &str) -> bool {
        let again = std::mem::replace(&mut self.misdirected, true);
        if let Some(session) = &self.session {
            let wanted = wanted.chars().take(200).collect::<String>();
            session.span.in_scope(|| match again {
                false => tracing::info!(wanted = %wanted.escape_debug(), why, "forward refused"),
                true => tracing::debug!(wanted = %wanted.escape_debug(), why, "forward refused"),
            });
        }
        false
    }

    fn cancel_forward(&self, forward: &DialBack) -> bool {
        match &self.session {
            Some(session) if session.dial_back() == Some(forward) => {
                self.door.gate.unready(session);
                true
            }
            _ => false,
        }
    }

    async fn charge(&self, id: ChannelId, len: usize, russh: &mut RusshSession) -> Result<(), Error> {
        let Some(session) = &self.session else { return Ok(()) };
        let verdict = session.ledger.charge(id, len).await;
        session.obey(verdict, |id| russh.close(id))
    }

    /// Requests on a channel mean nothing here: refused, and counted.
    fn refuse_request(&self, id: ChannelId, len: usize, russh: &mut RusshSession) -> Result<(), Error> {
        russh.channel_failure(id)?;
        let Some(session) = &self.session else { return Ok(()) };
        let verdict = session.ledger.charge_request(id, len);
        session.obey(verdict, |id| russh.close(id))
    }
}

impl Handler for ServerHandler {
    type Error = Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
        self.probes += 1;
        // A signature with SHA-1 proves nothing; every signed request is offered first, under the name it signs with.
        if self.probes > MAX_PROBES || *offer.algorithm == (ssh_key::Algorithm::Rsa { hash: None }) {
            return Ok(Auth::reject());
        }
        // A certificate is offered by its key alone; only its authority can tell, and only once it is verified.
        if self.door.authorizer.accepts_certificates() {
            return Ok(Auth::Accept);
        }
        let key = Credential::Key(PublicKey::new(offer.public_key.key_data().clone(), ""));
        Ok(if self.ask(user, key).await.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        let key = PublicKey::new(key.public_key.key_data().clone(), "");
        let holder = key.fingerprint();
        let granted = self.ask(user, Credential::Key(key)).await;
        Ok(self.settle(granted, holder))
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &ssh_key::Certificate,
    ) -> Result<Auth, Error> {
        let certificate = Certificate::from(certificate.clone());
        let holder = format!("authority {}", certificate.authority_fingerprint());
        let granted = self.ask(user, Credential::Certificate(certificate)).await;
        Ok(self.settle(granted, holder))
    }

    async fn auth_succeeded(&mut self, russh: &mut RusshSession) -> Result<(), Error> {
        // Only a verified key or certificate leads here, and it set the proof.
        let Some(proof) = self.proof.take() else { return Err(Error::Inconsistent) };
        let Some(claim) = &proof.claim else { return Err(Error::Inconsistent) };
        let agent = claim.agent_id.clone();
        let id = TunnelId::next();
        let span = tracing::info_span!("tunnel", agent = %agent, id = %id, peer = ?self.peer);
        // Every agent id is a valid authority; the fallback is for the compiler.
        let authority = agent.as_str().parse().unwrap_or_else(|_| Authority::from_static("agent"));
        let session = Session::new(SessionParts {
            id,
            agent,
            kind: self.kind,
            local: self.local,
            peer: self.peer,
            carrier: self.carrier.clone(),
            window: self.door.config.window,
            open_timeout: self.door.config.open_timeout,
            max_channels: self.door.config.max_channels,
            authority,
            proof: Some(proof),
            span,
        });
        session.set_opener(Opener::Server(russh.handle()));
        let greeting = String::from_utf8_lossy(russh.remote_sshid());
        if let Err(reason) = self.door.gate.admit(&session, &greeting) {
            session.span.in_scope(|| tracing::warn!(reason, "tunnel refused"));
            self.carrier.blame(CloseReason::Refused { reason: reason.clone() });
            return russh.disconnect(Disconnect::ByApplication, &reason, "en");
        }
        self.carrier.authenticated();
        self.session = Some(session.clone());
        self.found.send_replace(Some(session));
        self.login.send_replace(Progress::Done);
        Ok(())
    }

    async fn streamlocal_forward(&mut self, path: &str, russh: &mut RusshSession) -> Result<bool, Error> {
        match labels::read(path, TUNNEL_PATH) {
            Some(Ok(labels)) => self.forward(DialBack::Path(path.into()), labels, russh).await,
            Some(Err(error)) => Ok(self.refuse_forward(path, &error.to_string())),
            None => Ok(self.refuse_forward(path, "wrong path: a tunnel's is /grpc-tunnel")),
        }
    }

    async fn cancel_streamlocal_forward(&mut self, path: &str, _: &mut RusshSession) -> Result<bool, Error> {
        Ok(self.cancel_forward(&DialBack::Path(path.into())))
    }

    /// Any port will do: it names the service, and none is opened on this machine.
    async fn tcpip_forward(&mut self, address: &str, port: &mut u32, russh: &mut RusshSession) -> Result<bool, Error> {
        if address.len() > MAX_ADDRESS || *port > u32::from(u16::MAX) {
            return Ok(self.refuse_forward(address, "not an address and a port"));
        }
        if *port == 0 {
            *port = ANY_PORT;
        }
        self.forward(DialBack::Port { address: address.into(), port: *port }, Labels::new(), russh).await
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _: &mut RusshSession) -> Result<bool, Error> {
        Ok(self.cancel_forward(&DialBack::Port { address: address.into(), port }))
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        if path == TUNNEL_PATH {
            self.accept(channel, reply).await;
        } else {
            self.reject(path, NO_FORWARD, reply).await;
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("session", NO_SHELL, reply).await;
        Ok(())
    }

    async fn channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("x11", NO_SHELL, reply).await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("direct-tcpip", NO_FORWARD, reply).await;
        Ok(())
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut RusshSession,
    ) -> Result<(), Error> {
        self.reject("forwarded-tcpip", NO_FORWARD, reply).await;
        Ok(())
    }

    // Every message that russh queues for a channel is charged.

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        russh: &mut RusshSession,
    ) -> Result<(), Error> {
        // Data may follow before the opener's task runs. A peer may confirm again and again, and russh queues it.
        let Some(session) = &self.session else { return Ok(()) };
        session.ledger.open(id);
        let verdict = session.ledger.charge_request(id, 0);
        session.obey(verdict, |id| russh.close(id))
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], russh: &mut RusshSession) -> Result<(), Error> {
        self.charge(id, data.len(), russh).await
    }

    async fn extended_data(
        &mut self,
        id: ChannelId,
        _: u32,
        data: &[u8],
        russh: &mut RusshSession,
    ) -> Result<(), Error> {
        self.charge(id, data.len(), russh).await
    }

    async fn window_adjusted(&mut self, id: ChannelId, _: u32, russh: &mut RusshSession) -> Result<(), Error> {
        self.charge(id, 0, russh).await
    }

    async fn channel_eof(&mut self, id: ChannelId, russh: &mut RusshSession) -> Result<(), Error> {
        self.charge(id, 0, russh).await
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut RusshSession) -> Result<(), Error> {
        if let Some(session) = &self.session {
            session.ledger.closed_by_peer(id);
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        modes: &[(Pty, u32)],
        russh: &mut RusshSession,
    ) -> Result<(), Error> {
        self.refuse_request(id, term.len() + 8 * modes.len(), russh)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        protocol: &str,
        cookie: &str,
        _: u32,
        russh: &mut RusshSession,
    ) -> Result<(), Error> {
        self.refuse_request(id, protocol.len() + cookie.len(), russh)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        russh: &mut RusshSession,
    ) -> Result<(), Error> {
        self.refuse_request(id, name.len() + value.len(), russh)
    }

    async fn shell_request(&mut self, id: ChannelId, russh: &mut RusshSession) -> Result<(), Error> {
        self.refuse_request(id, 0, russh)
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], russh: &mut RusshSession) -> Result<(), Error> {
        self.refuse_request(id, command.len(), russh)
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, russh: &mut RusshSession) -> Result<(), Error> {
        self.refuse_request(id, name.len(), russh)
    }

    async fn agent_request(&mut self, id: ChannelId, russh: &mut RusshSession) -> Result<bool, Error> {
        self.refuse_request(id, 0, russh).map(|()| false)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        russh: &mut RusshSession,
    ) -> Result<(), Error> {
        self.refuse_request(id, 0, russh)
    }

    async fn signal(&mut self, id: ChannelId, _: Sig, russh: &mut RusshSession) -> Result<(), Error> {
        self.refuse_request(id, 32, russh)
    }
}

impl ServerHandler {
    fn settle(&mut self, granted: Option<(Claim, Grant)>, holder: String) -> Auth {
        match granted {
            Some((claim, grant)) => {
                self.proof = Some(Box::new(Proof::new(grant, Some(claim), holder)));
                Auth::Accept
            }
            None => Auth::reject(),
        }
    }
}
