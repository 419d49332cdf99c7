//! How an agent decides that it talks to the right hub.

mod error;

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use russh::Preferred;
use russh::keys::ssh_key::{Fingerprint, HashAlg};
use russh::keys::{Algorithm, EcdsaCurve, PublicKeyOrCertificate};

pub use error::{CertificateProblem, FileLine, HostKeyError, HostKeysError, KnownHostsProblem, PinnedKey};

use super::key::PublicKey;
use super::key::file::open_regular;
use super::known_hosts::{HostName, KnownHosts};

/// The largest `known_hosts` file read, in bytes: some 100,000 hosts.
const MAX_KNOWN_HOSTS: u64 = 16 * 1024 * 1024;

/// How an agent decides that it talks to the right hub. There is no default, and only
/// [`dangerous_accept_any`](Self::dangerous_accept_any) accepts a hub that nothing is known about.
///
/// The check is made before the agent sends its id or any signature. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct HostKeys(Rule);

#[derive(Clone, Debug)]
enum Rule {
    KnownHosts(Arc<KnownHostsFiles>),
    Pinned(Vec<Pin>),
    Callback(Callback),
    AcceptAny,
}

#[derive(Clone, Debug)]
struct Pin {
    fingerprint: Fingerprint,
    /// Known if a whole key was given.
    algorithm: Option<Algorithm>,
}

/// A host key that a hub has proved to hold, for [`HostKeys::callback`] to judge.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OfferedHostKey {
    /// The host that was dialled, as it was given to the agent.
    pub host: String,
    /// The port that was dialled.
    pub port: u16,
    /// The hub's key.
    pub key: PublicKey,
}

type Judge = dyn Fn(&OfferedHostKey) -> Result<(), String> + Send + Sync;

