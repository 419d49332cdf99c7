use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::close::CloseReason;

/// A tunnel without anything behind it.
#[derive(Debug, Clone)]
struct Fake(Rc<Flags>);

#[derive(Debug)]
struct Flags {
    id: TunnelId,
    closed: Cell<bool>,
    draining: Cell<bool>,
    suspect: Cell<bool>,
    load: Cell<usize>,
}

impl Fake {
    fn new() -> Self {
        let flag = || Cell::new(false);
        let (closed, draining, suspect) = (flag(), flag(), flag());
        Self(Rc::new(Flags { id: TunnelId::next(), closed, draining, suspect, load: Cell::new(0) }))
    }
}

fn gone() -> Disconnected {
    Disconnected::now(CloseReason::KeepaliveTimeout)
}

impl Candidate for Fake {
    fn is_closed(&self) -> bool {
        self.0.closed.get()
    }

    fn gone(&self) -> Option<Disconnected> {
        self.is_closed().then(gone)
    }

    fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    fn is_suspect(&self) -> bool {
        self.0.suspect.get()
    }

    fn load(&self) -> usize {
        self.0.load.get()
    }

    #[cfg(feature = "gateway")]
    fn labels(&self) -> Arc<Labels> {
        Arc::default()
    }
}

fn agent(n: u8) -> AgentId {
    format!("laptop-{n}").parse().expect("an id")
}

fn newcomer(n: u8, holder: u8, seat: Option<(u64, u16)>) -> Newcomer<Fake> {
    let handle = Fake::new();
    let seat = seat.map(|(instance, slot)| Seat { instance, slot });
    Newcomer { id: handle.0.id, agent: agent(n), holder: holder.to_string().into(), seat, peer: None, handle }
}

/// Admits a tunnel and offers it.
fn join(roster: &mut Roster<Fake>, newcomer: Newcomer<Fake>) -> Result<Offer<Fake>, String> {
    let id = newcomer.id;
    roster.admit(newcomer)?;
    roster.offer(id, &Labels::new(), Some("key"))
}

fn to(n: u8) -> Selector {
    Selector::Agent(agent(n))
}

fn pool() -> Roster<Fake> {
    Roster::new(TunnelPolicy::Pool, Balance::LeastBusy)
}

#[test]
fn less_busy_of_two_is_picked() {
    let mut roster = pool();
    let members: Vec<_> = (0..2).map(|n| newcomer(1, 0, Some((n, 0)))).collect();
    for (load, member) in members.iter().enumerate() {
        member.handle.0.load.set(load);
        join(&mut roster, member.clone()).unwrap();
    }
    for random in [(0, 0), (1, 0), (7, 9)] {
        assert_eq!(roster.pick(&to(1), None, random, &|_| true).unwrap().0.id, members[0].id);
    }
    assert_eq!(roster.pick(&to(1), Some(members[0].id), (0, 0), &|_| true).unwrap().0.id, members[1].id);
}

#[test]
fn round_robin_takes_turns() {
    let mut roster = Roster::new(TunnelPolicy::Pool, Balance::RoundRobin);
    for n in 0..3 {
        join(&mut roster, newcomer(1, 0, Some((n, 0)))).unwrap();
    }
    let mut picks: Vec<_> = (0..6).map(|_| roster.pick(&to(1), None, (0, 0), &|_| true).unwrap().0.id).collect();
    assert_eq!(picks[..3], picks[3..]);
    picks.sort();
    picks.dedup();
    assert_eq!(picks.len(), 3);
}

#[test]
fn suspect_is_picked_only_where_there_is_nobody_else() {
    let mut roster = pool();
    let (old, new) = (newcomer(1, 0, Some((1, 0))), newcomer(1, 0, Some((2, 0))));
    join(&mut roster, old.clone()).unwrap();
    let offer = join(&mut roster, new.clone()).unwrap();
    let Offer::Ready { suspects, .. } = offer else { panic!("{offer:?}") };
    assert_eq!(suspects[0].0.id, old.id);
    old.handle.0.suspect.set(true);
    for random in 0..4 {
        assert_eq!(roster.pick(&to(1), None, (random, 0), &|_| true).unwrap().0.id, new.id);
    }
    new.handle.0.closed.set(true);
    assert_eq!(roster.pick(&to(1), None, (0, 0), &|_| true).unwrap().0.id, old.id);
}

