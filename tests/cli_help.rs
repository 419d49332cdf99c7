//! What help, `keygen` and `check` say, word for word. After a change run
//! `UPDATE_SNAPSHOTS=1 cargo test --features cli --test cli_help`, and read the difference.
//!
//! The help of `hub` and `agent` is in `tests/cli_config.rs`. What is different each time is replaced: public keys by KEY,
//! fingerprints by SHA256:FINGERPRINT, hashes by HASH, ports of the system's choice by PORT, milliseconds by N ms.
#![cfg(feature = "cli")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::rig::soon;
use dialback::{AuthorizedKeys, Hub, PrivateKey};

#[track_caller]
fn is_as_in_the_file(name: &str, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dialback"));
    command.args(arguments).env("NO_COLOR", "1").env_remove("DIALBACK_GATEWAY").env_remove("COLUMNS");
    let output = command.output().expect("start");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    compare(name, &String::from_utf8(output.stdout).expect("text"));
}

#[track_caller]
fn compare(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        std::fs::write(&file, text).expect("write");
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text == expected, "it is not as in {}; see this test's first lines:\n{text}", file.display());
}

#[test]
fn call_is_explained() {
    is_as_in_the_file("help_call.txt", &["call", "--help"]);
}

#[test]
fn list_is_explained() {
    is_as_in_the_file("help_list.txt", &["list", "-h"]);
}

#[test]
fn describe_is_explained() {
    is_as_in_the_file("help_describe.txt", &["describe", "-h"]);
}

#[test]
fn health_is_explained() {
    is_as_in_the_file("help_health.txt", &["health", "-h"]);
}

#[test]
fn everything_else_is_explained() {
    is_as_in_the_file("help.txt", &["--help"]);
    is_as_in_the_file("help_agents.txt", &["agents", "--help"]);
    is_as_in_the_file("help_check_hub.txt", &["check", "hub", "-h"]);
    is_as_in_the_file("help_check.txt", &["check", "-h"]);
    is_as_in_the_file("help_completions.txt", &["completions", "--help"]);
    is_as_in_the_file("help_man.txt", &["man", "--help"]);
    is_as_in_the_file("help_keygen.txt", &["keygen", "--help"]);
    for whose in ["hub", "agent", "token"] {
        is_as_in_the_file(&format!("help_keygen_{whose}.txt"), &["keygen", whose, "--help"]);
    }
    let version = Command::new(env!("CARGO_BIN_EXE_dialback")).arg("--version").output().expect("start");
    assert_eq!(String::from_utf8_lossy(&version.stdout), concat!("dialback ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// The words that are different each time, replaced; some are known, as ports are.
fn settled(text: &str, known: &[(String, &str)]) -> String {
    let word = |word: &str| {
        let bare = word.trim_end_matches([',', '.', ':', ';', ')']);
        let instead = match bare {
            _ if bare.starts_with("AAAA") => "KEY",
            _ if bare.starts_with("SHA256:") => "SHA256:FINGERPRINT",
            _ if bare.len() == 64 && bare.bytes().all(|byte| byte.is_ascii_hexdigit()) => "HASH",
            _ => return word.to_owned(),
        };
        word.replace(bare, instead)
    };
    let line = |line: &str| {
        let line = line.split(' ').map(word).collect::<Vec<_>>().join(" ");
        match line.strip_prefix("✓ round trip   ") {
            Some(_) => "✓ round trip   N ms".into(),
            None => line,
        }
    };
    let mut text: String = text.lines().map(|text| line(text) + "\n").collect();
    for (known, instead) in known {
        text = text.replace(known, instead);
    }
    text
}

/// A run in a directory: the command, and both that it printed and that it said.
async fn told(directory: &Path, arguments: &[&str], known: &[(String, &str)]) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dialback"));
    command.current_dir(directory).args(arguments).env("NO_COLOR", "1").env("NO_PROXY", "*").kill_on_drop(true);
    let Output { status, stdout, stderr } = soon("the end", command.output()).await.expect("start");
    let text = |bytes| settled(&String::from_utf8(bytes).expect("text"), known);
    let (out, said) = (text(stdout), text(stderr));
    let command = settled(&format!("$ dialback {}", arguments.join(" ")), known);
    let code = status.code().expect("no signal");
    format!("{command}{out}--- said, and exit code {code}:\n{said}\n")
}

#[tokio::test]
async fn keygen_tells_where_its_lines_belong() {
    let directory = tempfile::tempdir().expect("a directory");
    let runs = [
        &["keygen", "hub", "--address", "hub.example.com:2222", "--address", "wss://hub.example.com/tunnel"][..],
        &["keygen", "agent", "laptop-1"],
        &["keygen", "agent", "laptop-1"],
        &["keygen", "agent", "laptop-1", "--existing", "--append", "authorized_keys"],
        &["keygen", "token", "laptop-1"],
        &["keygen", "token", "laptop-1", "--existing", "--append", "agent_tokens"],
    ];
    let mut text = String::new();
    for arguments in runs {
        text += &told(directory.path(), arguments, &[]).await;
    }
    compare("keygen.txt", &text);
}

#[tokio::test]
async fn check_tells_step_by_step() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    key.write_to(path("id")).expect("write");
    PrivateKey::generate().write_to(path("stranger")).expect("write");
    host.write_to(path("hub_key")).expect("write");
    let line = key.public_key().authorized_keys_line(&"laptop-1".parse().expect("an id"));
    std::fs::write(path("authorized_keys"), line + "\n").expect("write");
    let keys = AuthorizedKeys::open(path("authorized_keys")).expect("keys");
    let hub = Hub::builder(host.clone()).authorizer(keys).bind("127.0.0.1:0").await.expect("bind");
    let address = hub.local_addr().to_string();
    let line = host.public_key().known_hosts_line(&address).expect("a line");
    std::fs::write(path("known_hosts"), line).expect("write");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("an address");
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let forward = server.local_addr().expect("an address").to_string();
    // Nobody takes these while the tests run.
    let here = std::fs::canonicalize(directory.path()).expect("a directory").display().to_string();
    let known = [
        (format!("127.0.0.1:{}", closed.port()), "127.0.0.1:CLOSED"),
        (address.clone(), "127.0.0.1:PORT"),
        (forward.clone(), "127.0.0.1:SERVER"),
        (here, "HERE"),
    ];
    let closed = closed.to_string();
    let of_agent =
        ["check", "--id", "laptop-1", "--known-hosts", "known_hosts", "--hub", &address, "--forward", &forward];
    let of_hub = ["check", "hub", "--host-key", "hub_key", "--authorized-keys", "authorized_keys", "--listen"];
    let runs = [
        [&of_agent[..], &["--identity", "id"]].concat(),
        [&of_agent[..], &["--identity", "stranger", "--hub", &closed]].concat(),
        [&of_agent[..], &["--identity", "missing"]].concat(),
        [&of_hub[..], &["127.0.0.1:0", "--gateway", "127.0.0.1:0"]].concat(),
        [&of_hub[..], &[&address, "--gateway", "0.0.0.0:0", "--policy", "missing.toml"]].concat(),
    ];
    let mut text = String::new();
    for arguments in runs {
        text += &told(directory.path(), &arguments, &known).await;
    }
    compare("check.txt", &text);
}
