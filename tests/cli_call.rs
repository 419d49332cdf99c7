//! `dialback call`, `list`, `describe` and `health` against real servers.
#![cfg(feature = "cli")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use common::child::Keys;
use common::command::{dialback, finish, run, run_with};
use common::kinds::{self, Kinds, Reflects};
use common::proxy::Proxy;
use common::rig::{AGENT, soon};
use common::tls::Certificates;
use dialback::gateway::{Gateway, PolicyFile};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::Digest as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

const SERVICE: &str = "dialback.kinds.v1.KindsService";
const UNARY: &str = "dialback.kinds.v1.KindsService/Unary";
const FILES: [&str; 4] = ["-import-path", "proto", "-proto", "kinds_service.proto"];

async fn start() -> (Kinds, String) {
    let server = Kinds::start(Reflects::Both).await;
    let address = server.address.to_string();
    (server, address)
}

#[tokio::test]
async fn every_kind_of_call_is_made() {
    let (_server, address) = start().await;
    let text = r#"{"fString": "a"} {"fString": "b"}"#;
    let one = "{\n  \"fString\": \"a\"\n}\n";
    let two = "{\n  \"fString\": \"b\"\n}\n";
    let call = async |method: &str, data: &str| {
        run(&["call", "-plaintext", "-d", data, &address, &format!("{SERVICE}/{method}")]).await.text()
    };
    assert_eq!(call("Unary", r#"{"fString": "a"}"#).await, one);
    assert_eq!(call("ServerStream", r#"{"fString": "a"}"#).await, [one, one, one].concat());
    assert_eq!(call("ClientStream", text).await, "{\n  \"fInt32\": 2\n}\n");
    assert_eq!(call("Bidi", text).await, [one, two].concat());
    // Nothing to send is an empty message, or a stream without any.
    assert_eq!(call("Unary", "").await, "{}\n");
    assert_eq!(call("ServerStream", "").await, "{}\n{}\n{}\n");
    assert_eq!(call("Bidi", "").await, "");
    assert_eq!(call("ClientStream", "").await, "{}\n");
}

#[tokio::test]
async fn a_method_is_named_in_either_form() {
    let (_server, address) = start().await;
    for name in [UNARY, "dialback.kinds.v1.KindsService.Unary", "/dialback.kinds.v1.KindsService/Unary"] {
        assert_eq!(run(&["call", "--plaintext", &address, name]).await.text(), "{}\n", "{name}");
    }
    // Flags may come last, and an address may be a URL.
    let url = format!("http://{address}");
    assert_eq!(run(&["call", &url, UNARY, "--set", "f_string=x"]).await.text(), "{\n  \"fString\": \"x\"\n}\n");
    run(&["call", "-plaintext", &address, "Unary"]).await.fails(64, &["is no method", "package.Service/Method"]);
}

#[tokio::test]
async fn a_request_comes_from_stdin_or_a_file() {
    let (_server, address) = start().await;
    let call = ["call", "-plaintext", "-d", "@", &address, UNARY];
    assert_eq!(run_with(&call, r#"{"fInt32": 7}"#).await.text(), "{\n  \"fInt32\": 7\n}\n");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("request.json");
    std::fs::write(&file, r#"{"fInt32": 8}"#).unwrap();
    let call = ["call", "-plaintext", "-f", file.to_str().unwrap(), &address, UNARY];
    assert_eq!(run(&call).await.text(), "{\n  \"fInt32\": 8\n}\n");
    run(&["call", "-plaintext", "-f", "/nowhere.json", &address, UNARY]).await.fails(1, &["/nowhere.json", "read"]);
    let directory = ["call", "-plaintext", "-f", "tests", "-request-format", "json", &address, UNARY];
    run(&directory).await.fails(1, &["tests cannot be read"]);
    run(&["call", "-plaintext", "-f", "x.what", &address, UNARY]).await.fails(64, &["x.what", "--request-format"]);
}

/// A file may be what never ends: each is read up to its bound, and for a stream as it comes.
#[tokio::test]
async fn a_file_without_end_is_not_eaten() {
    let (_server, address) = start().await;
    let endless = async |arguments: &[&str], code: i32, parts: &[&str]| {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "ulimit -v 6000000 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_dialback")]).args(arguments);
        finish(command, "").await.fails(code, parts);
    };
    let call = |flags: &[&'static str]| [&["call"], flags, &[address.as_str(), UNARY]].concat();
    for format in ["yaml", "text"] {
        let flags = ["-plaintext", "-f", "/dev/zero", "--request-format", format];
        endless(&call(&flags), 1, &["larger than the limit of 64 MiB"]).await;
    }
    endless(&call(&["-plaintext", "-f", "/dev/zero", "--request-format", "json"]), 1, &["line 1, column 1"]).await;
    endless(&call(&["-plaintext", "-f", "/dev/zero", "--request-format", "binary"]), 1, &["more than 1 message"]).await;
    endless(&call(&["-plaintext", "-protoset", "/dev/zero"]), 1, &["/dev/zero", "64 MiB"]).await;
    endless(
        &call(&["-plaintext", "-import-path", "/dev", "-proto", "zero"]),
        1,
        &["dialback: /dev/zero cannot be read: it is no file"],
    )
    .await;
    endless(&call(&["-plaintext", "-token-file", "/dev/zero"]), 1, &["/dev/zero", "64 KiB"]).await;
    endless(&call(&["-plaintext", "-set", "fBytes=@/dev/zero"]), 1, &["/dev/zero", "64 MiB"]).await;
    endless(&call(&["-cacert", "/dev/zero"]), 1, &["/dev/zero", "16 MiB"]).await;
}

#[tokio::test]
async fn a_file_is_sent_while_it_is_written() {
    let (_server, address) = start().await;
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("request.json");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command =
        dialback(&["call", "-plaintext", "-f", pipe.to_str().unwrap(), &address, &format!("{SERVICE}/Bidi")]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    // Opened once the command reads it.
    let opened = tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(pipe).unwrap());
    let mut pipe = tokio::fs::File::from_std(soon("the command", opened).await.unwrap());
    for _ in 0..2 {
        pipe.write_all(b"{}").await.unwrap();
        pipe.flush().await.unwrap();
        let mut reply = [0; 3];
        tokio::time::timeout(Duration::from_secs(60), out.read_exact(&mut reply)).await.unwrap().unwrap();
        assert_eq!(&reply, b"{}\n");
    }
    drop(pipe);
    assert!(soon("the end", child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn a_request_that_cannot_be_used_is_not_sent() {
    let (_server, address) = start().await;
    let call = async |data: &str| run(&["call", "-plaintext", "-d", data, &address, UNARY]).await;
    call(r#"{"fString": 1"#).await.fails(1, &["the request cannot be used"]);
    call(r#"{"fStrong": "a"}"#).await.fails(1, &["fStrong"]);
    call("{} {}").await.fails(1, &["is unary", "more than 1 message"]);
}

#[tokio::test]
async fn replies_come_while_stdin_is_open() {
    let (_server, address) = start().await;
    let mut command = dialback(&["call", "-plaintext", "-d", "@", &address, &format!("{SERVICE}/Bidi")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 1..=3 {
        stdin.write_all(format!("{{\"fInt32\": {number}}}").as_bytes()).await.unwrap();
        for expected in ["{".to_owned(), format!("  \"fInt32\": {number}"), "}".to_owned()] {
            let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await;
            assert_eq!(line.expect("a reply in time").unwrap(), Some(expected));
        }
    }
    drop(stdin);
    assert!(soon("the end", child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn a_status_is_printed_with_its_details_and_is_the_exit_code() {
    let (_server, address) = start().await;
    let data = r#"{"code": 5, "message": "no such thing", "details": [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "GONE"},
        {"@type": "type.googleapis.com/dialback.kinds.v1.Unlisted", "secret": "s"}]}"#;
    let answer = run(&["call", "-plaintext", "-d", data, &address, "dialback.kinds.v1.Probe/Fail"]).await;
    let expected = "ERROR:\n  Code: NotFound\n  Message: no such thing\n  Details:\n  1)\t{\n    \t  \"@type\": \
                    \"type.googleapis.com/google.rpc.ErrorInfo\",\n    \t  \"reason\": \"GONE\"\n    \t}\n  2)\t{\n    \t  \
                    \"@type\": \"type.googleapis.com/dialback.kinds.v1.Unlisted\",\n    \t  \"secret\": \"s\"\n    \t}\n";
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (69, "", expected));
    for code in 1..=16 {
        let data = format!("{{\"code\": {code}}}");
        let answer = run(&["call", "-plaintext", "-d", &data, &address, "dialback.kinds.v1.Probe/Fail"]).await;
        assert_eq!(answer.code, 64 + code, "{answer:?}");
    }
    let answer =
        run(&["call", "-plaintext", "-format-error", "-d", data, &address, "dialback.kinds.v1.Probe/Fail"]).await;
    let status: serde_json::Value = serde_json::from_str(&answer.err).expect("JSON");
    assert_eq!((answer.code, &status["code"], &status["details"][0]["reason"]), (69, &5.into(), &"GONE".into()));
    // OK, and no message.
    let missing = run(&["call", "-plaintext", &address, "dialback.kinds.v1.Probe/Mute"]).await;
    missing.fails(77, &["Code: Internal", "without a message"]);
}

#[tokio::test]
async fn what_is_sent_and_received_is_told_on_stderr() {
    let (_server, address) = start().await;
    let call =
        ["call", "-plaintext", "-v", "-H", "x-one: 1", "-rpc-header", "X-Two: ${TWO}", "-reflect-header", "x-three: 3"];
    let with_token = async |server: &[&str]| {
        let mut command = dialback(&[&call[..], &["-expand-headers"], server, &[UNARY]].concat());
        command.env("TWO", "2").env("DIALBACK_TOKEN", "secret");
        finish(command, "").await
    };
    let other = with_token(&[&address]).await;
    assert!(other.code == 0 && !other.err.contains("authorization"), "it is for hubs alone: {}", other.err);
    let answer = with_token(&["--gateway", &address]).await;
    assert_eq!((answer.code, answer.out.as_str()), (0, "{}\n"));
    for part in [
        "rpc Unary ( .dialback.kinds.v1.Kinds ) returns ( .dialback.kinds.v1.Kinds );",
        "Request metadata to send:\nauthorization: (from $DIALBACK_TOKEN)\nx-one: 1\nx-two: (from $TWO)\n",
        "Response headers received:\ncontent-type: application/grpc",
        "\nx-one: 1\nx-two: 2\n",
        "Response trailers received:\n(empty)\n",
        "Sent 0 requests and received 1 response\n",
    ] {
        assert!(answer.err.contains(part), "no {part:?} in {}", answer.err);
    }
    assert!(!answer.err.contains("x-three") && !answer.err.contains("secret"), "{}", answer.err);
    let missing =
        run(&["call", "-plaintext", "-expand-headers", "-H", "a: ${NOT_THERE_AT_ALL}", &address, UNARY]).await;
    missing.fails(64, &["NOT_THERE_AT_ALL"]);
}

#[tokio::test]
async fn the_server_is_told_who_calls_and_may_compress() {
    let (_server, address) = start().await;
    let call = ["call", "-plaintext", "-v", "-user-agent", "ours", "-keepalive-time", "5", "-d", r#"{"fInt32": 1}"#];
    let answer = run(&[&call[..], &[&address, UNARY]].concat()).await;
    assert_eq!((answer.code, answer.out.as_str()), (0, "{\n  \"fInt32\": 1\n}\n"));
    let agent = format!("x-user-agent: ours dialback/{}", env!("CARGO_PKG_VERSION"));
    for part in [agent.as_str(), "x-grpc-accept-encoding: gzip"] {
        assert!(answer.err.contains(part), "no {part:?} in {}", answer.err);
    }
}

#[tokio::test]
async fn a_connection_that_is_lost_is_unavailable() {
    let (server, _) = start().await;
    let proxy = Proxy::to(server.address).await;
    let address = proxy.address().to_string();
    let mut command = dialback(&["call", "-plaintext", "-d", "@", &address, &format!("{SERVICE}/Bidi")]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"{}").await.unwrap();
    let mut out = child.stdout.take().unwrap();
    tokio::time::timeout(Duration::from_secs(60), out.read_exact(&mut [0; 3])).await.unwrap().unwrap();
    drop(proxy);
    let output = soon("the end", child.wait_with_output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("Code: Unavailable") && said.contains("is lost"), "{said}");
}

#[tokio::test]
async fn names_that_do_not_exist_are_answered_with_the_nearest() {
    let (_server, address) = start().await;
    let call = async |name: &str| run(&["call", "-plaintext", &address, name]).await;
    call("dialback.kinds.v1.KindService/Unary")
        .await
        .fails(1, &["no service", "Is it dialback.kinds.v1.KindsService?"]);
    call("dialback.kinds.v1.KindsService/Unery").await.fails(1, &["no method Unery", "Is it Unary?"]);
    call("dialback.kinds.v1.KindsService/Xyz").await.fails(1, &["it has Unary, ClientStream"]);
    call("dialback.kinds.v1.Kinds/Unary").await.fails(1, &["is no service"]);
    let describe = run(&["describe", "-plaintext", &address, "dialback.kinds.v1.Probes"]).await;
    describe.fails(1, &["no symbol dialback.kinds.v1.Probes", "dialback.kinds.v1.Probe"]);
    let describe = async |name: &str| run(&["describe", "-plaintext", &address, name]).await;
    describe("Nestd").await.fails(1, &["Is it dialback.kinds.v1.Kinds.Nested?"]);
    assert!(describe(UNARY).await.text().starts_with("dialback.kinds.v1.KindsService.Unary is a method:\n"));
    let flag = run(&["call", "-plaintext", "-frmat", "yaml", &address, UNARY]).await;
    flag.fails(64, &["'--frmat'", "similar", "'--format'"]);
    let flag = run(&["call", "-plaintext", "-max_time", "1", &address, UNARY]).await;
    flag.fails(64, &["'--max_time'", "similar", "'--max-time'"]);
    run(&["-plaintext", &address, "list"]).await.fails(64, &["'--plaintext'"]);
}

/// As Go's flags are: the last one counts, and 0 is no limit.
#[tokio::test]
async fn flags_are_read_as_grpcurl_reads_them() {
    let (_server, address) = start().await;
    let twice =
        ["-plaintext", "-plaintext", "-d", "{", "-d", "{\"fInt32\": 1}", "-max-time", "0.001", "-max-time", "0"];
    let none = ["-max-msg-sz", "0", "-connect-timeout", "0", "-keepalive-time", "0", "-H", "", "-use-reflection=1"];
    let call = run(&[&["call"], &twice[..], &none, &[&address, UNARY]].concat()).await;
    assert_eq!(call.text(), "{\n  \"fInt32\": 1\n}\n");
    let files = [&["list", "-plaintext", "-use-reflection=0"], &FILES[..], &[&address]].concat();
    assert!(!run(&files).await.text().contains("grpc.reflection"));
    let several = ["call", "-plaintext", "-v", "-v", "-H", "x-a: 1", "-H", "x-b: 2", &address, UNARY];
    let answer = run(&several).await;
    assert!(answer.err.contains("x-a: 1\nx-b: 2\n") && answer.err.contains("Times: "), "{answer:?}");
    run(&["call", "-plaintext", "-insecure=no", &address, UNARY]).await.fails(64, &["'no'", "--insecure"]);
}

#[tokio::test]
async fn a_server_without_reflection_needs_a_schema() {
    let server = Kinds::start(Reflects::Not).await;
    let address = server.address.to_string();
    for command in [&["call", "-plaintext", &address, UNARY][..], &["list", "-plaintext", &address]] {
        run(command).await.fails(1, &["the server has no reflection", "-proto FILE or -protoset FILE"]);
    }
    let with_files = [&["call", "-plaintext"], &FILES[..], &[&address, UNARY]].concat();
    assert_eq!(run(&with_files).await.text(), "{}\n");

    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set.bin");
    let mut compiler = protox::Compiler::new(["proto"]).unwrap();
    compiler.include_imports(true).open_file("kinds.proto").unwrap();
    std::fs::write(&set, compiler.encode_file_descriptor_set()).unwrap();
    let set = set.to_str().unwrap();
    assert_eq!(run(&["call", "-plaintext", "-protoset", set, &address, UNARY]).await.text(), "{}\n");
    assert_eq!(run(&["list", "-protoset", set]).await.text(), "dialback.kinds.v1.KindsService\n");
    let both = run(&["list", "-protoset", set, "-proto", "proto/echo.proto"]).await;
    both.fails(64, &["cannot be used with"]);
}

#[tokio::test]
async fn reflection_of_the_old_version_is_asked_as_well() {
    let server = Kinds::start(Reflects::Old).await;
    let address = server.address.to_string();
    let services = run(&["list", "-plaintext", &address]).await.text();
    assert!(services.contains("dialback.kinds.v1.KindsService\ndialback.kinds.v1.Probe\n"), "{services}");
    assert_eq!(run(&["call", "-plaintext", &address, UNARY]).await.text(), "{}\n");
}

#[tokio::test]
async fn files_and_reflection_together_know_what_either_knows() {
    let (_server, address) = start().await;
    let greeter = ["-proto", "proto/greeter.proto"];
    let all =
        |name: &'static str| [&["describe", "-plaintext"], &greeter[..], &["-use-reflection", &address, name]].concat();
    for name in [SERVICE, "dialback.greeter.v1.Greeter"] {
        assert!(run(&all(name)).await.text().starts_with(&format!("{name} is a service:\n")));
    }
}

#[tokio::test]
async fn an_any_is_resolved_by_reflection() {
    let (_server, address) = start().await;
    // Its type is in a file that the method does not need.
    let data = r#"{"wAny": {"@type": "type.googleapis.com/dialback.kinds.v1.Unlisted", "secret": "s",
        "more": {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"url": "u"}]}}}"#;
    let answer = run(&["call", "-plaintext", "-d", data, &address, UNARY]).await.text();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer, serde_json::from_str::<serde_json::Value>(data).unwrap());
}

/// Each `Any` holds the next. A decoder has no bound for them.
#[tokio::test]
async fn anys_in_anys_without_end_are_no_end() {
    use prost::Message as _;
    let (_server, address) = start().await;
    let mut any = prost_types::Any::default();
    for _ in 0..10_000 {
        any = prost_types::Any { type_url: "/google.protobuf.Any".into(), value: any.encode_to_vec() };
    }
    let mut request = Vec::new();
    prost::encoding::message::encode(101, &any, &mut request); // w_any
    let mut framed = Vec::new();
    prost::encoding::encode_varint(request.len() as u64, &mut framed);
    framed.extend(request);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("request.bin");
    std::fs::write(&file, framed).unwrap();
    run(&["call", "-plaintext", "-f", file.to_str().unwrap(), &address, UNARY]).await.fails(1, &["nested deeper"]);
}

#[tokio::test]
async fn services_and_methods_are_listed() {
    let (_server, address) = start().await;
    let services = run(&["list", "-plaintext", &address]).await.text();
    let expected = ["dialback.kinds.v1.KindsService", "dialback.kinds.v1.Probe", "grpc.health.v1.Health"];
    assert_eq!(services.lines().take(3).collect::<Vec<_>>(), expected);
    let methods = run(&["list", "-plaintext", &address, SERVICE]).await.text();
    let expected = ["Bidi", "ClientStream", "ServerStream", "Unary"].map(|name| format!("{SERVICE}.{name}"));
    assert_eq!(methods.lines().collect::<Vec<_>>(), expected);
    run(&["list"]).await.fails(64, &["HOST:PORT"]);
}

#[tokio::test]
async fn a_sample_is_printed() {
    let (_server, address) = start().await;
    let sample = run(&["call", "-plaintext", "--sample", &address, "dialback.kinds.v1.Probe/Fail"]).await.text();
    let sample: serde_json::Value = serde_json::from_str(&sample).expect("JSON");
    assert!(sample["code"].is_number() && sample["message"].is_string(), "{sample}");
    let described =
        run(&["describe", "-proto", "proto/kinds_service.proto", "-msg-template", "dialback.kinds.v1.Failure"]).await;
    assert!(described.text().contains("\nMessage template:\n{\n"));
    // Without a server, if there are files.
    let sample = [&["call", "--sample"], &FILES[..], &["dialback.kinds.v1.Probe/Fail"]].concat();
    assert!(run(&sample).await.text().starts_with("{\n"));
}

#[tokio::test]
async fn time_is_limited() {
    let (server, address) = start().await;
    let answer = run(&["call", "-plaintext", "-max-time", "0.5", &address, "dialback.kinds.v1.Probe/Hang"]).await;
    answer.fails(68, &["Code: DeadlineExceeded", "-max-time"]);
    // The server is told, or resets: it does not go on.
    soon("the server's notice", server.cancelled.acquire()).await.unwrap().forget();

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let answer = run(&["list", "-plaintext", "-connect-timeout", "0.3", &address]).await;
    answer.fails(1, &[&address, "does not answer within 300ms"]);
    run(&["list", "-max-time", "-1", "-plaintext", &address]).await.fails(64, &["not negative"]);
}

#[tokio::test]
async fn ctrl_c_resets_the_call() {
    // A server on HTTP/2 itself, which can tell a reset from a connection that is closed.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = dialback(&[&["call", "-plaintext"], &FILES[..], &[&address, UNARY]].concat());
    let mut child = command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let stream = tokio::time::timeout(Duration::from_secs(60), listener.accept()).await.unwrap().unwrap().0;
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (_request, mut answer) = soon("the call", connection.accept()).await.unwrap().unwrap();
    let signal = format!("kill -INT {}", child.id().unwrap());
    assert!(std::process::Command::new("sh").args(["-c", &signal]).status().unwrap().success());
    let reset = std::future::poll_fn(|cx| {
        let _ = connection.poll_closed(cx); // it reads
        answer.poll_reset(cx)
    });
    assert_eq!(soon("the reset", reset).await.unwrap(), h2::Reason::CANCEL);
    drop(connection);
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(130));
}

#[tokio::test]
async fn a_stream_that_is_interrupted_is_reset_and_one_that_nobody_reads_ends_quietly() {
    let (server, address) = start().await;
    let method = "dialback.kinds.v1.Probe/Endless";
    for interrupt in [true, false] {
        let mut command = dialback(&["call", "-plaintext", "-d", r#"{"fInt32": 1}"#, &address, method]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut some = [0; 40];
        tokio::time::timeout(Duration::from_secs(60), out.read_exact(&mut some)).await.unwrap().unwrap();
        if interrupt {
            // While stdout is full and nobody reads it.
            let signal = format!("kill -INT {}", child.id().unwrap());
            assert!(std::process::Command::new("sh").args(["-c", &signal]).status().unwrap().success());
            assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(130));
        } else {
            drop(out);
            let output = soon("the end", child.wait_with_output()).await.unwrap();
            assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
        }
        soon("the reset", server.cancelled.acquire()).await.unwrap().forget();
    }
}

#[tokio::test]
async fn a_response_may_be_so_long_and_no_longer() {
    let (_server, address) = start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("long.json");
    std::fs::write(&file, format!("{{\"fString\": \"{}\"}}", "a".repeat(5_000_000))).unwrap();
    let file = file.to_str().unwrap();
    let answer = run(&["call", "-plaintext", "-f", file, &address, UNARY]).await;
    answer.fails(72, &["Code: ResourceExhausted", "-max-msg-sz"]);
    let bidi = format!("{SERVICE}/Bidi"); // not compressed
    let answer = run(&["call", "-plaintext", "-f", file, &address, &bidi]).await;
    answer.fails(72, &["Code: ResourceExhausted", "-max-msg-sz"]);
    let answer = run(&["call", "-plaintext", "-max-msg-sz", "6000000", "-f", file, &address, UNARY]).await;
    assert_eq!(answer.text().len(), 5_000_000 + "{\n  \"fString\": \"\"\n}\n".len());
}

#[tokio::test]
async fn unix_sockets_are_dialled() {
    let (mut server, _) = start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    server.also_at(path.clone());
    let path = path.to_str().unwrap();
    for address in [&[format!("unix:{path}").as_str()][..], &["-unix", path], &[&format!("unix://{path}")]] {
        assert_eq!(run(&[&["call", "-plaintext"], address, &[UNARY]].concat()).await.text(), "{}\n", "{address:?}");
    }
    run(&["list", "-plaintext", "unix:/nowhere/at/all"]).await.fails(1, &["/nowhere/at/all", "no such socket"]);
}

fn server_config(files: &Certificates, clients: bool) -> rustls::ServerConfig {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = if clients {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&files.authority).unwrap()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let mut config = builder.with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[tokio::test]
async fn tls_is_spoken_and_checked() {
    let (mut server, plain) = start().await;
    let dir = tempfile::tempdir().unwrap();
    let files = Certificates::of(dir.path(), &["127.0.0.1", "server.example.com"]);
    let address = server.also_with_tls(server_config(&files, false)).await.to_string();
    let (authority, certificate) = (files.authority.to_str().unwrap(), files.certificate.to_str().unwrap());
    let call = async |flags: &[&str]| run(&[&["call"], flags, &[&address, UNARY]].concat()).await;

    assert_eq!(call(&["-cacert", authority]).await.text(), "{}\n");
    assert_eq!(call(&["-cacert", authority, "-authority", "server.example.com"]).await.text(), "{}\n");
    let insecure = call(&["-insecure"]).await;
    assert_eq!((insecure.code, insecure.out.as_str()), (0, "{}\n"));
    assert!(insecure.err.contains("warning: -insecure"), "{insecure:?}");
    call(&[]).await.fails(1, &["UnknownIssuer", "-cacert"]);
    call(&["-cacert", authority, "-servername", "other.example.com"]).await.fails(1, &["-authority"]);
    call(&["-cacert", "/nowhere"]).await.fails(1, &["/nowhere"]);
    call(&["-cacert", authority, "-cert", certificate]).await.fails(64, &["--key"]);
    call(&["-cacert", authority, "-servername", "a", "-authority", "b"]).await.fails(64, &["-servername"]);

    // The one to the other, both ways.
    call(&["-plaintext"]).await.fails(1, &[&format!("{address} speaks TLS: leave out -plaintext")]);
    run(&["call", &plain, UNARY]).await.fails(1, &[&format!("{plain} speaks no TLS: pass -plaintext")]);
    let url = format!("http://{address}");
    run(&["call", &url, UNARY]).await.fails(1, &["speaks TLS", "https://"]);
    let url = format!("https://{plain}");
    run(&["call", &url, UNARY]).await.fails(1, &["speaks no TLS: write http:// for https://"]);

    // As `openssl req -x509` makes it, if nothing else is said.
    let mut params = rcgen::CertificateParams::new(["127.0.0.1".into()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&files.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    let address = server.also_with_tls(server_config(&files, false)).await.to_string();
    let own = run(&["call", "-cacert", certificate, &address, UNARY]).await;
    own.fails(1, &["an authority's certificate as its own", "-addext basicConstraints=critical,CA:FALSE"]);
}

#[tokio::test]
async fn client_certificates_are_shown() {
    let (mut server, _) = start().await;
    let dir = tempfile::tempdir().unwrap();
    let files = Certificates::of(dir.path(), &["127.0.0.1"]);
    let address = server.also_with_tls(server_config(&files, true)).await.to_string();
    let [authority, certificate, key] = [&files.authority, &files.certificate, &files.key].map(|p| p.to_str().unwrap());
    let shown = run(&["call", "-cacert", authority, "-cert", certificate, "-key", key, &address, UNARY]).await;
    assert_eq!(shown.text(), "{}\n");
    run(&["call", "-cacert", authority, &address, UNARY]).await.fails(1, &["-cert and -key"]);
}

#[tokio::test]
async fn what_is_no_grpc_server_is_said_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let web = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 24]).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await.unwrap();
    });
    run(&["list", "-plaintext", &address]).await.fails(1, &["HTTP/1.1", "HTTP/2"]);
    web.await.unwrap();

    run(&["list", "-plaintext", "127.0.0.1:1"]).await.fails(1, &["127.0.0.1:1", "refused", "is the server running"]);
    let unknown = run(&["list", "-plaintext", "there-is-no-such-name.invalid:1"]).await;
    unknown.fails(1, &["there-is-no-such-name.invalid", "cannot be resolved"]);
    run(&["list", "-plaintext", "localhost"]).await.fails(64, &["has no port"]);
    run(&["list", "-alts", "localhost:1"]).await.fails(64, &["-alts is not there"]);
    run(&["list", "-plaintext", "-gateway", "a:1", "b:1"]).await.fails(64, &["leave out one"]);
}

#[tokio::test]
async fn health_is_asked_and_watched() {
    let (_server, address) = start().await;
    assert_eq!(run(&["health", "-plaintext", &address]).await.text(), "SERVING\n");
    let probe = run(&["health", "-plaintext", &address, "dialback.kinds.v1.Probe"]).await;
    assert_eq!((probe.code, probe.out.as_str()), (1, "NOT_SERVING\n"));
    let unknown = run(&["health", "-plaintext", &address, "a.B"]).await;
    unknown.fails(69, &["Code: NotFound", "tells nothing of a.B"]);

    let mut command = dialback(&["health", "-plaintext", "--watch", &address, "dialback.kinds.v1.Probe"]);
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("NOT_SERVING"));
    let signal = format!("kill -INT {}", child.id().unwrap());
    assert!(std::process::Command::new("sh").args(["-c", &signal]).status().unwrap().success());
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(130));
}

#[tokio::test]
async fn agents_are_called_through_a_gateway() {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let agent = keys.agent().connect(hub.local_addr().to_string()).await.unwrap();
    let server = tokio::spawn(kinds::serve(agent.incoming()));
    soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let gateway = Gateway::builder(&hub).bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gateway.local_addr());

    let call = async |flags: &[&str], name: &str| {
        let mut command = dialback(&[&["call"], flags, &[name]].concat());
        command.env("DIALBACK_GATEWAY", &url);
        finish(command, "").await
    };
    assert_eq!(call(&["--agent", AGENT], UNARY).await.text(), "{}\n");
    assert_eq!(run(&["call", "--gateway", &url, "--agent", AGENT, UNARY]).await.text(), "{}\n");
    let ready = run(&["health", "--gateway", &url, "--agent", AGENT]).await;
    assert_eq!(ready.text(), "SERVING\n");
    // Who is not there, and who is.
    let expected = format!("connected are {AGENT}");
    call(&["--agent", "laptop-2"], UNARY).await.fails(1, &["no agent laptop-2", &expected]);
    let with_files = [&["--agent", "laptop-2"], &FILES[..]].concat();
    call(&with_files, UNARY).await.fails(69, &["Code: NotFound", "no agent laptop-2", &expected]);
    call(&FILES, UNARY).await.fails(67, &["Code: InvalidArgument", "pass --agent ID", &expected]);
    call(&[], UNARY).await.fails(1, &["no service", "pass --agent ID", &expected]);
    call(&["--agent", "No Id"], UNARY).await.fails(64, &["--agent No Id"]);
    server.abort();
}

#[tokio::test]
async fn a_token_is_read_from_a_file_or_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let policy = dir.path().join("policy.toml");
    let token = "0123456789abcdefghijklmnopqrstuvwxyz";
    std::fs::write(&policy, policy_for(token)).unwrap();
    std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o600)).unwrap();
    let policy = PolicyFile::open(&policy).unwrap();
    let gateway = Gateway::builder(&hub).policy(policy).bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gateway.local_addr());
    let list =
        ["call", "-import-path", "proto", "-proto", "hub.proto", "--gateway", &url, "dialback.v1.Hub/ListAgents"];
    run(&list).await.fails(80, &["Code: Unauthenticated"]);
    let mut command = dialback(&list);
    command.env("DIALBACK_TOKEN", token);
    assert_eq!(finish(command, "").await.text(), "{}\n");
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let with_file = [&list[..], &["--token-file", file.to_str().unwrap()]].concat();
    assert_eq!(run(&with_file).await.text(), "{}\n");
}

