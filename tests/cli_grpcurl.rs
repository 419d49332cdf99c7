//! The command's client beside the real grpcurl: the same arguments, the same server, the same output and exit code.
#![cfg(feature = "cli")]

mod common;

use std::path::PathBuf;

use common::command::{Answer, dialback, finish, run_program};
use common::kinds::{Kinds, Reflects};
use common::peers::grpcurl;

const UNARY: &str = "dialback.kinds.v1.KindsService/Unary";
const FAIL: &str = "dialback.kinds.v1.Probe/Fail";

/// Both programs, and a server for them.
struct Pair {
    grpcurl: PathBuf,
    server: Kinds,
}

impl Pair {
    async fn start() -> Option<Self> {
        let grpcurl = tokio::task::spawn_blocking(grpcurl).await.expect("no panic")?;
        Some(Self { grpcurl, server: Kinds::start(Reflects::Both).await })
    }

    /// What both say to `flags`, the address, and `what`; grpcurl has its verbs after the address.
    async fn run(&self, verb: &str, flags: &[&str], what: &[&str], stdin: &str) -> (Answer, Answer) {
        let address = self.server.address.to_string();
        let flags = [&["-plaintext"], flags].concat();
        let ours = dialback(&[&[verb], &flags[..], &[&address], what].concat());
        let ours = finish(ours, stdin).await;
        let verb = if verb == "call" { &[][..] } else { &[verb] };
        let theirs = [&flags[..], &[&address], verb, what].concat();
        (ours, run_program(&self.grpcurl, &theirs, stdin).await)
    }

