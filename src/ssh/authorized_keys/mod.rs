//! OpenSSH authorized_keys files as the list of agents.

pub(crate) mod certificate;
mod file;
pub(crate) mod key_rules;
mod krl;
mod line;
mod options;
mod pattern;
mod revoked;
pub(super) mod sources;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watched;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::id::AgentId;
use crate::ssh::authorized_keys::file::KeyFile;
use crate::ssh::authorized_keys::krl::KrlFault;
use crate::ssh::authorized_keys::pattern::PathPattern;
use crate::ssh::authorized_keys::revoked::{BadRevokedKeys, RevokedKeys};
use crate::ssh::authorized_keys::watched::{Absence, MAX_FILE, Watched};
use crate::ssh::authorizer::{Authorizer, Claim, Credential, Denied, Grant};

/// How many agents' files are remembered, where every agent has its own. Only files that exist take a place, so that
/// strangers who ask for made-up ids cannot push them out.
const MAX_REMEMBERED: usize = 1024;

/// OpenSSH authorized_keys files as the list of agents.
///
/// Two layouts, as with `AuthorizedKeysFile` of sshd_config(5), or [none](Self::none):
/// - **one file for all agents**, where every line names the ids its key may be:
///   `principals="laptop-1,laptop-2" ssh-ed25519 AAAA…`; a line that names none grants nothing, and `*` does not exist;
/// - **one file per agent**, when the path contains `%u`, which stands for the agent id (`%%` for a percent sign):
///   a key in the file may be that agent. Ids that end in a dot have no file.
///
/// A key on several lines is granted what any of them grants, and it never gets an id that none of them grants.
///
/// # Certificates
/// The key of a `cert-authority` line is that of a CA. An OpenSSH user certificate it signed is accepted as
/// [`Certificate::check`](certificate::Certificate::check) says, for the ids it lists as principals; `principals=` on
/// the line limits which ids that CA is trusted for, and the other options on it apply too. The CAs of
/// [`trusted_user_ca_keys`](Self::trusted_user_ca_keys) are trusted for every id. The CA's own key is nobody's, and a
/// certificate never counts as the plain key in it.
///
/// # Keys
/// Ed25519, ECDSA on the NIST curves, and RSA from 2048 bits with the feature `rsa`. DSA keys and security keys
/// (`sk-…`) are refused.
///
/// # Options
/// Names are case-insensitive, quoting is that of sshd(8).
///
/// | option | meaning here |
/// |---|---|
/// | `principals="id,…"` | the ids the key may be, or the ids the CA is trusted for |
/// | `cert-authority` | the key is that of a CA |
/// | `from="pattern,…"` | the peer's address must match: networks (`10.0.0.0/8`), addresses, and text with `*` and `?`; `!` before a pattern forbids. Host names are not looked up and refuse the line; so does, at login, a peer without an address. An IPv4 address mapped into IPv6 counts as IPv4 |
/// | `expiry-time="YYYYMMDD[HHMM[SS]]"` | the line is dead from then on: in UTC, with or without a `Z` at the end (sshd takes local time without) |
/// | `restrict`, `no-port-forwarding` | forbid what a tunnel is, so that the line grants nothing and is reported, unless `port-forwarding` follows |
/// | `pty`, `agent-forwarding`, `X11-forwarding`, `user-rc` and their `no-` forms | no effect: a hub has none of these |
/// | `environment="name=value"` | a label of the agent; may be repeated, the first of a name counts |
/// | `command=` | no effect: a hub runs no commands |
/// | `permitopen=`, `permitlisten=`, `tunnel=` | no effect: a hub opens and listens on no port or device for an agent |
/// | `[no-]touch-required`, `[no-]verify-required` | no effect: they concern security keys |
/// | any other | the line grants nothing and is reported |
///
/// # Changes and faults
/// Files are read again when they change: every claim looks at the file's times, size and inode (one `stat`) on
/// tokio's blocking pool, because a file may be on a network. A line that is not understood is reported once to
/// `tracing` and by [`problems`](Self::problems), and the others stay in force. A hub ends the tunnels of agents that
/// are not granted any more, or [revoked](Self::revoked_keys), within 5 s. A file that cannot be read, is larger than
/// 16 MiB, may be written by its group or by others, or belongs to neither this process's user nor root denies everybody whom
/// it concerns ([`Denied::Unavailable`]) until it is repaired. Who can write its directory is not checked: keep that as you would
/// for sshd.
///
/// Clones share what they have read. Dropping it closes nothing.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("authorized_keys");
/// # std::fs::write(&path, "# nobody yet\n")?;
/// use dialback::AuthorizedKeys;
///
/// let keys = AuthorizedKeys::open(path)?;
/// for problem in keys.problems() {
///     eprintln!("{problem}"); // keys/authorized_keys:3: option `form` is unknown
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AuthorizedKeys {
    /// Without one there are no lines, and nobody is granted anything by a plain key.
    pattern: Option<Arc<PathPattern>>,
    remembered: Arc<Mutex<Remembered>>,
    authorities: Option<Arc<Watched<KeyFile>>>,
    revoked: Option<Arc<Watched<RevokedKeys>>>,
    accepted_labels: BTreeSet<String>,
}

