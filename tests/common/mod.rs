//! What the tests build their rigs from. Each test file takes what it needs, so no file uses all of it.
// No other crate sees this one, so every `pub` in it would be called unreachable.
#![allow(dead_code, unreachable_pub)]

pub mod bulk;
pub mod child;
#[cfg(feature = "cli")]
pub mod command;
#[cfg(feature = "cli")]
pub mod daemon;
pub mod echo;
pub mod egress;
pub mod faults;
#[cfg(feature = "gateway")]
pub mod forward;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod grpctunnel;
#[cfg(any(feature = "gateway", feature = "grpctunnel"))]
pub mod http2;
#[cfg(feature = "cli")]
pub mod kinds;
pub mod mirror;
pub mod netns;
pub mod openssh;
pub mod peers;
pub mod proxy;
pub mod raw;
#[cfg(feature = "grpctunnel")]
pub mod raw_tunnel;
pub mod rig;
#[cfg(feature = "websocket")]
pub mod tls;
#[cfg(feature = "grpctunnel")]
pub mod tunnels;