#[derive(Clone)]
struct Callback(Arc<Judge>);

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl HostKeys {
    /// Trusts what an OpenSSH `known_hosts` file says: plain and hashed names, wildcards, `!`, `[host]:port`,
    /// `@cert-authority` and `@revoked`. A hub on port 22 is looked up as `host`, on another port as `[host]:port`.
    ///
    /// Every key that the file gives for the hub is right, so a new key can be added before the hub changes over.
    /// Another key is refused, of whatever type. The file is read here, to fail early, and again at every connection;
    /// if it cannot be read then, the hub is refused. A malformed line is skipped, logged as a warning and listed by
    /// [`problems`](Self::problems), with one exception: while a `@revoked` line cannot be read, every hub is refused.
    ///
    /// # Errors
    /// [`HostKeysError::Unreadable`] if it is not a readable regular file of at most 16 MiB;
    /// [`HostKeysError::NotKnownHosts`] if it has lines, but no usable one. An empty file is accepted, and then knows
    /// no hub.
    pub fn known_hosts(path: impl Into<PathBuf>) -> Result<Self, HostKeysError> {
        Self(Rule::KnownHosts(Arc::default())).or_known_hosts(path)
    }

    /// Trusts what another file says, too, such as `/etc/ssh/ssh_known_hosts`: the lines of all files count alike, and
    /// what one revokes is revoked. Only after [`known_hosts`](Self::known_hosts).
    ///
    /// # Errors
    /// As [`known_hosts`](Self::known_hosts), or [`HostKeysError::NoKnownHosts`] after another constructor.
    pub fn or_known_hosts(self, path: impl Into<PathBuf>) -> Result<Self, HostKeysError> {
        self.or_lines(path.into(), Holds::KnownHosts)
    }

    /// Trusts every hub whose host certificate names it and is by an authority whose public key is in this file: one on each
    /// line, as in `ca.pub`. Short for a `known_hosts` file with `@cert-authority *` before each, and read as one.
    ///
    /// # Errors
    /// As [`known_hosts`](Self::known_hosts).
    pub fn authorities(path: impl Into<PathBuf>) -> Result<Self, HostKeysError> {
        Self(Rule::KnownHosts(Arc::default())).or_authorities(path)
    }

    /// Trusts these authorities, too. Only after [`known_hosts`](Self::known_hosts) or [`authorities`](Self::authorities).
    ///
    /// # Errors
    /// As [`or_known_hosts`](Self::or_known_hosts).
    pub fn or_authorities(self, path: impl Into<PathBuf>) -> Result<Self, HostKeysError> {
        self.or_lines(path.into(), Holds::Authorities)
    }

    fn or_lines(self, path: PathBuf, holds: Holds) -> Result<Self, HostKeysError> {
        let Rule::KnownHosts(files) = self.0 else { return Err(HostKeysError::NoKnownHosts) };
        let lines = read(&path, holds).map_err(|source| HostKeysError::Unreadable { file: path.clone(), source })?;
        match lines.problems().first() {
            Some(problem) if lines.is_empty() => return Err(HostKeysError::NotKnownHosts { problem: problem.clone() }),
            _ => {}
        }
        let paths = files.paths.iter().cloned().chain([(path, holds)]).collect();
        let mut problems = files.problems();
        tell(lines.problems(), &problems);
        problems.extend_from_slice(lines.problems());
        Ok(Self(Rule::KnownHosts(Arc::new(KnownHostsFiles { paths, problems: Mutex::new(problems) }))))
    }

    /// Trusts the hub whose key has this SHA-256 fingerprint, `SHA256:…`, as `ssh-keygen -l -f HUB.pub` prints it.
    ///
    /// # Errors
    /// [`HostKeysError::NotAFingerprint`].
    pub fn fingerprint(sha256: &str) -> Result<Self, HostKeysError> {
        Self(Rule::Pinned(vec![])).or_fingerprint(sha256)
    }

    /// Trusts this fingerprint too, for instance of the key that the hub will have next. Only after
    /// [`fingerprint`](Self::fingerprint) or [`public_key`](Self::public_key).
    ///
    /// # Errors
    /// [`HostKeysError::NotAFingerprint`], or [`HostKeysError::NotPinned`] after another constructor.
    pub fn or_fingerprint(mut self, sha256: &str) -> Result<Self, HostKeysError> {
        let Rule::Pinned(pins) = &mut self.0 else { return Err(HostKeysError::NotPinned) };
        match sha256.trim().parse() {
            Ok(fingerprint @ Fingerprint::Sha256(_)) => pins.push(Pin { fingerprint, algorithm: None }),
            _ => return Err(HostKeysError::NotAFingerprint { given: sha256.chars().take(80).collect() }),
        }
        Ok(self)
    }

    /// Trusts the hub that has this key.
    pub fn public_key(key: PublicKey) -> Self {
        let algorithm = Some(key.inner().algorithm());
        Self(Rule::Pinned(vec![Pin { fingerprint: key.inner().fingerprint(HashAlg::Sha256), algorithm }]))
    }

    /// Lets `judge` decide: `Err` refuses the hub and says why. It runs on the task that drives the connection, and so
    /// must not block. Hubs show it bare keys, never certificates.
    pub fn callback(judge: impl Fn(&OfferedHostKey) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Rule::Callback(Callback(Arc::new(judge))))
    }

    /// Trusts whoever answers. Anybody on the path can then read and change every call, in both directions; every
    /// connection logs a warning. For experiments on one machine only.
    pub fn dangerous_accept_any() -> Self {
        Self(Rule::AcceptAny)
    }

    /// The lines of the `known_hosts` files that were unusable when they were last read. Empty for other rules.
    pub fn problems(&self) -> Vec<KnownHostsProblem> {
        match &self.0 {
            Rule::KnownHosts(files) => files.problems(),
            _ => vec![],
        }
    }

    /// Whether the hub at `host` and `port` may have what it offers. russh has checked that it holds the private key.
    pub(crate) async fn check(
        &self,
        host: &str,
        port: u16,
        offered: &PublicKeyOrCertificate,
    ) -> Result<(), HostKeyError> {
        let name = HostName::new(host, port);
        let key = PublicKey::new(offered.public_key().key_data().clone(), "");
        match &self.0 {
            Rule::KnownHosts(files) => files.read_for(&name).await?.judge(&name, offered, unix_now()),
            Rule::Pinned(pins) => {
                let fingerprint = key.inner().fingerprint(HashAlg::Sha256);
                if pins.iter().any(|pin| pin.fingerprint == fingerprint) {
                    return Ok(());
                }
                let expected = pins.iter().map(Pin::describe).collect();
                Err(HostKeyError::Mismatch { host: name.to_string(), expected, offered: key })
            }
            Rule::Callback(Callback(judge)) => {
                let offered = OfferedHostKey { host: host.to_owned(), port, key };
                judge(&offered).map_err(|reason| HostKeyError::Refused {
                    host: name.to_string(),
                    offered: offered.key,
                    reason,
                })
            }
            Rule::AcceptAny => {
                tracing::warn!(host = %name, key = %key.summary(), "host key not checked");
                Ok(())
            }
        }
    }

    /// What to ask the hub at `host` and `port` to prove itself with: the types that it should have come first, so
    /// that a hub with several keys shows the expected one. The others follow, so that a hub with a wrong key is
    /// refused for its key, and not for lack of a common algorithm.
    pub(crate) async fn host_key_algorithms(&self, host: &str, port: u16) -> Result<HostKeyAlgorithms, HostKeyError> {
        let (expected, certified) = match &self.0 {
            Rule::KnownHosts(files) => {
                let name = HostName::new(host, port);
                files.read_for(&name).await?.expected_types(&name)
            }
            Rule::Pinned(pins) => (pins.iter().filter_map(|pin| pin.algorithm.clone()).collect(), false),
            Rule::Callback(_) | Rule::AcceptAny => (vec![], false),
        };
        let mut keys = supported_algorithms();
        // An RSA key is expected as plain `ssh-rsa`, and shown with either hash.
        let is_expected = |a: &Algorithm| expected.iter().any(|e| e == a || (is_rsa(e) && is_rsa(a)));
        keys.sort_by_key(|algorithm| !is_expected(algorithm)); // stable: otherwise in order of preference
        Ok(HostKeyAlgorithms { keys, certificates: if certified { supported_algorithms() } else { vec![] } })
    }
}