#[test]
fn connection_that_comes_back_takes_its_seat_under_every_policy() {
    for policy in [TunnelPolicy::Pool, TunnelPolicy::Replace, TunnelPolicy::Reject] {
        let mut roster = Roster::new(policy, Balance::LeastBusy);
        let (old, sibling) = (newcomer(1, 0, Some((1, 0))), newcomer(1, 0, Some((1, 1))));
        join(&mut roster, old.clone()).unwrap();
        let offer = join(&mut roster, sibling).unwrap();
        assert!(
            matches!(&offer, Offer::Ready { replaced, suspects } if replaced.is_empty() && suspects.is_empty()),
            "{offer:?}"
        );
        let offer = join(&mut roster, newcomer(1, 0, Some((1, 0)))).unwrap();
        assert!(matches!(&offer, Offer::Ready { replaced, .. } if replaced[0].0.id == old.id), "{policy:?}: {offer:?}");
    }
}

#[test]
fn absence_is_explained() {
    let mut roster = pool();
    assert!(matches!(roster.pick(&to(1), None, (0, 0), &|_| true), Err(DialError::NotConnected { .. })));
    let member = newcomer(1, 0, None);
    roster.admit(member.clone()).unwrap();
    assert!(matches!(roster.pick(&to(1), None, (0, 0), &|_| true), Err(DialError::NotReady { .. })));
    roster.offer(member.id, &Labels::new(), Some("key")).unwrap();
    roster.withdraw(member.id);
    member.handle.0.draining.set(true);
    assert!(matches!(roster.pick(&to(1), None, (0, 0), &|_| true), Err(DialError::Draining { .. })));
    member.handle.0.closed.set(true);
    assert!(matches!(roster.pick(&to(1), None, (0, 0), &|_| true), Err(DialError::Disconnected { .. })));
    roster.leave(member.id, gone());
    let error = roster.pick(&to(1), None, (0, 0), &|_| true).unwrap_err().to_string();
    assert!(error.contains("`laptop-1` is away since 2") && error.contains("keepalive"), "{error}");
    let error =
        roster.pick(&Selector::Label("site".into(), "x\n".into()), None, (0, 0), &|_| true).unwrap_err().to_string();
    assert_eq!(error, "an agent with the label `site=x\\n` is not connected");
}

#[test]
fn goodbyes_that_are_remembered_are_bounded() {
    let mut roster = pool();
    for n in 0..REMEMBERED + 10 {
        let mut member = newcomer(0, 0, None);
        member.agent = format!("a{n}").parse().unwrap();
        let id = member.id;
        roster.admit(member).unwrap();
        roster.leave(id, gone());
        roster.take_events();
    }
    assert!(roster.gone.len() <= REMEMBERED);
}

/// One thing that may happen; numbers choose among the tunnels there are.
#[derive(Debug, Clone)]
enum Op {
    Admit {
        agent: u8,
        holder: u8,
        seat: Option<(u64, u16)>,
    },
    Offer(u8),
    Withdraw(u8),
    /// It ends, and says so only later.
    End(u8),
    Leave(u8),
    Suspect(u8),
    Pick(Selector, (u32, u32)),
    Close,
}

fn selectors() -> impl Strategy<Value = Selector> {
    prop_oneof![
        (0..3u8).prop_map(to),
        (0..3u8).prop_map(|n| Selector::Key(n.to_string().into())),
        (0..3u8).prop_map(|n| Selector::Label("site".into(), n.to_string().into())),
        Just(Selector::Any),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let seat = proptest::option::weighted(0.7, (0..2u64, 0..2u16));
    prop_oneof![
        6 => (0..3u8, 0..12u8, seat)
            .prop_map(|(agent, holder, seat)| Op::Admit { agent, holder: u8::from(holder == 0), seat }),
        6 => any::<u8>().prop_map(Op::Offer),
        1 => any::<u8>().prop_map(Op::Withdraw),
        2 => any::<u8>().prop_map(Op::End),
        3 => any::<u8>().prop_map(Op::Leave),
        1 => any::<u8>().prop_map(Op::Suspect),
        8 => (selectors(), any::<(u32, u32)>()).prop_map(|(wanted, random)| Op::Pick(wanted, random)),
    ]
}

/// How far each tunnel has got by what was told.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Told {
    Opened,
    Ready,
    Draining,
    Closed,
}

