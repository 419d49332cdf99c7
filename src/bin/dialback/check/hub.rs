//! Whether a hub would start.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use dialback::gateway::PolicyFile;
use rustls::pki_types::UnixTime;
use tokio::net::TcpListener;

use super::Report;
use crate::config::{Config, HubKeys};
use crate::daemon::keys::certify;
use crate::failure::Failure;
use crate::grpc::{certificates, check_pair};
use crate::hub::{authorizer, check_settings, needs_policy, passphrase};
use crate::tokens::Tokens;

/// When a certificate had better be renewed.
const SOON: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 24 * 3600;

/// Later than any certificate is good for.
const LATER: Duration = Duration::from_secs(1000 * 365 * DAY);

/// Looks at everything; one fault hides no other.
pub(super) async fn check(config: &Config<HubKeys>, report: &mut Report) {
    let keys = &config.own;
    let settings = check_settings(config);
    report.misconfigured = settings.is_err();
    report.step("settings", said(settings.map(|()| String::new())));

    report.title("files");
    let mut opened = Vec::new();
    for path in &keys.host_key {
        match passphrase(keys).open(std::slice::from_ref(path), "dialback keygen hub") {
            Ok(found) => {
                let fingerprints: Vec<_> = found.iter().map(|key| key.public_key().fingerprint()).collect();
                report.step("host key", Ok(format!("{}, {}", path.display(), fingerprints.join(", "))));
                opened.extend(found);
            }
            Err(error) => report.step("host key", Err(error.to_string())),
        }
    }
    if !keys.host_certificate.is_empty() && opened.len() == keys.host_key.len() {
        let certified = certify(opened, &keys.host_certificate).map(|_| names(&keys.host_certificate));
        report.step("certificate", said(certified));
    }
    let lists: Vec<_> = [&keys.authorized_keys, &keys.user_ca, &keys.revoked_keys].into_iter().flatten().collect();
    if !lists.is_empty() {
        match authorizer(keys) {
            Ok(authorizer) => {
                let problems = authorizer.problems();
                if problems.is_empty() {
                    report.step("agents", Ok(names(lists)));
                }
                for problem in problems {
                    report.step("agents", Err(format!("{problem}\n  mend the line, or remove it")));
                }
            }
            Err(error) => report.step("agents", Err(error.to_string())),
        }
    }
    if let Some(path) = &keys.agent_tokens {
        let counted = match Tokens::open(path) {
            Ok(tokens) => Ok(format!("{}, {} of them", path.display(), tokens.count().await)),
            Err(error) => Err(error.to_string()),
        };
        report.step("tokens", counted);
    }
    for (what, pair) in
        [("TLS", (&keys.tls_cert, &keys.tls_key)), ("gateway TLS", (&keys.gateway_tls_cert, &keys.gateway_tls_key))]
    {
        if let (Some(certificate), Some(key)) = pair {
            report.step(what, certified(certificate, key));
        }
    }
    if let Some(path) = &keys.gateway_client_ca {
        let read = certificates(path).map(|all| format!("{}, {} of them", path.display(), all.len()));
        report.step("client CA", said(read));
    }
    if let Some(path) = &keys.policy {
        let read = PolicyFile::open(path).map(|_| path.display().to_string());
        report.step("policy", said(read.map_err(|error| Failure::because("the policy cannot be used", &error))));
    }

    report.title("addresses");
    // Kept, so that two of them that are the same are noticed.
    let mut bound = Vec::new();
    for address in keys.listen.iter().chain(&keys.websocket) {
        let free = match address.strip_prefix("unix:") {
            Some(path) => unix(Path::new(path.strip_prefix("//").unwrap_or(path))),
            None => tcp(address, &mut bound).await.and_then(|at| {
                if address.starts_with("grpc://") && !at.ip().is_loopback() {
                    return Err("tokens could be read on the way\n  use grpcs:// with --tls-cert and --tls-key, or a loopback address".into());
                }
                Ok(())
            }),
        };
        report.step("listen", about(address, free));
    }
    if let Some(address) = &keys.gateway {
        let free = tcp(address, &mut bound).await.and_then(|at| {
            if keys.policy.is_none() && !at.ip().is_loopback() {
                return Err(needs_policy(at).to_string());
            }
            Ok(())
        });
        report.step("gateway", about(address, free));
    }
    if let Some(address) = &config.admin.listen {
        report.step("admin", about(address, tcp(address, &mut bound).await.map(drop)));
    }
}

