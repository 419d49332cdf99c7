use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use russh::keys::ssh_key::Certificate;
use russh::keys::{EcdsaCurve, PublicKeyOrCertificate};
use russh::server::{self, Auth, PublicKeyOffer, VerifiedPublicKey};
use russh::{MethodSet, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;
use crate::ssh::key::testing::{certify_user, missing, random};

/// A hub that notes what it is asked.
#[derive(Clone, Default)]
struct Hub {
    takes: Vec<PublicKey>,
    takes_certificates: bool,
    hangs_up: bool,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn taking(keys: &[PublicKey]) -> Self {
        Self { takes: keys.to_vec(), ..Self::default() }
    }

    fn note(&self, what: String) {
        self.seen.lock().unwrap().push(what);
    }

    fn judge(&self, key: &russh::keys::PublicKey) -> Auth {
        let key = PublicKey::new(key.key_data().clone(), "");
        if self.takes.contains(&key) { Auth::Accept } else { Auth::reject() }
    }

    /// Lets `identity` log in over memory, and says how it ended and what the hub saw.
    async fn login(&self, identity: &Identity) -> (Result<(), AuthError>, Vec<String>) {
        self.login_as(identity, &PrivateKey::generate()).await
    }

    async fn login_as(&self, identity: &Identity, host_key: &PrivateKey) -> (Result<(), AuthError>, Vec<String>) {
        let config = server::Config {
            keys: vec![host_key.inner().as_ref().clone()],
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time: Duration::ZERO,
            max_auth_attempts: MAX_OFFERS,
            ..Default::default()
        };
        let (near, far) = tokio::io::duplex(64 * 1024);
        let hub = tokio::spawn(server::run_stream(Arc::new(config), far, self.clone()));
        let mut handle = client::connect_stream(Arc::default(), near, AnyHub).await.unwrap();
        let result = identity.authenticate(&mut handle, "laptop-1").await;
        hub.await.unwrap().unwrap();
        (result, std::mem::take(&mut *self.seen.lock().unwrap()))
    }
}

impl server::Handler for Hub {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        self.note(format!("offer {user} {}", offer.algorithm));
        match self.hangs_up {
            true => Err(russh::Error::Disconnect),
            false if self.takes_certificates => Ok(Auth::Accept),
            false => Ok(self.judge(offer.public_key)),
        }
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        self.note(format!("key {user} {}", key.algorithm));
        Ok(self.judge(key.public_key))
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, russh::Error> {
        self.note(format!("certificate {user} {}", certificate.algorithm()));
        Ok(if self.takes_certificates { Auth::Accept } else { Auth::reject() })
    }
}

struct AnyHub;

impl client::Handler for AnyHub {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// A stock ssh-agent, ended on drop.
struct StockAgent {
    process: Child,
    directory: tempfile::TempDir,
}

impl StockAgent {
    /// `None` if the test is to be skipped.
    fn start() -> Option<Self> {
        if missing("ssh-agent") || missing("ssh-add") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        // It listens before it starts the command it is given, and ends soon after that does; and `cat` ends with this
        // process, even if that is killed.
        let mut process = Command::new("ssh-agent")
            .arg("-a")
            .arg(directory.path().join("socket"))
            .args(["sh", "-c", "echo ready; exec cat"])
            .env("SSH_ASKPASS", "/bin/false") // so that a key that asks is declined
            .env("DISPLAY", ":none")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(Self { process, directory })
    }

    fn add(&self, key: &PrivateKey, options: &[&str]) {
        let path = self.directory.path().join("id");
        key.write_to(&path).unwrap();
        let certificate = key.certificate().map(|certificate| certificate.to_openssh().unwrap());
        std::fs::write(path.with_file_name("id-cert.pub"), certificate.unwrap_or_default()).unwrap();
        let output = Command::new("ssh-add")
            .args(options)
            .arg(&path)
            .env("SSH_AUTH_SOCK", self.socket())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::remove_file(path).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.path().join("socket")
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn identity(&self) -> Identity {
        Identity::ssh_agent_at(self.socket())
    }
}

impl Drop for StockAgent {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait(); // nothing can be done about a child that is lost
    }
}

#[tokio::test]
async fn key_is_taken_under_the_agents_id_whatever_its_curve() {
    let curves = [EcdsaCurve::NistP256, EcdsaCurve::NistP384, EcdsaCurve::NistP521];
    for algorithm in curves.map(|curve| Algorithm::Ecdsa { curve }).into_iter().chain([Algorithm::Ed25519]) {
        let key = random(algorithm.clone());
        let (result, seen) = Hub::taking(&[key.public_key()]).login(&key.into()).await;
        result.unwrap();
        assert_eq!(seen, [format!("offer laptop-1 {algorithm}"), format!("key laptop-1 {algorithm}")]);
    }
}

#[tokio::test]
async fn certificate_is_shown_before_the_bare_key() {
    let key = PrivateKey::generate();
    let line = certify_user(&key, &PrivateKey::generate(), "laptop-1");
    let identity = Identity::from(key.clone().with_certificate(&line).unwrap());

    let (result, seen) = Hub { takes_certificates: true, ..Hub::default() }.login(&identity).await;
    result.unwrap();
    assert_eq!(seen, ["offer laptop-1 ssh-ed25519", "certificate laptop-1 ssh-ed25519"]);

    let (result, seen) = Hub::taking(&[key.public_key()]).login(&identity).await;
    result.unwrap();
    assert_eq!(
        seen[1..],
        ["certificate laptop-1 ssh-ed25519", "offer laptop-1 ssh-ed25519", "key laptop-1 ssh-ed25519"]
    );

    let error = Hub::default().login(&identity).await.0.unwrap_err();
    let AuthError::Refused { offered, .. } = error else { panic!("{error:?}") };
    let summary = key.public_key().summary();
    assert_eq!(offered, [format!("{summary} with certificate `test`"), summary]);
}

#[tokio::test]
async fn refusal_names_the_id_and_the_key() {
    let key = PrivateKey::generate();
    let error = Hub::default().login(&key.clone().into()).await.0.unwrap_err();
    let text = error.to_string();
    assert!(matches!(&error, AuthError::Refused { id, offered, .. } if id == "laptop-1" && offered.len() == 1));
    assert!(text.contains("`laptop-1`") && text.contains(&key.public_key().fingerprint()), "{text}");
}

#[tokio::test]
async fn connection_that_ends_is_no_refusal() {
    let hub = Hub { hangs_up: true, ..Hub::default() };
    let error = hub.login(&PrivateKey::generate().into()).await.0.unwrap_err();
    assert!(matches!(&error, AuthError::ConnectionEnded { reason } if !reason.is_empty()), "{error:?}");
}

#[tokio::test]
async fn stock_ssh_agent_signs() {
    let Some(agent) = StockAgent::start() else { return };
    let (first, second) = (PrivateKey::generate(), random(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }));
    agent.add(&first, &[]);
    agent.add(&second, &[]);
    let (result, seen) = Hub::taking(&[second.public_key()]).login(&agent.identity()).await;
    result.unwrap();
    let p256 = "laptop-1 ecdsa-sha2-nistp256";
    assert_eq!(seen, ["offer laptop-1 ssh-ed25519".to_owned(), format!("offer {p256}"), format!("key {p256}")]);
}

#[tokio::test]
async fn stock_ssh_agents_certificates_are_shown() {
    let Some(agent) = StockAgent::start() else { return };
    let key = PrivateKey::generate();
    let line = certify_user(&key, &PrivateKey::generate(), "laptop-1");
    agent.add(&key.with_certificate(&line).unwrap(), &[]);
    let (result, seen) = Hub { takes_certificates: true, ..Hub::default() }.login(&agent.identity()).await;
    // The bare key comes first from the ssh-agent, and this hub refuses it once it has the signature.
    result.unwrap();
    assert_eq!(seen.last().unwrap(), "certificate laptop-1 ssh-ed25519");
}

#[tokio::test]
async fn three_keys_are_tried_and_one_can_be_chosen() {
    let Some(agent) = StockAgent::start() else { return };
    let keys: Vec<_> = (0..5).map(|_| PrivateKey::generate()).collect();
    keys.iter().for_each(|key| agent.add(key, &[]));
    let last = keys[4].public_key();
    let hub = Hub::taking(std::slice::from_ref(&last));

    let (result, seen) = hub.login(&agent.identity()).await;
    let error = result.unwrap_err();
    assert_eq!(seen.len(), 3);
    let text = error.to_string();
    let AuthError::Refused { offered, unused, .. } = error else { panic!("{error:?}") };
    assert_eq!(offered, keys[..3].iter().map(|key| key.public_key().summary()).collect::<Vec<_>>());
    assert!(unused.len() == 2 && unused[1].starts_with(&last.summary()), "{unused:?}");
    assert!(text.contains("with_public_key"), "{text}");

    hub.login(&agent.identity().with_public_key(last)).await.0.unwrap();
}

#[tokio::test]
async fn ssh_agent_without_the_key_is_told_apart_from_a_refusal() {
    let Some(agent) = StockAgent::start() else { return };
    let error = Hub::default().login(&agent.identity()).await.0.unwrap_err();
    assert!(matches!(&error, AuthError::NoKeyInSshAgent { wanted: None, .. }), "{error:?}");

    agent.add(&PrivateKey::generate(), &[]);
    let wanted = PrivateKey::generate().public_key();
    let error = Hub::default().login(&agent.identity().with_public_key(wanted.clone())).await.0.unwrap_err();
    assert!(matches!(&error, AuthError::NoKeyInSshAgent { wanted: Some(_), .. }), "{error:?}");
    assert!(error.to_string().contains(&wanted.fingerprint()), "{error}");
}

#[tokio::test]
async fn key_that_the_user_declines_makes_way_for_the_next() {
    let Some(agent) = StockAgent::start() else { return };
    let (asks, free) = (PrivateKey::generate(), PrivateKey::generate());
    agent.add(&asks, &["-c"]);
    let hub = Hub::taking(&[asks.public_key(), free.public_key()]);
    let error = hub.login(&agent.identity()).await.0.unwrap_err();
    let AuthError::NoUsableKey { unused } = &error else { panic!("{error:?}") };
    assert!(unused[0].contains(&asks.public_key().fingerprint()) && unused[0].contains("declined"), "{unused:?}");

    agent.add(&free, &[]);
    let (result, seen) = hub.login(&agent.identity()).await;
    result.unwrap();
    assert_eq!(seen.iter().filter(|line| line.starts_with("offer")).count(), 2);
}

#[tokio::test]
async fn key_restricted_to_the_hub_is_usable_there_only() {
    let Some(agent) = StockAgent::start() else { return };
    let (key, host_key) = (PrivateKey::generate(), PrivateKey::generate());
    let known = agent.path().join("known_hosts");
    std::fs::write(&known, format!("hub {}\n", host_key.public_key())).unwrap();
    agent.add(&key, &["-H", known.to_str().unwrap(), "-h", "hub"]);
    let hub = Hub::taking(&[key.public_key()]);
    hub.login_as(&agent.identity(), &host_key).await.0.unwrap();
    let (result, seen) = hub.login_as(&agent.identity(), &PrivateKey::generate()).await;
    assert!(matches!(result, Err(AuthError::NoKeyInSshAgent { .. })), "{result:?}");
    assert_eq!(seen, [""; 0]);
}

#[tokio::test]
async fn ssh_agent_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let gone = directory.path().join("gone");
    drop(UnixListener::bind(&gone).unwrap());
    for socket in [gone, directory.path().join("none")] {
        let error = Hub::default().login(&Identity::ssh_agent_at(&socket)).await.0.unwrap_err();
        assert!(matches!(&error, AuthError::SshAgentUnreachable { socket: s, .. } if *s == socket), "{error:?}");
    }
    let error = Identity::ssh_agent_named(None).unwrap_err();
    assert!(matches!(error, KeyError::NoSshAgent) && error.to_string().contains("SSH_AUTH_SOCK"), "{error}");
    assert!(Identity::ssh_agent_named(Some("".into())).is_err());
    assert!(Identity::ssh_agent_named(Some("/run/x".into())).is_ok());
}

