//! What is to be done: which contenders, which cases, and for how long.

use std::time::Duration;

use crate::common::Failure;
use crate::common::report::Goal;
use crate::contenders::{ALL, Contender};
use crate::lossy;
use crate::roles::Way;

/// The bandwidth of the paths with a limit, in bytes per second each way: 100 Mbit/s, as many uplinks have.
pub(crate) const RATE: u64 = 12_500_000;

/// In the order in which they come.
pub(crate) const SETTINGS: [Setting; 4] =
    [Setting::Loopback, Setting::OneThread, Setting::Path(20), Setting::Path(100)];

/// Of what is waited for, on the loopback.
pub(crate) const SET_UP: &str = "loopback/set-up";
pub(crate) const RECONNECT: &str = "loopback/reconnect";

/// Where the work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Every process on tokio's default runtime, as users run them, on the loopback.
    Loopback,
    /// Every process of ours on one thread.
    OneThread,
    /// A path with so many milliseconds of round-trip time and limited bandwidth.
    Path(u64),
}

impl Setting {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Loopback => "loopback".into(),
            Self::OneThread => "one-thread".into(),
            Self::Path(millis) => format!("path-{millis}ms"),
        }
    }
}

/// The direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Server,
    Client,
    Both,
}

/// What is done in one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Unary calls of so many callers.
    Unary(u64),
    /// One stream with messages of this size.
    Stream(Stream, usize),
    /// So many server streams of 64 KiB messages.
    Streams(u64),
    /// Small calls beside a server stream of 64 KiB messages.
    Beside,
    /// Connections one after the other.
    Fresh,
}

impl Work {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Unary(callers) => format!("unary-{callers}"),
            Self::Stream(way, size) => {
                let way = match way {
                    Stream::Server => "server",
                    Stream::Client => "client",
                    Stream::Both => "bidi",
                };
                let size = match size {
                    SMALL => "100B",
                    BLOCK => "64KiB",
                    _ => "1MiB",
                };
                format!("stream-{way}-{size}")
            }
            Self::Streams(count) => format!("streams-{count}"),
            Self::Beside => "small-beside-bulk".into(),
            Self::Fresh => "connections".into(),
        }
    }
}

const SMALL: usize = 100;
pub(crate) const BLOCK: usize = 64 << 10;
const LARGE: usize = 1 << 20;

/// What is done in a setting.
pub(crate) fn works(setting: Setting, quick: bool) -> Vec<Work> {
    match setting {
        Setting::Loopback => {
            let mut works = vec![Work::Unary(1), Work::Unary(16), Work::Unary(256)];
            for way in [Stream::Server, Stream::Client, Stream::Both] {
                works.extend([SMALL, BLOCK, LARGE].map(|size| Work::Stream(way, size)));
            }
            works.extend([Work::Beside, Work::Fresh]);
            works
        }
        Setting::OneThread => {
            vec![Work::Unary(1), Work::Unary(256), Work::Stream(Stream::Server, BLOCK)]
        }
        Setting::Path(_) if quick => vec![Work::Unary(1), Work::Streams(1)],
        Setting::Path(_) => vec![Work::Unary(1), Work::Streams(1), Work::Streams(16), Work::Beside],
    }
}

fn fleet_sizes(quick: bool) -> &'static [usize] {
    if quick { &[200] } else { &[1000, 5000, 10_000] }
}

pub(crate) fn soak_case(minutes: u64) -> String {
    format!("soak-{minutes}min")
}

/// The names of all cases but for the soak's.
fn all_cases(quick: bool) -> Vec<String> {
    let turns = SETTINGS.into_iter().flat_map(|setting| {
        works(setting, quick).into_iter().map(move |work| format!("{}/{}", setting.name(), work.name()))
    });
    let waits = [SET_UP, RECONNECT, lossy::CASE].map(str::to_owned);
    let fleets = fleet_sizes(quick).iter().flat_map(|size| ["idle", "herd"].map(|case| format!("fleet-{size}/{case}")));
    turns.chain(waits).chain(fleets).collect()
}

/// What the user asked for.
pub(crate) struct Plan {
    pub(crate) quick: bool,
    /// A soak of so many minutes, and nothing else.
    pub(crate) soak: Option<u64>,
    contenders: Vec<Contender>,
    cases: Vec<String>,
}

