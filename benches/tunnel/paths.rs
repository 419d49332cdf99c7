//! The ways that the work goes, and what is to be reached on them.

use crate::cases::{ONE_THREAD, PROCESSES};
use crate::common::report::{self, Bound};

/// What the work went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    DirectTcp,
    Tunnel,
    TunnelDialled,
    Gateway,
    ConnectProxy,
    #[cfg(feature = "websocket")]
    WebSocket,
    #[cfg(feature = "websocket")]
    WebSocketTls,
    StockSsh,
    #[cfg(feature = "grpctunnel")]
    Grpctunnel,
    #[cfg(feature = "grpctunnel")]
    GrpctunnelForward,
    #[cfg(feature = "grpctunnel")]
    GrpctunnelGo,
}

impl Path {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DirectTcp => "direct-tcp",
            Self::Tunnel => "tunnel",
            Self::TunnelDialled => "tunnel-dialled",
            Self::Gateway => "gateway",
            Self::ConnectProxy => "CONNECT",
            #[cfg(feature = "websocket")]
            Self::WebSocket => "ws",
            #[cfg(feature = "websocket")]
            Self::WebSocketTls => "wss",
            Self::StockSsh => "ssh -R",
            #[cfg(feature = "grpctunnel")]
            Self::Grpctunnel => "grpctunnel",
            #[cfg(feature = "grpctunnel")]
            Self::GrpctunnelForward => "grpctunnel-fwd",
            #[cfg(feature = "grpctunnel")]
            Self::GrpctunnelGo => "grpctunnel Go",
        }
    }
}

/// All of them.
pub(crate) fn goals() -> Vec<report::Goal> {
    let goal = |goal: &Goal| report::Goal {
        path: goal.path.name(),
        against: goal.against.map(Path::name),
        case: format!("{}/{}", goal.setting, goal.case),
        metric: goal.metric,
        bound: goal.bound,
    };
    GOALS.iter().map(goal).collect()
}

/// A bound on a ratio; on the value where there is nothing to compare it with.
struct Goal {
    path: Path,
    against: Option<Path>,
    setting: &'static str,
    case: &'static str,
    metric: &'static str,
    bound: Bound,
}

/// For `hub.channel(…)`.
const fn goal(setting: &'static str, case: &'static str, metric: &'static str, bound: Bound) -> Goal {
    Goal { path: Path::Tunnel, against: Some(Path::DirectTcp), setting, case, metric, bound }
}

/// For the gateway, which costs a hop more.
const fn gateway(case: &'static str, metric: &'static str, bound: Bound) -> Goal {
    Goal { path: Path::Gateway, against: Some(Path::DirectTcp), setting: PROCESSES, case, metric, bound }
}

/// For another way than TCP and our own agent.
const fn way(path: Path, case: &'static str, metric: &'static str, bound: Bound) -> Goal {
    Goal { path, against: Some(Path::Tunnel), setting: PROCESSES, case, metric, bound }
}

/// For our tunnels of grpctunnel, against the Go library's.
#[cfg(feature = "grpctunnel")]
const fn than_go(case: &'static str, metric: &'static str, bound: Bound) -> Goal {
    Goal { path: Path::Grpctunnel, against: Some(Path::GrpctunnelGo), setting: PROCESSES, case, metric, bound }
}

const GOALS: &[Goal] = &[
    goal(PROCESSES, "unary", "p50", Bound::AtMost(1.20)),
    goal(PROCESSES, "64-callers", "rate", Bound::AtLeast(0.85)),
    goal(PROCESSES, "stream-64KiB-down", "rate", Bound::AtLeast(0.55)),
    goal(PROCESSES, "stream-64KiB-up", "rate", Bound::AtLeast(0.55)),
    Goal { against: None, ..goal(PROCESSES, "idle-agents", "hub memory", Bound::AtMost(48.0)) },
    goal(ONE_THREAD, "unary", "p50", Bound::AtMost(1.50)),
    goal(ONE_THREAD, "64-callers", "rate", Bound::AtLeast(0.85)),
    goal(ONE_THREAD, "stream-64KiB-down", "rate", Bound::AtLeast(0.55)),
    goal(ONE_THREAD, "stream-64KiB-up", "rate", Bound::AtLeast(0.55)),
    gateway("unary", "p50", Bound::AtMost(1.60)),
    gateway("64-callers", "rate", Bound::AtLeast(0.50)),
    gateway("stream-64KiB-down", "rate", Bound::AtLeast(0.50)),
    gateway("stream-64KiB-up", "rate", Bound::AtLeast(0.50)),
    #[cfg(feature = "websocket")]
    way(Path::WebSocketTls, "unary", "p50", Bound::AtMost(1.30)),
    #[cfg(feature = "websocket")]
    way(Path::WebSocketTls, "stream-64KiB-down", "rate", Bound::AtLeast(0.60)),
    #[cfg(feature = "websocket")]
    way(Path::WebSocketTls, "stream-64KiB-up", "rate", Bound::AtLeast(0.60)),
    way(Path::StockSsh, "unary", "p50", Bound::AtMost(2.00)),
    #[cfg(feature = "grpctunnel")]
    than_go("unary", "p50", Bound::AtMost(1.0)),
    #[cfg(feature = "grpctunnel")]
    than_go("64-callers", "rate", Bound::AtLeast(1.5)),
    #[cfg(feature = "grpctunnel")]
    than_go("stream-1MiB-down", "rate", Bound::AtLeast(4.0)),
];
