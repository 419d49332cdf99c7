//! A fleet in one process: ordinary gRPC clients call any of many agents through one address, the hub's gateway.
//!
//! ```sh
//! cargo run --example fleet --features gateway
//! ```
//!
//! A hub with a gateway, and five agents of four ids, all over real TCP and SSH on loopback, with keys made on the fly. The
//! client is tonic's own channel and knows nothing of tunnels: it says by metadata, or by the authority, which agent it
//! wants. You will see it call each agent, calls to one id being shared out over the two agents of that id, who the gateway
//! says is there, one agent leaving without a word and what a call to it is told from then on, and another one joining.

#[path = "common/greeter.rs"]
mod greeter;

use std::collections::BTreeMap;
use std::time::Duration;

use dialback::gateway::Gateway;
use dialback::{Agent, AllowedKeys, HostKeys, Hub, HubEvent, HubEvents, PrivateKey, tune_endpoint, tune_server};
use greeter::pb::HelloRequest;
use greeter::pb::greeter_client::GreeterClient;
use greeter::{Failure, Machine};
use hub_api::ListAgentsRequest;
use hub_api::hub_client::HubClient;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Status};

/// Generated from `proto/hub.proto`.
#[allow(unreachable_pub, missing_docs, dead_code, clippy::use_self)]
mod hub_api {
    include!("../proto/gen/dialback.v1.rs");
}

/// Each agent's id. The last one comes late, and `web` twice.
const IDS: [&str; 5] = ["berlin", "lisbon", "oslo", "web", "tokyo"];

/// How long calls in flight may take to finish at the end.
const GRACE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // The hub knows which key may be which agent. The two agents of one id have the same key.
    let fleet = Fleet { host_key: PrivateKey::generate(), keys: IDS.map(|id| (id, PrivateKey::generate())).into() };
    let mut allowed = AllowedKeys::new();
    for (id, key) in &fleet.keys {
        allowed = allowed.allow(id, key.public_key())?;
    }
    let hub = Hub::builder(fleet.host_key.clone()).authorizer(allowed).bind("127.0.0.1:0").await?;
    let mut events = hub.events();
    println!("hub: agents dial {}", hub.local_addr());

    // The front door. On a loopback address it needs no policy: everybody may call everything.
    let gateway = Gateway::builder(&hub).suffix("fleet.test").bind("127.0.0.1:0").await?;
    println!("hub: clients call {}", gateway.local_addr());

    // The agents: they dial out, and listen on nothing.
    let berlin = fleet.join(&hub, &mut events, "berlin", "berlin").await?;
    let lisbon = fleet.join(&hub, &mut events, "lisbon", "lisbon").await?;
    let oslo = fleet.join(&hub, &mut events, "oslo", "oslo").await?;
    let web_1 = fleet.join(&hub, &mut events, "web", "web number 1").await?;
    let web_2 = fleet.join(&hub, &mut events, "web", "web number 2").await?;

    // The client: one connection, and metadata that says for which agent a call is.
    let address = format!("http://{}", gateway.local_addr());
    let channel = tune_endpoint(Endpoint::from_shared(address.clone())?).connect().await?;
    let mut client = GreeterClient::new(channel.clone());
    println!("client: calling each by metadata");
    for id in ["berlin", "lisbon", "oslo"] {
        println!("  {id:8} <- {}", greet(&mut client, id).await?);
    }

    // A client that cannot set metadata says it by the authority.
    let origin = "http://berlin.fleet.test".parse()?;
    let to_berlin = tune_endpoint(Endpoint::from_shared(address)?).origin(origin).connect().await?;
    println!("client: calling berlin.fleet.test");
    let reply = GreeterClient::new(to_berlin).say_hello(HelloRequest { name: "client".into() }).await?;
    println!("  berlin   <- {}", reply.into_inner().message);

    // Two agents of one id share its calls.
    println!("client: calling web 20 times");
    for (answer, times) in greet_at_once(&client, "web", 20).await? {
        println!("  web      <- {times:2} x {answer}");
    }
    list(&channel).await?;

    // One leaves without a word.
    println!("-- killing oslo --");
    drop(oslo);
    gone(&mut events, "oslo").await?;
    match greet(&mut client, "oslo").await {
        Err(status) if status.code() == Code::Unavailable => {
            println!("  oslo     <- UNAVAILABLE: {}", status.message())
        }
        Err(status) => return Err(status.into()),
        Ok(answer) => return Err(format!("oslo is gone, but: {answer}").into()),
    }
    println!("  berlin   <- {}", greet(&mut client, "berlin").await?);

    // One joins. The client's connection reaches it at once.
    println!("-- starting tokyo --");
    let tokyo = fleet.join(&hub, &mut events, "tokyo", "tokyo").await?;
    println!("  tokyo    <- {}", greet(&mut client, "tokyo").await?);
    list(&channel).await?;

    // From the clients' end to the agents', nobody is cut off.
    gateway.shutdown(GRACE).await;
    for agent in [berlin, lisbon, web_1, web_2, tokyo] {
        agent.shutdown(GRACE).await;
    }
    hub.shutdown(GRACE).await;
    println!("hub: stopped");
    Ok(())
}

