//! `dialback keygen`, `completions` and `man`, through the real program.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use dialback::{Agent, AuthorizedKeys, HostKeys, Hub, PrivateKey};

fn dialback(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dialback")).current_dir(directory).args(args).output().expect("run dialback")
}

/// What it printed, and said to people.
fn done(directory: &Path, args: &[&str]) -> (String, String) {
    let Output { status, stdout, stderr } = dialback(directory, args);
    let (out, said) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{args:?}: {status}: {said}");
    (out, said)
}

fn failed(directory: &Path, args: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = dialback(directory, args);
    assert!(stdout.is_empty(), "{args:?} printed {stdout:?}");
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn keys_and_lines_that_keygen_makes_are_all_that_a_hub_and_an_agent_need() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    done(directory.path(), &["keygen", "agent", "laptop-1", "--append", "authorized_keys"]);
    done(directory.path(), &["keygen", "hub", "--address", "127.0.0.1:2222"]);
    let hub = Hub::builder(PrivateKey::from_file(path("hub_key")).unwrap())
        .authorizer(AuthorizedKeys::open(path("authorized_keys")).unwrap())
        .bind("127.0.0.1:0")
        .await
        .unwrap();
    let address = hub.local_addr().to_string();
    let (line, said) = done(directory.path(), &["keygen", "hub", "--existing", "--address", &address]);
    assert!(said.contains("known_hosts"), "{said}");
    fs::write(path("known_hosts"), line).unwrap();
    let agent = Agent::builder("laptop-1", PrivateKey::from_file(path("laptop-1")).unwrap())
        .host_keys(HostKeys::known_hosts(path("known_hosts")).unwrap())
        .connect(&*address)
        .await
        .unwrap();
    assert_eq!(hub.wait_for("laptop-1").await.unwrap().agent_id(), agent.id());
}

#[cfg(unix)]
#[test]
fn private_keys_are_for_their_owner_alone_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let (line, said) = done(directory.path(), &["keygen", "agent", "laptop-1", "--key", "new/keys/id"]);
    assert!(line.starts_with("principals=\"laptop-1\" ssh-ed25519 ") && line.lines().count() == 1, "{line}");
    assert!(said.contains("new/keys/id.pub") && said.contains("SHA256:"), "{said}");
    let key = directory.path().join("new/keys/id");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

    let before = fs::read(&key).unwrap();
    let (code, said) = failed(directory.path(), &["keygen", "agent", "laptop-1", "--key", "new/keys/id"]);
    assert!(code == 1 && said.contains("--existing"), "{code} {said}");
    assert_eq!(fs::read(&key).unwrap(), before);
    fs::write(directory.path().join("other.pub"), "somebody's").unwrap();
    let (code, said) = failed(directory.path(), &["keygen", "agent", "other"]);
    assert!(code == 1 && said.contains("other.pub is there already"), "{code} {said}");
    assert_eq!(fs::read_to_string(directory.path().join("other.pub")).unwrap(), "somebody's");
    assert!(!directory.path().join("other").exists());
    let (again, _) = done(directory.path(), &["keygen", "agent", "laptop-1", "--key", "new/keys/id", "--existing"]);
    assert_eq!(again, line);
}

#[cfg(unix)]
#[test]
fn line_about_a_key_that_is_there_is_about_the_private_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let existing = ["keygen", "agent", "laptop-1", "--existing"];
    let (line, _) = done(directory.path(), &existing[..3]);
    done(directory.path(), &["keygen", "agent", "other"]);
    // Somebody has put another public key beside it.
    fs::rename(path("laptop-1.pub"), path("own.pub")).unwrap();
    fs::copy(path("other.pub"), path("laptop-1.pub")).unwrap();
    let (code, said) = failed(directory.path(), &existing);
    assert!(code == 1 && said.contains("laptop-1.pub is not the public half of laptop-1"), "{code} {said}");
    fs::remove_file(path("laptop-1.pub")).unwrap();
    assert_eq!(done(directory.path(), &existing).0, line);
    // A passphrase hides the private half alone.
    if common::peers::require_program("ssh-keygen") {
        let encrypt = ["-q", "-p", "-N", "secret", "-P", "", "-f"];
        let encrypted = Command::new("ssh-keygen").args(encrypt).arg(path("laptop-1")).output().unwrap();
        assert!(encrypted.status.success(), "{encrypted:?}");
        let (without_comment, _) = done(directory.path(), &existing);
        assert!(line.starts_with(without_comment.trim()) && without_comment.len() > 80, "{without_comment}");
    }
    // Where it is on another machine, the public half is all there is.
    fs::rename(path("own.pub"), path("laptop-1.pub")).unwrap();
    fs::remove_file(path("laptop-1")).unwrap();
    let (out, said) = done(directory.path(), &existing);
    assert!(out == line && said.contains("at its word"), "{out} {said}");
}

/// Many systems give each user a group, and 002 as umask.
#[cfg(unix)]
#[test]
fn files_of_lines_are_none_that_a_hub_refuses() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("authorized_keys");
    let run = |umask: &str, id: &str| {
        let script = format!("umask {umask}; exec \"$0\" keygen agent {id} --append authorized_keys");
        let mut shell = Command::new("sh");
        shell.current_dir(directory.path()).args(["-c", &script, env!("CARGO_BIN_EXE_dialback")]);
        let Output { status, stderr, .. } = shell.output().unwrap();
        assert!(status.success(), "{stderr:?}");
        String::from_utf8(stderr).unwrap()
    };
    let said = run("002", "a");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert!(!said.contains("chmod"), "{said}");
    AuthorizedKeys::open(&path).unwrap();
    // One that somebody else has made is left as it is, and told of.
    fs::set_permissions(&path, PermissionsExt::from_mode(0o664)).unwrap();
    let said = run("022", "b");
    assert!(said.contains("chmod go-w authorized_keys"), "{said}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o664);
}

#[test]
fn lines_are_added_to_a_file_once_and_after_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    fs::write(&file, "# no line break after this").unwrap();
    let args =
        ["keygen", "hub", "--address", "a.example:2222", "--address", "wss://b.example/x", "--append", "known_hosts"];
    let (out, _) = done(directory.path(), &args);
    assert_eq!(out, "");
    done(directory.path(), &[&args[..], &["--existing"]].concat());
    let text = fs::read_to_string(&file).unwrap();
    let names: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["#", "[a.example]:2222", "[b.example]:443"]);
}

#[test]
fn wrong_arguments_are_told_with_code_64_and_make_no_key() {
    let directory = tempfile::tempdir().unwrap();
    for (args, word) in [
        (&["keygen", "hub", "--address", "hub.example.com"][..], "host:port"),
        (&["keygen", "hub"], "--address"),
        (&["keygen", "agent", "Laptop 1"], "Laptop 1"),
        (&["keygen", "agent"], "<ID>"),
        (&["keygn"], "keygen"),
        (&["completions", "tcsh"], "bash"),
    ] {
        let (code, said) = failed(directory.path(), args);
        assert!(code == 64 && said.contains(word), "{args:?}: {code} {said}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn completions_and_pages_know_the_commands() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (script, _) = done(directory.path(), &["completions", shell]);
        assert!(script.contains("keygen"), "{shell}");
    }
    let (page, _) = done(directory.path(), &["man"]);
    assert!(page.contains(".TH dialback 1") && page.contains("keygen"), "{page}");
    done(directory.path(), &["man", "--to", "man1"]);
    let page = fs::read_to_string(directory.path().join("man1/dialback-keygen-hub.1")).unwrap();
    assert!(page.contains("known_hosts"), "{page}");
}
