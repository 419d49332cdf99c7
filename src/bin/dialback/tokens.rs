//! Tokens by which agents of `grpctunnel` prove who they are: the hub's file of them, and the agent's own.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dialback::{AgentId, AuthorizedKeys, Authorizer, Claim, Credential, Denied, Grant};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Mutex;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use crate::failure::Failure;
use crate::file;

/// The largest file of tokens, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How old what was read may be when somebody shows a token.
const FRESH: Duration = Duration::from_secs(1);

/// Where an agent's token is, if it is in no file.
pub(crate) const VARIABLE: &str = "DIALBACK_AGENT_TOKEN";

/// What a hub's file says of a token: an id, and the token's hash.
pub(crate) fn line(id: &AgentId, token: &str) -> String {
    let hash: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{id} {hash}")
}

/// A token that nobody can guess.
pub(crate) fn generate() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An agent's token, from its file or from the environment.
///
/// # Errors
/// When there is none, others can read it, or it cannot be sent.
pub(crate) fn own(file: Option<&Path>) -> Result<String, Failure> {
    let text = match file {
        Some(path) => {
            let failed = |error| Failure::of_system(format!("cannot read the token in {}", path.display()), &error);
            let metadata = fs::metadata(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    let text = format!("there is no token {}: make one with `dialback keygen token`", path.display());
                    Failure::new(text)
                }
                _ => failed(error),
            })?;
            refuse_others(path, &metadata, 0o077, "chmod 600")?;
            file::read_text(path, file::SECRET)?
        }
        None => match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => text,
            _ => {
                let text = format!(
                    "show the hub a token: --token-file FILE, or {VARIABLE}; `dialback keygen token NAME` makes one"
                );
                return Err(Failure::usage(text));
            }
        },
    };
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::usage("the token is none: it is one word of visible ASCII characters"));
    }
    Ok(token.to_owned())
}

/// The token as it is shown.
///
/// # Errors
/// Never for one that [`own`] gave.
pub(crate) fn shown(token: &str) -> Result<MetadataMap, Failure> {
    let mut value: AsciiMetadataValue =
        format!("Bearer {token}").parse().map_err(|_| Failure::usage("the token cannot be sent"))?;
    value.set_sensitive(true); // no Debug shows it, and HPACK keeps it in no table
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", value);
    Ok(metadata)
}

/// Whether a file is a credential that systemd has handed over.
pub(crate) fn is_of_systemd(path: &Path) -> bool {
    // Every path starts with an empty one.
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| !dir.is_empty() && path.starts_with(dir))
}

/// What systemd hands over looks as if a group may read it (systemd.exec(5)), and no other can.
#[cfg(unix)]
fn refuse_others(path: &Path, metadata: &fs::Metadata, bits: u32, remedy: &str) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    if is_of_systemd(path) {
        return Ok(());
    }
    let shown = path.display();
    // Its owner may change it, whatever its mode.
    if ![0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid()) {
        let owner = metadata.uid();
        return Err(Failure::new(format!(
            "{shown} belongs to another user, {owner}: chown it to root, or to the user that dialback runs as"
        )));
    }
    if metadata.mode() & bits == 0 {
        return Ok(());
    }
    let what = if bits == 0o022 { "written" } else { "read" };
    Err(Failure::new(format!("{shown} may be {what} by others than its owner: {remedy} it")))
}

#[cfg(not(unix))]
fn refuse_others(_: &Path, _: &fs::Metadata, _: u32, _: &str) -> Result<(), Failure> {
    Ok(())
}

/// Which tokens may be which agents: a file with a line for each, an id and the SHA-256 of a token. Read again when it
/// changes; a version with a fault is told of, and the one before stays in force.
pub(crate) struct Tokens {
    path: PathBuf,
    read: Mutex<Version>,
}

struct Version {
    table: Arc<Table>,
    at: Instant,
    /// What was wrong with the file when it was last looked at.
    fault: Option<String>,
}

type Table = Vec<(AgentId, [u8; 32])>;

