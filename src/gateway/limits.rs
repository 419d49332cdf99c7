//! How many calls each caller has in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::policy::CallerName;

/// Counts calls by caller; those without a name count together. Clones share the counts.
#[derive(Debug, Clone)]
pub(super) struct InFlight {
    limit: usize,
    counts: Arc<Mutex<HashMap<Option<CallerName>, usize>>>,
}

/// One call; dropping it ends the counting.
#[derive(Debug)]
pub(super) struct Place {
    in_flight: InFlight,
    caller: Option<CallerName>,
}

impl InFlight {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, counts: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<CallerName>, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None when the caller has as many as it may; the limit is [`InFlight::limit`].
    pub(super) fn enter(&self, caller: &Option<CallerName>) -> Option<Place> {
        let mut counts = self.lock();
        let count = counts.entry(caller.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Place { in_flight: self.clone(), caller: caller.clone() })
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.in_flight.lock();
        if let Some(count) = counts.get_mut(&self.caller) {
            *count -= 1;
            // Callers of policies that are gone must not pile up.
            if *count == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_caller_and_nothing_is_kept() {
        let in_flight = InFlight::new(2);
        let places = [in_flight.enter(&None), in_flight.enter(&None)];
        assert!(places.iter().all(Option::is_some) && in_flight.enter(&None).is_none());
        drop(places);
        assert!(in_flight.lock().is_empty());
        assert!(InFlight::new(0).enter(&None).is_none());
    }
}
