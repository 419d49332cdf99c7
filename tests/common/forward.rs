//! Ordinary gRPC servers that an agent stands beside.

use std::net::SocketAddr;

use dialback::{Agent, AllowedKeys, Forwards, HostKeys, Hub, PrivateKey};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::echo::Echo;
use super::rig::AGENT;

/// A server of an [`Echo`] on loopback.
pub struct Beside {
    pub echo: Echo,
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Beside {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"))
    }

    /// At an address that another may have left a moment ago.
    pub fn start_at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(address).expect("bind");
        let listener = socket.listen(1024).expect("listen");
        Self::on(listener)
    }

    fn on(listener: TcpListener) -> Self {
        let (echo, address) = (Echo::default(), listener.local_addr().expect("an address"));
        let server = dialback::tune_server(Server::builder()).add_service(echo.service());
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = async move {
            // What drops it without a word leaves it running.
            let told = async {
                if stopped.await.is_err() {
                    std::future::pending().await
                }
            };
            server.serve_with_incoming_shutdown(incoming, told).await.expect("it serves");
        };
        Self { echo, address, stop, serving: tokio::spawn(serving) }
    }

    /// Ends it when the calls in flight have ended, and waits until that is done.
    pub async fn stop(self) {
        let _ = self.stop.send(()); // it listens as long as it runs
        self.serving.await.expect("it ends well");
    }
}

/// A hub, and an agent beside a server of an [`Echo`].
pub async fn start() -> (Hub, Echo, impl Send + Sync + 'static) {
    let beside = Beside::start();
    let forwards = Forwards::new([beside.address.to_string()]).expect("rules");
    let (hub, rest) = serve(forwards).await;
    (hub, beside.echo.clone(), (rest, beside))
}

/// A hub, and an agent that forwards.
pub async fn serve(forwards: Forwards) -> (Hub, impl Send + Sync + 'static) {
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
    let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host.public_key()));
    let agent = agent.connect(hub.local_addr().to_string()).await.expect("connect");
    let incoming = agent.incoming();
    let serving = tokio::spawn(async move { forwards.serve(incoming).await });
    hub.wait_for(AGENT).await.expect("it is ready");
    (hub, (agent, serving))
}
