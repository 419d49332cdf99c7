//! What an idle agent costs the hub of each contender: the memory of the processes there, with many agents more than with
//! few. Of our own hub by SSH `fleet.rs` tells it, and more.

use std::any::Any;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use dialback::{Agent, HostKeys, PrivateKey, PublicKey};
use russh::client;
use russh::keys::{PrivateKeyWithHashAlg, load_secret_key};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::common::report::Report;
use crate::common::service::pb::echo_client::EchoClient;
use crate::common::system::{available_memory, open_files};
use crate::common::{Failure, service, work};
use crate::contenders::Contender;
use crate::fleet::{MEMORY, SPARE, WARM_UP, id};
use crate::plan::Plan;
use crate::roles::Way;
use crate::rounds::LeftOut;

/// Logins that are under way: sshd refuses some when there are more than ten.
const LOGINS: usize = 8;

/// How much of the memory that is there a contender may need, and of how many agents it is told how much that is.
const SHARE: f64 = 0.5;
const SOME: usize = 100;

/// Once for each contender: the figures of several runs are the same within a few per cent, but for those of rathole.
pub(crate) async fn measure(plan: &Plan, agents: usize, report: &mut Report, left_out: &mut LeftOut) {
    let case = format!("fleet-{agents}/idle");
    if !plan.wants(&case) || !plan.all_have(agents) {
        return;
    }
    for contender in plan.contenders() {
        match contender {
            Contender::Dialback(Way::Ssh) => continue,
            Contender::Dialback(Way::Gateway) => {
                left_out.add(&case, contender.name(), "its hub and its agents are those of dialback-ssh");
                continue;
            }
            _ => eprintln!("{case}: {}", contender.name()),
        }
        match cost(contender, agents).await {
            Ok(bytes) => report.add(&case, contender.name(), MEMORY, "KiB/agent", bytes / 1024.0),
            Err(why) => left_out.failed(report, &case, contender, &why.to_string()),
        }
    }
}

/// Bytes for each agent.
async fn cost(contender: Contender, agents: usize) -> Result<f64, Failure> {
    let most = open_files()?.saturating_sub(SPARE);
    let needed = agents * contender.files_of_an_idle_agent();
    if needed > most {
        return Err(format!("the limit on open files (`ulimit -n`) allows {most}, and it needs {needed}").into());
    }
    let mut idle = contender.start_idle(agents).await?;
    let before = idle.memory(WARM_UP).await?;
    let some = agents.min(SOME);
    let each = (idle.memory(some).await? - before) / (some - WARM_UP) as f64;
    let (needed, there) = (each * agents as f64, available_memory()? as f64);
    if needed > SHARE * there {
        return Err(format!("it would need {:.0} GiB of memory", needed / f64::from(1 << 30)).into());
    }
    let after = idle.memory(agents).await?;
    idle.end().await?;
    Ok((after - before) / (agents - WARM_UP) as f64)
}

/// How agents come to the hub of a contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dial {
    /// Without a tunnel: connections for calls, over TCP.
    Tcp,
    /// The same over TLS.
    Tls,
    /// This crate's agents, by SSH over TCP.
    Ssh,
    /// This crate's agents, by SSH over a WebSocket.
    Wss,
    /// This crate's reverse tunnels.
    Grpctunnel,
    /// What `ssh -N -R 0:…` is to an sshd.
    Sshd,
}

/// The process of agents that do nothing. Ends with its standard input.
pub(crate) async fn agents(dir: &Path, by: Dial, hub: SocketAddr, host_key: Option<&str>) -> Result<(), Failure> {
    let mut there: Vec<Box<dyn Any + Send>> = Vec::new();
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let Some(count) = order.strip_prefix("connect ") else { return Err(format!("no such order: {order}").into()) };
        let mut logins = JoinSet::new();
        for number in there.len()..count.parse()? {
            if logins.len() == LOGINS
                && let Some(agent) = logins.join_next().await
            {
                there.push(agent??);
            }
            let (dir, host_key) = (dir.to_owned(), host_key.map(str::to_owned));
            logins.spawn(async move { connect(&dir, by, hub, host_key.as_deref(), number).await });
        }
        while let Some(agent) = logins.join_next().await {
            there.push(agent??);
        }
        println!("{}", json!({}));
    }
    Ok(())
}

/// What has to be kept for an agent to stay.
async fn connect(
    dir: &Path,
    by: Dial,
    hub: SocketAddr,
    host_key: Option<&str>,
    number: usize,
) -> Result<Box<dyn Any + Send>, Failure> {
    let endpoint = dialback::tune_endpoint(Endpoint::from_shared(format!("http://{hub}"))?);
    Ok(match by {
        Dial::Tcp => called(endpoint.connect_lazy()).await?,
        #[cfg(any(feature = "gateway", feature = "websocket"))]
        Dial::Tls => called(crate::tls::channel(&endpoint, hub, dir)?).await?,
        Dial::Ssh => agent(dir, hub.to_string(), host_key, number).await?,
        #[cfg(feature = "websocket")]
        Dial::Wss => agent(dir, format!("wss://{hub}/tunnel"), host_key, number).await?,
        #[cfg(feature = "grpctunnel")]
        Dial::Grpctunnel => {
            let carrier = endpoint.connect().await?;
            let tunnel = dialback::grpctunnel::TunnelBuilder::new(&id(number), carrier);
            Box::new(tunnel.reverse(service::routes()).await?)
        }
        Dial::Sshd => Box::new(forwarded(dir, hub).await?),
        #[allow(unreachable_patterns)]
        _ => return Err(format!("built without the feature for {by:?}").into()),
    })
}

/// A connection on which there was one call.
async fn called(channel: Channel) -> Result<Box<dyn Any + Send>, Failure> {
    work::one_call(&mut EchoClient::new(channel.clone())).await?;
    Ok(Box::new(channel))
}

async fn agent(dir: &Path, url: String, host_key: Option<&str>, number: usize) -> Result<Box<dyn Any + Send>, Failure> {
    let host_key = match host_key {
        Some(line) => line.parse::<PublicKey>()?,
        None => PrivateKey::load_or_generate(dir.join("host"))?.public_key(),
    };
    let key = PrivateKey::load_or_generate(dir.join("agent"))?;
    let agent = Agent::builder(id(number), key).host_keys(HostKeys::public_key(host_key));
    #[cfg(feature = "websocket")]
    let agent = agent.tls_roots(dir.join("authority.pem"));
    let agent = agent.connect(url).await?;
    tokio::spawn(service::server().serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));
    Ok(Box::new(agent))
}

/// A session with sshd that has a port of its forwarded.
async fn forwarded(dir: &Path, sshd: SocketAddr) -> Result<client::Handle<Trusting>, Failure> {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid())?.ok_or("this user has no name")?.name;
    let key = Arc::new(load_secret_key(dir.join("agent"), None)?);
    let mut session = client::connect(Arc::default(), sshd, Trusting).await?;
    if !session.authenticate_publickey(user, PrivateKeyWithHashAlg::new(key, None)).await?.success() {
        return Err("sshd does not take the key".into());
    }
    session.tcpip_forward("127.0.0.1", 0).await?;
    Ok(session)
}

/// The server's key is of this run.
struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &russh::keys::PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}
