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
    child::{self, Keys},
    echo::{Echo, payload, pb::echo_client::EchoClient, steered},
    faults::{
        alone, assert_unavailable, call, client, end_unavailable, in_flight, resident, sockets_at, successor, until,
        within,
    },
    proxy::{Cut, Proxy, Way},
    rig::{AGENT, BRISK, Rig, serve, soon},
};
use dialback::{
    Agent, AllowedKeys, CloseReason, ConnectError, DialError, HostKeys, Hub, HubEvent, PrivateKey, TunnelPolicy,
};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::watch, task::JoinSet, time::timeout};
use tokio_stream::StreamExt;
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
    let hub = keys.hub().tunnel_policy(TunnelPolicy::Replace).bind("127.0.0.1:0").await.unwrap();
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
    let _alone = alone().await;
    comes_back_unnoticed(1000).await;
}

/// B4: the old tunnel's calls may finish; its late goodbye harms nobody.
#[tokio::test]
async fn calls_on_a_replaced_tunnel_finish() {
    let keys = Keys::new();
    let hub = keys.hub().tunnel_policy(TunnelPolicy::Replace).bind("127.0.0.1:0").await.unwrap();
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

    // Strangers come until one is not greeted any more.
    let id = hub.id().expect("the hub lives");
    let mut strangers = Vec::new();
    loop {
        let mut stranger = TcpStream::connect(&*address).await.expect("the kernel accepts for the hub");
        let greeted = timeout(SECOND / 2, stranger.read(&mut [0; 4])).await.is_ok();
        strangers.push(stranger);
        if !greeted {
            break;
        }
        assert!(strangers.len() < 300, "the hub has more descriptors than it should");
    }
    assert_eq!(descriptors(id), 256, "the hub is out of descriptors");

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
    let _alone = alone().await;
    reconnects(200).await;
}

/// B3: a tunnel that was renewed still carries a call when its agent shuts down: that call has the grace, too.
#[tokio::test]
async fn shutdown_lets_calls_on_a_renewed_tunnel_finish() {
    let rig = Rig::builder().agent(|agent| agent.renew_after(3)).start().await;
    let first = rig.hub.wait_for(AGENT).await.expect("the agent is there");
    let (say, said) = tokio::sync::mpsc::channel(4);
    let mut client = rig.client();
    let talk = client.chat(tokio_stream::wrappers::ReceiverStream::new(said));
    say.send(payload("before")).await.expect("the call lives");
    let mut answers = soon("the call", talk).await.expect("it is taken").into_inner();
    soon("an answer", answers.message()).await.expect("the call lives");
    for _ in 0..4 {
        drop(soon("a dial", first.connector().dial()).await.expect("a channel"));
    }
    until("the tunnel is renewed", || rig.hub.get(AGENT).is_some_and(|now| now.id() != first.id())).await;

    let talking = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        say.send(payload("during")).await.expect("the call lives");
        let answer = answers.message().await;
        drop(say);
        (answer, answers.message().await)
    };
    let shutdown = rig.agent.shutdown(5 * SECOND);
    let ((), (answer, end)) = soon("the end", async { tokio::join!(shutdown, talking) }).await;

    assert!(matches!(answer, Ok(Some(_))), "{answer:?}");
    assert!(matches!(end, Ok(None)), "{end:?}");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_channels_that_nobody_will_take() {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let agent = keys.agent().connect(hub.local_addr().to_string()).await.unwrap();
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let mut channel = soon("a dial", tunnel.connector().dial()).await.expect("it waits to be taken");

    soon("the shutdown", agent.shutdown(60 * SECOND)).await;

    assert_eq!(soon("the channel's end", channel.read(&mut [0])).await.ok(), Some(0), "it was not closed politely");
    assert!(soon("an end", agent.incoming().next()).await.is_none());
}

/// D3: many tunnels, one after the other, cost no more memory, sockets or tasks than one.
#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn ten_thousand_reconnects_cost_no_memory() {
    let _alone = alone().await;
    reconnects(100).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let (memory, files, running) = (resident(), descriptors(std::process::id()), tasks());
    reconnects(10_000).await;
    until("no task is left behind", || tasks() <= running + 2).await;
    let more = resident().saturating_sub(memory);
    eprintln!("D3: 10,000 reconnects: {} kB more", more >> 10);
    assert!(more <= 10 << 20, "{more} bytes more");
    assert!(descriptors(std::process::id()) <= files + 2, "descriptors were left open");
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
    // Slow enough for calls at every step of the login.
    proxy.set(Way::Both, |link| link.delay = Duration::from_millis(20));
    let mut early = client(&hub);
    let connecting = keys.agent().connect(proxy.address().to_string());
    let agent = tokio::spawn(async move {
        let agent = connecting.await.expect("the login succeeds");
        let server = serve(&Echo::default(), agent.incoming());
        (agent, server)
    });

    let mut refused = 0;
    while let Err(status) = within(SECOND, "a call's end", early.unary(payload(""))).await.0 {
        assert_unavailable(&status);
        refused += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    assert!(refused > 5, "only {refused} calls during the login");
    drop(agent.await.unwrap());
}