/// The files seen so far, by owner; `None` is the one file for all.
#[derive(Debug, Default)]
struct Remembered {
    files: HashMap<Option<AgentId>, (u64, Arc<Watched<KeyFile>>)>,
    /// Counts the uses, to find the file that was used longest ago.
    uses: u64,
}

/// A line of an authorized_keys file that is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LineProblem {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it, and what to do. Nothing in it needs escaping.
    pub what: String,
}

impl fmt::Display for LineProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// A file of keys that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorizedKeysError {
    /// It does not exist or cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file, or the directory that should hold it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a pipe or the like.
    #[error("{} is not a file", .path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// Its group or others may write it, and so let themselves in.
    #[error("{path} can be written by others (mode {mode:04o}): run `chmod go-w {path}`", path = .path.display())]
    WritableByOthers {
        /// The file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// It belongs to somebody else than this process's user or root (Unix only), who may let anybody in.
    #[error("{path} belongs to the user with the id {owner}, and not to the one that this runs as, or root: run `chown` on it", path = .path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// The user's id.
        owner: u32,
    },
    /// It is larger than any such file should be.
    #[error("{} is larger than {} MiB", .path.display(), MAX_FILE >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The path has a percent sign that means nothing here.
    #[error("`{}` in {} means nothing: use %u for the agent id, %% for a percent sign", .token.escape_debug(), .path.display())]
    UnknownToken {
        /// The path as given.
        path: PathBuf,
        /// The percent sign and what follows it.
        token: String,
    },
    /// A list of trusted CAs with a line that is no key of a CA.
    #[error("{}:{line}: {what}", .path.display())]
    BadUserCaKey {
        /// The list.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A list of revoked keys with a line that is no key, so that nobody knows what it should revoke.
    #[error("{}:{line}: {what}", .path.display())]
    BadRevokedKey {
        /// The list.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A binary list of what is revoked with something in it that is not understood.
    #[error("{} at byte {at}: {what}", .path.display())]
    BadKrl {
        /// The list.
        path: PathBuf,
        /// Where in the file, in bytes from its start.
        at: usize,
        /// What is wrong there.
        what: String,
    },
}

impl AuthorizedKeysError {
    /// Whether there simply is no such file.
    fn is_missing(&self) -> bool {
        let kinds = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
        matches!(self, Self::Read { source, .. } if kinds.contains(&source.kind()))
    }
}

impl AuthorizedKeys {
    /// Uses the file at `path`, or with `%u` in the path one file per agent.
    ///
    /// Reads the file at once (blocking) to find faults early; faulty lines are no error, see
    /// [`problems`](Self::problems). With `%u`, the directory above it must exist; the files need not.
    ///
    /// # Errors
    /// When the file or directory cannot be used, or the path has another token than `%u` and `%%`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, AuthorizedKeysError> {
        let pattern = PathPattern::parse(path.into())?;
        pattern.check_directory()?;
        let mut remembered = Remembered::default();
        if let PathPattern::Single(path) = &pattern {
            let watched = Arc::new(Watched::new(path.clone(), Absence::Fault));
            read(&watched, None, SystemTime::now())?;
            remembered.keep(None, watched);
        }
        Ok(Self { pattern: Some(Arc::new(pattern)), remembered: Arc::new(Mutex::new(remembered)), ..Self::none() })
    }

    /// Uses no file at all, as `AuthorizedKeysFile none`: whoever gets in has a certificate, by a CA of
    /// [`trusted_user_ca_keys`](Self::trusted_user_ca_keys).
    pub fn none() -> Self {
        Self {
            pattern: None,
            remembered: Arc::default(),
            authorities: None,
            revoked: None,
            accepted_labels: BTreeSet::new(),
        }
    }

    /// Trusts the CAs in this file, as by `TrustedUserCAKeys` of sshd_config(5): public keys, one per line, with empty
    /// lines and comments. Off by default.
    ///
    /// A certificate of one of them is accepted as under a `cert-authority` line without options: its holder may be
    /// the agents that it lists as principals, and without principals nobody. It is enough if either a line or this
    /// file grants it; labels come from lines only.
    ///
    /// The file is read again when it changes. If it cannot be used, or a line in it is not the key of a CA, it trusts no
    /// newcomer, and a certificate that no line grants is denied ([`Denied::Unavailable`]). Tunnels that stand stay until it
    /// can be used again.
    ///
    /// # Errors
    /// When the file cannot be used.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use dialback::AuthorizedKeys;
    ///
    /// let keys = AuthorizedKeys::none().trusted_user_ca_keys("keys/user_ca.pub")?.revoked_keys("keys/revoked")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn trusted_user_ca_keys(self, path: impl Into<PathBuf>) -> Result<Self, AuthorizedKeysError> {
        let authorities = Arc::new(Watched::new(path.into(), Absence::Fault));
        read_authorities(&authorities, SystemTime::now())?;
        Ok(Self { authorities: Some(authorities), ..self })
    }

    /// Refuses the keys and certificates in this list, whatever else says. Off by default.
    ///
    /// The file is either form of sshd's `RevokedKeys`: public keys, one per line, or what `ssh-keygen -k` writes, with
    /// keys, fingerprints of keys, and serial numbers and key ids of certificates. It means what it means to sshd: a
    /// certificate is refused if it is listed, or its own key is, or its CA's; the serial number 0 is none.
    ///
    /// The file is read again when it changes. If it cannot be used, or anything in it is not understood, every newcomer is
    /// denied, and tunnels that stand stay until it can be used again. Replace it by renaming, for a list that is cut short
    /// may look whole.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn revoked_keys(self, path: impl Into<PathBuf>) -> Result<Self, AuthorizedKeysError> {
        let revoked = Arc::new(Watched::new(path.into(), Absence::Fault));
        read_revoked(&revoked, SystemTime::now())?;
        Ok(Self { revoked: Some(revoked), ..self })
    }

    /// Lets all agents set these labels themselves, where their lines set none. Default: none.
    #[must_use]
    pub fn accept_labels<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.accepted_labels.extend(names.into_iter().map(Into::into));
        self
    }

    /// The lines that were not in force when the files were last read, at most 100 per file.
    ///
    /// With one file per agent, only files that an agent has asked for are known. Reads nothing.
    pub fn problems(&self) -> Vec<LineProblem> {
        let files: Vec<_> = self.lock().files.values().map(|(_, watched)| watched.clone()).collect();
        let mut problems: Vec<_> = files
            .iter()
            .filter_map(|watched| watched.last().map(|file| line_problems(watched, &file)))
            .flatten()
            .collect();
        problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        problems
    }

    /// Decides a claim at a given time, by the files as they are now. Blocks.
    fn decide(&self, claim: &Claim, now: SystemTime) -> Result<Grant, Denied> {
        if let Some(revoked) = &self.revoked {
            let keys = read_revoked(revoked, now).map_err(|source| Denied::Unavailable { source })?;
            keys.check(&claim.credential, revoked.path())?;
        }
        let by_line = self.decide_by_line(claim, now);
        match (&self.authorities, &claim.credential, by_line) {
            (_, _, Err(denied @ Denied::Unavailable { .. })) => Err(denied),
            (Some(authorities), Credential::Certificate(_), Err(by_line)) => {
                let file = read_authorities(authorities, now).map_err(|source| Denied::Unavailable { source })?;
                match (file.decide(claim, now, authorities.path()), by_line) {
                    // It does not know the CA, and a line may.
                    (Err(Denied::WrongCa { .. }), by_line) if !is_unknown(&by_line) => Err(by_line),
                    (decision, _) => decision,
                }
            }
            (_, _, decision) => decision,
        }
    }

    fn decide_by_line(&self, claim: &Claim, now: SystemTime) -> Result<Grant, Denied> {
        let path = self.pattern.as_ref().and_then(|pattern| Some((pattern, pattern.path(&claim.agent_id)?)));
        let Some((pattern, path)) = path else {
            return Err(Denied::UnknownKey { fingerprint: claim.credential.fingerprint() });
        };
        let (owner, absence) = match **pattern {
            PathPattern::Single(_) => (None, Absence::Fault),
            PathPattern::PerAgent(_) => (Some(claim.agent_id.clone()), Absence::Normal),
        };
        let known = self.lock().files.get(&owner).map(|(_, watched)| watched.clone());
        let watched = known.unwrap_or_else(|| Arc::new(Watched::new(path, absence)));
        let result = read(&watched, owner.as_ref(), now);
        if owner.is_some() && result.as_ref().is_err_and(AuthorizedKeysError::is_missing) {
            self.lock().files.remove(&owner);
            return Err(Denied::UnknownAgent { agent_id: claim.agent_id.clone(), file: watched.path().into() });
        }
        self.lock().keep(owner, watched.clone());
        let file = result.map_err(|source| Denied::Unavailable { source })?;
        file.decide(claim, now, watched.path())
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        // Nothing in it is ever half changed.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Authorizer for AuthorizedKeys {
    async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
        let (keys, claim) = (self.clone(), claim.clone());
        let decision = tokio::task::spawn_blocking(move || keys.decide(&claim, SystemTime::now()));
        let decision = decision.await.unwrap_or_else(|_| Err(Denied::Other("the runtime is shutting down".into())));
        decision.map(|grant| grant.accept_labels(self.accepted_labels.clone()))
    }

    /// Every 3 s: as long as nothing has changed, that costs a look at the file's times for each tunnel.
    fn recheck_every(&self) -> Option<Duration> {
        Some(Duration::from_secs(3))
    }
}

