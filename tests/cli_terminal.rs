//! The command's client on a terminal: what a person types and sees.
#![cfg(all(unix, feature = "cli"))]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::child::Keys;
use common::command::dialback;
use common::kinds::{self, Kinds, Reflects};
use common::rig::{AGENT, soon};
use dialback::gateway::Gateway;
use nix::pty::openpty;
use nix::sys::termios::{FlowArg, tcflow};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use tokio::sync::mpsc;

/// How long a busy machine may take for what a person would see at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The side of a terminal where the person sits.
struct Person {
    hands: File,
    eyes: mpsc::UnboundedReceiver<Vec<u8>>,
    seen: String,
    /// Everything, whether it was waited for or not.
    all: String,
}

/// A terminal: the person's side, and the command's.
fn terminal() -> (Person, File) {
    let pty = openpty(None, None).expect("a pseudo-terminal");
    let hands = File::from(pty.master);
    let mut screen = hands.try_clone().expect("a copy");
    let (send, eyes) = mpsc::unbounded_channel();
    // A thread, as a terminal cannot be waited for in any other way; it ends with the command.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut buffer) {
            if send.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    (Person { hands, eyes, seen: String::new(), all: String::new() }, File::from(pty.slave))
}

impl Person {
    fn types(&mut self, text: &str) {
        self.hands.write_all(text.as_bytes()).expect("write to the terminal");
    }

    fn look(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        self.seen += &text;
        self.all += &text;
    }

    /// Waits until everybody has left the terminal.
    async fn rest(&mut self) {
        while let Some(bytes) = soon("the end of the terminal", self.eyes.recv()).await {
            self.look(&bytes);
        }
    }

    /// Waits until `part` is seen, and forgets all up to it.
    async fn sees(&mut self, part: &str) {
        let watch = async {
            loop {
                if let Some(at) = self.seen.find(part) {
                    self.seen.drain(..at + part.len());
                    return;
                }
                let more = self.eyes.recv().await;
                self.look(&more.unwrap_or_else(|| panic!("no {part:?} in {:?}", self.seen)));
            }
        };
        let watched = tokio::time::timeout(PATIENCE, watch).await;
        assert!(watched.is_ok(), "no {part:?} in {:?}", self.seen);
    }
}

async fn interrupt(child: &mut Child) {
    let signal = format!("kill -INT {}", child.id().expect("it runs"));
    assert!(std::process::Command::new("sh").args(["-c", &signal]).status().expect("sh").success());
    assert_eq!(soon("the end", child.wait()).await.expect("an end").code(), Some(130));
}

#[tokio::test]
async fn a_call_is_a_conversation() {
    let server = Kinds::start(Reflects::Both).await;
    let (mut person, terminal) = terminal();
    let address = server.address.to_string();
    let mut command = dialback(&["call", "-plaintext", "-d", "@", &address, "dialback.kinds.v1.KindsService/Bidi"]);
    let copy = || Stdio::from(terminal.try_clone().expect("a copy"));
    let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).kill_on_drop(true).spawn().expect("start");
    for text in ["one", "two"] {
        person.types(&format!("{{\"fString\":\"{text}\"}}\n"));
        // What is typed is shown by the terminal, without the space.
        person.sees(&format!("\"fString\": \"{text}\"\r\n}}")).await;
    }
    person.types("\u{4}"); // Ctrl-D
    assert!(soon("the end", child.wait()).await.expect("an end").success());
}

