//! Who may knock: connections that have not authenticated, in total and per source. Decisions only, no I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long a stranger keeps its place when others want it. An honest login takes milliseconds; a busy hub must not
/// turn away logins that are under way, and silent connections must not keep everybody out.
const PATIENCE: Duration = Duration::from_millis(500);

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
    /// All places are taken by strangers who have only just come.
    Full,
}

/// The strangers of one hub.
#[derive(Debug)]
pub(crate) struct Strangers {
    limits: StrangerLimits,
    next: u64,
    /// Oldest first.
    places: BTreeMap<Place, (IpAddr, Instant)>,
    sources: HashMap<IpAddr, usize>,
}

impl Strangers {
    pub(crate) fn new(limits: StrangerLimits) -> Self {
        Self { limits, next: 0, places: BTreeMap::new(), sources: HashMap::new() }
    }

    pub(crate) fn enter(&mut self, from: IpAddr, now: Instant) -> Admission {
        let source = source_of(from);
        if self.sources.get(&source).copied().unwrap_or(0) >= self.limits.per_source {
            return Admission::SourceFull;
        }
        let mut evicted = None;
        if self.places.len() >= self.limits.total {
            match self.places.first_key_value() {
                Some((oldest, (_, since))) if now.duration_since(*since) >= PATIENCE => evicted = Some(*oldest),
                _ => return Admission::Full,
            }
        }
        if let Some(oldest) = evicted {
            self.leave(oldest);
        }
        let place = Place(self.next);
        self.next += 1;
        self.places.insert(place, (source, now));
        *self.sources.entry(source).or_default() += 1;
        Admission::Admitted { place, evicted }
    }

    /// The stranger has left, or is none any more. Leaving twice is leaving once.
    pub(crate) fn leave(&mut self, place: Place) {
        let Some((source, _)) = self.places.remove(&place) else { return };
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
        let first = place(s.enter(a, now));
        place(s.enter(a, now));
        assert_eq!(s.enter(a, now), Admission::SourceFull);
        place(s.enter("192.0.2.2".parse().unwrap(), now));
        s.leave(first);
        s.leave(first);
        place(s.enter(a, now));
        assert_eq!(s.enter(a, now), Admission::SourceFull);
    }

    #[test]
    fn ipv6_is_counted_by_network_and_mapped_ipv4_as_ipv4() {
        let (mut s, now) = (strangers(10, 1), Instant::now());
        place(s.enter("2001:db8::1".parse().unwrap(), now));
        assert_eq!(s.enter("2001:db8::2".parse().unwrap(), now), Admission::SourceFull);
        place(s.enter("2001:db8:0:1::1".parse().unwrap(), now));
        place(s.enter("::ffff:192.0.2.1".parse().unwrap(), now));
        assert_eq!(s.enter("192.0.2.1".parse().unwrap(), now), Admission::SourceFull);
    }

    #[test]
    fn oldest_stranger_gives_way_once_it_has_had_its_time() {
        let (mut s, now) = (strangers(2, 9), Instant::now());
        let a = "192.0.2.1".parse().unwrap();
        let oldest = place(s.enter(a, now));
        place(s.enter(a, now));
        assert_eq!(s.enter(a, now), Admission::Full);
        let later = now + PATIENCE;
        assert!(matches!(s.enter(a, later), Admission::Admitted { evicted: Some(e), .. } if e == oldest));
        assert_eq!(s.places.len(), 2);
    }

    #[test]
    fn nothing_is_kept_of_those_who_left() {
        let (mut s, now) = (strangers(100, 100), Instant::now());
        for n in 0..100u8 {
            let p = place(s.enter(IpAddr::from([192, 0, 2, n]), now));
            s.leave(p);
        }
        assert!(s.places.is_empty() && s.sources.is_empty());
    }
}
