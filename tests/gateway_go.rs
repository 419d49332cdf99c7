//! Clients that are not ours at the gateway: grpc-go with an agent of ours and one in Go, and grpcurl.
#![cfg(feature = "gateway")]

mod common;

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::child::signal;
use common::echo::{Counts, Echo};
use common::peers::{Peer, go_peer, grpcurl, require_program, ssh_keygen};
use common::rig::{AGENT, Rig, soon};
use dialback::gateway::{Gateway, PolicyFile};
use dialback::{Agent, AllowedKeys, HostKeys, Hub, PrivateKey, PublicKey};
use prost::Message;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Server;

const SUFFIX: &str = "agents.example.com";

/// A gateway that knows agents by their authority, with and without the suffix.
async fn gateway_of(hub: &Hub) -> Gateway {
    Gateway::builder(hub).suffix(SUFFIX).bind("127.0.0.1:0").await.expect("bind gateway")
}

/// How a client says which agent it calls.
#[derive(Clone, Copy, Debug)]
enum Naming {
    Metadata,
    Authority,
    Suffix,
}

impl Naming {
    fn arguments(self) -> [String; 2] {
        match self {
            Self::Metadata => ["-metadata".into(), AGENT.into()],
            Self::Authority => ["-authority".into(), AGENT.into()],
            Self::Suffix => ["-authority".into(), format!("{AGENT}.{SUFFIX}")],
        }
    }
}

/// Everything that an Echo promises to grpc-go, wherever it is.
const CHECKS: [&str; 22] = [
    "unary",
    "empty",
    "metadata",
    "metadata-large",
    "status",
    "refused",
    "deadline",
    "deadline-stream",
    "cancel",
    "large",
    "large-download",
    "download",
    "upload",
    "chat",
    "early-headers",
    "half-close",
    "early-status",
    "early-status-flood",
    "early-status-large",
    "too-large",
    "concurrent",
    "crowd",
];

fn start_caller(program: &Path, gateway: &Gateway, naming: Naming, checks: &[&str]) -> Peer {
    let address = gateway.local_addr().to_string();
    let mut command = Command::new(program);
    Peer::start(command.args(["-gateway", &address, "-checks", &checks.join(",")]).args(naming.arguments()))
}

/// The checks are these, and all of them are passed.
async fn passes(caller: Peer, checks: &[&str]) {
    let (status, said) = caller.finish().await;
    let passed: Vec<_> = said.iter().filter_map(|line| line.strip_prefix("ok ")).collect();
    assert_eq!(passed, checks, "{said:#?}");
    assert!(status.success(), "{said:#?}");
}

/// Our agent, and grpc-go at the gateway.
async fn go_client_gets_all_it_was_promised(naming: Naming) {
    let Some(caller) = go_peer("caller") else { return };
    let rig = Rig::start().await;
    let gateway = gateway_of(&rig.hub).await;
    // tonic has its gzip in a feature that these tests are without: that its refusal passes shows that the request did.
    let checks = [&CHECKS[..], &["gzip-refused"]].concat();

    passes(start_caller(&caller, &gateway, naming, &checks), &checks).await;

    // Two deadlines, and the two calls of the check "cancel".
    let seen = rig.echo.wait_until("the end of all calls", |counts| counts.running() == 0).await;
    assert_eq!(seen.cancelled, 4, "{seen:?}");
}

#[tokio::test]
async fn go_client_that_names_the_agent_by_metadata_gets_all_it_was_promised() {
    go_client_gets_all_it_was_promised(Naming::Metadata).await;
}

#[tokio::test]
async fn go_client_that_names_the_agent_by_authority_gets_all_it_was_promised() {
    go_client_gets_all_it_was_promised(Naming::Authority).await;
}

#[tokio::test]
async fn go_client_that_names_the_agent_by_suffix_gets_all_it_was_promised() {
    go_client_gets_all_it_was_promised(Naming::Suffix).await;
}

