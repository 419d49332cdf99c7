//! `dialback agents`, through the real program, at the gateway of a real hub.
#![cfg(feature = "cli")]

mod common;

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use common::rig::{AGENT, Rig, soon};
use dialback::gateway::{Gateway, PolicyFile};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

fn agents(gateway: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dialback"));
    command.arg("agents").args(args).env("DIALBACK_GATEWAY", gateway).kill_on_drop(true);
    command
}

/// Exit code, stdout and stderr.
async fn run(gateway: &str, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = soon("the end", agents(gateway, args).output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

async fn start() -> (Rig, Gateway, String) {
    let rig = Rig::builder().eager().start().await;
    let gateway = Gateway::builder(&rig.hub).bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gateway.local_addr());
    (rig, gateway, url)
}

#[tokio::test]
async fn agents_are_a_table_for_people_and_json_for_programs() {
    let (rig, gateway, url) = start().await;
    let (code, table, said) = run(&url, &[]).await;
    assert_eq!((code, &*said), (0, ""));
    let lines: Vec<_> = table.lines().collect();
    let [header, row] = lines[..] else { panic!("{table}") };
    assert_eq!(
        header.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>(),
        ["AGENT", "SINCE", "FROM", "CARRIER", "TUNNELS", "CALLS", "ROUND TRIP"]
    );
    assert!(row.starts_with(AGENT) && row.contains("127.0.0.1:") && row.ends_with(" ms"), "{table}");
    assert!(!table.contains('\x1b'), "no colours in a pipe");

    let (code, json, _) = run(&url, &["-o", "json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    let tunnel = &json[0]["tunnels"][0];
    assert_eq!(
        (code, &json[0]["id"], &tunnel["carrier"], &tunnel["ready"]),
        (0, &AGENT.into(), &"TCP".into(), &true.into())
    );
    assert!(tunnel["roundTripMs"].as_f64().unwrap() > 0.0, "{json}");

    rig.agent.shutdown(Duration::ZERO).await;
    let (code, text, _) = run(&url, &[]).await;
    assert_eq!((code, &*text), (0, "no agent is connected that you may see\n"));
    let (code, text, _) = run(&url, &["-o", "json"]).await;
    assert_eq!((code, &*text), (0, "[]\n"));
    drop(gateway);
}

/// The table, word for word. What varies is replaced, at its own width: the time since the connection by `#s`, each digit of
/// the agent's port by `#`, and the round trip by `#.# ms`. After a change run
/// `UPDATE_SNAPSHOTS=1 cargo test --features cli --test cli_agents`, and read the difference.
#[tokio::test]
async fn the_table_is_as_in_the_file() {
    let (_rig, _gateway, url) = start().await;
    let (code, table, _) = run(&url, &[]).await;
    assert_eq!(code, 0, "{table}");
    let stable = table.lines().map(stable).collect::<String>();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/agents.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, &stable).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(stable == expected, "the table is not as in {}; see this test's first lines:\n{table}", file.display());
}

fn stable(line: &str) -> String {
    let Some((before, from)) = line.split_once("127.0.0.1:") else { return format!("{line}\n") };
    let port = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
    let (before, since) = before.trim_end().rsplit_once(' ').expect("a time before the address");
    assert!(since.ends_with('s') && since[..since.len() - 1].parse::<u8>().is_ok(), "{line}");
    let (rest, trip) = from[port..].rsplit_once("  ").expect("a round trip");
    let number = trip.trim().strip_suffix(" ms").expect("a round trip");
    assert!(number.parse::<f64>().is_ok(), "{line}");
    let trip = format!("{:>1$}", "#.# ms", trip.len());
    // Time passes while the test runs: the column is as wide as its title, whatever the number.
    format!("{before} {:<6} 127.0.0.1:{}{rest}  {trip}\n", "#s", "#".repeat(port))
}

#[tokio::test]
async fn watch_tells_who_comes_and_goes() {
    for json in [false, true] {
        let (rig, gateway, url) = start().await;
        let form: &[&str] = if json { &["--watch", "-o", "json"] } else { &["--watch"] };
        let mut child = agents(&url, form).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut line = async || soon("a line", lines.next_line()).await.unwrap().expect("a line");
        let first = line().await;
        // Its hub is started anew.
        let address = gateway.local_addr();
        soon("the gateway's end", gateway.shutdown(Duration::ZERO)).await;
        let lost = soon("a line", said.next_line()).await.unwrap().expect("a line");
        assert!(lost.starts_with(&format!("dialback: {url}: ")) && lost.ends_with(": trying again"), "{lost}");
        let gateway = Gateway::builder(&rig.hub).bind(address).await.unwrap();
        let again = line().await;
        rig.agent.shutdown(Duration::ZERO).await;
        // It may be told of once more while it drains.
        let last = loop {
            let next = line().await;
            if !next.contains("changed") {
                break next;
            }
        };
        if json {
            let [first, again, last] = [first, again, last].map(|line| serde_json::from_str::<Value>(&line).unwrap());
            assert_eq!((&first["event"], &first["agent"]["id"]), (&"connected".into(), &AGENT.into()));
            assert_eq!((&again["event"], &again["agent"]["id"]), (&"changed".into(), &AGENT.into()));
            assert_eq!((&last["event"], &last["id"]), (&"gone".into(), &AGENT.into()));
        } else {
            assert!(first.starts_with("laptop-1 connected: 1 tunnel, TCP from 127.0.0.1:"), "{first}");
            assert!(again.starts_with("laptop-1 changed: 1 tunnel, TCP from 127.0.0.1:"), "{again}");
            assert!(last.starts_with("laptop-1 is gone: "), "{last}");
        }
        // Waiting does not help a caller who is refused.
        soon("the gateway's end", gateway.shutdown(Duration::ZERO)).await;
        let policy = tempfile::NamedTempFile::new().unwrap(); // which knows nobody
        let policy = PolicyFile::open(policy.path()).unwrap();
        let _gateway = Gateway::builder(&rig.hub).policy(policy).bind(address).await.unwrap();
        let status = soon("the end", child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(64 + 16), "UNAUTHENTICATED");
    }
}

/// As `dialback agents --watch | head -1` has it.
#[tokio::test]
async fn watch_ends_when_nobody_reads_any_more() {
    let (rig, _gateway, url) = start().await;
    let mut child = agents(&url, &["-watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    soon("a line", lines.next_line()).await.unwrap().expect("a line");
    drop(lines);
    rig.agent.shutdown(Duration::ZERO).await;
    let status = soon("the end", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn what_is_no_gateway_is_told() {
    let rig = Rig::start().await;
    let server = tonic::transport::Server::builder().add_service(rig.echo.service());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tokio::spawn(server.serve_with_incoming(incoming));
    let (code, out, said) = run(&url, &[]).await;
    assert!(code == 64 + 12 && out.is_empty() && said.contains("is not a hub's gateway"), "{code} {said}");
    server.abort();
    let _ = server.await; // it was aborted
    let (code, out, said) = run(&url, &[]).await;
    assert!(code == 1 && out.is_empty() && said.contains("refused"), "{code} {said}");
}