/// A login that the network swallows half-way is given up, on both sides; a call does not wait for it.
#[tokio::test]
async fn login_that_is_swallowed_leaves_nothing() {
    let keys = Keys::new();
    let timeout = Duration::from_millis(500);
    let hub = keys.hub().login_timeout(timeout).bind("127.0.0.1:0").await.unwrap();
    let port = hub.local_addr().port();
    let proxy = Proxy::to(hub.local_addr()).await;
    proxy.stall(Way::Down);

    let (refused, _) = within(
        2 * SECOND,
        "the agent's refusal",
        keys.agent().login_timeout(timeout).connect(proxy.address().to_string()),
    )
    .await;

    assert!(matches!(refused, Err(ConnectError::TimedOut { .. })), "{refused:?}");
    let (status, _) = within(SECOND, "a call's end", client(&hub).unary(payload(""))).await;
    assert_unavailable(&status.unwrap_err());
    until("the hub has let go", || sockets_at(port) == 0).await;
}

/// What an end does to the tunnel, with one call that will end by itself and one that will not.
async fn ends_with_calls_in_flight(end: impl AsyncFnOnce(&Rig), limit: Duration) {
    let rig = Rig::builder().brisk().eager().start().await;
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let hanging = in_flight(&mut rig.client(), 2).await;
    let mut upwards = EchoClient::new(rig.agent.channel());
    let upwards = tokio::spawn(async move { upwards.unary(steered(payload(""), &[("echo-hang", "1")])).await });
    rig.hub_echo.wait_until("the call to the hub", |counts| counts.running() == 1).await;

    end(&rig).await;

    end_unavailable(hanging, limit).await;
    let (upwards, _) = within(limit, "the end of the call to the hub", upwards).await;
    assert_unavailable(&upwards.unwrap().unwrap_err());
    within(limit, "the tunnel's end", tunnel.closed()).await;
    rig.echo.wait_until("the handlers' end", |counts| counts.running() == 0).await;
}

#[tokio::test]
async fn calls_end_when_the_tunnel_is_closed() {
    ends_with_calls_in_flight(async |rig| rig.hub.get(AGENT).unwrap().close(), SECOND).await;
}

#[tokio::test]
async fn calls_end_when_the_hub_is_closed() {
    ends_with_calls_in_flight(async |rig| rig.hub.close(), SECOND).await;
}

#[tokio::test]
async fn calls_end_when_the_agent_is_closed() {
    ends_with_calls_in_flight(async |rig| rig.agent.close(), SECOND).await;
}

#[tokio::test]
async fn calls_end_when_the_hubs_grace_is_over() {
    ends_with_calls_in_flight(async |rig| rig.hub.shutdown(SECOND / 2).await, SECOND).await;
}

#[tokio::test]
async fn calls_end_when_the_agents_grace_is_over() {
    ends_with_calls_in_flight(async |rig| rig.agent.shutdown(SECOND / 2).await, SECOND).await;
}

#[tokio::test]
async fn calls_end_when_a_second_shutdown_forces_the_first() {
    let twice = async |rig: &Rig| {
        let begun = Instant::now();
        tokio::join!(rig.hub.shutdown(60 * SECOND), async {
            tokio::task::yield_now().await;
            rig.hub.shutdown(60 * SECOND).await;
        });
        assert!(begun.elapsed() < SECOND, "the second shutdown forces nothing");
    };
    ends_with_calls_in_flight(twice, SECOND).await;
    let twice = async |rig: &Rig| {
        let begun = Instant::now();
        tokio::join!(rig.agent.shutdown(60 * SECOND), async {
            tokio::task::yield_now().await;
            rig.agent.shutdown(60 * SECOND).await;
        });
        assert!(begun.elapsed() < SECOND, "the second shutdown forces nothing");
    };
    ends_with_calls_in_flight(twice, SECOND).await;
}

