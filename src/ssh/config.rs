//! What russh is told: algorithms, windows, timers. Everything that its defaults leave open or too wide is set here.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use russh::{Limits, MethodKind, MethodSet, Preferred, SshId, cipher, client, compression, kex, mac, server};

use super::host_keys::{HostKeyAlgorithms, supported_algorithms};
use super::key::PrivateKey;
use super::ledger::QUEUE_MESSAGES;
use crate::tuning;

/// The settings that both ends of a tunnel have.
#[derive(Debug, Clone)]
pub(crate) struct TunnelConfig {
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_max: usize,
    pub(crate) window: u32,
    pub(crate) rekey_bytes: usize,
    pub(crate) rekey_interval: Duration,
    pub(crate) login_timeout: Duration,
    pub(crate) open_timeout: Duration,
    pub(crate) max_channels: usize,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            keepalive_interval: Duration::from_secs(10),
            keepalive_max: 3,
            window: tuning::SSH_WINDOW,
            rekey_bytes: REKEY_BYTES,
            rekey_interval: Duration::from_secs(3600),
            login_timeout: Duration::from_secs(20),
            open_timeout: Duration::from_secs(10),
            max_channels: 256,
        }
    }
}

impl TunnelConfig {
    pub(crate) fn set_keepalive(&mut self, interval: Duration, max: usize) {
        self.keepalive_interval = interval.max(Duration::from_millis(100));
        self.keepalive_max = max.max(1);
    }

    pub(crate) fn set_window(&mut self, bytes: u32) {
        self.window = bytes.clamp(2 * PACKET, u32::MAX / 2);
    }

    pub(crate) fn set_rekey(&mut self, bytes: usize, interval: Duration) {
        self.rekey_bytes = bytes.clamp(1 << 20, REKEY_BYTES);
        self.rekey_interval = interval.max(Duration::from_secs(1));
    }

    /// How long a peer may be silent. russh asks, with a keepalive after each interval, and the carrier listens: it knows
    /// of every byte, and russh only of whole packets.
    pub(super) fn silence(&self) -> Duration {
        let intervals = u32::try_from(self.keepalive_max + 1).unwrap_or(u32::MAX);
        self.keepalive_interval.saturating_mul(intervals)
    }

    fn limits(&self) -> Limits {
        Limits {
            rekey_write_limit: self.rekey_bytes,
            rekey_read_limit: self.rekey_bytes,
            rekey_time_limit: self.rekey_interval,
        }
    }
}

/// ChaCha20-Poly1305 counts packets in 32 bits, and a packet carries at least a byte of what is counted here.
const REKEY_BYTES: usize = if usize::BITS > 32 { 4 << 30 } else { 1 << 30 };

/// The most that one packet carries: almost four full HTTP/2 frames (16 KiB), for what a packet costs does not depend on
/// its size. RFC 4253 §6.1 lets both ends announce more than 32 KiB; of more than this russh complains in the log.
pub(super) const PACKET: u32 = 65_535;

const SSH_ID: &str = concat!("SSH-2.0-dialback_", env!("CARGO_PKG_VERSION"));

/// An agent's first line (RFC 4253 §4.2), whose comment says which of the agent's connections this is: the agent
/// process by a random number, and the number of the connection in it.
fn agent_ssh_id((instance, slot): (u64, u16)) -> String {
    format!("{SSH_ID} agent={instance:016x}.{slot}")
}

/// What [`agent_ssh_id`] says; other clients say nothing of it.
pub(crate) fn seat_in(greeting: &str) -> Option<(u64, u16)> {
    let (_, comment) = greeting.split_once(' ')?;
    let (instance, slot) = comment.trim_end().strip_prefix("agent=")?.split_once('.')?;
    Some((u64::from_str_radix(instance, 16).ok()?, slot.parse().ok()?))
}

/// Post-quantum hybrid first; no finite-field groups, which cost a server far more than a client.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

const AES_FIRST: &[cipher::Name] = &[cipher::AES_256_GCM, cipher::CHACHA20_POLY1305];
const CHACHA_FIRST: &[cipher::Name] = &[cipher::CHACHA20_POLY1305, cipher::AES_256_GCM];

/// Both ciphers authenticate by themselves; a list must be offered all the same.
const MAC: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];

fn cpu_has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn preferred() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Owned(supported_algorithms()),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(if cpu_has_aes() { AES_FIRST } else { CHACHA_FIRST }),
        mac: Cow::Borrowed(MAC),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// For an agent that wants its hub to prove itself with one of these keys.
pub(super) fn client(config: &TunnelConfig, wanted: HostKeyAlgorithms, seat: (u64, u16)) -> Arc<client::Config> {
    let mut preferred = preferred();
    wanted.apply_to(&mut preferred);
    Arc::new(client::Config {
        client_id: SshId::Standard(Cow::Owned(agent_ssh_id(seat))),
        limits: config.limits(),
        window_size: config.window,
        maximum_packet_size: PACKET,
        channel_buffer_size: QUEUE_MESSAGES,
        preferred,
        inactivity_timeout: None,
        keepalive_interval: Some(config.keepalive_interval),
        keepalive_max: 0, // no limit of its own: see `TunnelConfig::silence`
        anonymous: false,
        gex: client::GexParams::default(),
        nodelay: true,
    })
}

/// What a hub adds.
#[derive(Debug, Clone)]
pub(crate) struct LoginConfig {
    pub(crate) max_auth_attempts: usize,
    pub(crate) rejection_time: Duration,
}

impl Default for LoginConfig {
    fn default() -> Self {
        Self { max_auth_attempts: 3, rejection_time: Duration::from_secs(1) }
    }
}

/// For a hub.
pub(crate) fn server(config: &TunnelConfig, login: &LoginConfig, host_keys: &[PrivateKey]) -> Arc<server::Config> {
    Arc::new(server::Config {
        server_id: SshId::Standard(Cow::Borrowed(SSH_ID)),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: login.rejection_time,
        // Every OpenSSH client asks for the list of methods with an attempt at `none`; the answer is no secret.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: host_keys.iter().map(|key| key.inner().as_ref().clone()).collect(),
        certificates: host_keys
            .iter()
            .filter_map(|key| key.certificate().map(|certificate| certificate.as_ref().clone()))
            .collect(),
        limits: config.limits(),
        window_size: config.window,
        maximum_packet_size: PACKET,
        channel_buffer_size: QUEUE_MESSAGES,
        event_buffer_size: 16,
        preferred: preferred(),
        // That attempt counts for russh.
        max_auth_attempts: login.max_auth_attempts + 1,
        inactivity_timeout: None,
        keepalive_interval: Some(config.keepalive_interval),
        keepalive_max: 0, // no limit of its own: see `TunnelConfig::silence`
        nodelay: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_says_which_of_its_connections_this_is() {
        let line = agent_ssh_id((0x1f, 3));
        assert!(line.len() < 253, "RFC 4253 §4.2");
        assert_eq!(seat_in(&line), Some((0x1f, 3)));
        assert_eq!(seat_in(&format!("{line}\r\n")), Some((0x1f, 3)));
        for other in
            ["SSH-2.0-OpenSSH_9.2p1 Debian-2", "SSH-2.0-x agent=", "SSH-2.0-x agent=1", "SSH-2.0-x agent=1.70000", ""]
        {
            assert_eq!(seat_in(other), None, "{other}");
        }
    }
}
