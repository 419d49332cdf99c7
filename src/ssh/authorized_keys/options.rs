//! The options field of an authorized_keys line.

use crate::id::{AgentId, InvalidAgentId};
use crate::labels::{self, InvalidLabel, Labels};
use crate::ssh::authorized_keys::sources::{BadSources, Sources};
use crate::ssh::authorizer::Brief;
use crate::time;

/// What the options of a line say about tunnels.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    /// `cert-authority`: the key is that of a CA.
    pub(super) authority: bool,
    /// `principals=`: the ids it may be. Never empty.
    pub(super) principals: Option<Vec<AgentId>>,
    /// `from=`: where the peer must come from.
    pub(super) from: Option<Sources>,
    /// `expiry-time=`: seconds since 1970 UTC from which on the line is dead.
    pub(super) expires_at: Option<u64>,
    /// `environment=`: labels of the agent.
    pub(super) labels: Labels,
}

/// An options field that cannot be honoured, so that its line grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadOptions {
    #[error("an option is empty: check the commas")]
    Empty,
    #[error("the value of option `{}` must be in double quotes", Brief(.0))]
    NotQuoted(String),
    #[error("the quote after option `{}` never ends", Brief(.0))]
    Unterminated(String),
    #[error("a comma or a space must follow the value of option `{}`", Brief(.0))]
    NoSeparator(String),
    #[error("option `{}` is unknown", Brief(.0))]
    Unknown(String),
    #[error("option `{0}` needs a value, as in {0}=\"…\"")]
    NoValue(String),
    #[error("option `{0}` takes no value")]
    StrayValue(String),
    #[error("option `{0}` is given twice")]
    Repeated(&'static str),
    #[error("in from=: {0}")]
    From(BadSources),
    #[error("expiry-time `{}` is not YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS (UTC)", Brief(.0))]
    ExpiryTime(String),
    #[error("in principals=: {0}")]
    Principal(InvalidAgentId),
    #[error("in principals=: `*` is not supported: name every agent, or use a CA")]
    Wildcard,
    #[error("in environment=: write \"name=value\"")]
    Environment,
    #[error("in environment=: {0}")]
    Label(InvalidLabel),
    #[error("option `{0}` forbids forwarding, which is what a tunnel is: add `port-forwarding` after it")]
    NoForwarding(&'static str),
}

/// Options that allow or forbid what a hub never does for an agent: they are obeyed whatever they say.
const FLAGS_WITHOUT_EFFECT: [&str; 12] = [
    "pty",
    "no-pty",
    "agent-forwarding",
    "no-agent-forwarding",
    "x11-forwarding",
    "no-x11-forwarding",
    "user-rc",
    "no-user-rc",
    "touch-required",
    "no-touch-required",
    "verify-required",
    "no-verify-required",
];

/// The same with a value: a hub runs no command, and opens no port, listener or device for an agent.
const VALUES_WITHOUT_EFFECT: [&str; 4] = ["command", "permitopen", "permitlisten", "tunnel"];

/// One option: its name in lower case, and its value without the quotes.
pub(super) type RawOption = (String, Option<String>);

/// Splits a line into its options and what follows them, by the quoting rules of sshd(8): options are separated by
/// commas, a value is in double quotes, and only `\"` is an escape.
pub(super) fn split(line: &str) -> Result<(Vec<RawOption>, &str), BadOptions> {
    let mut options = Vec::new();
    let mut rest = line;
    loop {
        let name_len = rest.find(['=', ',', ' ', '\t', '"']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(name_len);
        if name.is_empty() {
            return Err(BadOptions::Empty);
        }
        rest = after;
        let mut value = None;
        if let Some(quoted) = rest.strip_prefix('=') {
            let quoted = quoted.strip_prefix('"').ok_or_else(|| BadOptions::NotQuoted(name.into()))?;
            let (text, after) = unquote(quoted).ok_or_else(|| BadOptions::Unterminated(name.into()))?;
            value = Some(text);
            rest = after;
        }
        options.push((name.to_ascii_lowercase(), value));
        match rest.chars().next() {
            Some(',') => rest = &rest[1..],
            None | Some(' ' | '\t') => return Ok((options, rest)),
            Some(_) => return Err(BadOptions::NoSeparator(name.into())),
        }
    }
}

/// The text up to the closing quote, and what follows the quote.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return quoted.get(at + 1..).map(|rest| (text, rest)),
            '\\' if quoted[at + 1..].starts_with('"') => {
                text.push('"');
                chars.next();
            }
            c => text.push(c),
        }
    }
    None
}