impl Plan {
    /// Each name is one of contenders, or one of cases; `Err` lists them when one is neither. Direct TCP is always there: it
    /// is what ratios are to.
    pub(crate) fn new(quick: bool, soak: Option<u64>, only: Vec<String>) -> Result<Self, Failure> {
        let (contenders, cases): (Vec<_>, Vec<_>) =
            only.into_iter().partition(|name| ALL.iter().any(|contender| contender.name().contains(name)));
        let all = all_cases(quick);
        if let Some(name) = cases.iter().find(|name| !all.iter().any(|case| case.contains(name.as_str()))) {
            let contenders = ALL.map(Contender::name).join(", ");
            return Err(format!(
                "--only {name}: there are the contenders {contenders}; and the cases {}",
                all.join(", ")
            )
            .into());
        }
        let wanted = |contender: &Contender| {
            let named = contenders.iter().any(|name| contender.name().contains(name.as_str()));
            contenders.is_empty() || named || *contender == Contender::DirectTcp
        };
        Ok(Self { quick, soak, contenders: ALL.into_iter().filter(wanted).collect(), cases })
    }

    pub(crate) fn contenders(&self) -> Vec<Contender> {
        self.contenders.clone()
    }

    pub(crate) fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|name| case.contains(name.as_str()))
    }

    /// Whether there is to be a figure for this goal.
    pub(crate) fn is_about(&self, goal: &Goal) -> bool {
        let takes = |path: &str| self.contenders.iter().any(|contender| contender.name() == path);
        let is_there = match self.soak {
            Some(minutes) => goal.case == soak_case(minutes),
            None => self.wants(&goal.case) && all_cases(self.quick).contains(&goal.case),
        };
        is_there && (self.soak.is_some() || takes(goal.path) && goal.against.is_none_or(takes))
    }

    /// Whether we and this one are to have figures in the same cases.
    pub(crate) fn compares(&self, rival: Contender) -> bool {
        // A herd is of our fleet alone.
        let turns = all_cases(self.quick).into_iter().filter(|case| !case.ends_with("/herd") && case != lossy::CASE);
        let with_rivals = turns.filter(|case| !case.starts_with("one-thread/") && !case.ends_with(&Work::Fresh.name()));
        let compared = self.soak.is_none() && with_rivals.into_iter().any(|case| self.wants(&case));
        compared && self.takes(rival) && self.takes(Contender::Dialback(Way::Ssh))
    }

    fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Rounds that count; one more comes before them.
    pub(crate) fn rounds(&self, setting: Setting, work: Work) -> usize {
        let rounds = match (setting, work) {
            (Setting::Path(_), _) => 5,
            // A small call is mostly wake-ups, which take twice as long in some rounds as in others.
            (_, Work::Unary(1)) => 21,
            _ => 7,
        };
        self.pick(1, rounds)
    }

    /// How often each contender is started, and cut off.
    pub(crate) fn starts(&self) -> usize {
        self.pick(1, 7)
    }

    /// How often a fleet is started.
    pub(crate) fn fleets(&self) -> usize {
        self.pick(1, 3)
    }

    /// How many agents fleets have.
    pub(crate) fn fleet_sizes(&self) -> &'static [usize] {
        fleet_sizes(self.quick)
    }

    /// Whether the other contenders have as many agents, too, which do nothing.
    pub(crate) fn all_have(&self, agents: usize) -> bool {
        agents != 5000
    }

    /// How long a fleet is without its hub. The longer, the longer its agents then wait between their tries.
    pub(crate) fn away(&self) -> Duration {
        Duration::from_secs(self.pick(1, 5))
    }

    /// How long calls are made over the lossy link.
    pub(crate) fn lossy_time(&self) -> Duration {
        Duration::from_secs(self.pick(5, 60))
    }

    /// How long a contender may take to answer again after a cut.
    pub(crate) fn return_time(&self) -> Duration {
        Duration::from_secs(self.pick(3, 10))
    }

    pub(crate) fn takes(&self, contender: Contender) -> bool {
        self.contenders.contains(&contender)
    }

    /// About how long a turn takes.
    pub(crate) fn turn(&self, setting: Setting, work: Work) -> Duration {
        Duration::from_millis(match (setting, work) {
            // Of one caller that waits, there are to be calls enough for a 99th percentile.
            (Setting::Loopback | Setting::OneThread, Work::Beside) => self.pick(100, 1000),
            (Setting::Loopback | Setting::OneThread, _) => self.pick(100, 500),
            // So long that all rounds have calls enough for a 90th percentile: each waits for what is in the queues before
            // it, up to half a second. For a 99th it would have to be ten times as long.
            (Setting::Path(_), Work::Beside) => self.pick(300, 10_000),
            (Setting::Path(_), _) => self.pick(300, 2000),
        })
    }
}
