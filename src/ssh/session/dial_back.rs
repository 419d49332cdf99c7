//! What an agent is dialled back on.

use std::fmt;

/// The path that stands for a tunnel's gRPC service in streamlocal messages (OpenSSH PROTOCOL §2.4).
pub(crate) const TUNNEL_PATH: &str = "/grpc-tunnel";

/// What an agent asked its hub to forward, and so what the hub names when it dials back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DialBack {
    /// [`TUNNEL_PATH`], which may have labels behind it (OpenSSH PROTOCOL §2.4).
    Path(Box<str>),
    /// For clients that forward ports alone (RFC 4254 §7.1). The hub listens on none.
    Port { address: Box<str>, port: u32 },
}

impl DialBack {
    /// What an agent has a stock server listen on: `unix:/path`, `tcp:port` or `tcp:address:port`. `Err` tells how to write
    /// one.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const HOW: &str = "write unix:/run/tunnels/laptop-1.sock, tcp:50051 or tcp:127.0.0.1:50051";
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') && !path.contains('\0') { Ok(Self::Path(path.into())) } else { Err(HOW) };
        }
        let at = text.strip_prefix("tcp:").ok_or(HOW)?;
        let (address, port) = at.rsplit_once(':').unwrap_or(("localhost", at));
        let address = address.trim_start_matches('[').trim_end_matches(']');
        // A port of the server's choice would be another with each connection.
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or(HOW)?;
        Ok(Self::Port { address: address.into(), port: port.into() })
    }
}

impl fmt::Display for DialBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix:{path}"),
            Self::Port { address, port } => write!(f, "tcp:{address}:{port}"),
        }
    }
}
