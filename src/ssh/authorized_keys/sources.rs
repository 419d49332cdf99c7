//! Lists of addresses: the `from=` option, the `source-address` of certificates, and proxies that a hub trusts.

use std::net::IpAddr;

use crate::ssh::authorizer::Brief;

/// A list of address patterns.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    patterns: Vec<(Sign, Pattern)>,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Allows,
    Forbids,
}

#[derive(Debug, Clone)]
enum Pattern {
    Network {
        address: IpAddr,
        prefix: u32,
    },
    /// Compared with the address as text: `*` is any text, `?` any character.
    Text(String),
}

/// A pattern that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSources {
    #[error("`{}` is not an address, a network such as 10.0.0.0/8, or an address with `*` or `?` (host names are not looked up)", Brief(.0))]
    NoAddress(String),
    #[error("network `{}` has bits set behind its prefix, or too long a prefix", Brief(.0))]
    BadPrefix(String),
    #[error("`{}` only forbids addresses, which allows none: add `*`", Brief(.0))]
    OnlyForbids(String),
}

impl Sources {
    /// The value of `from=`: networks, addresses and wildcards, separated by commas; `!` before one forbids it.
    pub(super) fn pattern_list(text: &str) -> Result<Self, BadSources> {
        let patterns = text.split(',').map(signed_pattern).collect::<Result<Vec<_>, _>>()?;
        if patterns.iter().all(|(sign, _)| *sign == Sign::Forbids) {
            return Err(BadSources::OnlyForbids(text.into()));
        }
        Ok(Self { patterns, text: text.into() })
    }

    /// The value of a certificate's `source-address`: networks and addresses, separated by commas.
    pub(crate) fn network_list(text: &str) -> Result<Self, BadSources> {
        let allowed = |item| {
            let network = network(item)?.ok_or_else(|| BadSources::NoAddress(item.into()))?;
            Ok((Sign::Allows, network))
        };
        Ok(Self { patterns: text.split(',').map(allowed).collect::<Result<_, _>>()?, text: text.into() })
    }

    /// Whether a peer may come from this address. One pattern that forbids it outweighs all that allow it; an IPv4
    /// address is the same in IPv6 clothes; a peer without an address is never allowed.
    pub(crate) fn allows(&self, peer: Option<IpAddr>) -> bool {
        let Some(peer) = peer.map(|address| address.to_canonical()) else { return false };
        let matching = |wanted| self.patterns.iter().any(|(sign, pattern)| *sign == wanted && pattern.contains(peer));
        matching(Sign::Allows) && !matching(Sign::Forbids)
    }

    /// The list as it was written.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

impl Pattern {
    fn contains(&self, peer: IpAddr) -> bool {
        match (self, peer) {
            (Self::Network { address: IpAddr::V4(net), prefix }, IpAddr::V4(peer)) => {
                same_network(u128::from(net.to_bits() ^ peer.to_bits()), 32, *prefix)
            }
            (Self::Network { address: IpAddr::V6(net), prefix }, IpAddr::V6(peer)) => {
                same_network(net.to_bits() ^ peer.to_bits(), 128, *prefix)
            }
            (Self::Network { .. }, _) => false,
            (Self::Text(pattern), peer) => wildcard_match(pattern.as_bytes(), peer.to_string().as_bytes()),
        }
    }
}

/// Whether two addresses of this width, which differ in these bits, are in one network.
fn same_network(differing: u128, width: u32, prefix: u32) -> bool {
    differing.checked_shr(width - prefix).is_none_or(|in_prefix| in_prefix == 0)
}

fn signed_pattern(item: &str) -> Result<(Sign, Pattern), BadSources> {
    let (sign, item) = match item.strip_prefix('!') {
        Some(rest) => (Sign::Forbids, rest),
        None => (Sign::Allows, item),
    };
    if let Some(network) = network(item)? {
        return Ok((sign, network));
    }
    let of_an_address = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '*' | '?');
    if item.contains(['*', '?']) && item.chars().all(of_an_address) {
        return Ok((sign, Pattern::Text(item.to_ascii_lowercase())));
    }
    Err(BadSources::NoAddress(item.into()))
}

