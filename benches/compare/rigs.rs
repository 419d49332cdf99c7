//! What the tests have for the same programs.
#![allow(dead_code, unreachable_pub)]

#[path = "../../tests/common/grpctunnel.rs"]
pub mod grpctunnel;
#[path = "../../tests/common/netns.rs"]
pub mod netns;
#[path = "../../tests/common/peers.rs"]
pub mod peers;
#[path = "../../tests/common/proxy.rs"]
pub mod proxy;
#[path = "../../tests/common/tls.rs"]
pub mod tls;
