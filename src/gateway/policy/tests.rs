//! Policies as they are written, and callers that try.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::{CallerName, Policy, PolicyError};

fn hash(token: &str) -> String {
    Sha256::digest(token).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // A String takes everything.
        hex
    })
}

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
}

fn error(text: &str) -> PolicyError {
    match Policy::parse(text) {
        Err(error) => error,
        Ok(policy) => panic!("{policy:?} from\n{text}"),
    }
}

/// Three callers, whose tokens are their names and `-token`, and these rules.
fn with_rules(rules: &str) -> Policy {
    let caller = |name: &str| {
        let hash = hash(&format!("{name}-token"));
        format!("[[caller]]\nname = \"{name}\"\ntoken-sha256 = [\"{hash}\"]\n")
    };
    policy(&format!("{}{}{}{rules}", caller("billing"), caller("ops"), caller("audit")))
}

fn caller<'p>(policy: &'p Policy, name: &str) -> &'p CallerName {
    policy.by_token(format!("{name}-token").as_bytes()).expect(name)
}

fn labels(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

const CALLER: &str = "[[caller]]\nname = 'a'\ncertificate = ['a.example']\n";

/// An `[[allow]]` in which this line replaces the one of the same key, or only removes it if it is just a key.
fn rule(change: &str) -> String {
    let key = change.split([' ', '=']).next().unwrap_or_default();
    let lines = ["callers = ['a']", "agents = ['*']", "methods = ['*']"];
    let mut text = String::from("[[allow]]\n");
    for line in lines.into_iter().filter(|line| key.is_empty() || !line.starts_with(key)) {
        text += &format!("{line}\n");
    }
    if change == key { text } else { text + change }
}

#[test]
fn an_empty_policy_denies_every_call() {
    for text in ["", "\n\n", "# nothing", "\u{feff}"] {
        let policy = policy(text);
        assert_eq!(policy.by_token(b""), None);
        assert_eq!(policy.by_token(b"billing-token"), None);
        assert_eq!(policy.by_certificate(["billing.example.com"]), None);
    }
}

#[test]
fn a_caller_without_a_rule_is_denied() {
    let policy = with_rules("[[allow]]\ncallers = ['ops']\nagents = ['*']\nmethods = ['*']");
    assert!(policy.allows(caller(&policy, "ops"), "laptop-1", &labels(&[]), "/a.B/C"));
    assert!(!policy.allows(caller(&policy, "billing"), "laptop-1", &labels(&[]), "/a.B/C"));
}

#[test]
fn the_documented_policy_is_one() {
    let source = include_str!("../policy.rs");
    let lines = source.lines().skip_while(|line| *line != "/// ```toml").skip(1).take_while(|line| *line != "/// ```");
    let text: Vec<_> = lines.map(|line| line.trim_start_matches("///").trim()).collect();
    let text = text.join("\n").replace("<64 hex digits>", &hash("secret"));
    let policy = policy(&text);
    let billing = policy.by_token(b"secret").expect("the caller");
    assert_eq!(policy.by_certificate(["billing.example.com"]), Some(billing));
    let berlin = labels(&[("site", "berlin-3")]);
    assert!(policy.allows(billing, "laptop-1", &berlin, "/fluentd.v1.Fluentd/Put"));
    assert!(policy.allows(billing, "laptop-1", &berlin, "/pkg.Svc/Method"));
    assert!(!policy.allows(billing, "laptop-1", &berlin, "/pkg.Svc/Other"));
    assert!(!policy.allows(billing, "laptop-1", &labels(&[]), "/pkg.Svc/Method"));
    assert!(!policy.allows(billing, "pi-1", &berlin, "/pkg.Svc/Method"));
}

#[test]
fn a_call_needs_one_rule_that_fits_in_everything() {
    let policy = with_rules(
        r#"
        [[allow]]
        callers = ["billing", "ops"]
        agents = ["laptop-*", "pi"]
        methods = ["/log.Log/Put", "/log.Log/Get"]

        [[allow]]
        callers = ["ops"]
        labels = { site = "berlin-*", role = "edge" }
        methods = ["/admin.v1.Admin/*"]

        [[allow]]
        callers = ["*"]
        agents = ["kiosk-*"]
        labels = { site = "*" }
        methods = ["/grpc.health.v1.Health/*"]

        [[allow]]
        callers = ["audit"]
        agents = ["*"]
        methods = ["*"]
        "#,
    );
    let nowhere: &[(&str, &str)] = &[];
    let berlin: &[(&str, &str)] = &[("site", "berlin-1"), ("role", "edge"), ("more", "x")];
    for (name, agent, given, method, allowed) in [
        ("billing", "laptop-1", nowhere, "/log.Log/Put", true),
        ("billing", "laptop-", nowhere, "/log.Log/Get", true),
        ("billing", "pi", berlin, "/log.Log/Put", true),
        ("ops", "pi", nowhere, "/log.Log/Put", true),
        ("billing", "laptop", nowhere, "/log.Log/Put", false),
        ("billing", "a-laptop-1", nowhere, "/log.Log/Put", false),
        ("billing", "pi2", nowhere, "/log.Log/Put", false),
        ("billing", "", nowhere, "/log.Log/Put", false),
        ("billing", "pi", nowhere, "/log.Log/Delete", false),
        ("billing", "pi", nowhere, "/log.Log/PutAll", false),
        ("billing", "pi", nowhere, "/log.Log/put", false),
        ("billing", "pi", nowhere, "log.Log/Put", false),
        ("billing", "pi", nowhere, "/log.Log/Put/", false),
        ("billing", "pi", nowhere, "//log.Log/Put", false),
        ("billing", "pi", nowhere, "", false),
        ("billing", "pi", berlin, "/admin.v1.Admin/Stop", false),
        ("ops", "any", berlin, "/admin.v1.Admin/Stop", true),
        ("ops", "any", berlin, "/admin.v1.Admin/", false),
        ("ops", "any", berlin, "/admin.v1.Admin", false),
        ("ops", "any", berlin, "/admin.v1.Admin/Stop/Now", false),
        ("ops", "any", berlin, "/admin.v1.Admin2/Stop", false),
        ("ops", "any", berlin, "/x/admin.v1.Admin/Stop", false),
        ("ops", "any", &[("site", "berlin-1")], "/admin.v1.Admin/Stop", false),
        ("ops", "any", &[("site", "berlin-1"), ("role", "edge2")], "/admin.v1.Admin/Stop", false),
        ("ops", "any", &[("site", "bern"), ("role", "edge")], "/admin.v1.Admin/Stop", false),
        ("ops", "any", &[("Site", "berlin-1"), ("role", "edge")], "/admin.v1.Admin/Stop", false),
        // Two rules, each of which fits in part, are not one.
        ("ops", "laptop-1", nowhere, "/admin.v1.Admin/Stop", false),
        ("ops", "any", berlin, "/log.Log/Put", false),
        ("billing", "kiosk-1", berlin, "/grpc.health.v1.Health/Check", true),
        ("ops", "kiosk-1", &[("site", "")], "/grpc.health.v1.Health/Check", true),
        ("ops", "kiosk-1", &[("role", "edge")], "/grpc.health.v1.Health/Check", false),
        ("ops", "laptop-1", berlin, "/grpc.health.v1.Health/Check", false),
        ("audit", "anything", nowhere, "/any.Thing/AtAll", true),
        ("audit", "anything", nowhere, "/", true),
    ] {
        let answer = policy.allows(caller(&policy, name), agent, &labels(given), method);
        assert_eq!(answer, allowed, "{name} calls {method} of {agent} with {given:?}");
    }
}

#[test]
fn a_name_of_another_policy_counts_only_if_this_one_defines_it() {
    let rules = "[[allow]]\ncallers = ['*']\nagents = ['*']\nmethods = ['*']";
    let (before, after) = (with_rules(""), policy(&format!("{CALLER}{rules}")));
    assert!(!after.allows(caller(&before, "ops"), "x", &labels(&[]), "/a.B/C"));
    assert!(with_rules(rules).allows(caller(&before, "ops"), "x", &labels(&[]), "/a.B/C"));
}

#[test]
fn only_the_whole_token_is_the_token() {
    let (one, two, three) = (hash("one-secret"), hash("another"), hash("third").to_uppercase());
    let policy = policy(&format!(
        "[[caller]]\nname = 'a'\ntoken-sha256 = ['{one}', '{two}']\n[[caller]]\nname = 'b'\ntoken-sha256 = ['{three}']"
    ));
    for (token, name) in [
        ("one-secret", Some("a")),
        ("another", Some("a")),
        ("third", Some("b")),
        ("", None),
        ("one-secre", None),
        ("one-secret ", None),
        ("one-secret\n", None),
        ("ONE-SECRET", None),
        ("secret", None),
        (&one, None),
        ("*", None),
    ] {
        assert_eq!(policy.by_token(token.as_bytes()).map(CallerName::as_str), name, "{token:?}");
    }
    assert_eq!(policy.by_token(&[0xff; 100_000]), None);
}

#[test]
fn certificate_names_are_whole_names() {
    let policy = policy(
        "[[caller]]\nname = 'a'\ncertificate = ['Billing.Example.com', 'spiffe://example.com/Billing']\n\
         [[caller]]\nname = 'b'\ncertificate = ['b_1', 'urn:b']",
    );
    for (names, name) in [
        (&["billing.example.com"][..], Some("a")),
        (&["BILLING.example.COM"], Some("a")),
        (&["spiffe://example.com/Billing"], Some("a")),
        (&["spiffe://example.com/billing"], None),
        (&["SPIFFE://example.com/Billing"], None),
        (&["urn:b"], Some("b")),
        (&["urn:B"], None),
        (&["stranger.example.com", "B_1"], Some("b")),
        (&["billing.example.com", "stranger.example.com", "spiffe://example.com/Billing"], Some("a")),
        (&["billing.example.com", "b_1"], None),
        (&["b_1", "stranger", "billing.example.com", "b_1"], None),
        (&["example.com"], None),
        (&["x.billing.example.com"], None),
        (&["billing.example.com."], None),
        (&["*.example.com"], None),
        (&["*"], None),
        (&["a"], None),
        (&[""], None),
        (&[], None),
    ] {
        let found = policy.by_certificate(names.iter().copied());
        assert_eq!(found.map(CallerName::as_str), name, "{names:?}");
    }
}

#[test]
fn a_fault_of_a_caller_is_reported_with_its_line() {
    let (one, nothing) = (hash("one"), hash(""));
    let second = |rest: &str| format!("{CALLER}\n[[caller]]\n{rest}");
    for (text, line, what) in [
        ("[[caller]]\ncertificate = ['a']".into(), 1, "`name` is missing: write it like `name = \"billing\"`"),
        (second("certificate = ['b']"), 5, "`name` is missing"),
        (second("name = 3"), 6, "`name` only takes strings"),
        (second("name = ''"), 6, "`` is not a caller's name: use 1 to 64"),
        (second("name = '*'"), 6, "`*` is not a caller's name"),
        (second("name = 'a b'"), 6, "`a b` is not a caller's name"),
        (second("name = 'ä'"), 6, "is not a caller's name"),
        (second(&format!("name = '{}'", "x".repeat(65))), 6, "is not a caller's name"),
        (second("certificate = ['b']\nname = 'a'"), 7, "there is a caller `a` already: use another name"),
        (second("name = 'b'"), 5, "caller `b` cannot authenticate: give it `token-sha256 = ["),
        (second("name = 'b'\nkey = 1"), 7, "`key` means nothing here: use `name`, `token-sha256`, `certificate`"),
        (second("name = 'b'\n\"x\\n\" = 1"), 7, "`x\\n` means nothing here"),
        (second("name = 'b'\ntoken-sha256 = []"), 7, "`token-sha256` is empty: write it like `token-sha256 = ["),
        (second("name = 'b'\ncertificate = ['c']\ntoken-sha256 = []"), 8, "`token-sha256` is empty"),
        (second("name = 'b'\ncertificate = []"), 7, "`certificate` is empty"),
        (second("name = 'b'\ncertificate = 'b'"), 7, "`certificate` is not a list: write it like `certificate = ["),
        (second("name = 'b'\ncertificate = ['b',\n\n1]"), 9, "`certificate` only takes strings"),
        (second("name = 'b'\ntoken-sha256 = ['']"), 7, "64 hex digits"),
        (second(&format!("name = 'b'\ntoken-sha256 = ['{}']", &one[..62])), 7, "64 hex digits"),
        (second(&format!("name = 'b'\ntoken-sha256 = ['{}']", &one[..63])), 7, "64 hex digits"),
        (second(&format!("name = 'b'\ntoken-sha256 = ['{one}00']")), 7, "64 hex digits"),
        (second(&format!("name = 'b'\ntoken-sha256 = [\n'{one}',\n'{} ']", &one[..63])), 9, "64 hex digits"),
        (second(&format!("name = 'b'\ntoken-sha256 = ['{}+1']", &one[..62])), 7, "64 hex digits"),
        (second(&format!("name = 'b'\ntoken-sha256 = ['{}ä']", &one[..62])), 7, "64 hex digits"),
        (second(&format!("name = 'b'\ntoken-sha256 = ['{nothing}']")), 7, "the hash of an empty token: set TOKEN"),
        (
            format!("[[caller]]\nname = 'b'\ntoken-sha256 = ['{one}',\n'{}']", one.to_uppercase()),
            4,
            "caller `b` has this token already",
        ),
        (
            format!(
                "[[caller]]\nname = 'b'\ntoken-sha256 = ['{one}']\n[[caller]]\nname = 'c'\ntoken-sha256 = ['{one}']"
            ),
            6,
            "caller `b` has this token already: write it once",
        ),
        (
            second("name = 'b'\ncertificate = ['A.EXAMPLE']"),
            7,
            "caller `a` has the certificate name `A.EXAMPLE` already",
        ),
        (second("name = 'b'\ncertificate = ['b',\n'B']"), 8, "caller `b` has the certificate name `B` already"),
        ("[caller]\nname = 'b'".into(), 1, "`caller` is not a list: write it like `[[caller]]`"),
        ("\ncaller = ['b']".into(), 2, "`caller` only takes tables"),
        ("\ncaller = []".into(), 2, "`caller` is empty"),
        ("caller = [\n{ name = 'b' },\n]".into(), 2, "caller `b` cannot authenticate"),
    ] {
        let error = error(&text);
        assert_eq!(error.line, line, "{error} in\n{text}");
        assert!(error.to_string().starts_with(&format!("line {line}: ")), "{error}");
        assert!(error.to_string().contains(what), "{error}, not {what}");
    }
}

#[test]
fn what_no_certificate_has_as_a_name_is_refused() {
    for name in [
        "",
        ".",
        "a..b",
        "a.",
        ".a",
        "*",
        "*.example.com",
        "bücher.example",
        "a b",
        "a/b",
        "10.0.0.1",
        "::1",
        "2001:db8::1",
        "spiffe:",
        ":x",
        "1:x",
        "spiffe://example.com/*",
        "spiffe://example.com/a b",
        "-----BEGIN CERTIFICATE-----\\n",
    ] {
        let error = error(&format!("[[caller]]\nname = 'b'\ncertificate = [\"x\",\n\"{name}\"]"));
        assert_eq!(error.line, 4);
        assert!(error.to_string().contains("is no name in a certificate: write a whole DNS name or URI"), "{error}");
    }
}

#[test]
fn a_fault_of_a_rule_is_reported_with_its_line() {
    for (change, line, what) in [
        ("callers", 5, "`callers` is missing: write it like `callers = [\"billing\"]`"),
        ("methods", 5, "`methods` is missing: write it like `methods = [\"/package.Service/*\"]`"),
        ("agents", 5, "which agents is not said: add `agents = [\"laptop-*\"]`, `labels = { site"),
        ("callers = []", 8, "`callers` is empty"),
        ("callers = 'a'", 8, "`callers` is not a list"),
        ("callers = ['a',\n'b']", 9, "there is no caller `b`: write the name of a [[caller]], or `*`"),
        ("callers = ['A']", 8, "there is no caller `A`"),
        ("callers = ['a*']", 8, "there is no caller `a*`"),
        ("callers = ['']", 8, "there is no caller ``"),
        ("callers = [1]", 8, "`callers` only takes strings"),
        ("agents = []", 8, "`agents` is empty"),
        ("agents = { a = 'b' }", 8, "`agents` is not a list"),
        ("agents = ['']", 8, "`` matches no agent id"),
        ("agents = ['Laptop-*']", 8, "`Laptop-*` matches no agent id: use a-z"),
        ("agents = ['*', 'a?']", 8, "`a?` matches no agent id"),
        ("agents = ['[a]']", 8, "`[a]` matches no agent id"),
        ("labels = {}", 9, "`labels` is empty"),
        ("labels = ['site']", 9, "`labels` is not a table: write it like `labels = { site = \"berlin-*\" }`"),
        ("labels = { site = ['berlin'] }", 9, "`labels` only takes strings"),
        ("labels.site.a = 'x'", 9, "`labels` only takes strings"),
        ("[allow.labels]\nsite = 'x'\nmethods = []", 11, "`labels` only takes strings"),
        ("[allow.labels]\n=", 10, "this is not TOML"),
        ("methods = []", 8, "`methods` is empty"),
        ("methods = '*'", 8, "`methods` is not a list"),
        ("methods = [true]", 8, "`methods` only takes strings"),
        ("agent = ['x']", 8, "`agent` means nothing here: use `callers`, `agents`, `labels`, `methods`"),
        ("\n[[permit]] # rules", 10, "`permit` means nothing here: use `caller`, `allow`"),
        ("\n[allow.more]\nx = 1", 10, "`more` means nothing here"),
    ] {
        let text = format!("{CALLER}\n{}", rule(change));
        let error = error(&text);
        assert_eq!(error.line, line, "{error} in\n{text}");
        assert!(error.to_string().contains(what), "{error}, not {what}");
    }
}

#[test]
fn labels_may_be_a_table_of_their_own() {
    let policy = with_rules("[[allow]]\ncallers = ['ops']\nmethods = ['*']\n[allow.labels]\nsite = 'b*'\nrole = ''");
    let may = |given| policy.allows(caller(&policy, "ops"), "x", &labels(given), "/a.B/C");
    assert!(may(&[("site", "berlin"), ("role", "")]));
    assert!(!may(&[("site", "berlin"), ("role", "x")]));
}

#[test]
fn what_is_no_method_is_refused() {
    for method in [
        "",
        "/",
        "//",
        "/*",
        "/*/*",
        "/*/Method",
        "**",
        "/pkg.Svc",
        "/pkg.Svc/",
        "//Method",
        "pkg.Svc/Method",
        "pkg.Svc/*",
        "/pkg.*/Method",
        "/pkg.Svc/Get*",
        "/pkg.Svc/**",
        "/pkg.Svc/a/b",
        "/pkg.Svc/*/",
        "/pkg.Svc/Method ",
        " /pkg.Svc/Method",
        "/pkg.Svc/Method?x",
        "/pkg.Svc/Méthode",
        "https://host/pkg.Svc/Method",
    ] {
        let error = error(&format!("{CALLER}{}", rule(&format!("methods = ['*',\n'{method}']"))));
        assert_eq!(error.line, 8, "{error}");
        let what = format!("`{method}` is not a method: write `/package.Service/Method`, `/package.Service/*`, or `*`");
        assert!(error.to_string().contains(&what), "{error}");
    }
}

#[test]
fn the_first_fault_of_what_is_not_toml_is_reported() {
    for (text, line) in [
        ("callers", 1),
        ("\n\n[[caller]\nname = 'a'", 3),
        ("[[caller]]\nname = \"a\nname = 'b'", 2),
        ("[[caller]]\nname = 'a'\n\nname = 'b'", 4),
        ("[[caller]]\r\nname = 'a'\r\ncertificate = [\r\n\r\n", 3),
        ("[[caller]]\nname = 'a'\n[caller]", 3),
        ("[[caller]]\nname = \"\\q\"", 2),
        // Found after the fault in line 3.
        ("[[caller]]\nname = \"\\q\"\nname\n", 2),
        ("[[caller]]\nname = '''\na\n\n", 3),
        (&format!("\na{} = 1", ".a".repeat(100)), 2),
    ] {
        let error = error(text);
        assert_eq!(error.line, line, "{error} in\n{text}");
        assert!(error.to_string().contains("this is not TOML: "), "{error}");
    }
}

#[test]
fn a_token_in_the_place_of_its_hash_is_not_shown() {
    for value in ["'hunter2'", "['hunter2']", "{ a = 'hunter2' }", "['hunter2'", "'hunter2", "hunter2", "[hunter2]"] {
        let error = error(&format!("[[caller]]\nname = 'a'\ntoken-sha256 = {value}"));
        assert_eq!(error.line, 3, "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
    let text = format!("[[caller]]\nname = 'a'\ntoken-sha256 = ['{}']", hash("hunter2"));
    assert_eq!(format!("{:?}", policy(&text)), "Policy { callers: {CallerName(a)}, rules: [], .. }");
}

#[test]
fn what_the_text_says_is_escaped_and_cut() {
    let long = "x".repeat(1_000);
    for text in [
        format!("\"\\u001b[31m{long}\" = 1"),
        format!("[[caller]]\nname = \"\\u001b[31m{long}\""),
        format!("[[caller]]\nname = 'b'\ncertificate = [\"\\u001b[31m{long}\"]"),
        format!("{CALLER}{}", rule(&format!("callers = [\"\\u202e\\n{long}\"]"))),
        format!("{CALLER}{}", rule(&format!("agents = [\"\\u202e\\n{long}\"]"))),
        format!("{CALLER}{}", rule(&format!("methods = [\"\\u202e\\n{long}\"]"))),
    ] {
        let shown = error(&text).to_string();
        assert!(shown.len() < 250 && !shown.contains(['\x1b', '\n', '\u{202e}']), "{shown:?}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_or_misprint(text in r#"([ \t\r\n\[\]{}=,."'\\#a-c1\x00-\x7fé*/-]|caller|allow|name|callers|\[\[caller\]\]\n){0,60}"#) {
        if let Err(error) = Policy::parse(&text) {
            prop_assert!((1..=text.split('\n').count()).contains(&error.line), "{}", error);
            prop_assert!(!error.to_string().contains(char::is_control), "{:?}", error.to_string());
        }
    }

    #[test]
    fn a_damaged_policy_does_not_make_it_panic(at in 0..400_usize, cut in 0..20_usize, with in r#"["'=\[\]{}\n,.*a]{0,3}"#) {
        let text = format!("[[caller]]\nname = 'a'\ntoken-sha256 = ['{}']\n{}\nlabels = {{ a = 'b*' }}", hash("x"), rule(""));
        let damaged: String = text.chars().take(at).chain(with.chars()).chain(text.chars().skip(at + cut)).collect();
        if let Err(error) = Policy::parse(&damaged) {
            prop_assert!((1..=damaged.split('\n').count()).contains(&error.line), "{}", error);
            prop_assert!(!error.to_string().contains(char::is_control), "{:?}", error.to_string());
        }
    }
}
