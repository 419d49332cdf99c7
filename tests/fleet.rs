//! Many agents on one hub: pools, policies, keys, labels, limits, and what happens when some of them go.

mod common;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use common::{
    echo::{Echo, payload, pb::echo_client::EchoClient, steered},
    faults::{in_flight, until, within},
    proxy::{Cut, Proxy, Way},
    rig::{AGENT, BRISK, Rig, serve, soon},
};
use dialback::{
    Agent, AgentBuilder, AgentStatus, AllowedKeys, AuthorizedKeys, Balance, CloseReason, DialError, ForwardRequest,
    HostKeys, Hub, HubBuilder, HubEvent, PrivateKey, TunnelChannel, TunnelPolicy,
};
use tokio::{task::JoinSet, time::timeout};
use tonic::Code;

const SECOND: Duration = Duration::from_secs(1);

/// A hub's keys, and one key for all agents.
struct Fleet {
    host: PrivateKey,
    key: PrivateKey,
}

/// An agent that serves.
struct Member {
    agent: Agent,
    echo: Echo,
}

impl Fleet {
    fn new() -> Self {
        Self { host: PrivateKey::generate(), key: PrivateKey::generate() }
    }

    fn allowed(&self) -> AllowedKeys {
        let ids = ["a", "b", "c", AGENT];
        ids.iter().fold(AllowedKeys::new(), |list, id| list.allow(id, self.key.public_key()).expect("an id"))
    }

    fn hub(&self) -> HubBuilder {
        Hub::builder(self.host.clone()).authorizer(self.allowed().accept_labels(["site"])).keepalive(BRISK.0, BRISK.1)
    }

    fn agent(&self, id: &str) -> AgentBuilder {
        let hub = HostKeys::public_key(self.host.public_key());
        let never = 3600 * SECOND;
        Agent::builder(id, self.key.clone()).host_keys(hub).keepalive(BRISK.0, BRISK.1).backoff(never, never, never)
    }

    async fn start(&self, hub: &Hub, agent: AgentBuilder) -> Member {
        Member::start(agent, &hub.local_addr().to_string()).await
    }
}

impl Member {
    async fn start(agent: AgentBuilder, address: &str) -> Self {
        let agent = agent.connect(address).await.expect("connect");
        let echo = Echo::default();
        serve(&echo, agent.incoming());
        Self { agent, echo }
    }

    fn calls(&self) -> usize {
        self.echo.counts().started
    }
}

async fn bind(hub: HubBuilder) -> Hub {
    hub.bind("127.0.0.1:0").await.expect("bind")
}

/// So many calls, all of which succeed.
async fn call(channel: TunnelChannel, calls: usize) {
    let mut client = EchoClient::new(channel);
    for _ in 0..calls {
        soon("an answer", client.unary(payload("hello"))).await.expect("the call succeeds");
    }
}

#[tokio::test]
async fn calls_are_spread_over_a_pool_and_none_is_lost_when_a_member_goes() {
    let fleet = Fleet::new();
    let hub = bind(fleet.hub()).await;
    let one = fleet.start(&hub, fleet.agent(AGENT)).await;
    let two = fleet.start(&hub, fleet.agent(AGENT)).await;
    until("both can be called", || hub.tunnels().len() == 2).await;

    call(hub.channel(AGENT).unwrap(), 100).await;
    assert!(one.calls() > 10 && two.calls() > 10, "{} and {}", one.calls(), two.calls());

    // One goes without a word, while calls are made.
    let calls = tokio::spawn(call(hub.channel(AGENT).unwrap(), 300));
    let before = one.calls();
    until("calls are under way", || one.calls() > before).await;
    one.agent.shutdown(SECOND).await;
    soon("all calls", calls).await.expect("no call is lost");
    let before = two.calls();
    call(hub.channel(AGENT).unwrap(), 10).await;
    assert_eq!(two.calls(), before + 10);
}

#[tokio::test]
async fn dead_member_is_never_picked_again() {
    let fleet = Fleet::new();
    let hub = bind(fleet.hub().balance(Balance::RoundRobin)).await;
    let one = fleet.start(&hub, fleet.agent(AGENT)).await;
    let two = fleet.start(&hub, fleet.agent(AGENT)).await;
    until("both can be called", || hub.tunnels().len() == 2).await;
    call(hub.channel(AGENT).unwrap(), 10).await;
    assert_eq!((one.calls(), two.calls()), (5, 5), "round robin takes turns");
    let tunnel = hub.tunnels().remove(0);

    tunnel.close();

    soon("the end", tunnel.closed()).await;
    call(hub.channel(AGENT).unwrap(), 10).await;
    let mut counts = [one.calls(), two.calls()];
    counts.sort_unstable();
    assert_eq!(counts, [5, 15]);
}

