//! Names that somebody perhaps meant.

use std::collections::HashSet;

/// How many names are looked at, and how long they may be: to compare them with another takes its time, and a server may
/// have sent them.
const MOST: usize = 10_000;
const LONGEST: usize = 512;

/// The names that are most like one: at most three, and none that is altogether different.
pub(in crate::grpc) fn nearest(name: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    if name.len() > LONGEST {
        return Vec::new();
    }
    let last = |name: &str| name.rsplit(['.', '/']).next().unwrap_or_default().to_ascii_lowercase();
    let score = |other: &str| {
        let whole = strsim::normalized_damerau_levenshtein(&name.to_ascii_lowercase(), &other.to_ascii_lowercase());
        // Names of one package are alike as a whole, whatever comes last.
        let whole = if whole >= 0.9 { whole } else { 0.0 };
        whole.max(strsim::normalized_damerau_levenshtein(&last(name), &last(other)))
    };
    let names = names.into_iter().filter(|other| other != name && other.len() <= LONGEST).take(MOST);
    let names: HashSet<String> = names.collect();
    let mut scored: Vec<_> = names.into_iter().map(|other| (score(&other), other)).collect();
    scored.retain(|(score, _)| *score >= 0.6);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// A sentence that names what was perhaps meant, to follow another; empty if there is nothing.
pub(in crate::grpc) fn perhaps(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(". Is it {}?", names.join(" or ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_come_first() {
        let names = ["a.v1.Greeter", "a.v1.Echo", "grpc.health.v1.Health"].map(String::from);
        assert_eq!(nearest("a.v1.Greter", names.clone()), ["a.v1.Greeter"]);
        assert_eq!(nearest("echo", names.clone()), ["a.v1.Echo"]);
        assert_eq!(nearest("zzz", names), [""; 0]);
    }
}
