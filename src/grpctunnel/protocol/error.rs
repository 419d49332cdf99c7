//! What can be wrong with a tunnel, and what with one call.

use tonic::Code;

use super::{Revision, method};
use crate::grpctunnel::proto::Status;

/// The peer has broken the protocol, so that nothing it sends can be made sense of any more. The carrier has to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TunnelError {
    #[error("protocol error: the first frame was not settings")]
    NotSettings,
    #[error("protocol error: the settings have the stream id {0} and not -1")]
    SettingsId(i64),
    #[error("protocol error: the server speaks none of our revisions, but {theirs:?}")]
    NoCommonRevision { theirs: Vec<i32> },
    #[error("protocol error: a window of {window} bytes is too small for revision {revision}")]
    Window { window: u32, revision: Revision },
    #[error("protocol error: cannot create stream ID {0}: it was used before")]
    StreamIdUsed(i64),
    #[error("protocol error: received frame for stream ID {0}: stream never created")]
    NeverCreated(i64),
}

/// Why a call cannot be made on this tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    #[error("the tunnel is not ready: its settings have not come yet")]
    NotReady,
    #[error("the tunnel is closed")]
    Closed,
    #[error("`{}` is not a well-formed method name", method::quote(.0))]
    Method(String),
    #[error("metadata of more than {limit} bytes")]
    MetadataSize { limit: usize },
    /// Never in practice: there are 2^63 of them.
    #[error("the tunnel has no stream ids left")]
    NoIds,
}

/// Why something cannot be written to a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SendError {
    /// The reader hears of the end, and why.
    #[error("the call is over")]
    Over,
    #[error("the last message was written before")]
    HalfClosed,
    #[error("a message of {0} bytes is larger than the protocol can say")]
    TooLarge(usize),
    #[error("the message before lacks {0} bytes")]
    Unfinished(u32),
    #[error("{0} bytes more than the message was to have")]
    Excess(usize),
}

/// What the peer did wrong in one call: the call ends with it, and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("flow control window exceeded")]
    Window,
    #[error("a message of {size} bytes is larger than the {limit} that are accepted")]
    MessageSize { size: u32, limit: u32 },
    #[error("metadata of more than {limit} bytes")]
    MetadataSize { limit: usize },
    #[error("more than {limit} bytes wait to be read, and this call has most of them")]
    Held { limit: usize },
    #[error("protocol error: a message began before the one before was complete")]
    Interrupted,
    #[error("protocol error: more data than the message was to have")]
    Excess,
    #[error("protocol error: data after half-close")]
    HalfClosed,
    #[error("protocol error: the last message is not complete")]
    Truncated,
    #[error("protocol error: unrecognized frame type")]
    Frame,
}

impl Violation {
    /// What the call ends with; `framing` is the code for messages that cannot be put together. Go's server says
    /// `INVALID_ARGUMENT` there, and its client `INTERNAL`.
    pub(super) fn status(self, framing: Code) -> Status {
        let code = match self {
            Self::Window | Self::MessageSize { .. } | Self::MetadataSize { .. } | Self::Held { .. } => {
                Code::ResourceExhausted
            }
            Self::Interrupted | Self::Excess | Self::HalfClosed | Self::Truncated => framing,
            Self::Frame => Code::Internal,
        };
        Status::new(code, self.to_string())
    }
}