impl Pin {
    fn describe(&self) -> PinnedKey {
        PinnedKey {
            fingerprint: self.fingerprint.to_string(),
            algorithm: self.algorithm.as_ref().map(ToString::to_string),
            is_authority: false,
            at: None,
        }
    }
}

/// The host key algorithms to negotiate with a hub, best first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostKeyAlgorithms {
    keys: Vec<Algorithm>,
    certificates: Vec<Algorithm>,
}

impl HostKeyAlgorithms {
    pub(crate) fn apply_to(self, preferred: &mut Preferred) {
        preferred.key = Cow::Owned(self.keys);
        preferred.host_key_certificates = Cow::Owned(self.certificates);
    }
}

/// What a hub may sign with, best first; never RSA with SHA-1.
pub(super) fn supported_algorithms() -> Vec<Algorithm> {
    let ecdsa = [EcdsaCurve::NistP256, EcdsaCurve::NistP384, EcdsaCurve::NistP521];
    let ecdsa = ecdsa.map(|curve| Algorithm::Ecdsa { curve });
    let rsa = [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) });
    let rsa = rsa.into_iter().filter(|_| cfg!(feature = "rsa"));
    [Algorithm::Ed25519].into_iter().chain(ecdsa).chain(rsa).collect()
}

fn is_rsa(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { .. })
}

/// A clock before 1970 counts as 1970: then no certificate is valid yet.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What the lines of a file are.
#[derive(Debug, Clone, Copy)]
enum Holds {
    KnownHosts,
    /// Public keys.
    Authorities,
}

#[derive(Debug, Default)]
struct KnownHostsFiles {
    paths: Vec<(PathBuf, Holds)>,
    /// As of the last reading, to warn of each problem once and not at every reconnect.
    problems: Mutex<Vec<KnownHostsProblem>>,
}

impl KnownHostsFiles {
    fn first(&self) -> &Path {
        self.paths.first().map_or(Path::new(""), |(path, _)| path)
    }

    fn problems(&self) -> Vec<KnownHostsProblem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn read_for(self: &Arc<Self>, host: &HostName) -> Result<KnownHosts, HostKeyError> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || this.read()).await;
        let read = read.unwrap_or_else(|error| Err((self.first().to_owned(), io::Error::other(error))));
        read.map_err(|(file, source)| HostKeyError::Unreadable { host: host.to_string(), file, source })
    }

    /// `Err` names the file that cannot be read.
    fn read(&self) -> Result<KnownHosts, (PathBuf, io::Error)> {
        let mut files =
            self.paths.iter().map(|(path, holds)| read(path, *holds).map_err(|error| (path.clone(), error)));
        let first = files.next().unwrap_or_else(|| Err((self.first().to_owned(), io::ErrorKind::NotFound.into())))?;
        let lines = files.try_fold(first, |lines, more| more.map(|more| lines.and(more)))?;
        let mut known = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        tell(lines.problems(), &known);
        *known = lines.problems().to_vec();
        Ok(lines)
    }
}

fn read(path: &Path, holds: Holds) -> io::Result<KnownHosts> {
    let text = read_bounded(path)?;
    Ok(match holds {
        Holds::KnownHosts => KnownHosts::parse(path, &text),
        Holds::Authorities => KnownHosts::parse(path, &as_authorities(&text)),
    })
}

/// Public keys as lines of a `known_hosts` file, each where it was.
fn as_authorities(keys: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for line in keys.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        if !line.is_empty() && !line.starts_with(b"#") {
            text.extend_from_slice(b"@cert-authority * ");
        }
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

/// Warns of problems that were not known before.
fn tell(problems: &[KnownHostsProblem], known: &[KnownHostsProblem]) {
    for problem in problems.iter().filter(|problem| !known.contains(problem)) {
        tracing::warn!("{problem}; the line is ignored");
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = vec![];
    let read = open_regular(path, MAX_KNOWN_HOSTS)?.take(MAX_KNOWN_HOSTS + 1).read_to_end(&mut text)?;
    // It grew while it was read: what was cut off may be a revocation.
    if read as u64 > MAX_KNOWN_HOSTS {
        return Err(io::Error::other(format!("it is larger than {MAX_KNOWN_HOSTS} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