/// A roster, and all that has happened to it.
struct World {
    roster: Roster<Fake>,
    policy: TunnelPolicy,
    tunnels: Vec<Newcomer<Fake>>,
    told: HashMap<TunnelId, Told>,
    /// Those that have left.
    left: Vec<TunnelId>,
}

impl World {
    fn nth(&self, n: u8) -> Option<Newcomer<Fake>> {
        let there: Vec<_> = self.tunnels.iter().filter(|t| !self.left.contains(&t.id)).collect();
        (!there.is_empty()).then(|| there[usize::from(n) % there.len()].clone())
    }

    fn is_ready(&self, id: TunnelId) -> bool {
        self.roster.members.get(&id).is_some_and(|member| !member.groups.is_empty())
    }

    /// What a tunnel is found by.
    fn matches(tunnel: &Newcomer<Fake>, wanted: &Selector) -> bool {
        let n = tunnel.agent.as_str().trim_start_matches("laptop-");
        match wanted {
            Selector::Agent(agent) => *agent == tunnel.agent,
            Selector::Key(key) => &**key == n,
            Selector::Label(name, value) => &**name == "site" && &**value == n,
            Selector::Any => true,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Admit { agent, holder, seat } => {
                let tunnel = newcomer(agent, holder, seat);
                if self.roster.admit(tunnel.clone()).is_ok() {
                    self.tunnels.push(tunnel);
                }
            }
            Op::Offer(n) => {
                let Some(tunnel) = self.nth(n) else { return };
                let site = tunnel.agent.as_str().trim_start_matches("laptop-").to_owned();
                let labels = Labels::from([("site".to_owned(), site.clone())]);
                match self.roster.offer(tunnel.id, &labels, Some(&site)) {
                    Ok(Offer::Ready { replaced, .. }) => {
                        assert!(self.is_ready(tunnel.id));
                        for old in replaced {
                            assert!(!self.is_ready(old.0.id), "a replaced tunnel can be called");
                            old.0.draining.set(true);
                        }
                    }
                    Ok(Offer::Repeated) => assert!(self.is_ready(tunnel.id)),
                    Ok(Offer::Contested(Contest { rivals, reason })) => {
                        assert!(self.policy == TunnelPolicy::Reject || reason.contains("another key"), "{reason}");
                        assert!(!rivals.is_empty());
                        assert!(!self.is_ready(tunnel.id));
                    }
                    Err(_) => assert!(self.roster.closing || !self.is_ready(tunnel.id)),
                }
            }
            Op::Withdraw(n) => {
                let Some(tunnel) = self.nth(n) else { return };
                self.roster.withdraw(tunnel.id);
                tunnel.handle.0.draining.set(true);
            }
            Op::End(n) => {
                let Some(tunnel) = self.nth(n) else { return };
                tunnel.handle.0.closed.set(true);
            }
            Op::Leave(n) => {
                let Some(tunnel) = self.nth(n) else { return };
                tunnel.handle.0.closed.set(true);
                self.roster.leave(tunnel.id, gone());
                self.left.push(tunnel.id);
            }
            Op::Suspect(n) => {
                let Some(tunnel) = self.nth(n) else { return };
                tunnel.handle.0.suspect.set(true);
            }
            Op::Pick(wanted, random) => self.pick(&wanted, random),
            Op::Close => {
                self.roster.close();
            }
        }
        self.listen();
        self.look();
    }