/// An ssh-agent that takes one request and gives `answer` to it.
async fn login_with_agent_that_says(answer: &'static [u8], then_closes: bool) -> AuthError {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        while !then_closes || !answer.is_empty() {
            if stream.read(&mut request).await.unwrap_or(0) == 0 || stream.write_all(answer).await.is_err() {
                return;
            }
            if then_closes {
                return;
            }
        }
    });
    let mut identity = Identity::ssh_agent_at(&socket);
    let Source::SshAgent(agent) = &mut identity.0 else { unreachable!() };
    agent.set_deadline(Duration::from_millis(200));
    Hub::default().login(&identity).await.0.unwrap_err()
}

#[tokio::test]
async fn ssh_agent_that_never_answers_is_given_up() {
    let error = login_with_agent_that_says(b"", false).await;
    assert!(
        matches!(error, AuthError::SshAgentSilent { after, .. } if after == Duration::from_millis(200)),
        "{error:?}"
    );
}

#[tokio::test]
async fn ssh_agent_that_talks_nonsense_is_broken() {
    let answers: [&[u8]; 3] = [b"", b"\xff\xff\xff\xff", b"\0\0\0\x05\x0c\0\0\0\x09"];
    for (answer, then_closes) in answers.into_iter().zip([true, true, false]) {
        let error = login_with_agent_that_says(answer, then_closes).await;
        assert!(matches!(error, AuthError::SshAgentBroken { .. }), "{answer:?}: {error:?}");
    }
}

#[cfg(feature = "rsa")]
#[tokio::test]
async fn rsa_signs_with_sha2_from_file_and_agent_bare_and_certified() {
    use crate::ssh::key::testing::run;
    if missing("ssh-keygen") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    run("ssh-keygen", &["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", "rsa"], directory.path());
    let key = PrivateKey::from_file(directory.path().join("rsa")).unwrap();
    let line = certify_user(&key, &PrivateKey::generate(), "laptop-1");
    let certified = key.clone().with_certificate(&line).unwrap();

    let bare = Hub::taking(&[key.public_key()]);
    let (result, seen) = bare.login(&key.clone().into()).await;
    result.unwrap();
    assert_eq!(seen, ["offer laptop-1 rsa-sha2-512", "key laptop-1 rsa-sha2-512"]);

    let certificates = Hub { takes_certificates: true, ..Hub::default() };
    let (result, seen) = certificates.login(&certified.clone().into()).await;
    result.unwrap();
    assert_eq!(seen[0], "offer laptop-1 rsa-sha2-512");

    let Some(agent) = StockAgent::start() else { return };
    agent.add(&certified, &[]);
    bare.login(&agent.identity()).await.0.unwrap();
    certificates.login(&agent.identity()).await.0.unwrap();
}