impl Remembered {
    /// Remembers a file, and forgets the one used longest ago if there are too many.
    fn keep(&mut self, owner: Option<AgentId>, watched: Arc<Watched<KeyFile>>) {
        self.uses += 1;
        self.files.insert(owner, (self.uses, watched));
        if self.files.len() > MAX_REMEMBERED
            && let Some(oldest) = self.files.iter().min_by_key(|(_, (used, _))| *used).map(|(owner, _)| owner.clone())
        {
            self.files.remove(&oldest);
        }
    }
}

/// Whether no line was about the key of a claim.
fn is_unknown(denied: &Denied) -> bool {
    matches!(denied, Denied::UnknownKey { .. } | Denied::UnknownAgent { .. })
}

/// Reads an authorized_keys file if it has changed, and reports its problems if they have.
fn read(
    watched: &Watched<KeyFile>,
    owner: Option<&AgentId>,
    now: SystemTime,
) -> Result<Arc<KeyFile>, AuthorizedKeysError> {
    watched.current(now, |text, before| {
        let file = KeyFile::parse(text, owner);
        if before.is_none_or(|before| before.problems != file.problems) {
            for LineProblem { file, line, what } in line_problems(watched, &file) {
                tracing::warn!(file = %file.display(), line, what, "a line of the authorized keys is not in force");
            }
        }
        tracing::debug!(file = %watched.path().display(), keys = file.len(), "read authorized keys");
        Ok(file)
    })
}

