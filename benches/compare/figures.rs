//! The few figures that tell most: a chart is drawn of each, and they are the first table.

use std::fmt::Write as _;

use crate::common::report::{Report, short};

/// One of them.
pub(crate) struct Figure {
    pub(crate) case: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    /// Above a chart.
    pub(crate) title: &'static str,
    /// Above a column.
    head: &'static str,
}

pub(crate) const ALL: [Figure; 11] = [
    Figure { case: "loopback/unary-1", metric: "p50", unit: "µs", title: "A unary call, median", head: "a call, p50" },
    Figure {
        case: "loopback/unary-256",
        metric: "rate",
        unit: "calls/s",
        title: "Unary calls of 256 callers",
        head: "256 callers",
    },
    Figure {
        case: "loopback/unary-256",
        metric: "CPU per 100k calls",
        unit: "s",
        title: "CPU time of 100,000 calls, both ends",
        head: "CPU per 100k calls",
    },
    Figure {
        case: "loopback/stream-server-64KiB",
        metric: "rate",
        unit: "MB/s",
        title: "A server stream of 64 KiB messages",
        head: "64 KiB stream",
    },
    Figure {
        case: "loopback/stream-server-1MiB",
        metric: "rate",
        unit: "MB/s",
        title: "A server stream of 1 MiB messages",
        head: "1 MiB stream",
    },
    Figure {
        case: "loopback/stream-server-64KiB",
        metric: "CPU per GiB",
        unit: "s",
        title: "CPU time of a GiB, both ends",
        head: "CPU per GiB",
    },
    Figure {
        case: "loopback/small-beside-bulk",
        metric: "p99",
        unit: "µs",
        title: "A small call beside a bulk stream, 99th percentile",
        head: "a call beside bulk, p99",
    },
    Figure {
        case: "loopback/reconnect",
        metric: "to the next answer",
        unit: "ms",
        title: "From a cut to the next answer",
        head: "back after a cut",
    },
    Figure {
        case: "path-100ms/streams-1",
        metric: "rate",
        unit: "MB/s",
        title: "One stream over 100 ms of round-trip time and 100 Mbit/s",
        head: "stream over 100 ms, 100 Mbit/s",
    },
    Figure {
        case: "path-20ms/small-beside-bulk",
        metric: "p50",
        unit: "µs",
        title: "A small call beside bulk over 20 ms and 100 Mbit/s, median",
        head: "a call beside bulk over 20 ms, 100 Mbit/s, p50",
    },
    Figure {
        case: "fleet-1000/idle",
        metric: "hub memory",
        unit: "KiB/agent",
        title: "Memory of the hub for an idle agent, of 1,000",
        head: "an idle agent",
    },
];

/// In Markdown: a row for each contender, a column for each of the figures that were measured.
pub(crate) fn table(report: &Report, contenders: &[&str]) -> String {
    let is_measured =
        |figure: &&Figure| contenders.iter().any(|name| report.median(figure.case, name, figure.metric).is_some());
    let figures: Vec<_> = ALL.iter().filter(is_measured).collect();
    if figures.is_empty() {
        return String::new();
    }
    let heads = figures.iter().map(|figure| format!(" {}, {} |", figure.head, figure.unit)).collect::<String>();
    let mut text = format!("| contender |{heads}\n|---|{}\n", "--:|".repeat(figures.len()));
    for contender in contenders {
        let values: Vec<_> =
            figures.iter().map(|figure| report.median(figure.case, contender, figure.metric).map(short)).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let cells = values.into_iter().map(|value| format!(" {} |", value.unwrap_or_else(|| "–".into())));
        let _ = writeln!(text, "| {contender} |{}", cells.collect::<String>()); // a String takes it
    }
    text
}
