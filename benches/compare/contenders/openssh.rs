//! What most people use: `ssh -R` on the laptop, `sshd` in the cloud, both as they are.

use std::fs;
use std::net::TcpListener;

use dialback::PrivateKey;

use super::{Parts, Start};
use crate::common::Failure;
use crate::network::Side;
use crate::process::Process;
use crate::rigs::peers::find_program;

/// An sshd that lets this user in with the key `agent`, and where it listens.
pub(super) async fn sshd(start: &Start) -> Result<(Process, String), Failure> {
    let sshd = find_program("sshd").ok_or("the program sshd is missing")?;
    let dir = start.dir()?.to_owned();
    let [key, host] = ["agent", "host"].map(|name| start.dir.path().join(name));
    let public = PrivateKey::load_or_generate(&key)?.public_key();
    PrivateKey::load_or_generate(&host)?;
    fs::write(start.dir.path().join("authorized_keys"), public.to_openssh() + "\n")?;
    // An sshd of root's wants this, and Debian makes it when its own is started.
    let _ = fs::create_dir("/run/sshd"); // it may be there, or this not be root
    let port = free_port()?;
    let host = start.network.address(Side::Cloud);
    let mut config = format!(
        "ListenAddress {host}:{port}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized_keys\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
    );
    // The process that sshd has for a connection outlives it where nobody can tell it that the other end is gone.
    if let Some(seconds) = start.network.keepalive() {
        config += &format!("ClientAliveInterval {seconds}\nClientAliveCountMax 3\n");
    }
    let config_file = start.dir.path().join("sshd_config");
    fs::write(&config_file, config)?;

    let mut sshd =
        start.external(Side::Cloud, sshd, &["-D".as_ref(), "-e".as_ref(), "-f".as_ref(), config_file.as_os_str()])?;
    sshd.line("Server listening on").await?;
    Ok((sshd, format!("{host}:{port}")))
}

pub(super) async fn start(start: &mut Start) -> Result<Parts, Failure> {
    let ssh = find_program("ssh").ok_or("the program ssh is missing")?;
    let (sshd, way) = sshd(start).await?;
    let forwarded = free_port()?;
    let (server, address) = start.server().await?;
    let caller = start.own(Side::Cloud, &["client", &format!("127.0.0.1:{forwarded}")])?;
    let way = start.to(&way).await?;
    let [forward, port, host] =
        [format!("127.0.0.1:{forwarded}:{address}"), way.port().to_string(), way.ip().to_string()];
    let mut arguments = vec!["-F", "none", "-N", "-R", &forward];
    // The host key is of this run, and so is the server.
    for option in [
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "ExitOnForwardFailure=yes",
    ] {
        arguments.extend(["-o", option]);
    }
    let keepalive = start.network.keepalive().map(|seconds| format!("ServerAliveInterval={seconds}"));
    if let Some(option) = &keepalive {
        arguments.extend(["-o", option]); // three times, as it is by default
    }
    let key = format!("{}/agent", start.dir()?);
    arguments.extend(["-i", &key, "-p", &port, &host]);
    start.dials_now();
    let ssh = start.external(Side::Laptop, ssh, &arguments)?;
    Ok(Parts { caller, others: vec![server, sshd, ssh] })
}

/// One that was free a moment ago: these programs do not tell which one the system has given them.
pub(super) fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