#[tokio::test]
async fn a_long_stream_shows_how_far_it_is_on_stderr_alone() {
    let server = Kinds::start(Reflects::Both).await;
    let (mut person, terminal) = terminal();
    let address = server.address.to_string();
    let call = ["call", "-plaintext", "-d", r#"{"fInt32": 1}"#, &address, "dialback.kinds.v1.Probe/Endless"];
    let mut command = dialback(&call);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(terminal).kill_on_drop(true);
    let mut child = command.spawn().expect("start");
    drop(command); // it holds the terminal
    let mut out = child.stdout.take().expect("stdout is piped");
    let data = tokio::spawn(async move {
        let mut data = Vec::new();
        out.read_to_end(&mut data).await.expect("read");
        data
    });
    person.sees(" messages, ").await;
    person.sees("iB, ").await;
    person.sees(" messages/s").await;
    interrupt(&mut child).await;
    let data = String::from_utf8(data.await.expect("no panic")).expect("text");
    let message = "{\n  \"fInt32\": 1\n}\n";
    let rest = data.trim_start_matches(message);
    // The last one may be cut off by the end.
    assert!(rest.len() < data.len() && message.starts_with(rest), "something else is among the data: {rest:.200}");
}

#[tokio::test]
async fn a_long_request_shows_how_far_it_is() {
    let server = Kinds::start(Reflects::Both).await;
    let (mut person, terminal) = terminal();
    let address = server.address.to_string();
    // Each byte is an empty message.
    let request = ["-f", "/dev/zero", "--request-format", "binary"];
    let method = "dialback.kinds.v1.KindsService/ClientStream";
    let mut command = dialback(&[&["call", "-plaintext"], &request[..], &[&address, method]].concat());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(terminal).kill_on_drop(true);
    let mut child = command.spawn().expect("start");
    person.sees(" messages, 0 B, ").await;
    interrupt(&mut child).await;
}

/// However often agents come and go, a table stays long enough to be read.
#[tokio::test]
async fn agents_are_a_table_that_is_kept() {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.expect("a hub");
    let gateway = Gateway::builder(&hub).bind("127.0.0.1:0").await.expect("a gateway");
    let url = format!("http://{}", gateway.local_addr());
    let (mut person, terminal) = terminal();
    let copy = || Stdio::from(terminal.try_clone().expect("a copy"));
    let mut command = dialback(&["agents", "--watch", "--gateway", &url]);
    command.stdin(Stdio::null()).stdout(copy()).stderr(copy()).kill_on_drop(true);
    let begun = Instant::now();
    let mut child = command.spawn().expect("start");
    drop((command, terminal));
    person.sees("no agent is connected that you may see").await;
    for last in [false, false, false, false, false, false, false, true] {
        let agent = keys.agent().connect(hub.local_addr().to_string()).await.expect("an agent");
        let server = tokio::spawn(kinds::serve(agent.incoming()));
        soon("the agent", hub.wait_for(AGENT)).await.expect("an agent");
        if last {
            person.sees(&format!("{AGENT} ")).await;
            person.sees(" ms\r\n").await;
        }
        agent.shutdown(Duration::ZERO).await;
        server.abort();
    }
    person.sees("no agent is connected that you may see").await;
    interrupt(&mut child).await;
    person.rest().await;
    let tables = person.all.matches("\x1b[2J").count() as u64;
    assert!((3..=begun.elapsed().as_secs() + 1).contains(&tables), "{tables} in {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_pipe_gets_no_progress() {
    let server = Kinds::start(Reflects::Both).await;
    let address = server.address.to_string();
    let call = ["-d", r#"{"fInt32": 1}"#, &address, "dialback.kinds.v1.Probe/Endless"];
    let mut command = dialback(&[&["call", "-plaintext", "-max-time", "3"], &call[..]].concat());
    let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await.expect("an end");
    let output = output.expect("an end");
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(said.starts_with("ERROR:\n  Code: DeadlineExceeded\n") && said.lines().count() == 3, "{said}");
    assert!(output.stdout.len() > 1000 && !output.stdout.contains(&0x1b));
}

/// Whether a thread of a process waits to write to a terminal.
fn is_held_up(child: &Child) -> bool {
    let threads = format!("/proc/{}/task", child.id().expect("it runs"));
    let threads = std::fs::read_dir(threads).expect("Linux").flatten();
    // The number of the system call and its arguments; 1 is write on x86-64, 64 on arm64.
    let calls = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("syscall")).ok());
    let number = if cfg!(target_arch = "x86_64") { "1 " } else { "64 " };
    calls
        .into_iter()
        .any(|call| call.starts_with(&format!("{number}0x1 ")) || call.starts_with(&format!("{number}0x2 ")))
}

/// As with Ctrl-S: what is written waits until the terminal goes on.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn ctrl_c_works_while_the_terminal_is_stopped() {
    let server = Kinds::start(Reflects::Both).await;
    let address = server.address.to_string();
    let unary = "dialback.kinds.v1.KindsService/Unary";
    let endless = "dialback.kinds.v1.Probe/Endless";
    let fail = ["call", "-plaintext", "-d", r#"{"code": 5}"#, &address, "dialback.kinds.v1.Probe/Fail"];
    let commands: [&[&str]; 8] = [
        &["list", "-plaintext", &address],
        &["describe", "-plaintext", &address],
        &["health", "-plaintext", &address],
        &["call", "-plaintext", &address, unary],
        &["call", "-plaintext", "-v", &address, unary],
        &["call", "-plaintext", "-d", r#"{"fInt32": 1}"#, &address, endless],
        &fail,
        // What is said last of all.
        &["call", "-plaintext", &address, "dialback.kinds.v1.KindsService/None"],
    ];
    for arguments in commands {
        let (_person, terminal) = terminal();
        tcflow(&terminal, FlowArg::TCOOFF).expect("a terminal stops");
        let copy = || Stdio::from(terminal.try_clone().expect("a copy"));
        let mut command = dialback(arguments);
        command.stdin(Stdio::null()).stdout(copy()).stderr(copy()).kill_on_drop(true);
        let mut child = command.spawn().expect("start");
        let held_up = async {
            while !is_held_up(&child) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, held_up).await.is_ok(), "{arguments:?} writes nothing");
        let signal = format!("kill -INT {}", child.id().expect("it runs"));
        assert!(std::process::Command::new("sh").args(["-c", &signal]).status().expect("sh").success());
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        let code = ended.unwrap_or_else(|_| panic!("{arguments:?} is held up")).expect("an end").code();
        let expected = if arguments.ends_with(&["dialback.kinds.v1.KindsService/None"]) { 1 } else { 130 };
        assert_eq!(code, Some(expected), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_terminal_gets_nothing_that_it_would_obey() {
    let server = Kinds::start(Reflects::Both).await;
    let address = server.address.to_string();
    let text = "a\\u001b]0;x\\u0007\\u009b31m\\u007f\\u202eb";
    let message = format!(r#"{{"fString": "{text}"}}"#);
    let detail = format!(r#"{{"@type": "type.googleapis.com/dialback.kinds.v1.Unlisted", "secret": "{text}"}}"#);
    let failure = format!(r#"{{"code": 5, "message": "{text}", "details": [{detail}]}}"#);
    let header = "x-text: \u{9b}31m";
    let unary = "dialback.kinds.v1.KindsService/Unary";
    let fail = "dialback.kinds.v1.Probe/Fail";
    let json = "a\\u001b]0;x\\u0007\\u009b31m\\u007f\\u202eb";
    let octal = "a\\033]0;x\\007\\302\\23331m\\177\\342\\200\\256b";
    let base64 = "YRtdMDt4B8KbMzFtf+KArmI="; // XML has no escape
    let cases: [(&[&str], &str, &str, &[&str]); 9] = [
        (&["--format", "json"], &message, unary, &[json]),
        (&["--format", "ndjson"], &message, unary, &[json]),
        (&["--format", "yaml"], &message, unary, &[json]),
        (&["--format", "text"], &message, unary, &[octal]),
        (&["--format", "xml"], &message, unary, &[base64]),
        (&["-v", "-H", header], "{}", unary, &["x-text: ", "}", "Sent 1 request"]),
        (&[], &failure, fail, &["Message: a\\u{1b}]0;x", "\\u{9b}31m\\u{7f}\\u{202e}b", json]),
        (&["-format-error"], &failure, fail, &[json, json]),
        (&["-format-error", "--format", "binary"], &failure, fail, &["Code: NotFound", json]),
    ];
    for (flags, data, method, expected) in cases {
        let (mut person, terminal) = terminal();
        let copy = || Stdio::from(terminal.try_clone().expect("a copy"));
        let flags = [&["call", "-plaintext", "--request-format", "json", "-d", data], flags].concat();
        let mut command = dialback(&[&flags[..], &[&address, method]].concat());
        let binary = flags.contains(&"binary");
        let out = if binary { Stdio::null() } else { copy() };
        let mut child =
            command.stdin(Stdio::null()).stdout(out).stderr(copy()).kill_on_drop(true).spawn().expect("start");
        drop((command, terminal));
        for part in expected {
            person.sees(part).await;
        }
        soon("the end", child.wait()).await.expect("an end");
        person.rest().await;
        let obeyed = |c: &char| c.is_control() && !"\r\n\t".contains(*c) || *c == '\u{202e}';
        assert_eq!(person.all.chars().find(obeyed), None, "{flags:?}: {:?}", person.all);
    }
    // No terminal shows it.
    let (mut person, terminal) = terminal();
    let mut command = dialback(&["call", "-plaintext", "--format", "binary", &address, unary]);
    let copy = || Stdio::from(terminal.try_clone().expect("a copy"));
    let mut child = command.stdout(copy()).stderr(copy()).kill_on_drop(true).spawn().expect("start");
    person.sees("binary is not for a terminal").await;
    assert_eq!(soon("the end", child.wait()).await.expect("an end").code(), Some(64));
}