/// An address or `address/prefix`; none if it is neither.
fn network(item: &str) -> Result<Option<Pattern>, BadSources> {
    let (address, prefix) = match item.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (item, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return Ok(None) };
    let bad_prefix = || BadSources::BadPrefix(item.into());
    let (bits, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32_u32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let prefix = match prefix {
        None => width,
        // `u32::from_str` takes a plus sign, which is no prefix length.
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| bad_prefix())?,
        Some(_) => return Err(bad_prefix()),
    };
    let host_bits = width.checked_sub(prefix).ok_or_else(bad_prefix)?;
    let behind_prefix = bits & 1_u128.checked_shl(host_bits).map_or(u128::MAX, |end| end - 1);
    if behind_prefix != 0 {
        return Err(bad_prefix());
    }
    // Only a mapped address has a canonical form of the other kind, and its network part is at least 96 bits long,
    // or bits would be set behind the prefix.
    match (address.to_canonical(), address) {
        (canonical @ IpAddr::V4(_), IpAddr::V6(_)) => {
            Ok(Some(Pattern::Network { address: canonical, prefix: prefix.saturating_sub(96) }))
        }
        _ => Ok(Some(Pattern::Network { address, prefix })),
    }
}

/// Whether the text matches a pattern of `*` and `?`, in time proportional to the product of their lengths.
fn wildcard_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last star was, and how much of the text it has swallowed so far.
    let mut star = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(&c) if c == b'?' || text.get(from) == Some(&c) => (at, from) = (at + 1, from + 1),
            _ => match star {
                Some((star_at, swallowed)) => {
                    star = Some((star_at, swallowed + 1));
                    (at, from) = (star_at + 1, swallowed + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, peer: &str) -> bool {
        Sources::pattern_list(list).expect(list).allows(Some(peer.parse().expect(peer)))
    }

    #[test]
    fn patterns_match_as_documented() {
        for (list, peer, expected) in [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.1.2.3", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("10.0.0.*", "10.0.0.77", true),
            ("10.0.0.?", "10.0.0.7", true),
            ("10.0.0.?", "10.0.0.77", false),
            ("*", "2001:db8::1", true),
            ("2001:DB8:*", "2001:db8::1", true),
            ("*.1*.*", "10.11.12.13", true),
            ("*,!10.0.0.5", "10.0.0.5", false),
            ("!10.0.0.5,*", "10.0.0.5", false),
            ("!10.0.0.5,*", "10.0.0.6", true),
            ("10.0.0.0/8,!10.1.0.0/16", "10.1.2.3", false),
            ("10.0.0.0/8,!10.1.0.0/16", "10.2.2.3", true),
            ("192.0.2.1,10.0.0.0/8", "10.2.2.3", true),
        ] {
            assert_eq!(allows(list, peer), expected, "{list} {peer}");
        }
    }

    #[test]
    fn ipv4_in_ipv6_clothes_is_ipv4() {
        assert!(allows("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(allows("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(allows("::ffff:10.1.2.3", "10.1.2.3"));
        assert!(!allows("*,!10.1.2.3", "::ffff:10.1.2.3"));
        assert!(!allows("::/0", "::ffff:10.1.2.3"));
    }

    #[test]
    fn without_an_address_nothing_is_allowed() {
        assert!(!Sources::pattern_list("*").expect("a list").allows(None));
        assert!(!Sources::network_list("0.0.0.0/0").expect("a list").allows(None));
    }

    #[test]
    fn what_would_not_mean_what_it_says_is_refused() {
        for list in [
            "",
            "10.0.0.0/8,",
            "laptop.example.com",
            "*.example.com",
            "!*.example.com,*",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "1.0.0.0/0",
            "2001:db8::1/32",
            "::1/0",
            "8000::/0",
            "::/129",
            " 10.0.0.1",
            "10.0.0",
            "!!10.0.0.1,*",
            "!10.0.0.1",
            "::ffff:0:0/95",
            "fe80::1%eth0",
            "beef",
        ] {
            assert!(Sources::pattern_list(list).is_err(), "{list}");
        }
        for list in ["", "*", "10.0.0.*", "!10.0.0.1", "10.0.0.0/8,", "10.0.0.1/8", "localhost"] {
            assert!(Sources::network_list(list).is_err(), "{list}");
        }
    }

    #[test]
    fn stars_do_not_take_exponential_time() {
        let pattern = "*a".repeat(2_000);
        assert!(!wildcard_match(pattern.as_bytes(), "a".repeat(1_999).as_bytes()));
    }
}
