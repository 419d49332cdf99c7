//! Call gRPC services behind NAT.

mod id;
mod ssh;

pub use id::{AgentId, InvalidAgentId};
