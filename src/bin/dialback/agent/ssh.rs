//! What an agent goes by that dials its hub by SSH.

use std::time::Duration;

use dialback::{Agent, AgentBuilder, ConnectError, ForwardRequest, HostKeys, Identity};

use crate::config::{AgentKeys, KeyName};
use crate::daemon::keys::{Passphrase, certify};
use crate::failure::Failure;
use crate::file;
use crate::hub::set;

/// What a hub's answer means for whoever has to mend it.
pub(crate) fn explain(error: &ConnectError, keys: &AgentKeys) -> Failure {
    let failure = Failure::because("cannot connect", error);
    let hint = match error {
        ConnectError::Auth { .. } => {
            let id = keys.id.as_deref().unwrap_or("this agent's id");
            format!("the hub lets it in when its --authorized-keys file has the line principals=\"{id}\" and this agent's public key")
        }
        ConnectError::HostKey { .. } => {
            "compare the fingerprint with the one that the hub prints when it starts; if it is right, put it in --known-hosts or --host-key-fingerprint".into()
        }
        ConnectError::InvalidAgentId(error) => return Failure::usage(format!("--id: {error}")),
        ConnectError::InvalidRemote { .. }
        | ConnectError::InvalidAddress { .. }
        | ConnectError::InvalidLabel(_)
        | ConnectError::InvalidProxy { .. }
        | ConnectError::TlsRoots(_) => return Failure::misconfigured("the hub cannot be dialled", error),
        ConnectError::ForwardRefused { .. } => "the flag for that is --forward-request-optional".into(),
        _ => return failure,
    };
    Failure::new(format!("{failure}\n  {hint}"))
}

/// The agent, and the hub that it dials first.
pub(crate) async fn builder(keys: &AgentKeys) -> Result<(AgentBuilder, String), Failure> {
    let mut hubs = keys.hub.iter().map(|hub| hub.0.clone());
    let (builder, hub) = match &keys.ssh_config {
        Some(host) => {
            let (builder, hub) = from_ssh_config(keys, host).await?;
            (builder, hubs.next().unwrap_or(hub))
        }
        None => {
            let Some(hub) = hubs.next() else {
                return Err(Failure::usage("say where the hub is: --hub hub.example.com:2222"));
            };
            let Some(id) = &keys.id else {
                return Err(Failure::usage("give the agent the name that the hub knows it by: --id NAME"));
            };
            let Some(identity) = identity(keys)? else {
                let text =
                    "name the agent's key: --identity FILE, or --identity ssh-agent; `dialback keygen` makes one";
                return Err(Failure::usage(text));
            };
            let Some(host_keys) = host_keys(keys)? else {
                let text = "say how to recognise the hub: --known-hosts FILE, --host-key-fingerprint SHA256:… (the hub prints its own when it starts) or --host-ca FILE";
                return Err(Failure::usage(text));
            };
            (Agent::builder(id, identity).host_keys(host_keys), hub)
        }
    };
    let mut builder = hubs.fold(builder, AgentBuilder::fallback);
    for label in &keys.label {
        let Some((name, value)) = label.split_once('=') else {
            return Err(Failure::usage(format!("`{}` is no label: write NAME=VALUE", label.escape_debug())));
        };
        builder = builder.label(name, value);
    }
    match (&keys.proxy, keys.no_proxy, &keys.proxy_command) {
        (None, false, None) => {}
        (Some(url), false, None) => builder = builder.proxy(&**url),
        (None, true, None) => builder = builder.no_proxy(),
        #[cfg(unix)]
        (None, false, Some(command)) => builder = builder.proxy_command(command),
        _ => {
            return Err(Failure::usage(
                "only one of --proxy, --no-proxy and --proxy-command can be (the last on Unix)",
            ));
        }
    }
    if let Some(file) = &keys.tls_roots {
        builder = builder.tls_roots(file);
    }
    if let Some(listen) = &keys.remote {
        builder = builder.remote(listen);
    }
    if keys.forward_request_optional {
        builder = builder.forward_request(ForwardRequest::Optional);
    }
    if keys.keepalive.is_some() || keys.keepalive_max.is_some() {
        builder = builder.keepalive(keys.keepalive.unwrap_or(Duration::from_secs(10)), keys.keepalive_max.unwrap_or(3));
    }
    if keys.backoff_min.is_some() || keys.backoff_max.is_some() || keys.backoff_stable.is_some() {
        builder = builder.backoff(
            keys.backoff_min.unwrap_or(Duration::from_millis(200)),
            keys.backoff_max.unwrap_or(Duration::from_secs(30)),
            keys.backoff_stable.unwrap_or(Duration::from_secs(30)),
        );
    }
    if keys.rekey_bytes.is_some() || keys.rekey_interval.is_some() {
        let bytes = keys.rekey_bytes.map_or(usize::MAX, |size| size.as_usize());
        builder = builder.rekey(bytes, keys.rekey_interval.unwrap_or(Duration::from_secs(3600)));
    }
    let builder = set(builder, keys.tunnels, AgentBuilder::tunnels);
    let builder = set(builder, keys.login_timeout, AgentBuilder::login_timeout);
    let builder = set(builder, keys.max_channels, AgentBuilder::max_channels);
    let builder = set(builder, keys.window.map(|size| size.as_u32()), AgentBuilder::window);
    Ok((set(builder, keys.renew_after, AgentBuilder::renew_after), hub))
}

