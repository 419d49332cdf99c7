//! What `~/.ssh/config` says of a hub, as OpenSSH's own client understands it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::agent::{Agent, AgentBuilder};
use crate::carrier::command::{expand, is_plain};
use crate::ssh::{HostKeys, HostKeysError, Identity, KeyError, PrivateKey, PublicKey};

/// How long `ssh -G` may take: a `Match exec` of the configuration may run programs, or look names up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What OpenSSH's client would do to reach a host: its alias in `~/.ssh/config`, with everything that `Host`, `Match` and
/// `Include` say of it. It is `ssh -G` that reads the configuration, so it means here what it means to `ssh`.
///
/// | of the configuration | becomes |
/// |---|---|
/// | `HostName`, `Port` | [`hub`](Self::hub) |
/// | `User` | the agent's id |
/// | `IdentityFile`, `CertificateFile`, `IdentityAgent` | what the agent signs with |
/// | `UserKnownHostsFile`, `GlobalKnownHostsFile` | [`HostKeys`] |
/// | `ProxyCommand`, `ProxyJump` | the [command](AgentBuilder::proxy_command) on the way |
///
/// Nothing else of it counts. A hub whose key is not known is refused, whatever `StrictHostKeyChecking` says.
///
/// ```no_run
/// # use dialback::SshConfig;
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let config = SshConfig::of("hub").await?;
/// let agent = config.agent()?.connect(config.hub()).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SshConfig {
    /// As the user names it.
    alias: String,
    host: String,
    port: u16,
    user: String,
    identity_files: Vec<String>,
    certificate_files: Vec<String>,
    identity_agent: Option<String>,
    known_hosts: Vec<PathBuf>,
    proxy_command: Option<String>,
}

/// Why `~/.ssh/config` does not lead to a hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshConfigError {
    /// There is no program `ssh`, or it cannot be started.
    #[error("cannot run `ssh`, which reads its own configuration: install OpenSSH's client")]
    NoSsh {
        /// What the operating system said.
        source: io::Error,
    },
    /// `ssh -G` did not finish.
    #[error("`ssh -G {host}` did not finish within {after:?}: does the configuration run a program that waits?")]
    TimedOut {
        /// The host.
        host: String,
        /// How long it was given.
        after: Duration,
    },
    /// `ssh` cannot make sense of the configuration or of the host's name.
    #[error("`ssh -G {host}` failed: {said}")]
    Refused {
        /// The host.
        host: String,
        /// What it said.
        said: String,
    },
    /// There is nothing to sign with.
    #[error("there is no key for `{host}`: {}", reasons(.tried))]
    NoIdentity {
        /// The host.
        host: String,
        /// What was tried, and why it does not do.
        tried: Vec<KeyError>,
    },
    /// The certificate cannot be used with the key.
    #[error(transparent)]
    Certificate(KeyError),
    /// None of the `known_hosts` files is there.
    #[error(
        "no known_hosts file for `{host}` is there, of {}: `ssh-keyscan` prints a hub's key; compare it with the hub's own",
        .files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoKnownHosts {
        /// The host.
        host: String,
        /// Those that the configuration names.
        files: Vec<PathBuf>,
    },
    /// A `known_hosts` file cannot be used.
    #[error(transparent)]
    HostKeys(#[from] HostKeysError),
}