fn about(address: &str, free: Result<(), String>) -> Result<String, String> {
    free.map(|()| format!("{address} is free")).map_err(|why| format!("{address}: {why}"))
}

fn said(result: Result<String, Failure>) -> Result<String, String> {
    result.map_err(|failure| failure.to_string())
}

fn names<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> String {
    let names: Vec<_> = paths.into_iter().map(|path| path.as_ref().display().to_string()).collect();
    names.join(", ")
}

/// Whether the certificate is the key's and in force, and for how long.
fn certified(certificate: &Path, key: &Path) -> Result<String, String> {
    check_pair(certificate, key).map_err(|failure| failure.to_string())?;
    let chain = certificates(certificate).map_err(|failure| failure.to_string())?;
    let shown = certificate.display();
    let first = chain.first().ok_or_else(|| format!("{shown} has no certificate"))?;
    let parsed = webpki::EndEntityCert::try_from(first).map_err(|error| format!("{shown}: {error}"))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Without an authority it is never in order; what is wrong with its time is said before that.
    let at = |time| {
        let usage = webpki::KeyUsage::server_auth();
        parsed.verify_for_usage(&[], &[], &[], UnixTime::since_unix_epoch(time), usage, None, None).err()
    };
    match at(now) {
        Some(webpki::Error::CertExpired { .. }) => {
            return Err(format!("{shown} has expired\n  renew it, or mend this machine's clock"));
        }
        Some(webpki::Error::CertNotValidYet { .. }) => {
            return Err(format!("{shown} is not valid yet\n  is this machine's clock right?"));
        }
        _ => {}
    }
    others_can_read(key)?;
    let left = match at(now + LATER) {
        Some(webpki::Error::CertExpired { not_after, .. }) => {
            Duration::from_secs(not_after.as_secs()).saturating_sub(now)
        }
        _ => LATER,
    };
    let names: Vec<_> = parsed.valid_dns_names().collect();
    let names = if names.is_empty() { String::new() } else { format!(", for {}", names.join(", ")) };
    let hint = if left < SOON { ": renew it" } else { "" };
    Ok(format!("{shown}{names}, for {} more days{hint}", left.as_secs() / DAY))
}

#[cfg(unix)]
fn others_can_read(key: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(key) {
        Ok(metadata) if metadata.mode() & 0o007 != 0 => {
            Err(format!("everybody on this machine can read the key {0}\n  chmod o= {0}", key.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn others_can_read(_: &Path) -> Result<(), String> {
    Ok(())
}

/// Whether an address can be listened on; where, if it can.
async fn tcp(address: &str, bound: &mut Vec<TcpListener>) -> Result<SocketAddr, String> {
    let (scheme, rest) = address.split_once("://").unwrap_or(("ssh", address));
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let at = match scheme {
        "ws" if !has_port => format!("{authority}:80"),
        "wss" if !has_port => format!("{authority}:443"),
        _ => authority.to_owned(),
    };
    let advice = |error: &io::Error| {
        match error.kind() {
        io::ErrorKind::AddrInUse => {
            "something listens there already\n  is it this hub? `ss -ltnp` says who it is: end it, or choose another port".into()
        }
        io::ErrorKind::PermissionDenied => format!(
            "{error}\n  ports below 1024 are for root, or a program with CAP_NET_BIND_SERVICE (AmbientCapabilities= in its unit)"
        ),
        io::ErrorKind::AddrNotAvailable => format!("{error}\n  this machine does not have this address"),
        _ => format!("{error}\n  write HOST:PORT"),
    }
    };
    let listener = TcpListener::bind(&at).await.map_err(|error| advice(&error))?;
    let local = listener.local_addr().map_err(|error| error.to_string())?;
    bound.push(listener);
    Ok(local)
}

/// Whether a Unix socket could be made there.
#[cfg(unix)]
fn unix(path: &Path) -> Result<(), String> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err("something listens there already\n  is it this hub? End it, or choose another path".into());
    }
    match path.parent().map(std::fs::metadata) {
        Some(Ok(directory)) if directory.is_dir() => Ok(()),
        _ => Err("its directory is not there\n  make it, for the hub's user to write to".into()),
    }
}

#[cfg(not(unix))]
fn unix(_: &Path) -> Result<(), String> {
    Err("Unix sockets are for Unix".into())
}