#[tokio::test]
async fn agents_are_found_by_id_key_and_label() {
    let fleet = Fleet::new();
    let hub = bind(fleet.hub().affinity_key(|tunnel| tunnel.label("site").unwrap_or("none").len())).await;
    let a = fleet.start(&hub, fleet.agent("a").label("site", "berlin").label("secret", "x")).await;
    let b = fleet.start(&hub, fleet.agent("b").label("site", "berlin")).await;
    let c = fleet.start(&hub, fleet.agent("c").label("site", "münchen: süd")).await;
    for id in ["a", "b", "c"] {
        soon("the agent", hub.wait_for(id)).await.unwrap();
    }
    let counts = || [a.calls(), b.calls(), c.calls()];

    call(hub.channel("a").unwrap(), 5).await;
    assert_eq!(counts(), [5, 0, 0]);
    call(hub.channel_with_label("site", "münchen: süd"), 5).await;
    assert_eq!(counts(), [5, 0, 5]);
    call(hub.channel_for(6), 40).await; // berlin
    let [of_a, of_b, of_c] = counts();
    assert!(of_a > 5 && of_b > 0 && of_c == 5, "{:?}", counts());
    call(hub.any_channel(), 60).await;
    assert!(counts().into_iter().zip([of_a, of_b, of_c]).all(|(now, before)| now > before), "{:?}", counts());

    let labels = hub.get("a").unwrap().info().labels;
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), [("site".into(), "berlin".into())], "only what is accepted");
    let nobody = EchoClient::new(hub.channel_with_label("site", "rome")).unary(payload("")).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unavailable);
    assert!(nobody.message().contains("`site=rome`"), "{nobody}");
}

#[tokio::test]
async fn call_to_an_agent_that_is_away_says_since_when_or_waits_for_it() {
    let fleet = Fleet::new();
    let hub = bind(fleet.hub()).await;
    let mut client = EchoClient::new(hub.channel("a").unwrap());
    let never_seen = client.unary(payload("")).await.unwrap_err();
    assert_eq!((never_seen.code(), never_seen.message()), (Code::Unavailable, "agent `a` is not connected"));

    // It waits, and its own deadline holds meanwhile.
    let mut patient = EchoClient::new(hub.channel("a").unwrap().wait_for_ready(20 * SECOND));
    let mut hurried = tonic::Request::new(payload(""));
    hurried.set_timeout(SECOND / 10);
    assert_eq!(patient.clone().unary(hurried).await.unwrap_err().code(), Code::DeadlineExceeded);
    let waiting = tokio::spawn(async move { patient.unary(payload("at last")).await });
    tokio::time::sleep(SECOND / 10).await;
    assert!(!waiting.is_finished());
    let a = fleet.start(&hub, fleet.agent("a")).await;
    let answer = soon("the answer", waiting).await.unwrap().expect("the agent has come");
    assert_eq!(answer.into_inner(), payload("at last"));

    let tunnel = soon("the agent", hub.wait_for("a")).await.unwrap();
    drop(a);
    soon("the end", tunnel.closed()).await;
    let mut error = client.unary(payload("")).await.unwrap_err();
    until("the goodbye is told", || hub.get("a").is_none()).await;
    if !error.message().contains("away since") {
        error = client.unary(payload("")).await.unwrap_err();
    }
    assert!(error.message().starts_with("agent `a` is away since 20"), "{error}");
    let (status, took) = within(SECOND, "giving up", async {
        let mut client = EchoClient::new(hub.channel("a").unwrap().wait_for_ready(SECOND / 5));
        client.unary(payload("")).await.unwrap_err()
    })
    .await;
    assert!(status.message().contains("away since") && took >= SECOND / 5, "{status} after {took:?}");
}