impl Tokens {
    /// # Errors
    /// When the file cannot be read, others may write it, or a line is none.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let table = Arc::new(read(path)?);
        Ok(Self { path: path.into(), read: Mutex::new(Version { table, at: Instant::now(), fault: None }) })
    }

    /// How many there are.
    pub(crate) async fn count(&self) -> usize {
        self.current().await.0.len()
    }

    /// The tokens, and when they were looked at.
    async fn current(&self) -> (Arc<Table>, Instant) {
        let mut version = self.read.lock().await;
        if version.at.elapsed() >= FRESH {
            let path = self.path.clone();
            match tokio::task::spawn_blocking(move || read(&path)).await {
                Ok(Ok(table)) => {
                    if table != *version.table || version.fault.is_some() {
                        tracing::info!(file = %self.path.display(), "agents' tokens read");
                    }
                    (version.table, version.fault) = (Arc::new(table), None);
                }
                Ok(Err(error)) => {
                    let fault = Some(error.to_string());
                    if version.fault != fault {
                        tracing::error!(%error, "the agents' tokens before stay in force");
                    }
                    version.fault = fault;
                }
                Err(_) => {} // at the end of the runtime
            }
            version.at = Instant::now();
        }
        (version.table.clone(), version.at)
    }

    async fn judge(&self, id: &AgentId, metadata: &MetadataMap) -> Result<Grant, Denied> {
        let shown = metadata.get("authorization").map(|value| value.as_encoded_bytes());
        let Some(token) = shown.and_then(|value| value.strip_prefix(b"Bearer ")) else {
            return Err(Denied::Other("it shows no token: metadata `authorization: Bearer TOKEN`".into()));
        };
        let digest = Sha256::digest(token);
        let is_it = |(known, hash): &(AgentId, [u8; 32])| known == id && bool::from(hash.ct_eq(digest.as_slice()));
        let (table, at) = self.current().await;
        let mut is_known = table.iter().any(is_it);
        if !is_known {
            // Its line may be new. Whoever guesses waits as well.
            tokio::time::sleep(FRESH.saturating_sub(at.elapsed())).await;
            is_known = self.current().await.0.iter().any(is_it);
        }
        if !is_known {
            return Err(Denied::Other(format!("{} has no such token of {id}", self.path.display())));
        }
        // Its tokens are as good as one another, so that they can be changed.
        Ok(Grant::new().holder("who has a token of it"))
    }
}

fn read(path: &Path) -> Result<Table, Failure> {
    let failed = |error| Failure::of_system(format!("cannot read the agents' tokens in {}", path.display()), &error);
    let regular = |metadata: fs::Metadata| match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::other("it is not a regular file")),
    };
    // Asked before opening, because opening a FIFO waits for its writer, and after, because the name may have moved.
    fs::metadata(path).and_then(regular).map_err(failed)?;
    let file = fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().and_then(regular).map_err(failed)?;
    refuse_others(path, &metadata, 0o022, "chmod go-w")?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(Failure::new(format!("{} is larger than 1 MiB", path.display())));
    }
    let mut table = Table::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let wrong = |why: &str| Failure::new(format!("{}:{number}: {why}", path.display()));
        // What is written there may be a token, by mistake, and is not shown.
        let (id, hash) = match line.split_whitespace().collect::<Vec<_>>()[..] {
            [id, hash] => (id, hash),
            _ => {
                return Err(wrong(
                    "a line is an agent's id and the SHA-256 of its token, as `dialback keygen token` prints it",
                ));
            }
        };
        let id: AgentId = id.parse().map_err(|error| wrong(&format!("{error}")))?;
        let hash = parse_hash(hash).ok_or_else(|| {
            wrong("a token's hash is 64 hex digits: write those that `printf %s \"$TOKEN\" | sha256sum` prints")
        })?;
        if hash == <[u8; 32]>::from(Sha256::digest(b"")) {
            return Err(wrong("this is the hash of an empty token"));
        }
        table.push((id, hash));
    }
    Ok(table)
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |&[high, low]: &[u8; 2]| u8::try_from(digit(high)? << 4 | digit(low)?).ok();
    pairs.iter().map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// Keys for those who come by SSH, tokens for those who come by `grpctunnel`.
pub(crate) struct KeysAndTokens {
    pub(crate) keys: AuthorizedKeys,
    pub(crate) tokens: Option<Tokens>,
}

#[async_trait::async_trait]
impl Authorizer for KeysAndTokens {
    async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
        match (&claim.credential, &self.tokens) {
            (Credential::Metadata(metadata), Some(tokens)) => tokens.judge(&claim.agent_id, metadata).await,
            _ => self.keys.authorize(claim).await,
        }
    }

    fn accepts_certificates(&self) -> bool {
        self.keys.accepts_certificates()
    }

    fn recheck_every(&self) -> Option<Duration> {
        self.keys.recheck_every()
    }
}
