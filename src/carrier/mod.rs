//! What lies under a tunnel: a byte stream and a peer. Knows nothing of SSH.

pub(crate) mod tcp;