/// A tunnel may be lost just when a call has found it.
#[tokio::test]
async fn call_that_waits_goes_on_waiting_when_its_tunnel_is_lost() {
    let rig = Rig::builder().proxy().eager().start().await;
    let impatient = EchoClient::new(rig.hub.channel(AGENT).unwrap());
    let patient = EchoClient::new(rig.hub.channel(AGENT).unwrap().wait_for_ready(20 * SECOND));
    rig.proxy().stall(Way::Both);
    let [impatient, patient] =
        [impatient, patient].map(|mut client| tokio::spawn(async move { client.unary(payload("across")).await }));
    tokio::time::sleep(SECOND / 5).await;
    rig.proxy().cut(Cut::Reset);
    rig.proxy().resume(Way::Both);
    let refused = soon("the refusal", impatient).await.unwrap().expect_err("its tunnel is lost");
    assert_eq!(refused.code(), Code::Unavailable);
    let answer = soon("the answer", patient).await.unwrap().expect("it waits for the next tunnel");
    assert_eq!(answer.into_inner(), payload("across"));
}

#[tokio::test]
async fn waiting_leaves_nothing_behind_and_one_word_wakes_only_those_it_concerns() {
    let fleet = Fleet::new();
    let hub = bind(fleet.hub()).await;
    let mut waiting = JoinSet::new();
    for n in 0..1000 {
        let hub = hub.clone();
        waiting
            .spawn(async move { hub.wait_for(if n % 2 == 0 { "a" } else { "b" }).await.map(|t| t.agent_id().clone()) });
    }
    let given_up = timeout(SECOND / 10, hub.wait_for("c")).await;
    assert!(given_up.is_err());
    let _a = fleet.start(&hub, fleet.agent("a")).await;
    for _ in 0..500 {
        let id = soon("a waiting one", waiting.join_next()).await.expect("one").unwrap().unwrap();
        assert_eq!(id.as_str(), "a");
    }
    assert!(waiting.try_join_next().is_none());
    hub.shutdown(SECOND).await;
    while let Some(ended) = soon("the end", waiting.join_next()).await {
        assert!(ended.unwrap().is_err(), "the hub is gone");
    }
}

#[tokio::test]
async fn newcomer_is_told_why_it_is_not_wanted() {
    let fleet = Fleet::new();
    let hub = bind(fleet.hub().tunnel_policy(TunnelPolicy::Reject)).await;
    let first = fleet.start(&hub, fleet.agent(AGENT).tunnels(2)).await;
    until("both of its tunnels", || hub.tunnels().len() == 2).await;
    let mut events = hub.events();

    let refused = fleet.agent(AGENT).connect(hub.local_addr().to_string()).await.expect_err("one is enough");

    assert!(format!("{refused:?}").contains("this hub allows one"), "{refused:?}");
    let rejected = soon("the event", async {
        loop {
            if let HubEvent::Rejected { reason, .. } = events.next().await.unwrap() {
                return reason;
            }
        }
    });
    assert!(rejected.await.contains("this hub allows one"));
    call(hub.channel(AGENT).unwrap(), 3).await;
    assert_eq!(first.calls(), 3);
}

/// A tunnel whose other end has vanished does not keep out the agent's next one, whatever the policy, and takes no calls
/// from it. Its agent is another process, so nothing but a sign of life tells them apart.
/// `key` is the newcomer's.
async fn half_open_tunnel_gives_way(policy: TunnelPolicy, fleet: Fleet, key: PrivateKey) {
    // Long keepalives: it is not they who find out.
    let minute = 60 * SECOND;
    let allowed = fleet.allowed().allow(AGENT, key.public_key()).unwrap();
    let hub = bind(fleet.hub().authorizer(allowed).tunnel_policy(policy).keepalive(minute, 3)).await;
    let proxy = Proxy::to(hub.local_addr()).await;
    let old = Member::start(fleet.agent(AGENT).keepalive(minute, 3), &proxy.address().to_string()).await;
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    call(hub.channel(AGENT).unwrap(), 1).await;
    proxy.stall(Way::Both);

    let other_key = key.public_key() != fleet.key.public_key();
    let fleet = Fleet { key, ..fleet };
    let new = fleet.agent(AGENT).keepalive(minute, 3);
    let (new, took) = within(8 * SECOND, "the newcomer", fleet.start(&hub, new)).await;
    let (_, calls) = within(SECOND, "twenty calls", call(hub.channel(AGENT).unwrap(), 20)).await;
    assert_eq!((old.calls(), new.calls()), (1, 20));
    let (gone, _) = within(8 * SECOND, "the old tunnel's end", tunnel.closed()).await;
    let replaced = policy == TunnelPolicy::Replace && !other_key;
    assert_eq!(gone.reason, if replaced { CloseReason::Replaced } else { CloseReason::KeepaliveTimeout });
    eprintln!("{policy:?}: in after {took:?}, twenty calls in {calls:?}");
}

