//! The README's five minutes with the command, typed as they are printed: beside a server in Rust, in Go and in Python.
//!
//! The addresses there are fixed, so each tour has a network namespace of its own.
#![cfg(all(unix, feature = "cli"))]

mod common;

use std::{env, path::Path, process::Output, time::Duration};

use common::{grpctunnel::python, peers::go_peer, peers::require_root_netns};
use tokio::{process::Command, time::timeout};

const README: &str = include_str!("../README.md");

/// How long a tour may take, beside the rest of a test run.
const TOUR: Duration = Duration::from_secs(60);

/// The blocks of the tour that are typed; the first, which installs the command, is not among them.
fn blocks() -> [&'static str; 2] {
    let (_, tour) = README.split_once("## Five minutes with the command\n").expect("the tour");
    let (tour, _) = tour.split_once("\n## ").expect("what comes after it");
    let blocks: Vec<_> =
        tour.split("```sh\n").skip(1).map(|block| block.split("```").next().expect("its end")).collect();
    let [install, first, second] = blocks[..] else { panic!("{} blocks", blocks.len()) };
    assert!(install.starts_with("cargo install"), "{install}");
    [first, second]
}

/// Takes the tour; `greeter` is what stands in for the example's server. What was printed, and what was said beside it.
async fn tour(greeter: &str) -> Option<(String, String)> {
    if !require_root_netns() {
        return None;
    }
    let [first, second] = blocks();
    let directory = tempfile::tempdir().expect("a directory");
    let program = Path::new(env!("CARGO_BIN_EXE_dialback"));
    let script = format!(
        r#"
set -eum
ip link set lo up
cargo() {{ exec {greeter}; }}
{first}
until dialback agents --gateway http://127.0.0.1:8080 -o json 2> waiting | grep -q ready; do sleep 0.1; done
until dialback list --agent laptop-1 --gateway http://127.0.0.1:8080 > waiting 2>&1; do sleep 0.1; done
{second}
# Ctrl-C for the agent.
dialback agents --watch > watched & sleep 0; watch=$!
until grep -q connected watched; do sleep 0.1; done
kill -INT %3; wait %3
until grep -q gone watched; do sleep 0.1; done
kill $watch
cat watched
dialback agents
kill %1 %2; wait %2
"#
    );
    let path = format!("{}:{}", program.parent().expect("a directory").display(), env::var("PATH").unwrap_or_default());
    let mut command = Command::new("unshare");
    // What is left when the script fails dies with it.
    command.args(["--net", "--pid", "--fork", "--kill-child", "bash", "-c", &script]);
    command.current_dir(directory.path()).env("PATH", path).env_remove("RUST_LOG").kill_on_drop(true);
    let Output { status, stdout, stderr } = timeout(TOUR, command.output()).await.expect("in time").expect("bash");
    let (out, said) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{status}\n{out}\n{said}");
    Some((out, said))
}

/// What the tour shows, whoever greets.
fn assert_shown(out: &str, said: &str, greeter: &str) {
    let lines: Vec<_> = out.lines().map(str::trim).collect();
    let shown = |line: &str| assert!(lines.contains(&line), "{line:?} is missing:\n{out}\n{said}");
    shown("dialback.greeter.v1.Greeter");
    shown(&format!("\"message\": \"Hello Ada, this is {greeter}\""));
    for n in 1..=3 {
        shown(&format!("\"message\": \"Hello Grace, number {n}\""));
    }
    shown("<message>Hello Linus</message>");
    let row = lines.iter().find(|line| line.starts_with("laptop-1 ") && line.ends_with(" ms"));
    assert!(row.is_some_and(|row| row.contains("TCP")), "{out}");
    assert!(lines.iter().any(|line| line.starts_with("laptop-1 connected: 1 tunnel")), "{out}");
    assert!(lines.iter().any(|line| line.starts_with("laptop-1 is gone: ")), "{out}");
    shown("no agent is connected that you may see");
    assert!(said.contains("made hub_key and hub_key.pub"), "{said}");
}

#[tokio::test]
async fn tour_beside_a_server_in_rust() {
    let test = env::current_exe().expect("this program has a path");
    let greeter = test.ancestors().nth(2).expect("a test lies in PROFILE/deps").join("examples/greeter_server");
    assert!(greeter.is_file(), "{} is missing: `cargo build --examples` makes it", greeter.display());
    let Some((out, said)) = tour(&greeter.display().to_string()).await else { return };
    assert_shown(&out, &said, "the greeter");
}

#[tokio::test]
async fn tour_beside_a_server_in_go() {
    let Some(greeter) = go_peer("greeter") else { return };
    let descriptors = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/gen/dialback.greeter.v1.bin");
    let greeter = format!("{} -descriptors {}", greeter.display(), descriptors.display());
    let Some((out, said)) = tour(&greeter).await else { return };
    assert_shown(&out, &said, "Go");
}

#[tokio::test]
async fn tour_beside_a_server_in_python() {
    let Some(command) = python("greeter.py").await else { return };
    let command = command.as_std();
    let words = [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_string_lossy());
    let variables = command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    let variables: Vec<_> = variables.map(|(name, value)| format!("{name}={value}")).collect();
    let greeter = format!("env {} {}", variables.join(" "), words.collect::<Vec<_>>().join(" "));
    let Some((out, said)) = tour(&greeter).await else { return };
    assert_shown(&out, &said, "Python");
}
