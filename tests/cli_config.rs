//! The configuration of `dialback hub` and `dialback agent`: where values come from, what is refused, and what is printed.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::{fs, path::Path, process::Output};

use common::{
    daemon::{dialback, repository},
    peers::{find_program, require_program},
};

/// Runs it to its end; one that does not end is killed.
async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = dialback(arguments);
    command.envs(variables.iter().copied()).kill_on_drop(true);
    common::rig::soon("its end", command.output()).await.expect("it runs")
}

async fn printed(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let arguments: Vec<_> = arguments.iter().copied().chain(["--print-config"]).collect();
    let output = run(&arguments, variables).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn line<'a>(printed: &'a str, key: &str) -> &'a str {
    let begin = format!("{key} = ");
    printed.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_else(|| panic!("no {key} in\n{printed}"))
}

fn write(dir: &Path, text: &str) -> String {
    let path = dir.join("dialback.toml");
    fs::write(&path, text).expect("write");
    path.to_str().expect("UTF-8").to_owned()
}

#[tokio::test]
async fn flags_count_before_variables_before_the_file_before_defaults() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(
        dir.path(),
        "[hub]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\nkeepalive = \"3s\"\n[log]\nlevel = \"warn\"\n",
    );
    let (flag, variable) = (["--listen", "127.0.0.1:9"], ("DIALBACK_HUB_LISTEN", "127.0.0.1:5, 127.0.0.1:6"));
    let config = ["hub", "--config", &file];
    let with_flag = [&config[..], &flag[..]].concat();
    let in_file = format!("[\"127.0.0.1:1\", \"127.0.0.1:2\"] # {file}:2");
    let cases = [
        (vec!["hub"], vec![], "[\"0.0.0.0:2222\"] # default".to_owned()),
        (config.to_vec(), vec![], in_file.clone()),
        (config.to_vec(), vec![variable], "[\"127.0.0.1:5\", \"127.0.0.1:6\"] # DIALBACK_HUB_LISTEN".into()),
        (with_flag, vec![variable], "[\"127.0.0.1:9\"] # flag".into()),
        (config.to_vec(), vec![("DIALBACK_HUB_LISTEN", "")], in_file.clone()),
        (vec!["hub"], vec![("DIALBACK_CONFIG", &*file)], in_file),
        (vec!["hub"], vec![("DIALBACK_CONFIG", "")], "[\"0.0.0.0:2222\"] # default".to_owned()),
    ];
    for (arguments, variables, expected) in cases {
        let printed = printed(&arguments, &variables).await;
        assert_eq!(line(&printed, "listen"), expected, "{arguments:?} {variables:?}");
    }

    let level = async |arguments: &[&str], variables: &[(&str, &str)]| {
        line(&printed(arguments, variables).await, "level").to_owned()
    };
    assert_eq!(level(&["hub"], &[]).await, "\"info\" # default");
    assert_eq!(level(&["hub"], &[("RUST_LOG", "debug")]).await, "\"debug\" # RUST_LOG");
    assert_eq!(level(&config, &[("RUST_LOG", "debug")]).await, "\"debug\" # RUST_LOG");
    let both = [("RUST_LOG", "debug"), ("DIALBACK_LOG_LEVEL", "error")];
    assert_eq!(level(&config, &both).await, "\"error\" # DIALBACK_LOG_LEVEL");
    assert_eq!(level(&["agent", "--log-level", "trace"], &both).await, "\"trace\" # flag");
}

#[tokio::test]
async fn printed_configuration_is_one_that_prints_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let without_origins = |text: &str| {
        let lines =
            text.lines().map(|line| if line.starts_with('#') { line } else { line.split(" # ").next().unwrap() });
        lines.collect::<Vec<_>>().join("\n")
    };
    let hub = [
        "hub",
        "--host-key",
        "a key",
        "--host-key",
        "k\"2",
        "--authorized-keys",
        "keys/%u.pub",
        "--listen",
        "unix:hub.sock",
        "--listen",
        "ws://[::1]:0/t",
        "--window",
        "16MiB",
        "--rekey-bytes",
        "1_000",
        "--no-reverse",
        "--tunnel-policy",
        "replace",
        "--keepalive",
        "1m30s",
        "--trusted-proxies",
        "10.0.0.0/8",
        "--admin",
        "127.0.0.1:0",
        "--log-format",
        "json",
        "--gateway-max-calls-per-caller",
        "7",
    ];
    let agent = [
        "agent",
        "--hub",
        "hub:1",
        "--hub",
        "unix:h.sock",
        "--id",
        "laptop-1",
        "--identity",
        "ssh-agent",
        "--identity",
        "a.pub",
        "--label",
        "region=eu",
        "--forward",
        "a.v1.B=unix:b.sock",
        "--forward",
        "h:1",
        "--proxy",
        "http://me:secret@proxy:3128",
        "--proxy-command",
        "ssh -W '[%h]:%p' bastion",
        "--tunnels",
        "2",
    ];
    for (role, arguments) in [("hub", &hub[..]), ("agent", &agent[..])] {
        let first = printed(arguments, &[]).await;
        assert!(!first.contains("secret"), "{first}");
        let file = write(dir.path(), &first);
        let second = printed(&[role, "--config", &file], &[]).await;
        assert_eq!(without_origins(&first), without_origins(&second));
        fs::write(&file, &second).expect("write");
        assert_eq!(second, printed(&[role, "--config", &file], &[]).await);
    }
}