#[tokio::test]
async fn half_open_tunnel_gives_way_in_a_pool() {
    let fleet = Fleet::new();
    let key = fleet.key.clone();
    half_open_tunnel_gives_way(TunnelPolicy::Pool, fleet, key).await;
}

#[tokio::test]
async fn half_open_tunnel_gives_way_to_the_newest() {
    let fleet = Fleet::new();
    let key = fleet.key.clone();
    half_open_tunnel_gives_way(TunnelPolicy::Replace, fleet, key).await;
}

#[tokio::test]
async fn half_open_tunnel_does_not_reject_its_successor() {
    let fleet = Fleet::new();
    let key = fleet.key.clone();
    half_open_tunnel_gives_way(TunnelPolicy::Reject, fleet, key).await;
}

/// A live one keeps another key out; a dead one does not.
#[tokio::test]
async fn half_open_tunnel_gives_way_to_another_key() {
    for policy in [TunnelPolicy::Pool, TunnelPolicy::Replace] {
        half_open_tunnel_gives_way(policy, Fleet::new(), PrivateKey::generate()).await;
    }
}

/// Whoever is busy on a slow path answers late, and is no more dead for that when a replica joins.
#[tokio::test]
async fn busy_member_on_a_slow_path_outlives_the_arrival_of_another() {
    let fleet = Fleet::new();
    let minute = 60 * SECOND;
    let hub = bind(fleet.hub().keepalive(minute, 3)).await;
    let proxy = Proxy::to(hub.local_addr()).await;
    let one = Member::start(fleet.agent(AGENT).keepalive(minute, 3), &proxy.address().to_string()).await;
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    proxy.set(Way::Both, |link| link.rate = Some(200_000));
    let mut client = EchoClient::new(hub.channel(AGENT).unwrap());
    let order = steered(payload(""), &[("echo-count", "1000"), ("echo-size", "65536")]);
    let mut slow = client.download(order).await.unwrap().into_inner();
    // Until seconds' worth of it waits for the path.
    tokio::time::sleep(2 * SECOND).await;
    let _two = fleet.start(&hub, fleet.agent(AGENT)).await;
    until("both can be called", || hub.tunnels().len() == 2).await;
    assert!(timeout(8 * SECOND, tunnel.closed()).await.is_err(), "it was taken for dead");
    soon("a message", slow.message()).await.expect("the call goes on");
    assert_eq!(one.calls(), 1);
}

/// B4, for an agent that lives on: it takes the place of the tunnel that it has lost and the hub still believes in.
#[tokio::test]
async fn agent_that_dials_again_takes_its_own_place() {
    for policy in [TunnelPolicy::Pool, TunnelPolicy::Reject] {
        let fleet = Fleet::new();
        let hub = bind(fleet.hub().tunnel_policy(policy).keepalive(60 * SECOND, 3)).await;
        let back = Proxy::to(hub.local_addr()).await;
        let front = Proxy::to(back.address()).await;
        let agent = fleet.agent(AGENT).keepalive(SECOND / 5, 1).backoff(SECOND / 10, SECOND / 10, SECOND);
        let _agent = Member::start(agent, &front.address().to_string()).await;
        let old = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
        // The agent finds out, and the hub is not told.
        back.stall(Way::Both);
        front.set_target(hub.local_addr());
        let (new, took) = common::faults::successor(&hub, old.id(), 5 * SECOND).await;
        assert_ne!(new.id(), old.id());
        let gone = soon("the old tunnel's end", old.closed()).await;
        assert_eq!(gone.reason, CloseReason::Replaced, "{policy:?}");
        assert_eq!(hub.tunnels().len(), 1);
        eprintln!("{policy:?}: back after {took:?}");
    }
}