#[cfg(unix)]
async fn from_ssh_config(keys: &AgentKeys, host: &str) -> Result<(AgentBuilder, String), Failure> {
    use dialback::SshConfig;
    if keys.id.is_some() || !keys.identity.is_empty() || host_keys(keys)?.is_some() {
        let text = "with --ssh-config, the id, the identity and the hub's keys are those of ~/.ssh/config (User, IdentityFile, UserKnownHostsFile): leave out --id, --identity, --known-hosts, --host-key-fingerprint and --host-ca";
        return Err(Failure::usage(text));
    }
    let config = match &keys.ssh_config_file {
        Some(file) => SshConfig::of_file(file, host).await,
        None => SshConfig::of(host).await,
    };
    let because = |error| Failure::because("the ssh configuration cannot be used", &error);
    let config = config.map_err(because)?;
    Ok((config.agent().map_err(because)?, config.hub()))
}

#[cfg(not(unix))]
async fn from_ssh_config(keys: &AgentKeys, _: &str) -> Result<(AgentBuilder, String), Failure> {
    let name = if keys.ssh_config_file.is_some() { "--ssh-config-file" } else { "--ssh-config" };
    Err(Failure::usage(format!("{name} is for Unix")))
}

fn identity(keys: &AgentKeys) -> Result<Option<Identity>, Failure> {
    let (agents, files): (Vec<_>, Vec<_>) =
        keys.identity.iter().partition(|name| &***name == "ssh-agent" || name.starts_with("ssh-agent:"));
    let Some(agent) = agents.first() else {
        let passphrase = Passphrase {
            file: keys.identity_passphrase_file.as_deref(),
            variable: "DIALBACK_IDENTITY_PASSPHRASE",
            flag: "identity-passphrase-file",
        };
        let files: Vec<_> = files.iter().map(|name| name.0.clone().into()).collect();
        let opened = certify(passphrase.open(&files, "dialback keygen")?, &keys.certificate)?;
        return Ok((!opened.is_empty()).then(|| Identity::keys(opened)));
    };
    if !keys.certificate.is_empty() {
        return Err(Failure::usage("--certificate is for keys in files: an ssh-agent holds its own"));
    }
    ssh_agent(agent, &files).map(Some)
}

#[cfg(unix)]
fn ssh_agent(socket: &KeyName, files: &[&KeyName]) -> Result<Identity, Failure> {
    let mut identity = match socket.strip_prefix("ssh-agent:") {
        Some(path) => Identity::ssh_agent_at(path),
        None => Identity::ssh_agent().map_err(|error| Failure::because("there is no ssh-agent", &error))?,
    };
    for name in files {
        let wrong = |why: String| {
            Failure::usage(format!("beside an ssh-agent, --identity names a public key (FILE.pub): {}: {why}", name.0))
        };
        let text = file::read_text(name.0.as_ref(), file::SECRET).map_err(|error| wrong(error.to_string()))?;
        let key: dialback::PublicKey =
            text.trim().parse().map_err(|error: dialback::InvalidPublicKey| wrong(error.to_string()))?;
        identity = identity.with_public_key(key);
    }
    Ok(identity)
}

#[cfg(not(unix))]
fn ssh_agent(_: &KeyName, _: &[&KeyName]) -> Result<Identity, Failure> {
    Err(Failure::usage("an ssh-agent is asked on Unix alone: name a key's file"))
}

fn host_keys(keys: &AgentKeys) -> Result<Option<HostKeys>, Failure> {
    let because = |error| Failure::because("the hub's keys cannot be used", &error);
    let mut rule: Option<HostKeys> = None;
    for path in &keys.known_hosts {
        let more = match rule {
            Some(rule) => rule.or_known_hosts(path),
            None => HostKeys::known_hosts(path),
        };
        rule = Some(more.map_err(because)?);
    }
    for path in &keys.host_ca {
        let more = match rule {
            Some(rule) => rule.or_authorities(path),
            None => HostKeys::authorities(path),
        };
        rule = Some(more.map_err(because)?);
    }
    if !keys.host_key_fingerprint.is_empty() && rule.is_some() {
        let text = "--host-key-fingerprint stands alone: with it, neither --known-hosts nor --host-ca counts";
        return Err(Failure::usage(text));
    }
    for text in &keys.host_key_fingerprint {
        let more = match rule {
            Some(rule) => rule.or_fingerprint(text),
            None => HostKeys::fingerprint(text),
        };
        rule = Some(more.map_err(because)?);
    }
    Ok(rule)
}