#[tokio::test]
async fn handler_sees_that_a_go_client_has_left_a_call_of_each_kind() {
    let Some(caller) = go_peer("caller") else { return };
    let rig = Rig::start().await;
    let gateway = gateway_of(&rig.hub).await;
    let mut caller = start_caller(&caller, &gateway, Naming::Authority, &["leave"]);

    caller.line("hangs").await;
    rig.echo.wait_until("four calls", |counts| counts.running() == 4).await;
    signal(&caller, "USR1");
    caller.line("left").await;
    rig.echo.wait_until("the end of the four", |counts| counts.cancelled == 4).await;
    signal(&caller, "USR1");

    passes(caller, &["leave"]).await;
    assert_eq!(rig.echo.counts(), Counts { started: 5, finished: 1, cancelled: 4 });
}

/// Two thousand calls, left at any point of their life.
#[tokio::test]
async fn storm_of_go_clients_leaves_nothing_behind() {
    let Some(caller) = go_peer("caller") else { return };
    let rig = Rig::start().await;
    let gateway = gateway_of(&rig.hub).await;

    passes(start_caller(&caller, &gateway, Naming::Authority, &["storm"]), &["storm"]).await;

    rig.echo.wait_until("the end of all calls", |counts| counts.running() == 0).await;
    soon("the hub's count", async {
        while rig.hub.tunnels().iter().any(|tunnel| tunnel.info().calls > 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A group of calls that is given up as it begins is nobody else's business: not at the gateway, where others have
/// connections of their own, and not at the agent, where all share one.
#[tokio::test]
async fn burst_of_cancelled_calls_harms_no_other_callers_call() {
    let Some(caller) = go_peer("caller") else { return };
    let rig = Rig::start().await;
    let gateway = gateway_of(&rig.hub).await;
    passes(start_caller(&caller, &gateway, Naming::Authority, &["burst-spread"]), &["burst-spread"]).await;
}

#[tokio::test]
async fn burst_of_cancelled_calls_harms_no_other_call_of_its_connection() {
    let Some(caller) = go_peer("caller") else { return };
    let rig = Rig::start().await;
    let gateway = gateway_of(&rig.hub).await;
    passes(start_caller(&caller, &gateway, Naming::Authority, &["burst"]), &["burst"]).await;
}

/// grpc-go hears of the end (GOAWAY), and the call that it has in flight still gets its answer.
#[tokio::test]
async fn go_clients_call_survives_the_gateways_polite_end() {
    let Some(caller) = go_peer("caller") else { return };
    let rig = Rig::start().await;
    let gateway = gateway_of(&rig.hub).await;
    let caller = start_caller(&caller, &gateway, Naming::Metadata, &["slow"]);
    rig.echo.wait_until("a call", |counts| counts.running() == 1).await;

    soon("the gateway's end", gateway.shutdown(Duration::from_secs(60))).await;

    passes(caller, &["slow"]).await;
    assert_eq!(rig.echo.counts(), Counts { started: 1, finished: 1, cancelled: 0 });
}

/// A gateway that speaks TLS and has a policy, and what its callers need. They are told apart by token or certificate.
struct Guarded {
    rig: Rig,
    gateway: Gateway,
    dir: tempfile::TempDir,
}

const TOKEN: &str = "a-token-that-nobody-would-guess";

impl Guarded {
    /// Who has the token may call Echo, who has the certificate everything, and `denied` nothing.
    async fn start(caller: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut issue = Command::new(caller);
        passes(Peer::start(issue.arg("-issue").arg(dir.path()).args(["-authority", SUFFIX])), &[]).await;
        let hash = |token: &str| Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let policy = format!(
            r#"
            [[caller]]
            name = "token"
            token-sha256 = ["{}"]
            [[caller]]
            name = "denied"
            token-sha256 = ["{}"]
            [[caller]]
            name = "certificate"
            certificate = ["client.{SUFFIX}"]
            [[allow]]
            callers = ["token"]
            agents = ["{AGENT}"]
            methods = ["/{ECHO}/*"]
            [[allow]]
            callers = ["certificate"]
            agents = ["*"]
            methods = ["*"]
            "#,
            hash(TOKEN),
            hash("another"),
        );
        let file = dir.path().join("policy.toml");
        let mut open = File::options();
        let mut written = open.mode(0o600).create_new(true).write(true).open(&file).expect("a file");
        written.write_all(policy.as_bytes()).expect("the policy is written");
        let rig = Rig::start().await;
        let gateway = Gateway::builder(&rig.hub)
            .suffix(SUFFIX)
            .policy(PolicyFile::open(file).expect("a policy"))
            .tls(dir.path().join("gateway.crt"), dir.path().join("gateway.key"))
            .client_ca(dir.path().join("ca.crt"));
        let gateway = gateway.bind("127.0.0.1:0").await.expect("bind gateway");
        Self { rig, gateway, dir }
    }

    /// The client checks that the gateway is who it says, by the name that is the authority.
    fn start_caller(&self, program: &Path, identity: &[&str], checks: &[&str]) -> Peer {
        let mut command = Command::new(program);
        command.args(["-gateway", &self.gateway.local_addr().to_string(), "-checks", &checks.join(",")]);
        command.args(Naming::Suffix.arguments()).arg("-ca").arg(self.file("ca.crt"));
        Peer::start(command.args(identity))
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("text").to_owned()
    }
}

#[tokio::test]
async fn go_client_with_a_token_gets_all_it_was_promised_over_tls() {
    let Some(caller) = go_peer("caller") else { return };
    let rig = Guarded::start(&caller).await;
    passes(rig.start_caller(&caller, &["-token", TOKEN], &CHECKS), &CHECKS).await;
}

#[tokio::test]
async fn go_client_is_known_by_its_certificate_or_token_or_is_refused() {
    let Some(caller) = go_peer("caller") else { return };
    let rig = Guarded::start(&caller).await;
    let certificate = rig.file("client");
    let cases: [(&[&str], &str); 6] = [
        (&["-certificate", &certificate], "unary"),
        // Its own token for the agent, which is not the gateway's business.
        (&["-certificate", &certificate, "-token", "theirs"], "unary"),
        (&["-certificate", &certificate, "-token", TOKEN], "unauthenticated"),
        (&["-token", "another"], "denied"),
        (&["-token", "wrong"], "unauthenticated"),
        (&[], "unauthenticated"),
    ];

    for (identity, check) in cases {
        passes(rig.start_caller(&caller, identity, &[check]), &[check]).await;
    }

    assert_eq!(rig.rig.echo.counts(), Counts { started: 2, finished: 2, cancelled: 0 }, "who is refused is not heard");
}

#[tokio::test]
async fn grpcurl_speaks_tls_with_a_token_or_a_certificate() {
    let Some(grpcurl) = grpcurl() else { return };
    let Some(caller) = go_peer("caller") else { return };
    let rig = Guarded::start(&caller).await;
    let bearer = format!("authorization: Bearer {TOKEN}");
    let [authority, crt, key] = ["ca.crt", "client.crt", "client.key"].map(|name| rig.file(name));
    let run = async |options: &[&str], method: &str| {
        let options = [&["-cacert", &authority], options].concat();
        run_grpcurl(&grpcurl, rig.gateway.local_addr(), &options, &[method]).await
    };

    let certificate = ["-cert", &crt, "-key", &key];
    let listed = run(&certificate, &format!("{HUB}/ListAgents")).await.json();
    assert_eq!(listed["agents"][0]["id"], json!(AGENT), "{listed}");
    let listed = run(&["-H", &bearer], &format!("{HUB}/ListAgents")).await.json();
    assert_eq!(listed, json!({}), "the token is for Echo alone");
    let by_name = ["-authority", "laptop-1.agents.example.com", "-H", &bearer];
    let echoed = run(&[&FILES[..], &by_name].concat(), &format!("{ECHO}/Unary")).await.json();
    assert_eq!(echoed, json!({}));
    let named = [&FILES[..], &["-H", "dialback-agent: laptop-1"]].concat();
    run(&named, &format!("{ECHO}/Unary")).await.fails(Code::Unauthenticated, "authorization: Bearer <token>");
}

/// Our hub and its gateway, and a Go laptop behind them. The directory holds the laptop's key.
struct GoLaptop {
    _hub: Hub,
    gateway: Gateway,
    laptop: Peer,
    _dir: tempfile::TempDir,
}

impl GoLaptop {
    async fn start() -> Option<Self> {
        let program = go_peer("laptop")?;
        if !require_program("ssh-keygen") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (key, public) = ssh_keygen(dir.path(), AGENT, "ed25519");
        let public: PublicKey = public.parse().expect("an OpenSSH line");
        let allowed = AllowedKeys::new().allow(AGENT, public).expect("an id");
        let host = PrivateKey::generate();
        let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
        let mut command = Command::new(program);
        command.args(["-hub", &hub.local_addr().to_string(), "-id", AGENT]);
        command.args(["-host-key", &host.public_key().to_string(), "-key"]).arg(key);
        let laptop = Peer::start(&mut command);
        soon("the laptop", hub.wait_for(AGENT)).await.expect("an id");
        Some(Self { gateway: gateway_of(&hub).await, _hub: hub, laptop, _dir: dir })
    }
}

#[tokio::test]
async fn go_client_gets_all_it_was_promised_by_a_go_agent() {
    let Some(caller) = go_peer("caller") else { return };
    let Some(agent) = GoLaptop::start().await else { return };
    let checks = [&CHECKS[..], &["gzip"]].concat();
    passes(start_caller(&caller, &agent.gateway, Naming::Metadata, &checks), &checks).await;
}

#[tokio::test]
async fn go_agent_sees_that_a_go_client_has_left_a_call_of_each_kind() {
    let Some(caller) = go_peer("caller") else { return };
    let Some(mut agent) = GoLaptop::start().await else { return };
    let mut caller = start_caller(&caller, &agent.gateway, Naming::Suffix, &["leave"]);

    for (caller_says, agent_says) in [("hangs", "hanging "), ("left", "cancelled ")] {
        caller.line(caller_says).await;
        let mut methods = Vec::new();
        for _ in 0..4 {
            methods.push(soon("the agent's notice", agent.laptop.line(agent_says)).await);
        }
        methods.sort();
        assert_eq!(methods, ["Chat", "Download", "Unary", "Upload"], "{agent_says}");
        signal(&caller, "USR1");
    }

    passes(caller, &["leave"]).await;
}

/// A hub, its gateway, and an agent that can be asked what it serves: Echo, and health with Echo serving.
struct Described {
    hub: Hub,
    gateway: Gateway,
    _agent: Agent,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    grpcurl: PathBuf,
}

impl Drop for Described {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Described {
    async fn start() -> Option<Self> {
        let grpcurl = grpcurl()?;
        let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
        let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
        let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind hub");
        let agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host.public_key()));
        let agent = agent.connect(hub.local_addr().to_string()).await.expect("connect agent");
        let server = tokio::spawn(Self::serve(agent.incoming()).await);
        soon("the agent", hub.wait_for(AGENT)).await.expect("agent is ready");
        Some(Self { gateway: gateway_of(&hub).await, hub, _agent: agent, server, grpcurl })
    }

    async fn serve(incoming: dialback::Incoming) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<> {
        let echo = protox::compile(["echo.proto"], ["proto"]).expect("proto/echo.proto").encode_to_vec();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(&echo)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("dialback.echo.v1.Echo", tonic_health::ServingStatus::Serving).await;
        let server = dialback::tune_server(Server::builder())
            .add_service(Echo::default().service())
            .add_service(reflection().build_v1().expect("descriptors"))
            .add_service(reflection().build_v1alpha().expect("descriptors"))
            .add_service(health);
        server.serve_with_incoming_shutdown(incoming, std::future::pending())
    }

    fn address(&self) -> SocketAddr {
        self.gateway.local_addr()
    }

    /// Runs `grpcurl -plaintext OPTIONS ADDRESS WHAT`.
    async fn run(&self, options: &[&str], what: &[&str]) -> Answer {
        run_grpcurl(&self.grpcurl, self.address(), &[&["-plaintext"], options].concat(), what).await
    }
}

/// Runs `grpcurl OPTIONS ADDRESS WHAT`.
async fn run_grpcurl(grpcurl: &Path, address: SocketAddr, options: &[&str], what: &[&str]) -> Answer {
    let mut command = Command::new(grpcurl);
    command.args(["-connect-timeout", "10", "-max-time", "10"]).args(options);
    command.arg(address.to_string()).args(what).kill_on_drop(true);
    // The files that it may be told of are named from here.
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = soon("grpcurl's end", command.output()).await.expect("grpcurl runs");
    Answer {
        code: output.status.code().expect("no signal"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

/// What grpcurl has said.
#[derive(Debug)]
struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Answer {
    #[track_caller]
    fn text(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    fn lines(self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn json(self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The call itself, not a question about services before it, ended with this status.
    #[track_caller]
    fn fails(self, code: Code, part: &str) {
        // https://github.com/fullstorydev/grpcurl: "exit code = 64 + gRPC status code"
        assert_eq!(self.code, 64 + code as i32, "{self:?}");
        assert!(self.err.contains(&format!("Code: {code:?}")) && self.err.contains(part), "{self:?}");
    }
}

const ECHO: &str = "dialback.echo.v1.Echo";
const HEALTH: &str = "grpc.health.v1.Health";
const HUB: &str = "dialback.v1.Hub";
/// tonic's reflection lists itself, in the version that it is asked in.
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";

/// Each way in which grpcurl can name the agent, to its own questions as well.
const NAMED: [&[&str]; 4] = [
    &["-H", "dialback-agent: laptop-1"],
    &["-reflect-header", "dialback-agent: laptop-1", "-rpc-header", "dialback-agent: laptop-1"],
    &["-authority", "laptop-1"],
    &["-authority", "laptop-1.agents.example.com"],
];

#[tokio::test]
async fn grpcurl_lists_the_gateways_own_services() {
    let Some(rig) = Described::start().await else { return };

    assert_eq!(rig.run(&[], &["list"]).await.lines(), [HUB, HEALTH, REFLECTION]);
    let methods = ["DisconnectAgent", "GetAgent", "ListAgents", "WatchAgents"].map(|method| format!("{HUB}.{method}"));
    assert_eq!(rig.run(&[], &["list", HUB]).await.lines(), methods);
    let described = rig.run(&[], &["describe", "dialback.v1.Agent"]).await.text();
    assert!(described.contains("repeated .dialback.v1.Tunnel tunnels = 2;"), "{described}");
}

#[tokio::test]
async fn grpcurl_lists_and_describes_the_agents_services() {
    let Some(rig) = Described::start().await else { return };

    for named in NAMED {
        assert_eq!(rig.run(named, &["list"]).await.lines(), [ECHO, HEALTH, REFLECTION], "{named:?}");
        let described = rig.run(named, &["describe", ECHO]).await.text();
        let chat = "rpc Chat ( stream .dialback.echo.v1.Payload ) returns ( stream .dialback.echo.v1.Payload );";
        assert!(described.contains(chat), "{named:?}: {described}");
    }
}

#[tokio::test]
async fn grpcurl_calls_the_agent_through_its_reflection() {
    let Some(rig) = Described::start().await else { return };
    // "hello"
    let (sent, unary) = (r#"{"data":"aGVsbG8="}"#, format!("{ECHO}/Unary"));

    for named in NAMED {
        let options = [named, &["-d", sent]].concat();
        assert_eq!(rig.run(&options, &[&unary]).await.json(), json!({ "data": "aGVsbG8=" }), "{named:?}");
    }
    let options = [NAMED[0], &["-d", sent, "-rpc-header", "echo-status: 9", "-rpc-header", "echo-message: not now"]];
    rig.run(&options.concat(), &[&unary]).await.fails(Code::FailedPrecondition, "not now");
    let serving = format!(r#"{{"service":"{ECHO}"}}"#);
    let health = rig.run(&[NAMED[2], &["-d", &serving]].concat(), &[&format!("{HEALTH}/Check")]).await;
    assert_eq!(health.json(), json!({ "status": "SERVING" }), "it is the agent's health that is asked");
}

#[tokio::test]
async fn grpcurl_asks_the_gateway_about_its_agents() {
    let Some(rig) = Described::start().await else { return };

    let listed = rig.run(&[], &[&format!("{HUB}/ListAgents")]).await.json();

    let tunnel = &listed["agents"][0]["tunnels"][0];
    assert_eq!(listed["agents"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!((&listed["agents"][0]["id"], &tunnel["ready"]), (&json!(AGENT), &json!(true)), "{listed}");
    let peer: SocketAddr = tunnel["peerAddress"].as_str().and_then(|peer| peer.parse().ok()).expect("an address");
    assert!(peer.ip().is_loopback() && tunnel["since"].is_string(), "{listed}");
    let one = rig.run(&["-d", r#"{"id":"laptop-1"}"#], &[&format!("{HUB}/GetAgent")]).await.json();
    assert_eq!(one["id"], json!(AGENT), "{one}");

    let check = format!("{HEALTH}/Check");
    for asked in [r#"{"service":"laptop-1"}"#, "{}"] {
        let health = rig.run(&["-d", asked], &[&check]).await.json();
        assert_eq!(health, json!({ "status": "SERVING" }), "{asked}");
    }
    let nobody = r#"{"service":"nobody"}"#;
    rig.run(&["-d", nobody], &[&check]).await.fails(Code::NotFound, "give an agent's id");
}

#[tokio::test]
async fn grpcurl_watches_an_agent_go() {
    let Some(rig) = Described::start().await else { return };
    let address = rig.address().to_string();
    let mut command = Command::new(&rig.grpcurl);
    let mut watch = Peer::start(command.args(["-plaintext", &address, &format!("{HUB}/WatchAgents")]));
    watch.line(r#"  "snapshot": {"#).await;
    watch.line(r#"        "id": "laptop-1","#).await;

    let asked = ["-d", r#"{"id":"laptop-1"}"#];
    let closed = rig.run(&asked, &[&format!("{HUB}/DisconnectAgent")]).await.json();

    assert_eq!(closed, json!({ "tunnels": 1 }));
    watch.line(r#"  "gone": {"#).await;
    watch.line(r#"    "id": "laptop-1","#).await;
    // It is free to come back.
    soon("its return", rig.hub.wait_for(AGENT)).await.expect("an id");
    watch.line(r#"  "changed": {"#).await;
}

/// grpcurl asks no questions of its own where it has the `.proto` file.
const FILES: [&str; 4] = ["-import-path", "proto", "-proto", "echo.proto"];

#[tokio::test]
async fn grpcurl_is_told_how_to_name_an_agent() {
    let Some(rig) = Described::start().await else { return };
    let unary = format!("{ECHO}/Unary");
    let call = async |named: &[&str]| rig.run(&[&FILES, named].concat(), &[&unary]).await;

    let advice = format!("set metadata dialback-agent to the agent's id, or use the authority <id>.{SUFFIX}");
    call(&[]).await.fails(Code::InvalidArgument, &format!("no agent is named: {advice}"));
    call(&["-authority", SUFFIX]).await.fails(Code::InvalidArgument, &advice);
    let twice = ["-H", "dialback-agent: laptop-1", "-H", "dialback-agent: laptop-2"];
    call(&twice).await.fails(Code::InvalidArgument, "dialback-agent is given 2 times");
    let no_id = ["-H", "dialback-agent: Not An Id"];
    call(&no_id).await.fails(Code::InvalidArgument, "is not an agent id");
    let contradiction = ["-H", "dialback-agent: laptop-2", "-authority", "laptop-1.agents.example.com"];
    call(&contradiction).await.fails(Code::InvalidArgument, "names `laptop-2` and the authority `laptop-1`");
}

#[tokio::test]
async fn grpcurl_is_told_that_there_is_no_such_agent() {
    let Some(rig) = Described::start().await else { return };
    let ways: [&[&str]; 3] =
        [&["-H", "dialback-agent: nobody"], &["-authority", "nobody"], &["-authority", "nobody.agents.example.com"]];

    for named in ways {
        let called = rig.run(&[&FILES, named].concat(), &[&format!("{ECHO}/Unary")]).await;
        called.fails(Code::NotFound, "there is no agent `nobody`: set metadata dialback-agent");
    }
    // Nor is it hidden where grpcurl has to ask for the services first: it takes NOT_FOUND for a service that is not there.
    for named in ways {
        for what in [&["list"][..], &["describe", ECHO], &[&format!("{ECHO}/Unary")]] {
            let answer = rig.run(named, what).await;
            assert!(answer.code != 0 && answer.err.contains("there is no agent `nobody`: set metadata"), "{answer:?}");
        }
    }
    let answer = rig.run(&[&FILES, NAMED[0]].concat(), &[&format!("{ECHO}/Unary")]).await.json();
    assert_eq!(answer, json!({}), "the one that is there answers");
}
