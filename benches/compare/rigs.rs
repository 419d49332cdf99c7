//! What the tests have for the same programs.
#![allow(dead_code, unreachable_pub)]

#[path = "../../tests/common/grpctunnel.rs"]
pub mod grpctunnel;
#[path = "../../tests/common/netns.rs"]
pub mod netns;
#[path = "../../tests/common/peers.rs"]
mod peers_of_tests;
#[path = "../../tests/common/proxy.rs"]
pub mod proxy;
#[path = "../../tests/common/tls.rs"]
pub mod tls;

/// What `grpctunnel` finds under this name. Where a test is skipped, or fails, a benchmark lists what is missing.
pub mod peers {
    use std::sync::Mutex;

    pub use super::peers_of_tests::{find_program, go_peer};

    static MISSING: Mutex<String> = Mutex::new(String::new());

    pub fn skip(why: &str) {
        why.clone_into(&mut MISSING.lock().expect("nobody panics who holds it"));
    }

    /// Why what was asked for last cannot be had.
    pub fn missing() -> String {
        MISSING.lock().expect("nobody panics who holds it").clone()
    }
}
