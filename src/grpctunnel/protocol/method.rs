//! Names of methods.

use http::uri::PathAndQuery;

/// How much of a name that is none its refusal repeats.
const QUOTED: usize = 128;

/// Whether this is `package.Service/Method`, with a slash before it or not.
pub(super) fn is_well_formed(name: &str) -> bool {
    let name = name.strip_prefix('/').unwrap_or(name);
    // A query or a fragment would be lost on the way to the handler, and another method called than policies have seen.
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#');
    name.split_once('/').is_some_and(|(service, method)| !service.is_empty() && !method.is_empty())
        && name.bytes().all(plain)
}

/// The path of the call in HTTP/2.
pub(super) fn path_of(mut name: String) -> Option<PathAndQuery> {
    if !is_well_formed(&name) {
        return None;
    }
    if !name.starts_with('/') {
        name.insert(0, '/');
    }
    PathAndQuery::try_from(name).ok()
}

/// What to show of a name that is none.
pub(super) fn quote(name: &str) -> String {
    name.chars().take(QUOTED).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slash_before_a_name_is_optional() {
        assert_eq!(path_of("pkg.Service/Method".into()).unwrap(), "/pkg.Service/Method");
        assert_eq!(path_of("/pkg.Service/Method".into()).unwrap(), "/pkg.Service/Method");
    }

    #[test]
    fn names_that_are_none_are_no_path() {
        for bad in
            ["", "/", "Method", "/Method", "//pkg.Service/Method", "pkg.Service/", "a/b?c", "a/b#c", "a/ b", "ä/b"]
        {
            assert!(!is_well_formed(bad) && path_of(bad.into()).is_none(), "{bad}");
        }
    }

    #[test]
    fn quote_is_short_and_shows_what_cannot_be_seen() {
        assert_eq!(quote("a\n"), "a\\n");
        assert_eq!(quote(&"a".repeat(1000)).len(), QUOTED);
    }
}
