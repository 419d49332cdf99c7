//! What `~/.ssh/config` says of a hub, as OpenSSH's own client understands it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::agent::{Agent, AgentBuilder};
use crate::carrier::command::{expand, is_plain};
use crate::ssh::{Certificate, HostKeys, HostKeysError, Identity, KeyError, PrivateKey, PublicKey};

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
/// Nothing else of it counts. A hub whose key is not known is refused, whatever `StrictHostKeyChecking` says, and
/// `RevokedHostKeys` and `ProxyUseFdpass` are errors, since going on without them is not what was asked for. `~` is `$HOME`. The
/// configuration is read once; files of known hosts that come to be later do not count.
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
    identities_only: bool,
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
    /// Something is configured that is not done here.
    #[error("`{keyword} {value}`, which ~/.ssh/config has for `{host}`, {why}")]
    Unsupported {
        /// The host.
        host: String,
        /// The keyword.
        keyword: &'static str,
        /// What it says.
        value: String,
        /// Why not, or what to do.
        why: String,
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
        Self::parse(host, &String::from_utf8_lossy(&answer.stdout), ssh)
    }

    /// Reads what `ssh -G` prints: a keyword in lower case and its value on each line.
    fn parse(host: String, answer: &str, ssh: &str) -> Result<Self, SshConfigError> {
        let all = |keyword: &'static str| {
            let values = answer.lines().filter_map(move |line| line.split_once(' ').filter(|(is, _)| *is == keyword));
            values.map(|(_, value)| value.to_owned())
        };
        let first = |keyword| all(keyword).next();
        let set = |keyword| first(keyword).filter(|value| value != "none");
        let unsupported = |keyword, value, why: &str| {
            Err(SshConfigError::Unsupported { host: host.clone(), keyword, value, why: why.into() })
        };
        if let Some(file) = set("revokedhostkeys") {
            return unsupported("RevokedHostKeys", file, "is not read here: mark the keys `@revoked` in known_hosts");
        }
        if let Some(value) = set("proxyusefdpass").filter(|value| value == "yes") {
            return unsupported("ProxyUseFdpass", value, "is not done here: the command's input and output are used");
        }
        let mut known_hosts = Vec::new();
        for (keyword, is) in
            [("UserKnownHostsFile", "userknownhostsfile"), ("GlobalKnownHostsFile", "globalknownhostsfile")]
        {
            for path in set(is).iter().flat_map(|files| paths(files)) {
                let file = at_home(&path);
                // `ssh -G` prints no quotes: two files, of which the second is not absolute, look like one with a space.
                if path.contains(' ') && !file.exists() {
                    return unsupported(keyword, path, "is no file: write absolute paths");
                }
                known_hosts.push(file);
            }
        }
        let (Some(name), Some(port), Some(user)) =
            (first("hostname"), first("port").and_then(|port| port.parse().ok()), first("user"))
        else {
            return Err(SshConfigError::Refused { host, said: "it names no host, port and user".into() });
        };
        Ok(Self {
            host: name,
            port,
            user,
            identity_files: all("identityfile").collect(),
            certificate_files: all("certificatefile").collect(),
            identity_agent: first("identityagent"),
            identities_only: first("identitiesonly").is_some_and(|value| value == "yes"),
            known_hosts,
            proxy_command: set("proxycommand").or(set("proxyjump").map(|hops| jump_command(&hops, ssh))),
            alias: host.rsplit_once('@').map_or(&*host, |(_, host)| host).to_owned(),
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
    /// It signs with the first of the key files that is there and can be used, unencrypted. Without such a file it signs with
    /// the ssh-agent's keys: first with those whose public halves are what the configuration names or lie beside it
    /// (`id_ed25519.pub`), then, unless it says `IdentitiesOnly`, with the others. Either way the certificates for a key are
    /// shown with it: those that the configuration names, or the one beside the key (`id_ed25519-cert.pub`). This reads
    /// small files, and blocks for as long.
    ///
    /// # Errors
    /// [`SshConfigError`] says what is missing, cannot be used or is not done here.
    pub fn agent(&self) -> Result<AgentBuilder, SshConfigError> {
        let mut builder = Agent::builder(&self.user, self.identity()?).host_keys(self.host_keys()?);
        if let Some(command) = &self.proxy_command {
            builder = builder.proxy_command(self.with_names(command)?);
        }
        Ok(builder)
    }

    fn unsupported(&self, keyword: &'static str, value: &str, why: String) -> SshConfigError {
        SshConfigError::Unsupported { host: self.alias.clone(), keyword, value: value.to_owned(), why }
    }

    /// A command with what `%n` and `%r` stand for; the rest is known when it is started.
    fn with_names(&self, command: &str) -> Result<String, SshConfigError> {
        let plain = |name: &String| is_plain(name).then(|| name.replace('%', "%%"));
        let filled = expand(command, |token| match token {
            'n' => plain(&self.alias),
            'r' => plain(&self.user),
            other => Some(format!("%{other}")),
        });
        filled.map_err(|why| self.unsupported("ProxyCommand", command, format!("cannot be run: {why}")))
    }

    /// A path as the configuration has it, with `~`, `${NAME}` and what stands after percent signs in place.
    fn path(&self, keyword: &'static str, given: &str) -> Result<PathBuf, SshConfigError> {
        let variable = |name: &str| std::env::var(name).ok();
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
        let unknown = |why| self.unsupported(keyword, given, format!("names no file: {why}"));
        let mut filled = filled.map_err(unknown)?;
        while let Some((before, (name, after))) =
            filled.split_once("${").and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
        {
            let value = variable(name).ok_or_else(|| unknown(format!("there is no variable `{name}`")))?;
            filled = format!("{before}{}{after}", value.replace("${", "$"));
        }
        Ok(at_home(&filled))
    }

    fn identity(&self) -> Result<Identity, SshConfigError> {
        let paths = self.identity_files.iter().map(|given| self.path("IdentityFile", given));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        let (mut tried, mut named) = (Vec::new(), Vec::new());
        for path in &paths {
            named.extend(public_key(path).or_else(|| public_key(&beside(path, ".pub"))));
            match PrivateKey::from_file(path) {
                Ok(key) => return Ok(self.certified(key, path)?.into()),
                // `ssh` has names of its own for keys that nobody made.
                Err(KeyError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(_) if public_key(path).is_some() => {}
                Err(error) => tried.push(error),
            }
        }
        let agent = match self.identity_agent.as_deref() {
            Some("none") => None,
            None | Some("SSH_AUTH_SOCK") => Identity::ssh_agent().ok(),
            // A variable that has the path.
            Some(socket) if socket.starts_with('$') && !socket.starts_with("${") => {
                std::env::var_os(&socket[1..]).filter(|path| !path.is_empty()).map(Identity::ssh_agent_at)
            }
            Some(socket) => Some(Identity::ssh_agent_at(self.path("IdentityAgent", socket)?)),
        };
        // Without a name there is none that `IdentitiesOnly` could mean.
        let Some(agent) = agent.filter(|_| !(self.identities_only && named.is_empty())) else {
            return Err(SshConfigError::NoIdentity { host: self.alias.clone(), tried });
        };
        for skipped in &tried {
            tracing::warn!(error = skipped as &dyn std::error::Error, "key file not used; asking the ssh-agent");
        }
        let mut agent = named.into_iter().fold(agent, Identity::with_public_key);
        if !self.identities_only {
            agent = agent.or_others();
        }
        for path in self.certificate_paths(&paths)? {
            let certificate = std::fs::read_to_string(path).ok().and_then(|text| text.parse::<Certificate>().ok());
            agent = certificate.into_iter().fold(agent, Identity::with_certificate);
        }
        Ok(agent)
    }

    fn certified(&self, key: PrivateKey, path: &Path) -> Result<PrivateKey, SshConfigError> {
        for path in self.certificate_paths(&[path.to_owned()])? {
            match key.clone().with_certificate_file(path) {
                Err(KeyError::CertificateMismatch { .. }) => {}
                Err(KeyError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                certified => return certified.map_err(SshConfigError::Certificate),
            }
        }
        Ok(key)
    }

    /// Where certificates are: what is named, or else beside the keys. As for `ssh`, they need not be there.
    fn certificate_paths(&self, keys: &[PathBuf]) -> Result<Vec<PathBuf>, SshConfigError> {
        match &self.certificate_files[..] {
            [] => Ok(keys.iter().map(|key| beside(key, "-cert.pub")).collect()),
            named => named.iter().map(|given| self.path("CertificateFile", given)).collect(),
        }
    }

    fn host_keys(&self) -> Result<HostKeys, SshConfigError> {
        // What cannot be looked at may have revocations in it.
        let is_there = |file: &&PathBuf| file.as_path() != "/dev/null" && file.try_exists().unwrap_or(true);
        let mut there = self.known_hosts.iter().filter(is_there);
        let missing = || SshConfigError::NoKnownHosts { host: self.alias.clone(), files: self.known_hosts.clone() };
        let first = HostKeys::known_hosts(there.next().ok_or_else(missing)?)?;
        Ok(there.try_fold(first, HostKeys::or_known_hosts)?)
    }
}

fn public_key(path: &Path) -> Option<PublicKey> {
    std::fs::read_to_string(path).ok()?.parse().ok()
}

/// A file whose name goes on.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The command that leads through other machines: the last hop connects to the hub, by way of those before it.
fn jump_command(hops: &str, ssh: &str) -> String {
    let (before, last) = hops.rsplit_once(',').map_or((None, hops), |(before, last)| (Some(before), last));
    let before = before.map_or(String::new(), |before| format!(" -J {}", quoted(before)));
    let last = if last.starts_with("ssh://") { last.to_owned() } else { format!("ssh://{last}") };
    format!("{ssh} -o BatchMode=yes{before} -W '[%h]:%p' -- {}", quoted(&last))
}

/// A word of a command for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''").replace('%', "%%"))
}

/// The files of a list that `ssh -G` prints without quotes. If all of them are absolute, a word that is not goes on with a
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
        let answer = format!("host hub\nuser me\nhostname h\nport 22\n{answer}");
        SshConfig::parse("me@hub".into(), &answer, "ssh").expect("one")
    }

    #[test]
    fn files_with_spaces_are_told_apart() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(paths("/a b/c  d /e ~/f"), ["/a b/c  d", "/e", "~/f"]);
        let config = parse("userknownhostsfile /e ~/f\nglobalknownhostsfile none\n");
        assert_eq!(config.known_hosts, ["/e".into(), home.join("f")]);
        let lost = "user me\nhostname h\nport 22\nuserknownhostsfile /e f\n";
        let error = SshConfig::parse("x".into(), lost, "ssh").expect_err("/e may have revocations");
        assert!(matches!(error, SshConfigError::Unsupported { keyword: "UserKnownHostsFile", .. }), "{error:?}");
    }

    #[test]
    fn jumps_become_a_command() {
        let command = |answer| parse(answer).proxy_command.map(|command| parse("").with_names(&command).expect("one"));
        assert_eq!(command("proxyjump b\n").as_deref(), Some("ssh -o BatchMode=yes -W '[%h]:%p' -- 'ssh://b'"));
        let several = command("proxyjump me@a:22,x,ssh://you@b:33\n");
        assert_eq!(several.as_deref(), Some("ssh -o BatchMode=yes -J 'me@a:22,x' -W '[%h]:%p' -- 'ssh://you@b:33'"));
        assert_eq!(
            command("proxyjump b'%n\n").as_deref(),
            Some(r"ssh -o BatchMode=yes -W '[%h]:%p' -- 'ssh://b'\''%%n'")
        );
        assert_eq!(command("proxycommand none\n"), None);
        assert_eq!(command("proxycommand x %n %r %% %h\n").as_deref(), Some("x hub me %% %h"));
    }

    #[test]
    fn address_in_six_numbers_stands_in_brackets() {
        let parse = |answer| SshConfig::parse("x".into(), answer, "ssh");
        assert_eq!(parse("user me\nhostname ::1\nport 22\n").expect("one").hub(), "[::1]:22");
        for bad in ["user me\nhostname h\nport 70000\n", "user me\nport 22\n", ""] {
            assert!(matches!(parse(bad), Err(SshConfigError::Refused { .. })), "{bad}");
        }
    }
}
