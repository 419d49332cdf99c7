//! An agent or a hub as a process of its own, to be stopped, killed or starved: this test binary once more.
//!
//! A test file that uses it has the child's way in:
//! ```ignore
//! #[tokio::test]
//! async fn child() {
//!     common::child::run().await; // nothing, unless this process is one
//! }
//! ```

use std::{env, ffi::OsString, net::SocketAddr, path::Path, time::Duration};

use dialback::{Agent, AgentBuilder, AllowedKeys, HostKeys, Hub, HubBuilder, HubEvent, PrivateKey};
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    echo::Echo,
    peers::Peer,
    rig::{AGENT, BRISK, serve},
};

/// The waits between attempts of agents whose tests wait for their return.
pub const BACKOFF: (Duration, Duration, Duration) =
    (Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(30));

/// No child outlives its test by more than this, whatever happens to the test.
pub const LIFE: Duration = Duration::from_secs(180);

/// The keys of a hub and of its one agent, in files.
pub struct Keys(TempDir);

impl Keys {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["host", "agent"] {
            PrivateKey::generate().write_to(dir.path().join(name)).expect("write a key");
        }
        Self(dir)
    }

    pub fn hub(&self) -> HubBuilder {
        hub(self.0.path())
    }

    pub fn agent(&self) -> AgentBuilder {
        agent(self.0.path())
    }

    /// What has to run for a child that is an agent; `hub` is where it dials. It says "ready" once it serves.
    pub fn agent_process(&self, hub: &str) -> Vec<(&'static str, OsString)> {
        vec![(ROLE, "agent".into()), (KEYS, self.0.path().into()), (ADDRESS, hub.into())]
    }

    /// The same for a hub, which says "listening ADDRESS", then "agent ready" and "agent gone: WHY" as they happen.
    pub fn hub_process(&self, listen: &str) -> Vec<(&'static str, OsString)> {
        vec![(ROLE, "hub".into()), (KEYS, self.0.path().into()), (ADDRESS, listen.into())]
    }
}

/// What has to run for a child that is an agent by `grpctunnel`. It says "ready" once its tunnel stands.
#[cfg(feature = "grpctunnel")]
pub fn tunnel_agent(hub: &str) -> Vec<(&'static str, OsString)> {
    vec![(ROLE, "tunnel-agent".into()), (ADDRESS, hub.into())]
}

/// The same for a hub, which says what that of [`Keys::hub_process`] does.
#[cfg(feature = "grpctunnel")]
pub fn tunnel_hub(listen: &str) -> Vec<(&'static str, OsString)> {
    vec![(ROLE, "tunnel-hub".into()), (ADDRESS, listen.into())]
}

const ROLE: &str = "DIALBACK_TEST_ROLE";
const KEYS: &str = "DIALBACK_TEST_KEYS";
const ADDRESS: &str = "DIALBACK_TEST_ADDRESS";

/// What makes this binary run as a child and nothing else.
const ARGUMENTS: [&str; 3] = ["--exact", "child", "--nocapture"];

/// Starts a child.
pub fn start(role: Vec<(&'static str, OsString)>) -> Peer {
    Peer::start(Command::new(program()).args(ARGUMENTS).envs(role))
}

/// Starts a child that may have no more than `files` file descriptors.
pub fn start_starved(role: Vec<(&'static str, OsString)>, files: usize) -> Peer {
    let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    Peer::start(Command::new("sh").arg("-c").arg(script).arg(program()).args(ARGUMENTS).envs(role))
}

/// Starts a child by a command that runs what it is given, such as in a network namespace.
pub fn start_by(command: impl FnOnce(OsString) -> std::process::Command, role: Vec<(&'static str, OsString)>) -> Peer {
    let mut command = command(program());
    command.args(ARGUMENTS).envs(role);
    Peer::start(&mut Command::from(command))
}

fn program() -> OsString {
    env::current_exe().expect("this program has a path").into()
}

/// Sends a signal, by its name without SIG.
pub fn signal(peer: &Peer, name: &str) {
    let id = peer.id().expect("the child runs");
    let sent = std::process::Command::new("sh").arg("-c").arg(format!("kill -{name} {id}")).status();
    assert!(sent.as_ref().is_ok_and(|status| status.success()), "kill -{name}: {sent:?}");
}

/// Acts as a child, if this process is one.
pub async fn run() {
    if env::var_os(ROLE).is_none() {
        return;
    }
    let (role, address) = told();
    let keys = || env::var_os(KEYS).expect("keys");
    let living = async {
        match &*role {
            "agent" => be_agent(keys().as_ref(), &address).await,
            "hub" => be_hub(keys().as_ref(), &address).await,
            #[cfg(feature = "grpctunnel")]
            "tunnel-agent" => super::tunnels::be_agent(&address).await,
            #[cfg(feature = "grpctunnel")]
            "tunnel-hub" => super::tunnels::be_hub(&address).await,
            other => panic!("no such role: {other:?}"),
        }
    };
    let _ = tokio::time::timeout(LIFE, living).await; // its time is over
}

/// What this child was told to be, and where to dial or to listen.
pub fn told() -> (String, String) {
    (env::var(ROLE).expect("a role"), env::var(ADDRESS).expect("an address"))
}

/// The hub that this child was told to be and where it listens, for a test file that makes more of it than [`run`] does.
pub fn told_hub() -> (HubBuilder, String) {
    let keys = env::var_os(KEYS).expect("keys");
    (hub(keys.as_ref()), told().1)
}

fn key(dir: &Path, name: &str) -> PrivateKey {
    PrivateKey::from_file(dir.join(name)).expect("read a key")
}

fn agent(keys: &Path) -> AgentBuilder {
    let hub = HostKeys::public_key(key(keys, "host").public_key());
    let agent = Agent::builder(AGENT, key(keys, "agent")).host_keys(hub).keepalive(BRISK.0, BRISK.1);
    agent.backoff(BACKOFF.0, BACKOFF.1, BACKOFF.2)
}

fn hub(keys: &Path) -> HubBuilder {
    let allowed = AllowedKeys::new().allow(AGENT, key(keys, "agent").public_key()).expect("an id");
    Hub::builder(key(keys, "host")).authorizer(allowed).keepalive(BRISK.0, BRISK.1)
}

async fn be_agent(keys: &Path, hub: &str) {
    let agent = agent(keys).connect_when_available(hub).await.expect("connect");
    let server = serve(&Echo::default(), agent.incoming());
    eprintln!("ready");
    server.await.expect("the server lives").expect("it ends well");
}

/// Strangers are let in until file descriptors run out.
async fn be_hub(keys: &Path, listen: &str) {
    let hub = hub(keys).unauthenticated_limits(10_000, 10_000).bind(listen).await.expect("bind");
    let _server = serve(&Echo::default(), hub.incoming());
    tell(&hub, hub.local_addr()).await;
}

/// Says what a hub has to say, where it listens first.
pub async fn tell(hub: &Hub, listens: SocketAddr) {
    let mut events = hub.events();
    eprintln!("listening {listens}");
    loop {
        match events.next().await.expect("the hub lives") {
            HubEvent::Ready { .. } => eprintln!("agent ready"),
            HubEvent::Closed { why, .. } => eprintln!("agent gone: {why}"),
            _ => {}
        }
    }
}