/// While one side drains: calls in flight finish, new ones are refused at once, and then the tunnel closes.
async fn drains(shutdown: impl AsyncFnOnce(&Rig)) {
    let rig = Rig::builder().brisk().eager().start().await;
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let mut client = rig.client();
    let slow = |mut client: common::faults::Client| {
        tokio::spawn(async move { client.unary(steered(payload("slow"), &[("echo-delay-ms", "800")])).await })
    };
    let slow: Vec<_> = (0..10).map(|_| slow(client.clone())).collect();
    rig.echo.wait_until("ten calls", |counts| counts.running() == 10).await;

    let draining = async {
        let begun = Instant::now();
        shutdown(&rig).await;
        begun.elapsed()
    };
    let calling = async {
        // Until the word of the drain has arrived, calls may still succeed.
        let mut succeeded = 0;
        while let (Ok(_), _) = within(SECOND, "a new call's end", client.unary(payload("new"))).await {
            succeeded += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (refused, _) = within(SECOND, "a new call's end", client.unary(payload("new"))).await;
        assert_unavailable(&refused.unwrap_err());
        succeeded
    };
    let (took, succeeded) = tokio::join!(draining, calling);

    for call in slow {
        let answer = soon("a slow call", call).await.unwrap();
        assert_eq!(answer.expect("a call that had begun finishes").into_inner(), payload("slow"));
    }
    soon("the tunnel's end", tunnel.closed()).await;
    assert!(took < 5 * SECOND, "the drain took {took:?}, as if a call were still running");
    eprintln!("drained in {took:?}, {succeeded} new calls before it was known");
}

#[tokio::test]
async fn hub_that_drains_finishes_what_has_begun() {
    drains(async |rig| rig.hub.shutdown(30 * SECOND).await).await;
}

#[tokio::test]
async fn agent_that_drains_finishes_what_has_begun() {
    drains(async |rig| rig.agent.shutdown(30 * SECOND).await).await;
}

/// No call is lost between two tunnels: what the server has not begun is refused, so that it may be sent again.
#[tokio::test]
async fn agents_restart_under_load_loses_no_call_that_had_begun() {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let echo = Echo::default();
    let mut load = None;
    for _ in 0..5 {
        let agent = keys.agent().connect(hub.local_addr().to_string()).await.unwrap();
        let server = serve(&echo, agent.incoming());
        soon("the agent", hub.wait_for(AGENT)).await.unwrap();
        let load = load.get_or_insert_with(|| Load::start((0..8).map(|_| client(&hub)).collect()));
        load.answers(50).await;
        agent.shutdown(10 * SECOND).await;
        soon("the server's end", server).await.unwrap().unwrap();
    }
    let (answered, failed) = load.expect("a load").stop().await;
    let counts = echo.wait_until("the handlers' end", |counts| counts.running() == 0).await;
    assert_eq!((counts.finished, counts.cancelled), (answered, 0), "a call that had begun was lost ({failed} refused)");
    eprintln!("5 restarts of the agent: {answered} answered, {failed} refused");
}

/// A dial that waits for its answer when the tunnel is lost learns it then, not at its own deadline.
#[tokio::test]
async fn dial_in_flight_ends_with_its_tunnel() {
    let rig = Rig::builder().brisk().eager().proxy().start().await;
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let (down, up) = (tunnel.connector(), rig.agent.connector());
    rig.proxy().stall(Way::Both);
    let dials = [tokio::spawn(async move { down.dial().await }), tokio::spawn(async move { up.dial().await })];
    tokio::time::sleep(Duration::from_millis(50)).await; // long enough for them to be sent

    rig.proxy().cut(Cut::Reset);

    for dial in dials {
        let (failed, _) = within(SECOND, "the dial's end", dial).await;
        let failed = failed.unwrap().expect_err("the tunnel is gone");
        assert!(matches!(failed, DialError::Disconnected { .. }), "{failed}");
    }
}

#[tokio::test]
async fn dial_that_is_not_answered_ends_at_its_deadline() {
    let limit = Duration::from_millis(300);
    let rig = Rig::builder().hub(|hub| hub.open_timeout(limit)).agent(|agent| agent.open_timeout(limit)).proxy();
    let rig = rig.start().await;
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    rig.proxy().stall(Way::Both);
    for connector in [tunnel.connector(), rig.agent.connector()] {
        let (failed, _) = within(SECOND, "the dial's end", connector.dial()).await;
        let failed = failed.expect_err("nobody answers");
        assert!(matches!(failed, DialError::TimedOut { after, .. } if after == limit), "{failed}");
    }
    rig.proxy().resume(Way::Both);
    call(&mut rig.client()).await;
    assert_eq!(rig.hub.get(AGENT).map(|now| now.id()), Some(tunnel.id()), "the late answers ended the tunnel");
}

/// Keepalive is on at both ends by default settings too: each side notices by itself, whatever the other has set.
#[tokio::test]
async fn each_side_notices_a_dead_peer_by_its_own_keepalive() {
    let (brisk, lazy) = (BRISK, (Duration::from_secs(60), 3));
    for hub_notices in [true, false] {
        let (hub, agent) = if hub_notices { (brisk, lazy) } else { (lazy, brisk) };
        let hub_settings = move |builder: dialback::HubBuilder| builder.keepalive(hub.0 / 2, 1).open_timeout(hub.0);
        let rig =
            Rig::builder().hub(hub_settings).agent(|builder| builder.keepalive(agent.0 / 2, 1)).proxy().start().await;
        let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
        rig.proxy().stall(Way::Both);
        match hub_notices {
            true => {
                let (gone, _) = within(2 * SECOND, "the hub's notice", tunnel.closed()).await;
                assert_eq!(gone.reason, CloseReason::KeepaliveTimeout);
            }
            false => {
                common::faults::noticed(rig.agent.status(), 2 * SECOND).await;
            }
        }
    }
}
