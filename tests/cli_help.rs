//! What the help of the gRPC client's commands says, word for word. After a change run
//! `UPDATE_SNAPSHOTS=1 cargo test --features cli --test cli_help`, and read the difference.
#![cfg(feature = "cli")]

use std::path::Path;
use std::process::Command;

#[track_caller]
fn is_as_in_the_file(name: &str, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dialback"));
    command.args(arguments).env("NO_COLOR", "1").env_remove("DIALBACK_GATEWAY").env_remove("COLUMNS");
    let output = command.output().expect("start");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        std::fs::write(&file, &text).expect("write");
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text == expected, "the help is not as in {}; see this test's first lines:\n{text}", file.display());
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
