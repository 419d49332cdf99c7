//! What happens to calls when agents and hubs come, go, die and run out of means. The letters are the cases of the
//! project's list of faults.
#![cfg(target_os = "linux")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    child::{self, BACKOFF, Keys},
    echo::{Echo, payload, pb::echo_client::EchoClient},
    faults::{
        alone, assert_unavailable, call, client, end_unavailable, in_flight, sockets_at, steered, successor, until,
        within,
    },
    proxy::{Cut, Proxy, Way},
    rig::{AGENT, BRISK, Rig, serve, soon},
};
use dialback::{Agent, AllowedKeys, CloseReason, ConnectError, DialError, HostKeys, Hub, HubEvent, PrivateKey};
use tokio::{net::TcpStream, sync::watch, task::JoinSet};
use tonic::Code;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn child() {
    child::run().await;
}

/// B1.
#[tokio::test]
async fn killed_agent_leaves_no_call_and_no_socket() {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let port = hub.local_addr().port();
    let mut agent = child::start(keys.agent_process(&hub.local_addr().to_string()));
    agent.line("ready").await;
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let calls = in_flight(&mut client(&hub), 100).await;
    assert_eq!(sockets_at(port), 1);

    child::signal(&agent, "KILL");

    let ended = end_unavailable(calls, SECOND).await;
    within(SECOND, "the tunnel's end", tunnel.closed()).await;
    assert!(hub.get(AGENT).is_none());
    until("no sockets are left", || sockets_at(port) == 0).await;
    eprintln!("B1: 100 calls ended in {ended:?}");
}

/// B4: the agent is back before the hub has noticed that its old tunnel is dead.
async fn comes_back_unnoticed(rounds: usize) {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    // An old agent that learns that it was replaced must not come back in turn.
    let connect = || keys.agent().backoff(3600 * SECOND, 3600 * SECOND, SECOND).connect(hub.local_addr().to_string());
    let mut agent = connect().await.unwrap();
    let echo = Echo::default();
    let mut server = serve(&echo, agent.incoming());
    let mut tunnel = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let longest_gap = watch_for_gaps(&hub);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let new_agent = connect().await.unwrap();
        let (new, wins) = successor(&hub, tunnel.id(), Duration::from_millis(100)).await;
        slowest = slowest.max(wins);
        let new_server = serve(&echo, new_agent.incoming());
        call(&mut client(&hub)).await;
        let (gone, _) = within(SECOND, "the old tunnel's end", tunnel.closed()).await;
        assert_eq!(gone.reason, CloseReason::Replaced, "round {round}");
        let refused = tunnel.connector().dial().await.expect_err("the old tunnel takes no calls");
        assert!(matches!(refused, DialError::Disconnected { .. }), "{refused}");
        assert_eq!(hub.tunnels().len(), 1, "round {round}");
        (agent, server, tunnel) = (new_agent, new_server, new);
    }
    let gap = longest_gap().await;
    drop((agent, server));
    assert!(gap <= Duration::from_millis(50), "the agent could not be found for {gap:?}");
    eprintln!("B4: {rounds} rounds, the new one won within {slowest:?}, longest gap {gap:?}");
}