#[tokio::test]
async fn several_tunnels_of_one_agent_share_its_calls_and_come_back_one_by_one() {
    let rig = Rig::builder().eager().agent(|agent| agent.tunnels(3)).start().await;
    let hub = &rig.hub;
    until("all its tunnels", || hub.tunnels().len() == 3).await;
    let mut status = rig.agent.status();
    let stand = |wanted| move |status: &AgentStatus| matches!(status, AgentStatus::Connected { tunnels, .. } if *tunnels == wanted);
    soon("three", status.wait_for(stand(3))).await.unwrap();
    let mut client = rig.client();
    let calls = in_flight(&mut client, 60).await;
    let busy = |tunnel: &dialback::Tunnel| tunnel.info().calls;
    let loads: Vec<_> = hub.tunnels().iter().map(busy).collect();
    assert!(loads.iter().sum::<usize>() == 60 && loads.iter().all(|load| *load > 5), "{loads:?}");

    let victim = hub.tunnels().remove(0);
    victim.close();
    soon("its end", victim.closed()).await;
    assert!(rig.agent.status().borrow().is_connected(), "two still stand");
    until("the third comes back", || hub.tunnels().len() == 3).await;
    soon("three", status.wait_for(stand(3))).await.unwrap();
    drop(calls);
    let mut to_hub = EchoClient::new(rig.agent.channel());
    for _ in 0..10 {
        soon("an answer", to_hub.unary(payload(""))).await.expect("calls the other way");
    }
    rig.agent.shutdown(SECOND).await;
    until("none is left", || hub.tunnels().is_empty()).await;
}

#[tokio::test]
async fn hub_without_reverse_tunnels_only_serves() {
    let fleet = Fleet::new();
    let hub = bind(fleet.hub().no_reverse()).await;
    let echo = Echo::default();
    serve(&echo, hub.incoming());
    let refused = fleet.agent("a").connect(hub.local_addr().to_string()).await.expect_err("it wants to be called");
    assert!(matches!(refused, dialback::ConnectError::ForwardRefused { .. }), "{refused:?}");

    let agent = fleet.agent("a").forward_request(ForwardRequest::Optional);
    let agent = agent.connect(hub.local_addr().to_string()).await.expect("it does not insist");
    soon("an answer", EchoClient::new(agent.channel()).unary(payload(""))).await.expect("it can call");
    let status = EchoClient::new(hub.channel("a").unwrap()).unary(payload("")).await.unwrap_err();
    assert!(status.message().contains("has not asked to be called"), "{status}");
}

