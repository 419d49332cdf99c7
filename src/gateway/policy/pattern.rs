//! What a policy's patterns and names stand for.

use std::borrow::Cow;
use std::net::IpAddr;

/// An entry of `methods`.
#[derive(Debug)]
pub(super) enum Methods {
    All,
    /// `/package.Service/`
    Service(String),
    One(String),
}

impl Methods {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        // What else cannot be in a path would never be called.
        let plain =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && !b"*/?#".contains(&b));
        match text.strip_prefix('/')?.split_once('/')? {
            (service, "*") if plain(service) => Some(Self::Service(format!("/{service}/"))),
            (service, method) if plain(service) && plain(method) => Some(Self::One(text.into())),
            _ => None,
        }
    }

    pub(super) fn contain(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Service(service) => {
                path.strip_prefix(&**service).is_some_and(|method| !method.is_empty() && !method.contains('/'))
            }
            Self::One(method) => path == method,
        }
    }
}

/// A pattern in which `*` stands for any run of characters, also an empty one.
#[derive(Debug)]
pub(super) struct Glob(String);

impl Glob {
    /// A pattern for any text.
    pub(super) fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// A pattern for agent ids; none if it has what no id has.
    pub(super) fn agent(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'*');
        (!text.is_empty() && text.bytes().all(allowed)).then(|| Self(text.into()))
    }

    /// Takes at most as many steps as the lengths multiplied. Where the text does not fit, only the last `*` takes one
    /// byte more: whatever an earlier one could take, the last can take too.
    pub(super) fn matches(&self, text: &str) -> bool {
        let (mut pattern, mut text) = (self.0.as_bytes(), text.as_bytes());
        // The pattern behind the last `*`, and the text behind what that took.
        let mut star: Option<(&[u8], &[u8])> = None;
        loop {
            (pattern, text) = match (pattern, text) {
                ([b'*', behind @ ..], _) => {
                    star = Some((behind, text));
                    (behind, text)
                }
                ([a, pattern @ ..], [b, text @ ..]) if a == b => (pattern, text),
                ([], []) => return true,
                (_, []) => return false,
                _ => match star {
                    Some((behind, [_, text @ ..])) => {
                        star = Some((behind, text));
                        (behind, text)
                    }
                    _ => return false,
                },
            }
        }
    }
}

/// Whether a certificate can have this name as a DNS name or URI. Addresses are a type of name of their own.
pub(super) fn is_certificate_name(name: &str) -> bool {
    let in_label = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    match name.split_once(':') {
        _ if name.parse::<IpAddr>().is_ok() => false,
        Some((scheme, rest)) => {
            let rest_is_plain = rest.bytes().all(|b| b.is_ascii_graphic() && b != b'*');
            scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && !rest.is_empty() && rest_is_plain
        }
        None => name.split('.').all(|label| !label.is_empty() && label.bytes().all(in_label)),
    }
}

/// A DNS name in lower case. A URI, which is what has a colon, as it is.
pub(super) fn fold(name: &str) -> Cow<'_, str> {
    if name.contains(':') { name.into() } else { name.to_ascii_lowercase().into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Glob;

    /// What a pattern means, at any cost.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            (['*', behind @ ..], _) => (0..=text.len()).any(|taken| naive(behind, &text[taken..])),
            ([a, pattern @ ..], [b, text @ ..]) => a == b && naive(pattern, text),
            (pattern, text) => pattern.is_empty() && text.is_empty(),
        }
    }

    fn agree(pattern: &str, text: &str) -> Result<(), TestCaseError> {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        prop_assert_eq!(Glob::new(pattern).matches(text), naive(&chars(pattern), &chars(text)));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn a_pattern_matches_what_the_naive_one_does(pattern in "[ab*]{0,8}", text in "[ab*]{0,12}") {
            agree(&pattern, &text)?;
        }

        // Letters that share bytes: `*` must not take half of one.
        #[test]
        fn a_pattern_matches_whole_characters(pattern in "[éèꙀ*]{0,6}", text in "[éèꙀ]{0,8}") {
            agree(&pattern, &text)?;
        }

        #[test]
        fn what_a_star_replaces_still_matches(parts in prop::collection::vec("[ab-]{0,4}", 1..5), run in "[ab-]{0,6}") {
            prop_assert!(Glob::new(&parts.join("*")).matches(&parts.join(&run)));
        }
    }

    #[test]
    fn patterns_match_from_end_to_end() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "ab", true),
            ("laptop-*", "laptop-1", true),
            ("laptop-*", "my-laptop-1", false),
            ("*-edge", "berlin-edge", true),
            ("*-edge", "berlin-edge-2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("A", "a", false),
            ("a.c", "abc", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_do_not_make_it_slow() {
        let (pattern, text) = ("*a".repeat(500) + "b", "a".repeat(5_000));
        assert!(!Glob::new(&pattern).matches(&text));
    }
}