/// Reads the options of one line.
pub(super) fn interpret(raw: Vec<RawOption>) -> Result<Options, BadOptions> {
    let mut options = Options::default();
    let mut forbidden_by = None;
    for (name, value) in raw {
        match (name.as_str(), value) {
            ("cert-authority", None) => options.authority = true,
            // The last one wins, as in sshd.
            ("restrict", None) => forbidden_by = Some("restrict"),
            ("no-port-forwarding", None) => forbidden_by = Some("no-port-forwarding"),
            ("port-forwarding", None) => forbidden_by = None,
            ("principals", Some(list)) => set_once(&mut options.principals, "principals", principals(&list)?)?,
            ("from", Some(list)) => {
                set_once(&mut options.from, "from", Sources::pattern_list(&list).map_err(BadOptions::From)?)?;
            }
            ("expiry-time", Some(text)) => {
                let at = time::parse(&text).ok_or(BadOptions::ExpiryTime(text))?;
                options.expires_at = Some(options.expires_at.map_or(at, |other| other.min(at)));
            }
            ("environment", Some(text)) => {
                let (name, value) = text.split_once('=').ok_or(BadOptions::Environment)?;
                // The first of a name wins, as in sshd.
                if !options.labels.contains_key(name) {
                    labels::add(&mut options.labels, name.into(), value.into()).map_err(BadOptions::Label)?;
                }
            }
            (flag, None) if FLAGS_WITHOUT_EFFECT.contains(&flag) => {}
            (name, Some(_)) if VALUES_WITHOUT_EFFECT.contains(&name) => {}
            (_, value) => return Err(misused(name, value.is_some())),
        }
    }
    match forbidden_by {
        Some(option) => Err(BadOptions::NoForwarding(option)),
        None => Ok(options),
    }
}

fn set_once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), BadOptions> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(BadOptions::Repeated(name)),
    }
}

fn principals(list: &str) -> Result<Vec<AgentId>, BadOptions> {
    let id = |item: &str| match item {
        "*" => Err(BadOptions::Wildcard),
        item => item.parse().map_err(BadOptions::Principal),
    };
    list.split(',').map(id).collect()
}

