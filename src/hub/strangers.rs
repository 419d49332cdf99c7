//! Who may knock: connections that have not authenticated, in total and per source. Decisions only, no I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long a stranger keeps its place when others want it, for each round trip that it takes to begin a key exchange: silent
/// connections must not keep everybody out.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long one keeps it that has begun: a hub that all its agents come back to at once must not turn away logins that
/// are under way, or none would ever be done.
const LOGIN_PATIENCE: Duration = Duration::from_secs(5);

/// The bounds on connections that have not authenticated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StrangerLimits {
    pub(crate) total: usize,
    pub(crate) per_source: usize,
}

impl Default for StrangerLimits {
    fn default() -> Self {
        Self { total: 128, per_source: 16 }
    }
}

/// The place of one stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place(u64);

/// What becomes of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted {
        place: Place,
        evicted: Option<Place>,
    },
    /// Its source has too many already.
    SourceFull,
    /// All places are taken by strangers who have as much right to them.
    Full,
}

#[derive(Debug)]
struct Stranger {
    source: Option<IpAddr>,
    since: Instant,
    patience: Duration,
    has_begun: bool,
}

impl Stranger {
    fn has_had_its_time(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= if self.has_begun { LOGIN_PATIENCE } else { self.patience }
    }
}

/// The strangers of one hub.
#[derive(Debug)]
pub(crate) struct Strangers {
    limits: StrangerLimits,
    next: u64,
    /// Oldest first.
    places: BTreeMap<Place, Stranger>,
    sources: HashMap<Option<IpAddr>, usize>,
}

impl Strangers {
    pub(crate) fn new(limits: StrangerLimits) -> Self {
        Self { limits, next: 0, places: BTreeMap::new(), sources: HashMap::new() }
    }

    /// Those of whom no address is known are one source, without a limit of its own.
    pub(crate) fn enter(&mut self, from: Option<IpAddr>, round_trips: u32, now: Instant) -> Admission {
        let source = from.map(source_of);
        let own = self.sources.get(&source).copied().unwrap_or(0);
        if source.is_some() && own >= self.limits.per_source {
            return Admission::SourceFull;
        }
        let mut evicted = None;
        if self.places.len() >= self.limits.total {
            evicted = self.newest_of_a_greedier(own).or_else(|| self.slowest(now));
            match evicted {
                Some(place) => self.leave(place),
                None => return Admission::Full,
            }
        }
        let place = Place(self.next);
        self.next += 1;
        self.places.insert(place, Stranger { source, since: now, patience: PATIENCE * round_trips, has_begun: false });
        *self.sources.entry(source).or_default() += 1;
        Admission::Admitted { place, evicted }
    }

    /// The newest stranger of the source with the most places, if it still has no fewer than the newcomer's then.
    fn newest_of_a_greedier(&self, own: usize) -> Option<Place> {
        let (source, _) =
            self.sources.iter().filter(|(_, count)| **count > own + 1).max_by_key(|(_, count)| **count)?;
        self.places.iter().rev().find(|(_, stranger)| stranger.source == *source).map(|(place, _)| *place)
    }

    /// The oldest of those who have had their time; one that has begun a key exchange only if there is no other.
    fn slowest(&self, now: Instant) -> Option<Place> {
        let over = self.places.iter().filter(|(_, stranger)| stranger.has_had_its_time(now));
        over.min_by_key(|(_, stranger)| stranger.has_begun).map(|(place, _)| *place)
    }

    /// Whoever vouches for the stranger has said where it comes from. Says whether it may stay: its source may have as
    /// many already as it may.
    pub(crate) fn comes_from(&mut self, place: Place, from: IpAddr) -> bool {
        let source = Some(source_of(from));
        if self.sources.get(&source).is_some_and(|own| *own >= self.limits.per_source) {
            return false;
        }
        let Some(stranger) = self.places.get_mut(&place) else { return true };
        let before = std::mem::replace(&mut stranger.source, source);
        self.forget_one_of(before);
        *self.sources.entry(source).or_default() += 1;
        true
    }

    /// The stranger has begun a key exchange.
    pub(crate) fn begins(&mut self, place: Place) {
        if let Some(stranger) = self.places.get_mut(&place) {
            stranger.has_begun = true;
        }
    }

    /// The stranger has left, or is none any more. Leaving twice is leaving once.
    pub(crate) fn leave(&mut self, place: Place) {
        if let Some(Stranger { source, .. }) = self.places.remove(&place) {
            self.forget_one_of(source);
        }
    }

    fn forget_one_of(&mut self, source: Option<IpAddr>) {
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

/// One IPv4 address, or one IPv6 network of 64 bits: what a single customer is given.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strangers(total: usize, per_source: usize) -> Strangers {
        Strangers::new(StrangerLimits { total, per_source })
    }