    /// Both call all this, and say the same.
    async fn same_for_all(&self, flags: &[&str], method: &str, all: &[&str]) {
        let mut differences = Vec::new();
        for data in all {
            let (ours, theirs) = self.run("call", &[flags, &["-d", data]].concat(), &[method], "").await;
            if (&ours.out, ours.code) != (&theirs.out, theirs.code) {
                differences.push(format!("{data}\n  ours: {ours:?}\ntheirs: {theirs:?}"));
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    async fn same(&self, flags: &[&str], method: &str, data: &str) {
        let (ours, theirs) = self.run("call", &[flags, &["-d", data]].concat(), &[method], "").await;
        assert_eq!(
            (&ours.out, ours.code),
            (&theirs.out, theirs.code),
            "{method} {flags:?} {data}\n{ours:?}\n{theirs:?}"
        );
    }
}

/// Inputs for each kind of field. One is left out: grpcurl's JSON knows no FieldMask, and refuses `"a,b.c"`.
const MESSAGES: [&str; 35] = [
    "",
    "{}",
    r#"{"fDouble": 1.5, "fFloat": -0.1, "fInt32": -2147483648, "fUint32": 4294967295}"#,
    r#"{"fInt64": "-9223372036854775808", "fUint64": "18446744073709551615", "fSint64": 5, "fFixed64": "7"}"#,
    r#"{"fSint32": -1, "fFixed32": 1, "fSfixed32": -3, "fSfixed64": "-4"}"#,
    r#"{"fDouble": "NaN", "fFloat": "Infinity", "rDouble": ["-Infinity", 0, -0.0, 1e300, 1e21, 1e20, 1e-7, 123456789.125]}"#,
    r#"{"rFloat": [0.1, 16777216, 3.4028235e38, 1e-45, 1e21]}"#,
    r#"{"fBool": true, "fString": "a\u00e9\ud83d\ude00\"\\\n\t\u0001<>&", "fBytes": "AAEC/w=="}"#,
    r#"{"fBytes": "/+8=", "oBytes": "", "rBytes": ["", "YQ=="]}"#,
    r#"{"fColor": "GREEN", "rColor": ["RED", 2, 77, "NEGATIVE", "no"]}"#,
    r#"{"fNested": {"text": "x", "children": [{"number": 1}, {}]}}"#,
    r#"{"fSelf": {"fSelf": {"fSelf": {}}}}"#,
    r#"{"fLegacy": {"name": "n"}}"#,
    r#"{"fLegacy": {"name": "n", "count": 3, "level": "LOW", "plain": [1, 2], "tight": [3]}}"#,
    r#"{"fLegacy": {"name": "n", "inner": {"text": "t"}, "part": [{"number": "1"}]}}"#,
    r#"{"oDouble": 0, "oInt32": 0, "oInt64": "0", "oBool": false, "oString": "", "oColor": "COLOR_UNSPECIFIED", "oNested": {}}"#,
    r#"{"rInt32": [1, 2, 3], "rUint64": ["1", 2], "rSint64": ["-1"], "rBool": [true, false], "rString": ["", "b"]}"#,
    r#"{"rNested": [{"text": "a"}, {"number": 2}]}"#,
    r#"{"mInt32": {"2": "b", "-1": "a", "10": "c"}, "mInt64": {"3": "4", "-5": 6}}"#,
    r#"{"mUint32": {"1": "AA=="}, "mUint64": {"1": 1.5, "18446744073709551615": "NaN"}, "mSint32": {"-1": 0.5}}"#,
    r#"{"mSint64": {"1": true, "-1": false}, "mFixed32": {"1": "RED"}, "mFixed64": {"9": {"text": "t"}}}"#,
    r#"{"mSfixed32": {"1": "1.5s"}, "mSfixed64": {"1": {"a": [1, null, "x"]}, "2": null}}"#,
    r#"{"mBool": {"true": 1, "false": 2}, "mText": {"b": "1", "a": "2", "": "3"}, "mString": {"k": {"fInt32": 1}}}"#,
    r#"{"cInt32": 0}"#,
    r#"{"cString": ""}"#,
    r#"{"cNested": {}}"#,
    r#"{"cEmpty": {}}"#,
    r#"{"cTimestamp": "2024-02-29T23:59:59.123456789Z"}"#,
    r#"{"wTimestamp": "1969-12-31T23:59:59.5Z", "rTimestamp": ["2024-01-01T00:00:00Z", "2024-01-01T01:00:00+01:00"]}"#,
    r#"{"wDuration": "-1.5s", "wEmpty": {}}"#,
    r#"{"wStruct": {"a": 1, "b": [true, null, {"c": "d"}], "e": 1.5}, "wList": [1, "x"], "wValue": "v"}"#,
    r#"{"wDouble": 1, "wFloat": 0.5, "wInt64": "1", "wUint64": "2", "wInt32": 3, "wUint32": 4, "wBool": true, "wString": "", "wBytes": "YQ=="}"#,
    r#"{"wAny": {"@type": "type.googleapis.com/dialback.kinds.v1.Kinds", "fInt32": 1}}"#,
    r#"{"rAny": [{"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}, {"@type": "type.googleapis.com/dialback.kinds.v1.Kinds.Nested", "text": "t"}]}"#,
    r#"{"type": "t", "key": "k", "someOtherName": "s", "odd name <&>": "o", "null": "n"}"#,
];

#[tokio::test]
async fn messages_are_printed_the_same() {
    let Some(pair) = Pair::start().await else { return };
    pair.same_for_all(&[], UNARY, &MESSAGES).await;
}

#[tokio::test]
async fn defaults_are_printed_the_same() {
    let Some(pair) = Pair::start().await else { return };
    for data in ["{}", r#"{"oInt32": 0, "cInt32": 0}"#, r#"{"rNested": [{}]}"#] {
        pair.same(&["-emit-defaults"], UNARY, data).await;
    }
}

#[tokio::test]
async fn unknown_fields_are_passed_over_the_same() {
    let Some(pair) = Pair::start().await else { return };
    let unknown = [
        r#"{"none": {"a": [1]}, "fInt32": 1, "fNested": {"none": 1, "text": "t"}, "rNested": [{"none": null, "number": 2}]}"#,
        r#"{"mFixed64": {"1": {"none": 1, "text": "t"}}, "wStruct": {"kept": 1}}"#,
        r#"{"wAny": {"@type": "type.googleapis.com/dialback.kinds.v1.Kinds.Nested", "text": "t", "none": 2}}"#,
    ];
    pair.same_for_all(&["-allow-unknown-fields"], UNARY, &unknown).await;
    // Without the flag both refuse.
    pair.same_for_all(&[], UNARY, &unknown).await;
}

#[tokio::test]
async fn every_kind_of_call_is_made_the_same() {
    let Some(pair) = Pair::start().await else { return };
    let data = r#"{"fInt32": 1} {"fInt32": 2}{"fInt32": 3}"#;
    for method in ["ClientStream", "Bidi"] {
        for data in [data, ""] {
            pair.same(&[], &format!("dialback.kinds.v1.KindsService/{method}"), data).await;
            let (ours, theirs) = pair.run("call", &["-d", "@"], &["dialback.kinds.v1.KindsService.Bidi"], data).await;
            assert_eq!((ours.out, ours.code), (theirs.out, theirs.code));
        }
    }
    // What is empty is a line in text format.
    for method in ["Unary", "ServerStream"] {
        pair.same(&["-format", "text"], &format!("dialback.kinds.v1.KindsService/{method}"), "").await;
    }
    for method in ["Unary", "ServerStream"] {
        let method = format!("dialback.kinds.v1.KindsService.{method}");
        for data in [r#"{"fInt32": 1}"#, "", data, "{", r#"{"none": 1}"#, r#"{"fInt32": "x"}"#] {
            pair.same(&[], &method, data).await;
        }
    }
}

#[tokio::test]
async fn failures_are_the_same() {
    let Some(pair) = Pair::start().await else { return };
    for code in 1..=16 {
        let data = format!("{{\"code\": {code}, \"message\": \"why \\u00e9 %\"}}");
        let (ours, theirs) = pair.run("call", &["-d", &data], &[FAIL], "").await;
        assert_eq!((ours.err, ours.code), (theirs.err, theirs.code));
    }
    // grpcurl knows no type that the server does not describe, so it cannot even ask for the first ones.
    let details = [
        (false, r#"{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "R", "metadata": {"b": "1"}}"#),
        (false, r#"{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"}"#),
        (true, r#"{"@type": "type.googleapis.com/dialback.kinds.v1.Unlisted", "secret": "s"}"#),
        (true, r#"{"@type": "type.googleapis.com/google.protobuf.Duration", "value": "2s"}"#),
    ];
    for (both, detail) in details {
        let data = format!("{{\"code\": 9, \"message\": \"m\", \"details\": [{detail}, {detail}]}}");
        let (ours, theirs) = pair.run("call", &["-d", &data], &[FAIL], "").await;
        if both {
            assert_eq!((ours.err, ours.code), (theirs.err, theirs.code));
        } else {
            assert_eq!((ours.code, theirs.code), (73, 1), "{}\n{}", ours.err, theirs.err);
        }
    }
    for what in [&["a.B/C"][..], &["dialback.kinds.v1.KindsService/C"], &["dialback.kinds.v1.Kinds/C"]] {
        let (ours, theirs) = pair.run("call", &[], what, "").await;
        assert_eq!((ours.out, ours.code), (theirs.out, theirs.code));
    }
}

#[tokio::test]
async fn symbols_are_listed_and_described_the_same() {
    let Some(pair) = Pair::start().await else { return };
    let symbols: [&[&str]; 20] = [
        &[],
        &[""],
        &["dialback.kinds.v1.KindsService"],
        &["dialback.kinds.v1.Probe"],
        &["dialback.kinds.v1.Probe.Mute"],
        &["dialback.kinds.v1.KindsService.Bidi"],
        &["dialback.kinds.v1.Kinds"],
        &[".dialback.kinds.v1.Kinds.Nested"],
        &["dialback.kinds.v1.Kinds.f_nested"],
        &["dialback.kinds.v1.Kinds.m_text"],
        &["dialback.kinds.v1.Kinds.MTextEntry"],
        &["dialback.kinds.v1.Kinds.choice"],
        &["dialback.kinds.v1.Color"],
        &["dialback.kinds.v1.RED"],
        &["dialback.kinds.v1.Color.RED"],
        &["dialback.kinds.v1.Unlisted"],
        &["dialback.kinds.legacy.Legacy"],
        &["dialback.kinds.legacy.Legacy.Inner"],
        &["dialback.kinds.legacy.note"],
        &["google.protobuf.Struct"],
    ];
    for symbol in symbols {
        let (ours, theirs) = pair.run("describe", &[], symbol, "").await;
        assert_eq!((&ours.out, ours.code), (&theirs.out, theirs.code), "{symbol:?}\n{}\n{}", ours.err, theirs.err);
    }
    let services: [&[&str]; 5] =
        [&[], &[""], &["dialback.kinds.v1.KindsService"], &["a.B"], &["grpc.health.v1.Health"]];
    for service in services {
        let (ours, theirs) = pair.run("list", &[], service, "").await;
        assert_eq!((&ours.out, ours.code), (&theirs.out, theirs.code), "{service:?}\n{}\n{}", ours.err, theirs.err);
    }
    for name in ["dialback.kinds.v1.Probe", "dialback.kinds.v1.Failure"] {
        let files = ["-import-path", "proto", "-proto", "kinds_service.proto"];
        let (ours, theirs) = pair.run("describe", &files, &[name], "").await;
        assert_eq!((ours.out, ours.code), (theirs.out, theirs.code));
    }
}
