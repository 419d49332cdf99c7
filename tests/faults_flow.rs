//! What much data, unread data and many channels do to a tunnel. The letters are the cases of the project's list of
//! faults.
#![cfg(target_os = "linux")]

mod common;

use std::time::{Duration, Instant};

use common::{
    echo::{payload, pb::echo_client::EchoClient},
    faults::{agent_tunnel, alone, bulk, call, in_flight, raw_channel, resident, within},
    proxy::Way,
    rig::{AGENT, Rig, serve, soon},
};
use dialback::{DialError, TunnelIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const SECOND: Duration = Duration::from_secs(1);
const MBIT: u64 = 1_000_000 / 8;

/// A rig without gRPC: pairs of ends of so many channels.
async fn pairs(rig: &Rig, channels: usize) -> Vec<(TunnelIo, TunnelIo)> {
    let mut incoming = rig.agent.incoming();
    let mut pairs = Vec::new();
    for _ in 0..channels {
        pairs.push(raw_channel(rig, &mut incoming).await);
    }
    pairs
}

/// A5: bulk both ways at once, over sockets and links of all sizes, never stands still.
async fn both_ways(channels: usize, buffers: Option<u32>, rate: Option<u64>, time: Duration) {
    let _alone = alone().await;
    // Keepalives have to be answered in time through all of it.
    let rig = Rig::builder().brisk().proxy_with(buffers, |_| {}).start().await;
    rig.proxy().set(Way::Both, |link| link.rate = rate);
    let tunnel = agent_tunnel(&rig);
    let begun = Instant::now();

    let [down, up] = bulk(pairs(&rig, channels).await, time).await;

    assert_eq!(agent_tunnel(&rig), tunnel, "the tunnel did not live through it");
    let megabytes = |bytes: u64| bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
    eprintln!(
        "A5 {channels} channels, buffers {buffers:?}, rate {rate:?}: {:.1} MB/s down, {:.1} MB/s up",
        megabytes(down),
        megabytes(up)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_flows_on_one_channel() {
    both_ways(1, None, None, SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_flows_through_small_sockets() {
    both_ways(2, Some(8 << 10), None, SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_flows_on_four_channels_and_a_slow_link() {
    both_ways(4, Some(64 << 10), Some(20 * MBIT), SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_flows_on_sixteen_channels() {
    both_ways(16, Some(64 << 10), None, SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: cargo test --release -- --ignored"]
async fn bulk_both_ways_never_stands_still() {
    for channels in [1, 2, 4, 16] {
        for buffers in [Some(8 << 10), Some(64 << 10), None] {
            for rate in [Some(MBIT), Some(20 * MBIT), Some(100 * MBIT), None] {
                if buffers.is_none() && rate == Some(MBIT) {
                    // The proxy's own socket then holds more than a keepalive may take.
                    continue;
                }
                both_ways(channels, buffers, rate, 30 * SECOND).await;
            }
        }
    }
}

/// One way only, so that nothing but the answers to keepalives comes back: they must not wait behind megabytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_are_answered_through_one_way_bulk_on_a_slow_path() {
    let _alone = alone().await;
    let keepalive = (Duration::from_millis(250), 3);
    let rig = Rig::builder()
        .hub(|hub| hub.keepalive(keepalive.0, keepalive.1))
        .agent(|agent| agent.keepalive(keepalive.0, keepalive.1))
        .proxy_with(Some(64 << 10), |_| {});
    let rig = rig.start().await;
    let tunnel = agent_tunnel(&rig);
    let mut incoming = rig.agent.incoming();
    let (mut near, mut far) = raw_channel(&rig, &mut incoming).await;
    rig.proxy().set(Way::Both, |link| link.rate = Some(16 * MBIT));

    let stop = tokio::time::Instant::now() + 4 * SECOND;
    let sent = async {
        let block = [7; 16 << 10];
        let mut sent = 0;
        while tokio::time::Instant::now() < stop {
            far.write_all(&block).await.expect("the tunnel lives");
            sent += block.len() as u64;
        }
        far.shutdown().await.expect("the tunnel lives");
        sent
    };
    let (sent, received) = tokio::join!(sent, async {
        tokio::io::copy(&mut near, &mut tokio::io::sink()).await.expect("the tunnel lives")
    });

    assert_eq!(sent, received);
    assert_eq!(agent_tunnel(&rig), tunnel, "the tunnel did not live through it");
}

/// A6: keys are renewed all the time, under load.
async fn rekey_storm(channels: usize, bytes: usize, time: Duration) {
    let _alone = alone().await;
    let rig = Rig::builder()
        .brisk()
        .hub(|hub| hub.rekey(bytes, SECOND))
        .agent(|agent| agent.rekey(bytes, SECOND))
        .proxy_with(Some(64 << 10), |_| {});
    let rig = rig.start().await;
    let tunnel = agent_tunnel(&rig);

    let [down, up] = bulk(pairs(&rig, channels).await, time).await;

    assert_eq!(agent_tunnel(&rig), tunnel, "the tunnel did not live through it");
    let least = (down + up) / bytes as u64;
    assert!(least >= 3, "only {} bytes: too few for keys to have been renewed more than once", down + up);
    eprintln!(
        "A6 {channels} channels, {} kB at a time: {down} bytes down, {up} up, at least {least} rekeys",
        bytes >> 10
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_renewed_under_load_on_one_channel() {
    rekey_storm(1, 1 << 20, SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_renewed_under_load_on_four_channels() {
    rekey_storm(4, 1 << 20, SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_renewed_under_load_on_sixteen_channels() {
    rekey_storm(16, 1 << 20, SECOND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: cargo test --release -- --ignored"]
async fn keys_are_renewed_under_load_for_a_minute() {
    for channels in [1, 4, 16] {
        rekey_storm(channels, 1 << 20, 20 * SECOND).await;
        rekey_storm(channels, 16 << 20, 60 * SECOND).await;
    }
}

/// A6, as users run it: calls, not raw channels.
#[tokio::test]
async fn calls_go_on_while_keys_are_renewed() {
    let rig = Rig::builder()
        .brisk()
        .hub(|hub| hub.rekey(1 << 20, SECOND))
        .agent(|agent| agent.rekey(1 << 20, SECOND))
        .start()
        .await;
    let tunnel = agent_tunnel(&rig);
    let mut client = rig.client();
    // 4 MiB each way, so at least four renewals on each side.
    for calls in 0..16 {
        let message = payload(common::echo::pattern(calls, 256 << 10));
        let answer = soon("an answer", client.unary(message.clone())).await.expect("the call succeeds");
        assert!(answer.into_inner() == message, "call {calls} answers what was sent");
    }
    assert_eq!(agent_tunnel(&rig), tunnel);
}

/// Which end does not read.
#[derive(Clone, Copy, Debug)]
enum Deaf {
    Agent,
    Hub,
}

/// C2: many small messages to a channel that nobody reads do not hold up the others.
async fn unread(messages: usize, deaf: Deaf) {
    let rig = Rig::builder().brisk().start().await;
    let tunnel = agent_tunnel(&rig);
    let (mut sender, reader) = {
        let (hub, agent) = pairs(&rig, 1).await.remove(0);
        match deaf {
            Deaf::Agent => (hub, agent),
            Deaf::Hub => (agent, hub),
        }
    };
    let _server = serve(&rig.echo, rig.agent.incoming());
    let mut client = rig.client();
    let base = slowest_of_50(&mut client).await;

    for _ in 0..messages {
        soon("a write", sender.write_all(&[7])).await.expect("the channel is open");
        sender.flush().await.expect("the channel is open");
    }

    let slowest = slowest_of_50(&mut client).await;
    assert!(slowest < base + SECOND / 4, "calls take {slowest:?}, and {base:?} before");
    // Upwards, too.
    let mut upwards = common::echo::pb::echo_client::EchoClient::new(rig.agent.channel());
    soon("a call to the hub", upwards.unary(payload(""))).await.expect("it succeeds");
    // Nothing of it was lost.
    let mut reader = reader.take(messages as u64);
    let mut all = Vec::new();
    soon("what was sent", reader.read_to_end(&mut all)).await.expect("it can be read");
    assert_eq!(all.len(), messages);
    assert_eq!(agent_tunnel(&rig), tunnel);
    eprintln!("C2 {messages} messages, {deaf:?} deaf: slowest call {slowest:?}, before {base:?}");
}

async fn slowest_of_50(client: &mut common::faults::Client) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let begun = Instant::now();
        call(client).await;
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}

#[tokio::test]
async fn agents_unread_channel_with_101_messages_holds_up_nothing() {
    unread(101, Deaf::Agent).await;
}

#[tokio::test]
async fn agents_unread_channel_with_1000_messages_holds_up_nothing() {
    unread(1000, Deaf::Agent).await;
}

#[tokio::test]
async fn hubs_unread_channel_with_101_messages_holds_up_nothing() {
    unread(101, Deaf::Hub).await;
}

#[tokio::test]
async fn hubs_unread_channel_with_1000_messages_holds_up_nothing() {
    unread(1000, Deaf::Hub).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn unread_channel_with_100_000_messages_holds_up_nothing() {
    let _alone = alone().await;
    unread(100_000, Deaf::Agent).await;
    unread(100_000, Deaf::Hub).await;
}

/// C2: past the tunnel's bound the unread channel is closed, on both ends, and everything else lives.
async fn over_the_bound(deaf: Deaf) {
    const WINDOW: u32 = 64 << 10;
    let rig = Rig::builder().brisk().hub(|hub| hub.window(WINDOW)).agent(|agent| agent.window(WINDOW)).start().await;
    let tunnel = agent_tunnel(&rig);
    let (mut sender, mut reader) = {
        let (hub, agent) = pairs(&rig, 1).await.remove(0);
        match deaf {
            Deaf::Agent => (hub, agent),
            Deaf::Hub => (agent, hub),
        }
    };
    let _server = serve(&rig.echo, rig.agent.incoming());
    let mut client = rig.client();
    let calls = in_flight(&mut client, 1).await;

    let refused = soon("the channel's end", async {
        loop {
            if let Err(error) = sender.write_all(&[7; 1000]).await {
                return error;
            }
        }
    });
    let refused = refused.await;

    assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe, "{refused}");
    let read = soon("the reader's end", reader.read_to_end(&mut Vec::new())).await;
    assert_eq!(read.expect_err("the reader is told").kind(), std::io::ErrorKind::OutOfMemory);
    call(&mut client).await;
    assert_eq!(rig.echo.counts().running(), 1, "the call in flight was lost");
    assert_eq!(agent_tunnel(&rig), tunnel, "the tunnel was lost");
    drop(calls);
}

#[tokio::test]
async fn channel_that_the_agent_does_not_read_is_closed_at_the_bound() {
    over_the_bound(Deaf::Agent).await;
}

#[tokio::test]
async fn channel_that_the_hub_does_not_read_is_closed_at_the_bound() {
    over_the_bound(Deaf::Hub).await;
}

/// D3: many dials, one after the other. The tunnel is renewed; nobody notices. Gives how often, and how many bytes more
/// than at the start the two ends together take.
async fn dials(count: usize, renew_after: u64) -> (usize, usize) {
    let rig = Rig::builder().agent(|agent| agent.renew_after(renew_after)).start().await;
    let first = rig.hub.wait_for(AGENT).await.unwrap();
    let connector = rig.hub.connector(AGENT).unwrap();
    let mut client = rig.client();
    let mut slow = in_flight(&mut client, 1).await;
    let mut status = rig.agent.status();
    let (mut renewals, mut before) = (0, first.id());
    let memory = resident();
    for dial in 0..count {
        let channel = soon("a dial", connector.dial()).await;
        drop(channel.unwrap_or_else(|e| panic!("dial {dial}: {e}")));
        assert!(status.borrow_and_update().is_connected(), "the agent was not connected at dial {dial}");
        let now = rig.hub.get(AGENT).expect("the agent can always be called").id();
        if now != before {
            (renewals, before) = (renewals + 1, now);
        }
    }
    call(&mut client).await;
    // What was in flight on the first tunnel is still.
    assert!(timeout(Duration::from_millis(100), slow[0].message()).await.is_err(), "the first tunnel's call was lost");
    drop(slow);
    soon("the first tunnel's end", first.closed()).await;
    let more = resident().saturating_sub(memory);
    eprintln!("D3: {count} dials, {renewals} renewals, {} kB more", more >> 10);
    (renewals, more)
}

#[tokio::test]
async fn worn_out_tunnel_is_renewed_unnoticed() {
    assert!(dials(300, 64).await.0 >= 2, "the tunnel was not renewed");
}

/// D3: the network has no room for a new tunnel: the old one serves on, and is replaced at once when it is lost.
#[tokio::test]
async fn tunnel_that_cannot_be_renewed_serves_on_and_is_missed_when_lost() {
    let rig = Rig::builder().brisk().eager().agent(|agent| agent.renew_after(8)).proxy().start().await;
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let connector = tunnel.connector();
    rig.proxy().refuse().await;
    for _ in 0..100 {
        drop(soon("a dial", connector.dial()).await.expect("the old tunnel serves on"));
    }
    call(&mut rig.client()).await;
    assert_eq!(rig.hub.get(AGENT).map(|now| now.id()), Some(tunnel.id()));

    rig.proxy().cut(common::proxy::Cut::Reset);
    rig.proxy().accept().await;

    common::faults::successor(&rig.hub, tunnel.id(), 3 * SECOND).await;
    call(&mut rig.client()).await;
}

/// D3: calls that follow the agent from tunnel to tunnel do not notice a renewal either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_do_not_notice_that_a_tunnel_is_renewed() {
    let rig = Rig::builder().agent(|agent| agent.renew_after(16)).start().await;
    let connector = rig.hub.connector(AGENT).unwrap();
    let stop = tokio::sync::watch::Sender::new(false);
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, stopped) = (rig.client(), stop.subscribe());
            tokio::spawn(async move {
                while !*stopped.borrow() {
                    call(&mut client).await;
                }
            })
        })
        .collect();
    let first = rig.hub.wait_for(AGENT).await.unwrap();
    for dial in 0..200 {
        drop(soon("a dial", connector.dial()).await.unwrap_or_else(|e| panic!("dial {dial}: {e}")));
    }
    stop.send_replace(true);
    for caller in callers {
        soon("the calls' end", caller).await.expect("no call failed");
    }
    assert_ne!(rig.hub.get(AGENT).expect("the agent is there").id(), first.id(), "the tunnel was not renewed");
}

/// D3: nor do the agent's own dials, on a path where the hub has long changed over when the agent learns of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_dials_do_not_notice_that_their_tunnel_is_renewed() {
    let rig = Rig::builder().proxy().agent(|agent| agent.renew_after(16)).start().await;
    let (connector, mut channel) = (rig.agent.connector(), EchoClient::new(rig.agent.channel()));
    let first = agent_tunnel(&rig);
    rig.proxy().set(common::proxy::Way::Both, |link| link.delay = Duration::from_millis(50));
    let begun = Instant::now();
    let dialling = (0..4).map(|_| {
        let connector = connector.clone();
        tokio::spawn(async move {
            while begun.elapsed() < 4 * SECOND {
                drop(soon("a dial", connector.dial()).await.expect("a channel"));
            }
        })
    });
    let dialling: Vec<_> = dialling.collect();
    while begun.elapsed() < 4 * SECOND {
        soon("a call", channel.unary(payload(""))).await.expect("an answer");
    }
    for task in dialling {
        task.await.expect("no dial failed");
    }
    assert_ne!(agent_tunnel(&rig), first, "the tunnel was not renewed");
}

/// D3: 100,000 channels cost no more memory than those of one tunnel's life.
#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn a_hundred_thousand_dials_cost_no_memory() {
    let _alone = alone().await;
    // As is the default.
    let (renewals, more) = dials(100_000, 1024).await;
    assert!(renewals >= 90, "only {renewals} renewals");
    assert!(more <= 10 << 20, "{more} bytes more");
}

/// D3: an agent that does not renew its tunnel, such as a stock `ssh -R`, loses it before it costs too much, and comes
/// back with a new one.
#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn tunnel_that_is_never_renewed_is_ended_by_the_hub() {
    let _alone = alone().await;
    let rig = Rig::builder().agent(|agent| agent.renew_after(u64::MAX)).eager().start().await;
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let connector = tunnel.connector();
    let mut dials = 0;
    while let Ok(channel) = soon("a dial", connector.dial()).await {
        drop(channel);
        dials += 1;
        assert!(dials < 20_000, "the hub lets it go on for ever");
    }
    let gone = soon("the tunnel's end", tunnel.closed()).await;
    assert!(matches!(gone.reason, dialback::CloseReason::Refused { .. }), "{gone:?}");
    common::faults::successor(&rig.hub, tunnel.id(), 3 * SECOND).await;
    call(&mut rig.client()).await;
    eprintln!("D3: the hub ended the tunnel after {dials} dials");
}

/// How the opens of [`cancelled_opens`] are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Accepted,
    Rejected,
}

/// D6: dials are given up before, while and after their answers arrive. The tunnel lives, and no channel is left.
async fn cancelled_opens(rounds: u64, answer: Answer) {
    const CHANNELS: usize = 8;
    let rig = Rig::builder()
        .hub(|hub| hub.max_channels(CHANNELS))
        .agent(|agent| agent.max_channels(CHANNELS).renew_after(u64::MAX))
        .proxy()
        .start()
        .await;
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let agents = agent_tunnel(&rig);
    let connectors = [tunnel.connector(), rig.agent.connector()];
    if answer == Answer::Rejected {
        drop((rig.agent.incoming(), rig.hub.incoming()));
    }
    let (mut opened, mut refused, mut cancelled) = (0, 0, 0);
    for round in 0..rounds {
        // Every patience from 0 to 20 ms meets every time on the way from 0 to 10 ms, each way.
        rig.proxy().set(Way::Both, |link| link.delay = Duration::from_millis(round * 7 % 11));
        let patience = Duration::from_millis(round % 21);
        let dials = connectors.each_ref().map(|connector| timeout(patience, connector.dial()));
        let [down, up] = dials;
        let (down, up) = tokio::join!(down, up);
        for result in [down, up] {
            match result {
                Ok(Ok(_)) => opened += 1,
                // Those that were given up a moment ago may still count.
                Ok(Err(DialError::Rejected { .. } | DialError::TooManyChannels { .. })) => refused += 1,
                Ok(Err(error)) => panic!("round {round}: {error}"),
                Err(_) => cancelled += 1,
            }
        }
    }
    rig.proxy().set(Way::Both, |link| link.delay = Duration::ZERO);
    let _servers = (answer == Answer::Rejected)
        .then(|| (serve(&rig.echo, rig.agent.incoming()), serve(&rig.hub_echo, rig.hub.incoming())));

    // A channel that was left over would take one of the places.
    for connector in &connectors {
        soon("room for as many channels as ever", async {
            loop {
                let mut all = Vec::new();
                while let Ok(channel) = connector.dial().await {
                    all.push(channel);
                }
                if all.len() == CHANNELS {
                    return;
                }
                drop(all);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    assert_eq!((rig.hub.get(AGENT).map(|now| now.id()), agent_tunnel(&rig)), (Some(tunnel.id()), agents));
    // The hub waits for every channel that it counts.
    within(2 * SECOND, "the drain", rig.hub.shutdown(60 * SECOND)).await;
    eprintln!("D6 {answer:?}, {rounds} rounds: {opened} opened, {refused} refused, {cancelled} cancelled");
}

#[tokio::test]
async fn dials_that_are_given_up_leave_nothing() {
    cancelled_opens(150, Answer::Accepted).await;
}

#[tokio::test]
async fn rejected_dials_that_are_given_up_leave_nothing() {
    cancelled_opens(150, Answer::Rejected).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn ten_thousand_dials_that_are_given_up_leave_nothing() {
    let _alone = alone().await;
    // A tunnel that is not renewed lives for some thousand channels.
    for _ in 0..5 {
        cancelled_opens(1_000, Answer::Accepted).await;
        cancelled_opens(1_000, Answer::Rejected).await;
    }
}

/// Callers with less patience than connecting takes share one attempt: if each began its own, none would ever come to its end,
/// and their channels would pile up.
#[tokio::test]
async fn calls_in_a_hurry_share_one_attempt_to_connect() {
    let rig = Rig::builder().hub(|hub| hub.max_channels(1)).proxy().start().await;
    rig.hub.wait_for(AGENT).await.unwrap();
    rig.proxy().set(Way::Both, |link| link.delay = Duration::from_millis(100));
    let mut client = EchoClient::new(rig.hub.channel(AGENT).unwrap());

    for round in 0..300 {
        let answer = timeout(Duration::from_millis(1), client.unary(payload("hurry"))).await;
        assert!(!matches!(answer, Ok(Err(_))), "round {round}: {answer:?}");
    }

    let answer = soon("an answer", client.unary(payload("patience"))).await.unwrap();
    assert_eq!(answer.into_inner().data, b"patience");
}