fn read_authorities(watched: &Watched<KeyFile>, now: SystemTime) -> Result<Arc<KeyFile>, AuthorizedKeysError> {
    watched.current(now, |text, _| {
        KeyFile::parse_authorities(text).map_err(|(line, fault)| AuthorizedKeysError::BadUserCaKey {
            path: watched.path().into(),
            line,
            what: fault.to_string(),
        })
    })
}

fn read_revoked(watched: &Watched<RevokedKeys>, now: SystemTime) -> Result<Arc<RevokedKeys>, AuthorizedKeysError> {
    watched.current(now, |file, _| {
        let path = watched.path().to_path_buf();
        RevokedKeys::parse(file).map_err(|fault| match fault {
            BadRevokedKeys::Line(line, fault) => {
                AuthorizedKeysError::BadRevokedKey { path, line, what: fault.to_string() }
            }
            BadRevokedKeys::Binary(KrlFault { at, what }) => {
                AuthorizedKeysError::BadKrl { path, at, what: what.to_string() }
            }
        })
    })
}

fn line_problems(watched: &Watched<KeyFile>, file: &KeyFile) -> Vec<LineProblem> {
    let problem = |(line, fault): &(usize, line::LineFault)| LineProblem {
        file: watched.path().into(),
        line: *line,
        what: fault.to_string(),
    };
    file.problems.iter().map(problem).collect()
}