/// Why an option that nothing matched is refused.
fn misused(name: String, has_value: bool) -> BadOptions {
    let flags = ["cert-authority", "restrict", "port-forwarding", "no-port-forwarding"];
    let values = ["principals", "from", "expiry-time", "environment"];
    let is_flag = flags.contains(&name.as_str()) || FLAGS_WITHOUT_EFFECT.contains(&name.as_str());
    let is_value = values.contains(&name.as_str()) || VALUES_WITHOUT_EFFECT.contains(&name.as_str());
    match has_value {
        true if is_flag => BadOptions::StrayValue(name),
        false if is_value => BadOptions::NoValue(name),
        _ => BadOptions::Unknown(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(field: &str) -> Result<Options, BadOptions> {
        interpret(split(field)?.0)
    }

    #[test]
    fn quotes_work_as_in_sshd() {
        let (options, rest) = split(r#"Command="a \"b\", c\d",PTY,from="*" rest"#).expect("options");
        let expected = [("command", Some(r#"a "b", c\d"#)), ("pty", None), ("from", Some("*"))];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        assert_eq!(options, expected);
        assert_eq!(rest, " rest");
        let (options, rest) = split(r#"command="\x\\y",pty x"#).expect("a lone backslash escapes nothing");
        assert_eq!((options.len(), rest), (2, " x"));
    }

    #[test]
    fn a_quote_cannot_hide_an_option() {
        // Were the escape missed, `restrict` would be read as part of the command, or the other way round.
        assert!(matches!(parse(r#"command="a\"",restrict"#), Err(BadOptions::NoForwarding("restrict"))));
        assert!(parse(r#"command="a\",restrict,\"b""#).is_ok());
    }

    #[test]
    fn broken_fields_are_refused() {
        use BadOptions as B;
        for (field, error) in [
            ("", B::Empty),
            (",pty", B::Empty),
            ("pty,", B::Empty),
            ("pty,,no-pty", B::Empty),
            ("=\"x\"", B::Empty),
            ("from=10.0.0.1", B::NotQuoted("from".into())),
            ("from=", B::NotQuoted("from".into())),
            ("from=\"10.0.0.1", B::Unterminated("from".into())),
            ("command=\"\\\"", B::Unterminated("command".into())),
            ("command=\"a\"b", B::NoSeparator("command".into())),
            ("pty\"x\"", B::NoSeparator("pty".into())),
            ("from", B::NoValue("from".into())),
            ("command", B::NoValue("command".into())),
            ("restrict=\"x\"", B::StrayValue("restrict".into())),
            ("no-pty=\"x\"", B::StrayValue("no-pty".into())),
            ("frobnicate", B::Unknown("frobnicate".into())),
            ("no-restrict", B::Unknown("no-restrict".into())),
            ("from=\"*\",from=\"*\"", B::Repeated("from")),
            ("principals=\"a\",principals=\"b\"", B::Repeated("principals")),
            ("expiry-time=\"soon\"", B::ExpiryTime("soon".into())),
            ("environment=\"site\"", B::Environment),
            ("environment", B::NoValue("environment".into())),
            ("principals=\"*\"", B::Wildcard),
            ("principals=\"a,*\"", B::Wildcard),
        ] {
            assert_eq!(parse(field).expect_err(field), error, "{field}");
        }
        for field in ["principals=\"\"", "principals=\"a,\"", "principals=\"A\"", "principals=\"a b\""] {
            assert!(matches!(parse(field), Err(B::Principal(_))), "{field}");
        }
        assert!(matches!(parse("from=\"*.example.com\""), Err(B::From(_))));
    }

    #[test]
    fn environment_gives_labels_and_the_first_of_a_name_counts() {
        let options =
            parse("environment=\"site=berlin\",environment=\"rack=4\",environment=\"site=x\"").expect("options");
        assert_eq!(options.labels, Labels::from([("site".into(), "berlin".into()), ("rack".into(), "4".into())]));
        assert!(matches!(parse("environment=\"a b=x\""), Err(BadOptions::Label(InvalidLabel::Name { .. }))));
    }

    #[test]
    fn what_forbids_tunnels_needs_a_later_permission() {
        for field in ["restrict", "no-port-forwarding", "port-forwarding,restrict", "RESTRICT,pty"] {
            assert!(matches!(parse(field), Err(BadOptions::NoForwarding(_))), "{field}");
        }
        for field in ["restrict,port-forwarding", "no-port-forwarding,restrict,Port-Forwarding"] {
            assert!(parse(field).is_ok(), "{field}");
        }
    }

    #[test]
    fn options_about_other_things_change_nothing() {
        let options =
            FLAGS_WITHOUT_EFFECT.join(",") + "," + &VALUES_WITHOUT_EFFECT.map(|n| n.to_owned() + "=\"x\"").join(",");
        let options = parse(&options).expect("harmless");
        assert!(!options.authority && options.principals.is_none() && options.from.is_none());
    }

    #[test]
    fn the_earliest_expiry_counts() {
        let options = parse("expiry-time=\"20300101\",expiry-time=\"20290101\"").expect("options");
        assert_eq!(options.expires_at, time::parse("20290101"));
    }

    #[test]
    fn messages_escape_the_file() {
        let error = parse("a\x1b[31m").expect_err("unknown").to_string();
        assert!(!error.contains('\x1b'), "{error:?}");
    }
}