fn reasons(errors: &[KeyError]) -> String {
    match errors {
        [] => "name one by `IdentityFile` in ~/.ssh/config".into(),
        errors => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

impl SshConfig {
    /// What the user's and the machine's configuration say of a host, or of `user@host`.
    ///
    /// # Errors
    /// [`SshConfigError::NoSsh`], [`SshConfigError::TimedOut`], [`SshConfigError::Refused`].
    ///
    /// # Cancel safety
    /// Safe: dropping the future ends `ssh`.
    pub async fn of(host: impl Into<String>) -> Result<Self, SshConfigError> {
        Self::ask(host.into(), &[], "ssh").await
    }

    /// As [`of`](Self::of), from another file than the user's, as with `ssh -F`; the machine's does not count then.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    ///
    /// # Cancel safety
    /// Safe: dropping the future ends `ssh`.
    pub async fn of_file(file: impl AsRef<Path>, host: impl Into<String>) -> Result<Self, SshConfigError> {
        let file = file.as_ref();
        let ssh = format!("ssh -F {}", quoted(&file.to_string_lossy()));
        Self::ask(host.into(), &["-F".into(), file.into()], &ssh).await
    }

    /// `ssh` is how a shell starts it in the same way.
    async fn ask(host: String, options: &[OsString], ssh: &str) -> Result<Self, SshConfigError> {
        let asked = Command::new("ssh")
            .args(options)
            .args(["-G", "--", &host])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        let answer = match asked {
            Err(_) => return Err(SshConfigError::TimedOut { host, after: PATIENCE }),
            Ok(answer) => answer.map_err(|source| SshConfigError::NoSsh { source })?,
        };
        if !answer.status.success() {
            let said = String::from_utf8_lossy(&answer.stderr).trim().chars().take(500).collect();
            return Err(SshConfigError::Refused { host, said });
        }
        let answer = String::from_utf8_lossy(&answer.stdout);
        Self::parse(&host, &answer, ssh)
            .ok_or_else(|| SshConfigError::Refused { host, said: "it names no host".into() })
    }

    /// Reads what `ssh -G` prints: a keyword in lower case and its value on each line.
    fn parse(alias: &str, answer: &str, ssh: &str) -> Option<Self> {
        let all = |keyword: &'static str| {
            let values = answer.lines().filter_map(move |line| line.split_once(' ').filter(|(is, _)| *is == keyword));
            values.map(|(_, value)| value.to_owned())
        };
        let first = |keyword| all(keyword).next();
        let set = |keyword| first(keyword).filter(|value| value != "none");
        let jump = set("proxyjump").map(|hops| jump_command(&hops, ssh));
        let known_hosts = ["userknownhostsfile", "globalknownhostsfile"].into_iter().filter_map(set);
        Some(Self {
            alias: alias.rsplit_once('@').map_or(alias, |(_, host)| host).to_owned(),
            host: first("hostname")?,
            port: first("port")?.parse().ok()?,
            user: first("user")?,
            identity_files: all("identityfile").collect(),
            certificate_files: all("certificatefile").collect(),
            identity_agent: first("identityagent"),
            known_hosts: known_hosts.flat_map(|files| paths(&files)).map(|path| at_home(&path)).collect(),
            proxy_command: set("proxycommand").or(jump),
        })
    }

    /// Where the hub is, as [`AgentBuilder::connect`] takes it: `host:port`.
    pub fn hub(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Who `ssh` would log in as. That is the agent's id; without a `User` in the configuration it is the name of the
    /// account on this machine.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Starts to set up an agent: id, what it signs with, host keys and the way are as the configuration says.
    ///
    /// It signs with the first of the key files that is there and can be used, unencrypted, and shows the first of the
    /// certificates that is for this key. Without such a file it signs with the ssh-agent's keys: with the one whose public
    /// half lies where a key file should be (`id_ed25519.pub`), or with any. Reads small files, and blocks for as long.
    ///
    /// # Errors
    /// [`SshConfigError::NoIdentity`], [`SshConfigError::NoKnownHosts`], [`SshConfigError::HostKeys`].
    pub fn agent(&self) -> Result<AgentBuilder, SshConfigError> {
        let mut builder = Agent::builder(&self.user, self.identity()?).host_keys(self.host_keys()?);
        if let Some(command) = &self.proxy_command {
            builder = builder.proxy_command(self.with_names(command));
        }
        Ok(builder)
    }

    /// What a command's `%n` and `%r` stand for; the rest is known when it is started.
    fn with_names(&self, command: &str) -> String {
        let filled = expand(command, |token| match token {
            '%' => Some("%%".into()),
            'n' if is_plain(&self.alias) => Some(self.alias.clone()),
            'r' if is_plain(&self.user) => Some(self.user.clone()),
            other => Some(format!("%{other}")),
        });
        filled.unwrap_or_else(|_| command.to_owned())
    }

    /// A path as the configuration has it, with `~` and what stands after percent signs in place.
    fn path(&self, given: &str) -> PathBuf {
        let variable = |name| std::env::var(name).ok();
        let filled = expand(given, |token| match token {
            '%' => Some("%".into()),
            'd' => std::env::home_dir().map(|home| home.to_string_lossy().into_owned()),
            'h' => Some(self.host.clone()),
            'n' => Some(self.alias.clone()),
            'p' => Some(self.port.to_string()),
            'r' => Some(self.user.clone()),
            'u' => variable("USER").or_else(|| variable("LOGNAME")),
            _ => None,
        });
        at_home(filled.as_deref().unwrap_or(given))
    }

    fn identity(&self) -> Result<Identity, SshConfigError> {
        let mut tried = Vec::new();
        for given in &self.identity_files {
            match PrivateKey::from_file(self.path(given)) {
                Ok(key) => return Ok(self.certified(key)?.into()),
                // `ssh` has names of its own for keys that nobody made.
                Err(KeyError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tried.push(error),
            }
        }
        let agent = match self.identity_agent.as_deref() {
            Some("none") => None,
            None | Some("SSH_AUTH_SOCK") => Identity::ssh_agent().ok(),
            Some(socket) => Some(Identity::ssh_agent_at(self.path(socket))),
        };
        match (agent, self.public_key()) {
            (Some(agent), Some(key)) => Ok(agent.with_public_key(key)),
            (Some(agent), None) => Ok(agent),
            (None, _) => Err(SshConfigError::NoIdentity { host: self.alias.clone(), tried }),
        }
    }

    /// The first public key that lies beside where a private one should be.
    fn public_key(&self) -> Option<PublicKey> {
        self.identity_files.iter().find_map(|given| {
            let mut path = self.path(given).into_os_string();
            path.push(".pub");
            std::fs::read_to_string(path).ok()?.parse().ok()
        })
    }

    fn certified(&self, key: PrivateKey) -> Result<PrivateKey, SshConfigError> {
        for given in &self.certificate_files {
            match key.clone().with_certificate_file(self.path(given)) {
                Err(KeyError::CertificateMismatch { .. }) => {}
                certified => return certified.map_err(SshConfigError::Certificate),
            }
        }
        Ok(key)
    }

    fn host_keys(&self) -> Result<HostKeys, SshConfigError> {
        let mut there = self.known_hosts.iter().filter(|file| file.exists());
        let missing = || SshConfigError::NoKnownHosts { host: self.alias.clone(), files: self.known_hosts.clone() };
        let first = HostKeys::known_hosts(there.next().ok_or_else(missing)?)?;
        Ok(there.try_fold(first, HostKeys::or_known_hosts)?)
    }
}

/// The command that leads through other machines: the last hop connects to the hub, by way of those before it.
fn jump_command(hops: &str, ssh: &str) -> String {
    let (before, last) = hops.rsplit_once(',').map_or((None, hops), |(before, last)| (Some(before), last));
    let before = before.map_or(String::new(), |before| format!(" -J {}", quoted(before)));
    let last = if last.starts_with("ssh://") { last.to_owned() } else { format!("ssh://{last}") };
    format!("{ssh}{before} -W '[%h]:%p' -- {}", quoted(&last))
}

/// A word of a command for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''").replace('%', "%%"))
}

/// The files of a list that `ssh -G` prints without quotes. They are absolute, so that a word that is not goes on with a
/// path that has a space.
fn paths(list: &str) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for word in list.split(' ') {
        match paths.last_mut() {
            Some(path) if !word.starts_with(['/', '~']) => {
                path.push(' ');
                path.push_str(word);
            }
            _ => paths.push(word.to_owned()),
        }
    }
    paths
}

/// A path with the user's home in place of `~`.
fn at_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(answer: &str) -> SshConfig {
        SshConfig::parse("me@hub", &format!("host hub\nuser me\nhostname h\nport 22\n{answer}"), "ssh").expect("one")
    }

    #[test]
    fn files_with_spaces_are_told_apart() {
        let home = std::env::home_dir().unwrap();
        let config = parse("userknownhostsfile /a b/c  d /e ~/f\nglobalknownhostsfile none\n");
        let expected = ["/a b/c  d".into(), "/e".into(), home.join("f")];
        assert_eq!(config.known_hosts, expected);
    }

    #[test]
    fn jumps_become_a_command() {
        let command = |answer| parse(answer).proxy_command.map(|command| parse("").with_names(&command));
        assert_eq!(command("proxyjump b\n").as_deref(), Some("ssh -W '[%h]:%p' -- 'ssh://b'"));
        let several = command("proxyjump me@a:22,x,ssh://you@b:33\n");
        assert_eq!(several.as_deref(), Some("ssh -J 'me@a:22,x' -W '[%h]:%p' -- 'ssh://you@b:33'"));
        assert_eq!(command("proxyjump b'%n\n").as_deref(), Some(r"ssh -W '[%h]:%p' -- 'ssh://b'\''%%n'"));
        assert_eq!(command("proxycommand none\n"), None);
        assert_eq!(command("proxycommand x %n %r %% %h\n").as_deref(), Some("x hub me %% %h"));
    }

    #[test]
    fn address_in_six_numbers_stands_in_brackets() {
        let config = SshConfig::parse("x", "user me\nhostname ::1\nport 22\n", "ssh").expect("one");
        assert_eq!(config.hub(), "[::1]:22");
        assert!(SshConfig::parse("x", "user me\nhostname h\nport 70000\n", "ssh").is_none());
        assert!(SshConfig::parse("x", "", "ssh").is_none());
    }
}