#[tokio::test]
async fn paths_in_the_file_are_relative_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(dir.path(), "[hub]\nhost-key = \"keys/host\"\nlisten = \"unix:hub.sock\"\n");
    let printed = printed(&["hub", "--config", &file, "--policy", "policy.toml"], &[]).await;
    let base = dir.path().display();
    assert!(line(&printed, "host-key").starts_with(&format!("[\"{base}/keys/host\"]")), "{printed}");
    assert!(line(&printed, "listen").starts_with(&format!("[\"unix:{base}/hub.sock\"]")), "{printed}");
    let here = std::env::current_dir().expect("a directory");
    assert!(line(&printed, "policy").starts_with(&format!("\"{}/policy.toml\"", here.display())), "{printed}");
}

#[tokio::test]
async fn what_is_wrong_in_the_file_is_said_with_its_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let cases = [
        (
            "[hub]\nlisten = \"x:1\"\ngatway = \"x:1\"\n",
            "dialback.toml:3:1: there is no key in [hub] `gatway`: did you mean `gateway`?",
        ),
        ("[agent]\ntunnels = \"two\"\n", "dialback.toml:2:11: `tunnels` is a whole number, and this is of type string"),
        ("[hub]\nkeepalive = \"10\"\n", "dialback.toml:2:13: `keepalive`: `10` is no time: write 500ms"),
        ("[hub]\nbalance = \"best\"\n", "dialback.toml:2:11: `balance`: `best` is none of least-busy, round-robin"),
        ("[hub\n", "dialback.toml:1:5: "),
    ];
    for (text, expected) in cases {
        let file = write(dir.path(), text);
        let output = run(&["hub", "--config", &file, "--print-config"], &[]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{text:?}: {said}");
        assert!(said.contains(expected), "{text:?}: {said}");
    }
    let missing = run(&["hub", "--config", "/no/such/file"], &[]).await;
    assert_eq!(missing.status.code(), Some(64));
    let variable = run(&["hub", "--print-config"], &[("DIALBACK_HUB_MAX_CALLS", "many")]).await;
    let said = String::from_utf8_lossy(&variable.stderr).into_owned();
    assert!(said.contains("DIALBACK_HUB_MAX_CALLS: `many` is no whole number"), "{said}");
}