    fn place(admission: Admission) -> Place {
        match admission {
            Admission::Admitted { place, .. } => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_source_cannot_take_every_place() {
        let (mut s, now) = (strangers(10, 2), Instant::now());
        let a = "192.0.2.1".parse().unwrap();
        let first = place(s.enter(Some(a), 1, now));
        place(s.enter(Some(a), 1, now));
        assert_eq!(s.enter(Some(a), 1, now), Admission::SourceFull);
        place(s.enter(Some("192.0.2.2".parse().unwrap()), 1, now));
        s.leave(first);
        s.leave(first);
        place(s.enter(Some(a), 1, now));
        assert_eq!(s.enter(Some(a), 1, now), Admission::SourceFull);
    }

    #[test]
    fn ipv6_is_counted_by_network_and_mapped_ipv4_as_ipv4() {
        let (mut s, now) = (strangers(10, 1), Instant::now());
        place(s.enter(Some("2001:db8::1".parse().unwrap()), 1, now));
        assert_eq!(s.enter(Some("2001:db8::2".parse().unwrap()), 1, now), Admission::SourceFull);
        place(s.enter(Some("2001:db8:0:1::1".parse().unwrap()), 1, now));
        place(s.enter(Some("::ffff:192.0.2.1".parse().unwrap()), 1, now));
        assert_eq!(s.enter(Some("192.0.2.1".parse().unwrap()), 1, now), Admission::SourceFull);
    }

    #[test]
    fn oldest_stranger_gives_way_once_it_has_had_its_time() {
        let (mut s, now) = (strangers(2, 9), Instant::now());
        let a = "192.0.2.1".parse().unwrap();
        let oldest = place(s.enter(Some(a), 1, now));
        place(s.enter(Some(a), 1, now));
        assert_eq!(s.enter(Some(a), 1, now), Admission::Full);
        let later = now + PATIENCE;
        assert!(matches!(s.enter(Some(a), 1, later), Admission::Admitted { evicted: Some(e), .. } if e == oldest));
        assert_eq!(s.places.len(), 2);
    }

    #[test]
    fn source_with_many_places_gives_way_to_one_with_few() {
        let (mut s, now) = (strangers(4, 9), Instant::now());
        let [a, b, c] = [1, 2, 3].map(|n| IpAddr::from([192, 0, 2, n]));
        place(s.enter(Some(b), 1, now));
        for _ in 0..2 {
            place(s.enter(Some(a), 1, now));
        }
        let newest = place(s.enter(Some(a), 1, now));
        assert!(matches!(s.enter(Some(c), 1, now), Admission::Admitted { evicted: Some(e), .. } if e == newest));
        // A second place for one would be taken from another's second.
        assert_eq!(s.enter(Some(c), 1, now), Admission::Full);
    }

    #[test]
    fn stranger_that_begins_a_login_has_more_time() {
        let (mut s, now) = (strangers(2, 9), Instant::now());
        let a = "192.0.2.1".parse().unwrap();
        let oldest = place(s.enter(Some(a), 1, now));
        let silent = place(s.enter(Some(a), 1, now));
        s.begins(oldest);
        let newcomer = |s: &mut Strangers, at| match s.enter(Some(a), 1, at) {
            Admission::Admitted { place, evicted: Some(evicted) } => {
                s.begins(place);
                evicted
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(newcomer(&mut s, now + PATIENCE), silent);
        assert_eq!(s.enter(Some(a), 1, now + PATIENCE * 2), Admission::Full);
        assert_eq!(newcomer(&mut s, now + LOGIN_PATIENCE), oldest);
    }

    /// A fleet on far paths comes back to its hub, each agent from its own address, and each tries again as agents do.
    #[test]
    fn logins_under_way_are_finished_however_many_knock() {
        const LOGIN: Duration = Duration::from_millis(1300); // at 200 ms of round-trip time
        const BEGUN: Duration = Duration::from_millis(200);
        const TRIES_PER_SECOND: u32 = 1000;
        let (mut s, start) = (Strangers::new(StrangerLimits::default()), Instant::now());
        let (mut under_way, mut done, mut evictions) = (BTreeMap::new(), 0, 0);
        for n in 0..20 * TRIES_PER_SECOND {
            let now = start + Duration::from_secs(1) / TRIES_PER_SECOND * n;
            under_way.retain(|place, since: &mut Instant| {
                if now - *since >= BEGUN {
                    s.begins(*place);
                }
                let ready = now - *since >= LOGIN;
                if ready {
                    s.leave(*place);
                    done += 1;
                }
                !ready
            });
            if let Admission::Admitted { place, evicted } =
                s.enter(Some(IpAddr::from((0x0a00_0000 + n).to_be_bytes())), 1, now)
            {
                evictions += usize::from(evicted.and_then(|place| under_way.remove(&place)).is_some());
                under_way.insert(place, now);
            }
        }
        // As many as there are places, all the time.
        assert!(evictions == 0 && done > 128 * 13, "{done} logins, {evictions} evicted");
    }

    #[test]
    fn nothing_is_kept_of_those_who_left() {
        let (mut s, now) = (strangers(100, 100), Instant::now());
        for n in 0..100u8 {
            let p = place(s.enter(Some(IpAddr::from([192, 0, 2, n])), 1, now));
            s.leave(p);
        }
        assert!(s.places.is_empty() && s.sources.is_empty());
    }

    #[test]
    fn strangers_that_a_proxy_speaks_for_are_counted_where_they_come_from() {
        let mut s = Strangers::new(StrangerLimits { total: 10, per_source: 1 });
        let now = Instant::now();
        let [first, second] = [place(s.enter(None, 1, now)), place(s.enter(None, 1, now))];
        let a = [192, 0, 2, 1].into();
        assert!(s.comes_from(first, a));
        assert!(!s.comes_from(second, a), "one from there is all that may be");
        s.leave(first);
        assert!(s.comes_from(second, a));
        s.leave(second);
        assert!(s.places.is_empty() && s.sources.is_empty());
    }

    #[test]
    fn those_without_an_address_share_the_total_alone() {
        let mut s = Strangers::new(StrangerLimits { total: 4, per_source: 1 });
        let now = Instant::now();
        for _ in 0..4 {
            place(s.enter(None, 1, now));
        }
        assert_eq!(s.enter(None, 1, now), Admission::Full);
        assert!(matches!(s.enter(Some([192, 0, 2, 1].into()), 1, now), Admission::Admitted { evicted: Some(_), .. }));
    }
}
