//! What is to be done: which contenders, which cases, and for how long.

use std::time::Duration;

use crate::contenders::{ALL, Contender};

/// The bandwidth of the paths with a limit, in bytes per second each way: 100 Mbit/s, as many uplinks have.
pub(crate) const RATE: u64 = 12_500_000;

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

/// What the user asked for.
pub(crate) struct Plan {
    pub(crate) quick: bool,
    contenders: Vec<Contender>,
    cases: Vec<String>,
}

impl Plan {
    /// Each name is one of contenders, or one of cases. Direct TCP is always there: it is what ratios are to.
    pub(crate) fn new(quick: bool, only: Vec<String>) -> Self {
        let (contenders, cases): (Vec<_>, Vec<_>) =
            only.into_iter().partition(|name| ALL.iter().any(|contender| contender.name().contains(name)));
        let wanted = |contender: &Contender| {
            let named = contenders.iter().any(|name| contender.name().contains(name.as_str()));
            contenders.is_empty() || named || *contender == Contender::DirectTcp
        };
        Self { quick, contenders: ALL.into_iter().filter(wanted).collect(), cases }
    }

    pub(crate) fn contenders(&self, setting: Setting) -> Vec<Contender> {
        let fits = |contender: &Contender| setting != Setting::OneThread || contender.is_ours();
        self.contenders.iter().copied().filter(fits).collect()
    }

    pub(crate) fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|name| case.contains(name.as_str()))
    }

    fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Rounds that count; one more comes before them.
    pub(crate) fn rounds(&self, setting: Setting) -> usize {
        self.pick(1, if matches!(setting, Setting::Path(_)) { 5 } else { 7 })
    }

    /// How often a fleet is started.
    pub(crate) fn fleets(&self) -> usize {
        self.pick(1, 3)
    }

    /// How many agents fleets have.
    pub(crate) fn fleet_sizes(&self) -> &'static [usize] {
        self.pick(&[200], &[1000, 5000, 10_000])
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
    pub(crate) fn turn(&self, setting: Setting) -> Duration {
        Duration::from_millis(match setting {
            Setting::Loopback | Setting::OneThread => self.pick(100, 500),
            Setting::Path(_) => self.pick(300, 2000),
        })
    }
}