/// A policy hides agents from the list, and an application has statuses of its own: neither is the lack of an agent.
#[tokio::test]
async fn an_agent_is_missing_only_if_the_gateway_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let agent = keys.agent().connect(hub.local_addr().to_string()).await.unwrap();
    let server = tokio::spawn(kinds::serve(agent.incoming()));
    soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let policy = dir.path().join("policy.toml");
    let token = "0123456789abcdefghijklmnopqrstuvwxyz";
    let all = policy_for(token);
    let methods = "methods = [\"/dialback.kinds.v1.KindsService/*\", \"/grpc.health.v1.Health/*\"]";
    let few = all.replace("methods = [\"*\"]", methods);
    assert_ne!(all, few);
    std::fs::write(&policy, few).unwrap();
    std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o600)).unwrap();
    let policy = PolicyFile::open(&policy).unwrap();
    let gateway = Gateway::builder(&hub).policy(policy).bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gateway.local_addr());
    let ask = async |arguments: &[&str]| {
        let mut command = dialback(arguments);
        command.env("DIALBACK_GATEWAY", &url).env("DIALBACK_TOKEN", token);
        finish(command, "").await
    };
    let with_files = [&["call", "--agent", AGENT], &FILES[..], &[UNARY]].concat();
    assert_eq!(ask(&with_files).await.text(), "{}\n");
    let of_the_application = ask(&["health", "--agent", AGENT, "a.B"]).await;
    assert!(!of_the_application.err.contains("gateway"), "{of_the_application:?}");
    of_the_application.fails(69, &["Code: NotFound"]);
    let refused = ask(&["call", "--agent", AGENT, UNARY]).await;
    assert!(!refused.err.contains("no agent"), "{refused:?}");
    refused
        .fails(1, &["PermissionDenied", "-proto FILE or -protoset FILE", "its policy has to allow /grpc.reflection"]);
    let missing = [&["call", "--agent", "laptop-2"], &FILES[..], &[UNARY]].concat();
    ask(&missing).await.fails(69, &["has no agent laptop-2: no agent is connected that you may see"]);
    assert_eq!(ask(&["agents"]).await.text(), "no agent is connected that you may see\n");
    server.abort();
}

