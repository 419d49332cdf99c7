//! Where the processes of a contender run, and what is between those in the cloud and those on the laptop.

use std::net::SocketAddr;

use tokio::process::Command;

use crate::common::Failure;
use crate::line::Line;
use crate::lossy::Link;

/// Where a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Cloud,
    Laptop,
}

/// What is between the two.
pub(crate) enum Network {
    /// Nothing: all run on this machine's loopback.
    Loopback,
    /// The same, but that the carrier goes through a relay.
    Line(Line),
    /// Each side is in a network namespace of its own, and a link is between them.
    Link(Link),
}

impl Network {
    /// Where a process of this side listens for those of the other.
    pub(crate) fn address(&self, side: Side) -> &'static str {
        match self {
            Self::Loopback | Self::Line(_) => "127.0.0.1",
            Self::Link(_) => Link::address(side),
        }
    }

    /// How many seconds of silence there may be until a tunnel's ends ask each other whether they live, three times; `None`
    /// for what is usual. Over a link it is short: what is only bad must not be taken for dead.
    pub(crate) fn keepalive(&self) -> Option<&'static str> {
        match self {
            Self::Loopback | Self::Line(_) => None,
            Self::Link(_) => Some("1"),
        }
    }

    /// A command, but that it runs on this side.
    pub(crate) fn inside(&self, side: Side, command: Command) -> Command {
        match self {
            Self::Loopback | Self::Line(_) => command,
            Self::Link(link) => link.inside(side, &command),
        }
    }

    /// Where to dial for what listens at `target`.
    pub(crate) async fn to(&mut self, target: SocketAddr) -> Result<SocketAddr, Failure> {
        match self {
            Self::Loopback | Self::Link(_) => Ok(target),
            Self::Line(line) => line.to(target).await,
        }
    }
}