    fn pick(&mut self, wanted: &Selector, random: (u32, u32)) {
        let callable = |t: &&Newcomer<Fake>| self.is_ready(t.id) && is_usable(&t.handle) && Self::matches(t, wanted);
        let callable: Vec<_> = self.tunnels.iter().filter(callable).cloned().collect();
        match self.roster.pick(wanted, None, random, &|_| true) {
            Ok(picked) => {
                assert!(callable.iter().any(|t| t.id == picked.0.id), "a tunnel that cannot be called was picked");
                assert_ne!(
                    self.told.get(&picked.0.id),
                    Some(&Told::Closed),
                    "a call to a tunnel that was reported closed"
                );
                let all_suspect = callable.iter().all(|t| t.handle.is_suspect());
                assert!(!picked.is_suspect() || all_suspect, "a suspect was picked where there was another");
            }
            Err(error) => assert!(callable.is_empty() || self.roster.closing, "{error}, though there is one"),
        }
        if let Some(first) = callable.first() {
            let other = self.roster.pick(wanted, Some(first.id), random, &|_| true);
            assert!(other.is_err() || other.is_ok_and(|other| other.0.id != first.id));
        }
    }

    /// Every tunnel's events come in order, each at most once.
    fn listen(&mut self) {
        for event in self.roster.take_events() {
            let (id, now) = match event {
                HubEvent::Opened { tunnel_id, .. } => (tunnel_id, Told::Opened),
                HubEvent::Ready { tunnel_id, .. } => (tunnel_id, Told::Ready),
                HubEvent::Closed { tunnel_id, .. } => (tunnel_id, Told::Closed),
                HubEvent::Draining { tunnel_id, .. } => (tunnel_id, Told::Draining),
                HubEvent::Rejected { .. } => continue,
            };
            let before = self.told.insert(id, now);
            assert!(before.is_none() == (now == Told::Opened) && before < Some(now), "{id}: {before:?}, then {now:?}");
        }
    }

    fn look(&self) {
        let roster = &self.roster;
        for (selector, group) in &roster.groups {
            assert!(!group.members.is_empty(), "an empty group was left behind");
            for (id, _) in &group.members {
                assert!(roster.members[id].groups.contains(selector), "{selector} holds a tunnel that is not in it");
            }
        }
        for (id, member) in &roster.members {
            for selector in &member.groups {
                let here = roster.groups[selector].members.iter().filter(|(other, _)| other == id).count();
                assert_eq!(here, 1, "{selector} does not hold its tunnel once");
            }
            assert!(roster.agents[&member.newcomer.agent].contains(id));
        }
        assert_eq!(roster.agents.values().map(Vec::len).sum::<usize>(), roster.members.len());
        for n in 0..3 {
            let live: Vec<_> = roster.ready_of(&agent(n)).filter(|t| !t.handle.is_closed()).collect();
            for (i, a) in live.iter().enumerate() {
                for b in &live[i + 1..] {
                    assert_eq!(a.holder, b.holder, "two keys hold one id");
                    assert!(a.seat.is_none() || a.seat != b.seat, "two tunnels in one seat");
                    let same = a.seat.is_some_and(|a| b.seat.is_some_and(|b| a.instance == b.instance));
                    assert!(same || self.policy == TunnelPolicy::Pool, "two agents under {:?}", self.policy);
                }
            }
        }
    }

    /// Everything ends, late goodbyes included: nothing is left.
    fn end(mut self) {
        for tunnel in self.tunnels.clone() {
            if !self.left.contains(&tunnel.id) {
                tunnel.handle.0.closed.set(true);
                self.roster.leave(tunnel.id, gone());
            }
        }
        self.listen();
        let roster = &self.roster;
        assert!(roster.members.is_empty() && roster.agents.is_empty() && roster.groups.is_empty());
        assert!(self.told.values().all(|told| *told == Told::Closed), "a goodbye was not told");
        assert_eq!(self.told.len(), self.tunnels.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_the_invariants(
        policy in prop_oneof![Just(TunnelPolicy::Pool), Just(TunnelPolicy::Replace), Just(TunnelPolicy::Reject)],
        balance in prop_oneof![Just(Balance::LeastBusy), Just(Balance::RoundRobin)],
        ops in proptest::collection::vec(ops(), 1..60),
        closes in proptest::bool::weighted(0.1),
        more in proptest::collection::vec(ops(), 1..10),
    ) {
        let (tunnels, left, told) = (Vec::new(), Vec::new(), HashMap::new());
        let mut world = World { roster: Roster::new(policy, balance), policy, tunnels, left, told };
        let end = if closes { vec![Op::Close] } else { Vec::new() };
        for op in ops.into_iter().chain(end).chain(more) {
            world.run(op);
        }
        world.end();
    }
}
