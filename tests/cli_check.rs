//! `dialback check`, through the real program: what is well, and which step is not.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use common::{rig::soon, tls::Certificates};
use dialback::{AuthorizedKeys, Hub, PrivateKey};
use tokio::{net::TcpListener, process::Command};

/// A hub, and the files of an agent that it lets in.
struct Site {
    hub: Hub,
    directory: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
        let hub = Hub::builder(host.clone());
        let line = key.public_key().authorized_keys_line(&"laptop-1".parse().unwrap());
        fs::write(path("authorized_keys"), line).unwrap();
        key.write_to(path("id")).unwrap();
        host.write_to(path("hub_key")).unwrap();
        let hub = hub.authorizer(AuthorizedKeys::open(path("authorized_keys")).unwrap());
        let hub = hub.bind("127.0.0.1:0").await.unwrap();
        let line = host.public_key().known_hosts_line(&hub.local_addr().to_string()).unwrap();
        fs::write(path("known_hosts"), line).unwrap();
        Self { hub, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Checks the way to `hub`; exit code and what was printed.
    async fn check(&self, hub: &str, more: &[&str]) -> (i32, String) {
        let known_hosts = if more.contains(&"--known-hosts") { "" } else { "--known-hosts known_hosts" };
        let fixed = ["--hub", hub, "--id", "laptop-1", "--identity", "id"];
        let known_hosts: Vec<_> = known_hosts.split_whitespace().collect();
        check_in(self.directory.path(), &[&fixed[..], &known_hosts, more].concat(), &[]).await
    }
}

/// Exit code and what was printed, with variables of the environment.
async fn check_in(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dialback"));
    command.current_dir(directory).kill_on_drop(true).arg("check").args(arguments);
    for name in
        ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"]
    {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    let Output { status, stdout, stderr } = soon("the end", command.output()).await.unwrap();
    let text = String::from_utf8([stdout, stderr].concat()).unwrap();
    assert!(!text.contains('\x1b'), "no colours in a pipe: {text}");
    (status.code().unwrap(), text)
}

fn ticks(text: &str) -> Vec<String> {
    let ticked = |line: &str| line.strip_prefix("✓ ").map(|rest| rest.split("  ").next().unwrap().trim().to_owned());
    text.lines().filter_map(ticked).collect()
}

/// The step that failed, and what is said of it.
fn cross(text: &str) -> (String, String) {
    let (_, rest) = text.split_once("✗ ").unwrap_or_else(|| panic!("nothing failed: {text}"));
    (rest.split("  ").next().unwrap().trim().to_owned(), rest.to_owned())
}

#[tokio::test]
async fn every_step_of_a_good_way_is_ticked() {
    let site = Site::start().await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let forward = server.local_addr().unwrap().to_string();
    let address = site.hub.local_addr().to_string();
    let (code, text) = site.check(&address, &["--forward", &forward]).await;
    assert_eq!(code, 0, "{text}");
    let steps = ["config", "name", "connection", "SSH", "host key", "login", "forward", "round trip", &forward];
    assert_eq!(ticks(&text), steps, "{text}");
    assert!(site.hub.tunnels().is_empty(), "nothing stays");

    let websocket = site.hub.listen("ws://127.0.0.1:0/tunnel").await.unwrap();

    let line = PrivateKey::from_file(site.path("hub_key")).unwrap().public_key().known_hosts_line(&websocket).unwrap();
    fs::write(site.path("known_hosts"), line).unwrap();
    let (code, text) = site.check(&websocket, &[]).await;
    assert_eq!(code, 0, "{text}");
    assert!(ticks(&text).contains(&"WebSocket".to_owned()), "{text}");
}

#[tokio::test]
async fn first_step_that_fails_is_named_with_what_to_do() {
    let site = Site::start().await;
    let address = site.hub.local_addr().to_string();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dumb = silent.local_addr().unwrap().to_string();
    let http = common::rig::Rig::start().await; // speaks SSH, and no HTTP
    let not_http = format!("ws://{}/tunnel", http.hub.local_addr());
    let certificates = Certificates::of(site.directory.path(), &["127.0.0.1"]);
    let tls =
        site.hub.listen_tls("wss://127.0.0.1:0/tunnel", certificates.certificate, certificates.key).await.unwrap();
    fs::write(site.path("nobody"), "").unwrap();
    let stranger = PrivateKey::generate();
    stranger.write_to(site.path("stranger")).unwrap();

    let closed = closed.to_string();
    for (hub, more, step, advice) in [
        (&*closed, &[][..], "connection", "is the hub running"),
        (&dumb, &["--login-timeout", "1s"], "SSH", "within 1s"),
        (&not_http, &[], "WebSocket", "is the path right"),
        (&tls, &[], "TLS", "certificate"),
        (&address, &["--known-hosts", "nobody"], "host key", "--known-hosts"),
        (&address, &["--proxy", "http://127.0.0.1:1"], "proxy", "127.0.0.1:1"),
        ("hub.invalid:22", &[], "name", "DNS"),
    ] {
        let (code, text) = site.check(hub, more).await;
        let (failed, said) = cross(&text);
        assert!(code == 1 && failed == step && said.contains(advice), "{hub}: {code} {text}");
    }
    fs::rename(site.path("stranger"), site.path("id")).unwrap();
    let (code, text) = site.check(&address, &[]).await;
    let (failed, said) = cross(&text);
    assert!(code == 1 && failed == "login" && said.contains("authorized-keys"), "{text}");
    assert!(ticks(&text).contains(&"host key".to_owned()), "{text}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn output_that_cannot_be_written_is_told() {
    let site = Site::start().await;
    let run = async |stdout: &str| {
        let mut command = Command::new("sh");
        let script = format!(
            "\"$0\" check hub --listen 127.0.0.1:0 --host-key hub_key --authorized-keys authorized_keys {stdout}"
        );
        command.current_dir(site.directory.path()).args(["-c", &script, env!("CARGO_BIN_EXE_dialback")]);
        let Output { status, stderr, .. } = soon("the end", command.output()).await.unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    let (code, said) = run(">/dev/full").await;
    assert!(code == Some(1) && said.contains("stdout cannot be written") && !said.contains("panic"), "{code:?} {said}");
    // Nobody reads the pipe any more.
    let (code, said) = run("| true").await;
    assert!(code == Some(0) && said.is_empty(), "{code:?} {said}");
}

#[tokio::test]
async fn several_hubs_are_checked_each_and_local_servers_too() {
    let site = Site::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let address = site.hub.local_addr().to_string();
    let (code, text) = site.check(&closed, &["--hub", &address, "--forward", &closed]).await;
    assert_eq!(code, 1, "{text}");
    assert!(ticks(&text).contains(&"round trip".to_owned()) && text.matches("✗ ").count() == 2, "{text}");
    assert!(text.contains("start the server"), "{text}");
}

#[tokio::test]
async fn wrong_configuration_is_told_before_anything_is_dialled() {
    let site = Site::start().await;
    let file = Path::new("dialback.toml");
    fs::write(site.path("dialback.toml"), "[agent]\nhubs = \"a:1\"\n").unwrap();
    let (code, text) = site.check("127.0.0.1:1", &["--config", file.to_str().unwrap()]).await;
    assert!(code == 64 && text.contains("dialback.toml:2") && text.contains("hub"), "{code} {text}");
    let (code, text) = site.check("127.0.0.1:1", &["--proxy", "me:secret@a:1", "--print-config"]).await;
    assert!(code == 0 && text.contains("[agent]") && !text.contains("secret"), "{code} {text}");
    let (code, text) = site.check("127.0.0.1:1", &["--proxy", "http://a:1", "--no-proxy"]).await;
    assert!(code == 64 && text.contains("--no-proxy"), "{code} {text}");
    for (hub, more) in [("wss://bad host/", &[][..]), ("127.0.0.1:1", &["--remote", "zzz"])] {
        let (code, text) = site.check(hub, more).await;
        assert!(code == 64 && !text.contains("connection") && !text.contains("TLS "), "{hub}: {code} {text}");
    }
}

#[tokio::test]
async fn proxy_is_a_step_wherever_it_comes_from() {
    let site = Site::start().await;
    let proxy = common::egress::Egress::start(common::egress::Speaks::Connect).await;
    let address = site.hub.local_addr().to_string();
    let arguments = ["--hub", &address, "--id", "laptop-1", "--identity", "id", "--known-hosts", "known_hosts"];
    let check = async |more: &[&str], variables: &[(&str, &str)]| {
        let (code, text) = check_in(site.directory.path(), &[&arguments[..], more].concat(), variables).await;
        assert_eq!(code, 0, "{text}");
        let of_proxy = text.lines().find(|line| line.starts_with("✓ proxy")).map(str::to_owned);
        // What a proxy is to look up need not be known here.
        assert_eq!(ticks(&text).contains(&"name".to_owned()), of_proxy.is_none(), "{text}");
        of_proxy
    };
    let set = check(&["--proxy", proxy.url()], &[]).await.expect("the step");
    assert!(set.contains(proxy.url()) && !set.contains("environment"), "{set}");
    let found = check(&[], &[("ALL_PROXY", proxy.url())]).await.expect("the step");
    assert!(found.contains(proxy.url()) && found.contains("from the environment"), "{found}");
    assert_eq!(proxy.carried(), 2);
    assert_eq!(check(&["--no-proxy"], &[("ALL_PROXY", proxy.url())]).await, None);
    assert_eq!(check(&[], &[("ALL_PROXY", proxy.url()), ("NO_PROXY", "127.0.0.1")]).await, None);
}

#[cfg(unix)]
mod by_daemons {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tokio::net::UnixListener;

    use super::*;
    use crate::common::{
        command::run,
        daemon::{Daemon, Files},
    };

    fn text(path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn way_by_grpctunnel_has_its_own_steps() {
        let files = Files::new();
        let (token, tokens) = (files.path("token"), files.path("tokens"));
        assert_eq!(run(&["keygen", "token", "laptop-1", "--file", &token, "--append", &tokens]).await.code, 0);
        let certificates = Certificates::of(files.dir.path(), &["127.0.0.1"]);
        let (certificate, key) = (text(&certificates.certificate), text(&certificates.key));
        let listen = ["hub", "--listen", "grpcs://127.0.0.1:0", "--agent-tokens", &tokens];
        let mut hub = Daemon::start(&[&listen[..], &["--tls-cert", &certificate, "--tls-key", &key]].concat());
        let url = hub.logs("hub ready").await["listen"].as_str().unwrap().to_owned();
        let authority = text(&certificates.authority);
        let arguments = ["--hub", &url, "--id", "laptop-1", "--token-file", &token];
        let trusting = [&arguments[..], &["--tls-roots", &authority]].concat();
        let (code, said) = check_in(files.dir.path(), &trusting, &[]).await;
        assert_eq!(
            (code, ticks(&said)),
            (0, ["config", "name", "connection", "TLS", "gRPC", "login"].map(str::to_owned).into())
        );

        let (code, said) = check_in(files.dir.path(), &arguments, &[]).await;
        let (failed, why) = cross(&said);
        assert!(code == 1 && failed == "TLS" && why.contains("--tls-roots"), "{said}");
        files.write("tokens", "# nobody\n");
        // The hub looks at its file again after a second.
        soon("the refusal", async {
            loop {
                let (code, said) = check_in(files.dir.path(), &trusting, &[]).await;
                if code == 1 {
                    let (failed, why) = cross(&said);
                    assert!(failed == "login" && why.contains("--agent-tokens"), "{said}");
                    return;
                }
            }
        })
        .await;
    }

    #[tokio::test]
    async fn hub_that_would_start_is_ticked() {
        let files = Files::new();
        let certificates = Certificates::of(files.dir.path(), &["hub.example.com"]);
        std::fs::set_permissions(&certificates.key, PermissionsExt::from_mode(0o600)).unwrap();
        files.write("policy.toml", "");
        assert_eq!(
            run(&["keygen", "token", "a", "--file", &files.path("t"), "--append", &files.path("tokens")]).await.code,
            0
        );
        let config = "[hub]\nlisten = [\"127.0.0.1:0\", \"unix:hub.sock\", \"grpcs://127.0.0.1:0\"]\n\
            websocket = \"wss://127.0.0.1:0/tunnel\"\ntls-cert = \"certificate.pem\"\ntls-key = \"key.pem\"\n\
            host-key = \"host\"\nauthorized-keys = \"authorized_keys\"\nagent-tokens = \"tokens\"\n\
            gateway = \"127.0.0.1:0\"\npolicy = \"policy.toml\"\n[admin]\nlisten = \"127.0.0.1:0\"\n";
        files.write("dialback.toml", config);
        let (code, said) = check_in(files.dir.path(), &["hub", "--config", "dialback.toml"], &[]).await;
        assert_eq!(code, 0, "{said}");
        for part in
            ["✓ settings", "✓ host key", "✓ agents ", "1 of them", "for hub.example.com, for ", "✓ policy", "free"]
        {
            assert!(said.contains(part), "no {part}: {said}");
        }
        assert!(!Path::new(&files.path("hub.sock")).exists(), "nothing stays");
        let mut hub = Daemon::start(&["hub", "--config", &files.path("dialback.toml")]);
        hub.logs("hub ready").await;
    }

    #[tokio::test]
    async fn every_fault_of_a_hub_is_told_with_what_to_do() {
        let files = Files::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = listener.local_addr().unwrap().to_string();
        let taken_socket = UnixListener::bind(files.path("taken.sock")).unwrap();
        // One that has expired, and the key of another.
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["hub.example.com".into()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        files.write("old.pem", &params.self_signed(&key).unwrap().pem());
        files.write("old.key", &key.serialize_pem());
        let certificates = Certificates::of(files.dir.path(), &["hub.example.com"]);
        std::fs::set_permissions(&certificates.key, PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::set_permissions(files.path("host"), PermissionsExt::from_mode(0o644)).unwrap();
        files.write("authorized_keys", "ssh-ed25519 not-a-key\n");
        files.write("policy.toml", "[[caller]]\nname = 1\n");
        files.write("tokens", "laptop-1 x\n");
        let busy = format!("--listen={taken}");
        let check = async |more: &[&str]| {
            let fixed = ["hub", "--host-key", "host", "--authorized-keys", "authorized_keys"];
            check_in(files.dir.path(), &[&fixed[..], more].concat(), &[]).await
        };
        let cases: [(&[&str], &str, &str); 10] = [
            (&["--listen", "127.0.0.1:0"], "host key", "chmod"),
            (&[&busy], "listen", "choose another port"),
            (&["--listen", "unix:taken.sock"], "listen", "listens there already"),
            (&["--listen", "unix:no/such/hub.sock"], "listen", "directory is not there"),
            (&["--listen", "127.0.0.1:0", "--listen", "192.0.2.1:2222"], "listen", "does not have this address"),
            (&["--gateway", "127.0.0.1:0", "--policy", "policy.toml"], "policy", "line 2"),
            (&["--gateway", "0.0.0.0:0"], "gateway", "--policy FILE"),
            (&["--listen", "grpcs://127.0.0.1:0", "--agent-tokens", "tokens"], "tokens", "tokens:1: "),
            (&["--policy", "policy.toml"], "settings", "set --gateway HOST:PORT"),
            (&["--listen", "127.0.0.1:0"], "agents", "mend the line"),
        ];
        for (more, step, advice) in cases {
            let (code, said) = check(more).await;
            let told = said.split("✗ ").skip(1).any(|fault| fault.starts_with(step) && fault.contains(advice));
            // Wrong settings are wrong, whatever else is.
            let expected = if said.contains("✗ settings") { 64 } else { 1 };
            assert!(code == expected && told, "{more:?}: {code}: {said}");
        }
        let old = ["--listen", "wss://127.0.0.1:0/", "--tls-cert", "old.pem", "--tls-key"];
        for (more, advice) in [
            (&[&old[..], &["old.key"]].concat(), "renew it"),
            (&[&old[..], &["key.pem"]].concat(), "no certificate of the key"),
        ] {
            let (_, said) = check(more).await;
            let told = said.split("✗ ").skip(1).any(|fault| fault.starts_with("TLS") && fault.contains(advice));
            assert!(told, "{said}");
        }
        let (_, said) =
            check(&["--listen", "wss://127.0.0.1:0/", "--tls-cert", "certificate.pem", "--tls-key", "key.pem"]).await;
        assert!(said.contains("everybody on this machine can read the key"), "{said}");
        let (code, said) = check_in(files.dir.path(), &["--id", "x", "hub"], &[]).await;
        assert!(code == 64 && said.contains("dialback check hub"), "{code} {said}");
        drop(taken_socket);
    }
}