/// D2.
#[tokio::test]
async fn dials_beyond_the_limit_fail_and_the_tunnel_lives() {
    let rig = Rig::builder().hub(|hub| hub.max_channels(64)).start().await;
    let tunnel = rig.hub.get(AGENT).unwrap();
    let mut dials = JoinSet::new();
    for _ in 0..10_000 {
        let connector = tunnel.connector();
        dials.spawn(async move { connector.dial().await });
    }
    let (mut open, mut refused) = (Vec::new(), 0);
    while let Some(dialled) = soon("a dial", dials.join_next()).await {
        match dialled.unwrap() {
            Ok(io) => open.push(io),
            Err(error) => {
                assert!(matches!(error, DialError::TooManyChannels { limit: 64, .. }), "{error}");
                assert_eq!(tonic::Status::from(error).code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert_eq!((open.len(), refused), (64, 9936));
    drop(open);
    until("there is room again", || rig.hub.get(AGENT).is_some()).await;
    soon("room", async {
        while tunnel.connector().dial().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(tunnel.disconnected().borrow().is_none());
}

#[tokio::test]
async fn calls_beyond_an_agents_limit_fail_and_others_go_on() {
    let rig = Rig::builder().hub(|hub| hub.max_calls(10)).agent(|agent| agent.tunnels(2)).start().await;
    until("both tunnels", || rig.hub.tunnels().len() == 2).await;
    let mut client = rig.client();
    let mut calls = in_flight(&mut client, 10).await;
    let refused = client.unary(payload("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("10 calls in flight"), "{refused}");
    calls.pop();
    soon("a call", client.unary(payload(""))).await.expect("there is room for one");
    drop(calls);
    call(rig.hub.channel(AGENT).unwrap(), 20).await;
}

/// I8.
#[tokio::test]
async fn agent_whose_key_is_taken_back_is_sent_away() {
    let fleet = Fleet::new();
    let dir = tempfile::tempdir().unwrap();
    let (file, revoked) = (dir.path().join("authorized_keys"), dir.path().join("revoked"));
    let other = PrivateKey::generate();
    let line =
        |id: &str, key: &PrivateKey| format!("principals=\"{id}\",environment=\"site=rome\" {}\n", key.public_key());
    std::fs::write(&file, line("a", &fleet.key) + &line("b", &other)).unwrap();
    std::fs::write(&revoked, "").unwrap();
    let keys = AuthorizedKeys::open(&file).unwrap().revoked_keys(&revoked).unwrap();
    let hub = bind(Hub::builder(fleet.host.clone()).authorizer(keys)).await;
    let _a = fleet.start(&hub, fleet.agent("a").backoff(SECOND / 10, SECOND, SECOND)).await;
    let known = HostKeys::public_key(fleet.host.public_key());
    let b = Agent::builder("b", other.clone()).host_keys(known).connect(hub.local_addr().to_string()).await.unwrap();
    let (of_a, of_b) = (soon("a", hub.wait_for("a")).await.unwrap(), soon("b", hub.wait_for("b")).await.unwrap());
    assert_eq!(of_a.info().label("site"), Some("rome"));

    // A list that cannot be read sends nobody away.
    std::fs::remove_file(&revoked).unwrap();
    assert!(timeout(4 * SECOND, of_a.closed()).await.is_err(), "sent away though nothing is known");
    let begun = Instant::now();
    std::fs::write(&revoked, other.public_key().to_string()).unwrap();
    let gone = soon("b's end", of_b.closed()).await;
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    assert!(matches!(&gone.reason, CloseReason::Revoked { reason } if reason.contains("revoked")), "{gone}");
    soon("the word", b.status().wait_for(|status| !status.is_connected())).await.unwrap();
    let again = Agent::builder("b", other).host_keys(HostKeys::public_key(fleet.host.public_key()));
    again.connect(hub.local_addr().to_string()).await.expect_err("a revoked key");

    // With other labels an agent has to come back, and does.
    std::fs::write(&file, line("a", &fleet.key).replace("rome", "oslo")).unwrap();
    let gone = soon("a's end", of_a.closed()).await;
    assert!(matches!(&gone.reason, CloseReason::Revoked { reason } if reason.contains("labels")), "{gone}");
    let of_a = soon("a", hub.wait_for("a")).await.unwrap();
    assert_eq!(of_a.info().label("site"), Some("oslo"));

    // A line that is removed.
    let begun = Instant::now();
    std::fs::write(&file, "# nobody\n").unwrap();
    soon("a's end", of_a.closed()).await;
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn events_tell_of_all_that_happens_and_of_what_was_missed() {
    let fleet = Fleet::new();
    let hub = bind(fleet.hub()).await;
    let (mut events, mut slow) = (hub.events(), hub.events());
    let rounds = 400; // three events each
    for _ in 0..rounds {
        let a = fleet.agent("a").connect(hub.local_addr().to_string()).await.unwrap();
        let tunnel = soon("the agent", hub.wait_for("a")).await.unwrap();
        drop(a);
        soon("its end", tunnel.closed()).await;
        let mut heard = Vec::new();
        while heard.last() != Some(&"closed") {
            heard.push(match soon("an event", events.next()).await.unwrap() {
                HubEvent::Opened { .. } => "opened",
                HubEvent::Ready { .. } => "ready",
                HubEvent::Closed { .. } => "closed",
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(heard, ["opened", "ready", "closed"]);
    }
    let missed = slow.next().await.unwrap_err();
    assert_eq!(missed, dialback::EventsError::Missed(3 * rounds - 1024));
    assert!(slow.next().await.is_ok(), "it goes on after the gap");
}

#[tokio::test]
async fn least_busy_tunnel_is_found_among_many() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let fleet = Fleet::new();
    let hub = bind(fleet.hub()).await;
    let members = [fleet.start(&hub, fleet.agent(AGENT)).await, fleet.start(&hub, fleet.agent(AGENT)).await];
    until("both can be called", || hub.tunnels().len() == 2).await;
    // One is kept busy: with two to choose from, every call goes to the other.
    let mut client = EchoClient::new(hub.tunnels()[0].channel());
    let busy = tokio::spawn(async move {
        let request = steered(payload(""), &[("echo-hang", "1")]);
        CALLS.fetch_add(1, Ordering::Relaxed);
        client.unary(request).await
    });
    until("it is busy", || hub.tunnels().iter().any(|tunnel| tunnel.info().calls == 1)).await;
    call(hub.channel(AGENT).unwrap(), 20).await;
    let mut counts = members.each_ref().map(Member::calls);
    counts.sort_unstable();
    assert_eq!(counts, [1, 20]);
    busy.abort();
}
