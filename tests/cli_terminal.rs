//! The command's client on a terminal: what a person types and sees.
#![cfg(all(unix, feature = "cli"))]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use common::command::dialback;
use common::kinds::{Kinds, Reflects};
use common::rig::soon;
use nix::pty::openpty;
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
    (Person { hands, eyes, seen: String::new() }, File::from(pty.slave))
}

impl Person {
    fn types(&mut self, text: &str) {
        self.hands.write_all(text.as_bytes()).expect("write to the terminal");
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
                self.seen +=
                    &String::from_utf8_lossy(&more.unwrap_or_else(|| panic!("no {part:?} in {:?}", self.seen)));
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