#[tokio::test]
async fn settings_that_would_be_passed_over_in_silence_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let hub = ["hub", "--listen", "127.0.0.1:0", "--host-key", "h", "--authorized-keys", "a"];
    let by_grpc = ["hub", "--listen", "grpc://127.0.0.1:0", "--agent-tokens", "t"];
    let agent = ["agent", "--hub", "h:1", "--id", "a", "--identity", "i", "--forward", "h:1"];
    let cases: Vec<(Vec<&str>, &str, &str)> = vec![
        ([&hub[..], &["--policy", "p"]].concat(), "--policy: ", "set --gateway HOST:PORT"),
        ([&hub[..], &["--gateway-max-held", "1MiB"]].concat(), "--gateway-max-held: ", "set --gateway HOST:PORT"),
        ([&hub[..], &["--tls-cert", "c", "--tls-key", "k"]].concat(), "--tls-cert: ", "wss:// or grpcs://"),
        ([&hub[..], &["--agent-tokens", "t"]].concat(), "--agent-tokens: ", "--listen grpcs://HOST:PORT"),
        ([&hub[..], &["--proxy-protocol"]].concat(), "--proxy-protocol: ", "--trusted-proxies NETWORK"),
        ([&hub[..], &["--trusted-proxies", "10.0.0.0/8"]].concat(), "--trusted-proxies: ", "--proxy-protocol"),
        (
            [&hub[..], &["--gateway", "127.0.0.1:0", "--gateway-client-ca", "c"]].concat(),
            "--gateway-client-ca: ",
            "--gateway-tls-cert and --gateway-tls-key",
        ),
        ([&hub[..], &["--gateway", "127.0.0.1:0", "--gateway-tls-cert", "c"]].concat(), "", "go together"),
        ([&by_grpc[..], &["--host-key", "h"]].concat(), "--host-key: ", "for agents by SSH"),
        ([&by_grpc[..], &["--open-timeout", "5s"]].concat(), "--open-timeout: ", "for agents by SSH"),
        ([&by_grpc[..], &["--max-channels", "9"]].concat(), "--max-channels: ", "for agents by SSH"),
        ([&agent[..], &["--backoff-min", "0s"]].concat(), "--backoff-min: ", "with 0 nothing works"),
        ([&agent[..], &["--forward-ca", "c"]].concat(), "--forward-ca: ", "--forward https://HOST:PORT"),
        ([&agent[..], &["--tls-roots", "c", "--no-proxy"]].concat(), "--tls-roots: ", "wss:// or grpcs://"),
        ([&agent[..], &["--ssh-config-file", "c"]].concat(), "--ssh-config-file: ", "--ssh-config HOST"),
    ];
    for (arguments, at, said) in cases {
        let output = run(&arguments, &[]).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {text}");
        assert!(text.contains(at) && text.contains(said), "{arguments:?}: {text}");
    }
    // With its place, and not if it is switched off.
    let file = write(dir.path(), "[hub]\nproxy-protocol = false\ngateway-suffix = \"a.example\"\n");
    let output = run(&[&hub[..], &["--config", &file]].concat(), &[]).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("dialback.toml:3:18: `gateway-suffix`: "), "{text}");
    let output = run(&hub, &[("DIALBACK_HUB_POLICY", "p")]).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("DIALBACK_HUB_POLICY: ") && output.status.code() == Some(64), "{text}");
}

#[tokio::test]
async fn help_is_what_it_was() {
    for role in ["hub", "agent"] {
        let output = run(&[role, "--help"], &[("COLUMNS", "100")]).await;
        assert!(output.status.success(), "{output:?}");
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(!help.contains('\u{1b}'), "it is coloured in a pipe");
        let path = repository(&format!("tests/snapshots/{role}_help.txt"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            fs::write(&path, &help).expect("write");
        }
        let expected = fs::read_to_string(&path).expect("the snapshot");
        assert_eq!(help, expected, "if it should be so, run this test with UPDATE_SNAPSHOTS=1");
    }
}

#[tokio::test]
async fn units_are_sound_and_hardened() {
    if !require_program("systemd-analyze") {
        return;
    }
    let analyze = find_program("systemd-analyze").expect("it was found");
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["dialback-hub.service", "dialback-agent.service"] {
        let unit = fs::read_to_string(repository(&format!("examples/systemd/{name}"))).expect("the unit");
        // It looks for the program.
        assert!(unit.contains("ExecStart=/usr/local/bin/dialback "), "{name}");
        let path = dir.path().join(name);
        fs::write(&path, unit.replace("/usr/local/bin/dialback", env!("CARGO_BIN_EXE_dialback"))).expect("write");
        let verified = std::process::Command::new(&analyze).arg("verify").arg(&path).output().expect("it runs");
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(verified.status.success() && !said.contains(name), "{name}: {said}");
        // From 0, safe, to 100: most services are at 96.
        let exposed = std::process::Command::new(&analyze)
            .args(["security", "--offline=true", "--threshold=20"])
            .arg(&path)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&exposed.stdout).into_owned();
        assert!(exposed.status.success(), "{name}: {said}");
    }
}

#[tokio::test]
async fn image_is_built_by_its_script() {
    if !require_program("bash") {
        return;
    }
    let script = repository("examples/docker.sh");
    let mut command = tokio::process::Command::new("bash");
    command.arg(script).arg("dialback:test").env("DIALBACK_BINARY", env!("CARGO_BIN_EXE_dialback"));
    let output = tokio::time::timeout(std::time::Duration::from_secs(300), command.output()).await;
    let output = output.expect("it ends").expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains(concat!("dialback ", env!("CARGO_PKG_VERSION"))), "{said}");
}