/// Looks again and again whether the agent can be found; the returned function ends it and gives the longest gap.
fn watch_for_gaps(hub: &Hub) -> impl AsyncFnOnce() -> Duration + use<> {
    let (hub, stop) = (hub.clone(), watch::Sender::new(false));
    let mut stopped = stop.subscribe();
    let watching = tokio::spawn(async move {
        let (mut longest, mut since) = (Duration::ZERO, None);
        while !*stopped.borrow_and_update() {
            match hub.get(AGENT) {
                Some(_) => since = None,
                None => longest = longest.max(since.get_or_insert_with(Instant::now).elapsed()),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        longest
    });
    async move || {
        stop.send_replace(true);
        watching.await.expect("the watching goes well")
    }
}

#[tokio::test]
async fn agent_that_returns_unnoticed_takes_its_place() {
    comes_back_unnoticed(20).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn agent_takes_its_place_a_thousand_times() {
    comes_back_unnoticed(1000).await;
}

/// B4: the old tunnel's calls may finish; its late goodbye harms nobody.
#[tokio::test]
async fn calls_on_a_replaced_tunnel_finish() {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let connect = || keys.agent().backoff(3600 * SECOND, 3600 * SECOND, SECOND).connect(hub.local_addr().to_string());
    let old = connect().await.unwrap();
    let echo = Echo::default();
    let _old_server = serve(&echo, old.incoming());
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let mut slow = client(&hub);
    let slow = tokio::spawn(async move { slow.unary(steered(payload("slow"), &[("echo-delay-ms", "500")])).await });
    echo.wait_until("the call", |counts| counts.running() == 1).await;

    let new = connect().await.unwrap();
    let _new_server = serve(&echo, new.incoming());

    let (now, _) = successor(&hub, tunnel.id(), SECOND).await;
    assert_eq!(soon("the slow call", slow).await.unwrap().unwrap().into_inner(), payload("slow"));
    soon("the old tunnel's end", tunnel.closed()).await;
    assert_eq!(hub.get(AGENT).map(|tunnel| tunnel.id()), Some(now.id()), "the late goodbye evicted the successor");
    call(&mut client(&hub)).await;
}

/// B5.
#[tokio::test]
async fn second_agent_with_another_key_is_turned_away() {
    let (host, keys) = (PrivateKey::generate(), [PrivateKey::generate(), PrivateKey::generate()]);
    let mut allowed = AllowedKeys::new();
    for key in &keys {
        allowed = allowed.allow(AGENT, key.public_key()).unwrap();
    }
    let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.unwrap();
    let connect = |key: &PrivateKey| {
        let known = HostKeys::public_key(host.public_key());
        Agent::builder(AGENT, key.clone()).host_keys(known).connect(hub.local_addr().to_string())
    };
    let first = connect(&keys[0]).await.unwrap();
    let _server = serve(&Echo::default(), first.incoming());
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let calls = in_flight(&mut client(&hub), 1).await;
    let mut events = hub.events();

    let refused = connect(&keys[1]).await.expect_err("the other key is turned away");

    assert!(format!("{refused:?}").contains("another key"), "{refused:?}");
    let rejected = async {
        loop {
            if let HubEvent::Rejected { agent_id, reason, .. } = events.next().await.unwrap() {
                return (agent_id, reason);
            }
        }
    };
    let (agent, reason) = soon("the event", rejected).await;
    assert!(agent.as_str() == AGENT && reason.contains("another key"), "{agent}: {reason}");
    assert_eq!(hub.get(AGENT).map(|now| now.id()), Some(tunnel.id()), "the old tunnel was touched");
    assert!(first.status().borrow().is_connected());
    call(&mut client(&hub)).await;
    drop(calls);
}

/// B8.
#[tokio::test]
async fn hub_without_file_descriptors_lives_and_recovers() {
    let keys = Keys::new();
    let mut hub = child::start_starved(keys.hub_process("127.0.0.1:0"), 256);
    let address = hub.line("listening ").await;
    let agent = keys.agent().connect(&*address).await.unwrap();
    hub.line("agent ready").await;
    let mut to_hub = EchoClient::new(agent.channel());
    soon("a call", to_hub.unary(payload(""))).await.unwrap();

    let mut strangers = Vec::new();
    for _ in 0..400 {
        strangers.push(TcpStream::connect(&*address).await.expect("the kernel accepts for the hub"));
    }
    let id = hub.id().expect("the hub lives");
    until("the hub has no descriptor left", || descriptors(id) >= 256).await;

    let (before, begun) = (cpu_time(id), Instant::now());
    tokio::time::sleep(SECOND).await;
    let share = (cpu_time(id) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(share < 0.2, "the hub spins: {share:.2} of a core");
    soon("a call", to_hub.unary(payload(""))).await.expect("who is in is served");

    drop(strangers);
    let again = keys.agent().connect(&*address);
    let (again, recovered) = within(SECOND, "a new login", again).await;
    again.expect("the hub lets agents in again");
    eprintln!("B8: {share:.3} of a core while starved, a login {recovered:?} after");
}

fn descriptors(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).expect("the process lives").count()
}

fn cpu_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process lives");
    // Fields 14 and 15, user and system time in ticks of 10 ms; the name in field 2 may hold blanks.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number of ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// Every tunnel is cut as soon as it has carried a call.
async fn reconnects(times: usize) {
    let backoff = Duration::from_millis(1);
    let rig = Rig::builder().agent(|agent| agent.backoff(backoff, backoff, SECOND)).proxy().start().await;
    let mut client = rig.client();
    let begun = Instant::now();
    for round in 0..times {
        let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
        call(&mut client).await;
        rig.proxy().cut(if round % 2 == 0 { Cut::Reset } else { Cut::Finish });
        successor(&rig.hub, tunnel.id(), 3 * SECOND).await;
    }
    call(&mut client).await;
    let port = rig.hub.local_addr().port();
    until("one socket is left", || sockets_at(port) == 1).await;
    assert_eq!(rig.hub.tunnels().len(), 1);
    assert_eq!(*rig.proxy().accepted().borrow(), times + 1, "an attempt to reconnect failed");
    eprintln!("{times} reconnects: {:?} each", begun.elapsed() / times as u32);
}

#[tokio::test]
async fn agent_reconnects_time_after_time() {
    reconnects(20).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn agent_reconnects_200_times_in_a_row() {
    let _alone = alone();
    reconnects(200).await;
}

/// Calls both ways without a pause; each that fails must fail soon, and UNAVAILABLE.
struct Load {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
}

impl Load {
    fn start(clients: Vec<EchoClient<dialback::TunnelChannel>>) -> Self {
        let mut load = Self {
            tasks: JoinSet::new(),
            stop: watch::Sender::new(false),
            answered: Arc::default(),
            failed: Arc::default(),
        };
        for mut client in clients {
            let stopped = load.stop.subscribe();
            let (answered, failed) = (Arc::clone(&load.answered), Arc::clone(&load.failed));
            load.tasks.spawn(async move {
                while !*stopped.borrow() {
                    let (result, _) = within(2 * SECOND, "a call's end", client.unary(payload([7; 1000]))).await;
                    match result {
                        Ok(_) => answered.fetch_add(1, Ordering::Relaxed),
                        Err(status) => {
                            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                            // A caller that tries again at once would only keep the processor busy.
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            failed.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
        load
    }

    /// Waits for so many more answers.
    async fn answers(&self, more: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        until("calls are answered", || self.answered.load(Ordering::Relaxed) >= goal).await;
    }

    async fn stop(mut self) -> (usize, usize) {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("every call ends well or UNAVAILABLE, and soon");
        }
        (self.answered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// The hub dies under load and comes back: elsewhere behind the same address, then on the same port.
#[tokio::test]
async fn agent_returns_to_a_hub_that_was_restarted_under_load() {
    let keys = Keys::new();
    let mut hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(hub.local_addr()).await;
    let agent = keys.agent().connect(proxy.address().to_string()).await.unwrap();
    let echo = Echo::default();
    let _server = serve(&echo, agent.incoming());
    let mut hub_server = serve(&Echo::default(), hub.incoming());
    let upwards = Load::start((0..4).map(|_| EchoClient::new(agent.channel())).collect());
    for same_port in [false, true, false, true] {
        soon("the agent", hub.wait_for(AGENT)).await.unwrap();
        let downwards = Load::start((0..4).map(|_| client(&hub)).collect());
        let hanging = in_flight(&mut client(&hub), 4).await;
        upwards.answers(20).await;
        downwards.answers(20).await;
        let begun = Instant::now();

        hub.close();
        let ended = end_unavailable(hanging, SECOND).await;
        let (answered, failed) = downwards.stop().await;
        let address = if same_port { hub.local_addr().to_string() } else { "127.0.0.1:0".into() };
        hub_server.abort();
        // The port is free once the last handle is gone and its listener with it.
        drop(hub);
        let rebound = async {
            loop {
                match keys.hub().bind(&*address).await {
                    Ok(hub) => return hub,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        hub = soon("a hub on that port", rebound).await;
        proxy.set_target(hub.local_addr());
        hub_server = serve(&Echo::default(), hub.incoming());

        within(3 * SECOND, "the agent's return", hub.wait_for(AGENT)).await.0.unwrap();
        call(&mut client(&hub)).await;
        upwards.answers(20).await;
        eprintln!(
            "restart (same port: {same_port}): {answered} answered and {failed} failed before, calls in flight ended in \
             {ended:?}, agent back after {:?}",
            begun.elapsed()
        );
    }
    let (answered, failed) = upwards.stop().await;
    eprintln!("restart: upwards {answered} answered, {failed} failed");
}

/// Before there is a tunnel, and while one is being made, calls fail at once; as soon as it is ready, they succeed.
#[tokio::test]
async fn calls_while_the_agent_connects_fail_at_once_until_one_succeeds() {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(hub.local_addr()).await;
    let mut early = client(&hub);
    let echo = Echo::default();
    let connecting = tokio::spawn(keys.agent().connect(proxy.address().to_string()));
    // Slow enough for calls at every step of the login.
    proxy.set(Way::Both, |link| link.delay = Duration::from_millis(20));

    let mut refused = 0;
    loop {
        let begun = Instant::now();
        match soon("the call's end", early.unary(payload(""))).await {
            Ok(_) => panic!("nobody serves yet"),
            Err(status) => assert_unavailable(&status),
        }
        if hub.get(AGENT).is_some() {
            break;
        }
        assert!(begun.elapsed() < SECOND, "a call waited {:?} for an agent that is not there", begun.elapsed());
        refused += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(refused > 5, "only {refused} calls during the login");
}