/// The keys of all.
struct Fleet {
    host_key: PrivateKey,
    keys: BTreeMap<&'static str, PrivateKey>,
}

impl Fleet {
    /// Starts an agent, and waits until the hub says that it can be called.
    async fn join(&self, hub: &Hub, events: &mut HubEvents, id: &str, name: &str) -> Result<Agent, Failure> {
        let key = self.keys.get(id).ok_or("this agent has no key")?;
        let agent = Agent::builder(id, key.clone())
            .host_keys(HostKeys::public_key(self.host_key.public_key()))
            .connect(hub.local_addr().to_string())
            .await?;
        let service = tune_server(Server::builder()).add_service(Machine::service(name));
        // Ends with the agent.
        tokio::spawn(service.serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));
        loop {
            if let HubEvent::Ready { agent_id, .. } = events.next().await? {
                println!("hub: {agent_id} has joined");
                return Ok(agent);
            }
        }
    }
}

/// Waits until the hub says that this agent has left.
async fn gone(events: &mut HubEvents, id: &str) -> Result<(), Failure> {
    loop {
        match events.next().await? {
            HubEvent::Closed { agent_id, why, .. } if agent_id.as_str() == id => {
                println!("hub: {agent_id} has left: {why}");
                return Ok(());
            }
            _ => {}
        }
    }
}

/// One call to one agent.
async fn greet(client: &mut GreeterClient<Channel>, id: &str) -> Result<String, Status> {
    let mut request = Request::new(HelloRequest { name: "client".into() });
    let value = id.parse().map_err(|_| Status::invalid_argument("an id is plain ASCII"))?;
    request.metadata_mut().insert("dialback-agent", value);
    Ok(client.say_hello(request).await?.into_inner().message)
}

/// So many calls to one id at the same time: which answers came, and how often.
async fn greet_at_once(
    client: &GreeterClient<Channel>,
    id: &'static str,
    calls: usize,
) -> Result<BTreeMap<String, usize>, Failure> {
    let mut answers = JoinSet::new();
    for _ in 0..calls {
        let mut client = client.clone();
        answers.spawn(async move { greet(&mut client, id).await });
    }
    let mut times = BTreeMap::new();
    while let Some(answer) = answers.join_next().await {
        *times.entry(answer??).or_default() += 1;
    }
    Ok(times)
}

/// Asks the gateway itself who is there: this call names no agent.
async fn list(channel: &Channel) -> Result<(), Failure> {
    let agents = HubClient::new(channel.clone()).list_agents(ListAgentsRequest::default()).await?.into_inner().agents;
    println!("gateway: {} agents are here", agents.len());
    for agent in agents {
        let peers: Vec<_> = agent.tunnels.iter().map(|tunnel| &*tunnel.peer_address).collect();
        println!("  {:8} has dialled from {}", agent.id, peers.join(" and "));
    }
    Ok(())
}
