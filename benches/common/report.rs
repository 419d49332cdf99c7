//! What was measured: medians, ratios, goals.

use std::fmt::Write as _;

use serde_json::json;

use super::Failure;

struct Row {
    case: String,
    metric: &'static str,
    path: &'static str,
    unit: &'static str,
    /// One for each round.
    values: Vec<f64>,
}

impl Row {
    /// The lowest and the highest.
    fn spread(&self) -> [f64; 2] {
        let values = self.values.iter().copied();
        [values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max)]
    }
}

/// Every value of every round.
pub(crate) struct Report {
    /// The path that ratios are to.
    baseline: &'static str,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(baseline: &'static str) -> Self {
        Self { baseline, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, case: &str, path: &'static str, metric: &'static str, unit: &'static str, value: f64) {
        let known = self.rows.iter_mut().find(|row| (row.case.as_str(), row.path, row.metric) == (case, path, metric));
        match known {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { case: case.to_owned(), metric, path, unit, values: vec![value] }),
        }
    }

    /// Takes out what a path has in a case: all of it, or one metric.
    pub(crate) fn remove(&mut self, case: &str, path: &str, metric: Option<&str>) {
        let goes = |row: &Row| (row.case.as_str(), row.path) == (case, path) && metric.is_none_or(|m| m == row.metric);
        self.rows.retain(|row| !goes(row));
    }

    fn find(&self, case: &str, path: &str, metric: &str) -> Option<&Row> {
        self.rows.iter().find(|row| (row.case.as_str(), row.path, row.metric) == (case, path, metric))
    }

    /// The median over the rounds.
    pub(crate) fn median(&self, case: &str, path: &str, metric: &str) -> Option<f64> {
        Some(median(&self.find(case, path, metric)?.values))
    }

    /// Every case and metric that a path has, and the unit.
    pub(crate) fn metrics(&self, path: &str) -> Vec<(&str, &'static str, &'static str)> {
        let rows = self.rows.iter().filter(|row| row.path == path);
        rows.map(|row| (row.case.as_str(), row.metric, row.unit)).collect()
    }

    /// To the baseline, for what is not that itself.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let other = self.median(&row.case, self.baseline, row.metric)?;
        // To none at all there is no ratio.
        (row.path != self.baseline && other != 0.0).then(|| median(&row.values) / other)
    }

    /// The rows, what is compared next to each other: paths within metrics within cases.
    fn ordered(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        let first = |same: &dyn Fn(&Row) -> bool| self.rows.iter().position(same);
        rows.sort_by_key(|row| {
            let case = first(&|other| other.case == row.case);
            (case, first(&|other| other.case == row.case && other.metric == row.metric))
        });
        rows
    }

    /// Medians and ratios, in Markdown: a column for each of these paths.
    pub(crate) fn matrix(&self, paths: &[&str]) -> String {
        let heads = paths.iter().map(|path| format!(" {path} |")).collect::<String>();
        let mut text = format!("| case | metric |{heads}\n|---|---|{}\n", "--:|".repeat(paths.len()));
        let mut before = None;
        for row in self.ordered() {
            let this = (row.case.as_str(), row.metric);
            if before.replace(this) == Some(this) {
                continue;
            }
            let _ = write!(text, "| {} | {}, {} |", row.case, row.metric, row.unit); // a String takes it
            for path in paths {
                let cell = self.find(&row.case, path, row.metric).map(|row| {
                    let ratio = self.ratio(row).map_or(String::new(), |ratio| format!(" ({ratio:.2})"));
                    short(median(&row.values)) + &ratio
                });
                let _ = write!(text, " {} |", cell.unwrap_or_else(|| "–".into()));
            }
            text.push('\n');
        }
        text
    }

    /// In Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text =
            String::from("| case | metric | path | median | rounds | ratio to direct |\n|---|---|---|--:|--:|--:|\n");
        for row in self.ordered() {
            let ratio = self.ratio(row).map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let (case, metric, path) = (&row.case, row.metric, row.path);
            let (median, unit, spread) = (short(median(&row.values)), row.unit, row.spread());
            let spread = format!("{} to {}", short(spread[0]), short(spread[1]));
            let _ = writeln!(text, "| {case} | {metric} | {path} | {median} {unit} | {spread} | {ratio} |"); // a String takes it
        }
        text
    }

    pub(crate) fn json(&self) -> Result<String, Failure> {
        let row = |row: &Row| {
            let [low, high] = row.spread();
            json!({
                "case": row.case, "path": row.path, "metric": row.metric, "unit": row.unit,
                "value": median(&row.values), "ratio": self.ratio(row),
                "rounds": row.values.len(), "low": low, "high": high,
            })
        };
        let rows: Vec<_> = self.ordered().into_iter().map(row).collect();
        Ok(serde_json::to_string_pretty(&rows)? + "\n")
    }

    /// Which of these goals were reached. One without a value was not.
    pub(crate) fn goals(&self, goals: &[Goal]) -> String {
        let mut text = String::from("| goal | measured | reached |\n|---|--:|---|\n");
        for goal in goals {
            let measured = self.measured(goal);
            let (sign, reached) = match goal.bound {
                Bound::AtMost(bound) => (format!("≤ {bound}"), measured.is_some_and(|value| value <= bound)),
                Bound::NeverAbove(bound) => (format!("never > {bound}"), measured.is_some_and(|value| value <= bound)),
                Bound::AtLeast(bound) => (format!("≥ {bound}"), measured.is_some_and(|value| value >= bound)),
            };
            let reached = if reached { "yes" } else { "no" };
            let (path, case, metric) = (goal.path, &goal.case, goal.metric);
            let of = match goal.against {
                Some(other) => format!(" × {other}"),
                None => self.find(case, path, metric).map_or(String::new(), |row| format!(" {}", row.unit)),
            };
            let measured = measured.map_or("not measured".into(), |value| format!("{value:.2}"));
            let _ = writeln!(text, "| {path}: {case} {metric} {sign}{of} | {measured} | {reached} |"); // a String takes it
        }
        text
    }

    fn measured(&self, goal: &Goal) -> Option<f64> {
        if let Bound::NeverAbove(_) = goal.bound {
            let row = self.find(&goal.case, goal.path, goal.metric)?;
            return row.values.iter().copied().reduce(f64::max);
        }
        let value = self.median(&goal.case, goal.path, goal.metric)?;
        match goal.against {
            Some(path) => Some(value / self.median(&goal.case, path, goal.metric)?),
            None => Some(value),
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    /// In no round, while the others are of the median. It is of the value.
    NeverAbove(f64),
    AtLeast(f64),
}

/// A bound on the ratio to another path, or on the value.
pub(crate) struct Goal {
    pub(crate) path: &'static str,
    pub(crate) against: Option<&'static str>,
    pub(crate) case: String,
    pub(crate) metric: &'static str,
    pub(crate) bound: Bound,
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// As many digits as a reader wants.
pub(crate) fn short(value: f64) -> String {
    match value {
        v if v < 1.0 => format!("{v:.3}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}