fn policy_for(token: &str) -> String {
    let hash: String = sha2::Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "[[caller]]\nname = \"ci\"\ntoken-sha256 = [\"{hash}\"]\n\n\
         [[allow]]\ncallers = [\"ci\"]\nagents = [\"*\"]\nmethods = [\"*\"]\n"
    )
}

#[tokio::test]
async fn requests_and_responses_have_their_formats() {
    let (_server, address) = start().await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let json = "{\n  \"fInt32\": 7,\n  \"fString\": \"a\"\n}\n";
    let yaml = write("request.yaml", "fInt32: 7\nfString: a\n");
    let text = write("request.textproto", "f_int32: 7 f_string: \"a\"");
    // The response is JSON, whatever the request was, unless --format says otherwise.
    for file in [&yaml, &text] {
        assert_eq!(run(&["call", "-plaintext", "-f", file, &address, UNARY]).await.text(), json, "{file}");
    }
    let call = async |format: &str, stdin: &str| {
        let call = ["call", "-plaintext", "--format", format, "-d", "@", &address, UNARY];
        run_with(&call, stdin).await.text()
    };
    let xml =
        run(&["call", "-plaintext", "--format", "xml", "--request-format", "json", "-d", json, &address, UNARY]).await;
    let xml = xml.text();
    assert!(xml.contains("<f_int32>7</") || xml.contains("<fInt32>7</"), "{xml}");
    assert_eq!(call("xml", &xml).await, xml);
    assert_eq!(call("yaml", "fInt32: 7\n").await, "fInt32: 7\n");
    let line = "{\"fInt32\":7,\"fString\":\"a\"}\n";
    assert_eq!(call("ndjson", line).await, line);
    for format in ["json", "yaml", "xml", "text", "ndjson"] {
        let sample = ["call", "-plaintext", "--sample", "--format", format, &address, "dialback.kinds.v1.Probe/Fail"];
        let sample = run(&sample).await.text();
        let call = ["call", "-plaintext", "--format", format, "-d", "@", &address, "dialback.kinds.v1.Probe/Fail"];
        // A sample can be sent as it is: the status that it names is OK, or is none.
        let answer = run_with(&call, &sample).await;
        assert!(answer.code >= 64 || answer.code == 0, "{format}: {answer:?}\n{sample}");
    }
}
