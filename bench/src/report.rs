//! What was measured: medians over the turns, as a table to read and as JSON to draw and to keep.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

/// A quantity, and how it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Whether a row is also shown as a multiple of the first.
    pub(crate) has_ratio: bool,
}

/// What one turn of one target measured.
pub(crate) type Sample = Vec<(Metric, f64)>;

/// A part of the bench: targets under the same load, in turns.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    title: String,
    metrics: Vec<Metric>,
    rows: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    target: String,
    /// By the metric's name, a value for each turn.
    turns: BTreeMap<&'static str, Vec<f64>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>) -> Table {
        Table {
            title: title.into(),
            metrics: Vec::new(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Adds a turn of `target`.
    pub(crate) fn add(&mut self, target: &str, sample: Sample) {
        let known = self.rows.iter().position(|row| row.target == target);
        let at = known.unwrap_or_else(|| {
            self.rows.push(Row {
                target: target.to_owned(),
                turns: BTreeMap::new(),
            });
            self.rows.len() - 1
        });
        for (metric, value) in sample {
            if !self.metrics.contains(&metric) {
                self.metrics.push(metric);
            }
            self.rows[at]
                .turns
                .entry(metric.name)
                .or_default()
                .push(value);
        }
    }

    /// Says what a reader of the table must know, once.
    pub(crate) fn note(&mut self, note: String) {
        eprintln!("{note}");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n| |", self.title);
        for Metric { name, unit, .. } in &self.metrics {
            let unit = if unit.is_empty() {
                String::new()
            } else {
                format!(", {unit}")
            };
            let _ = write!(text, " {name}{unit} |");
        }
        let _ = writeln!(text, "\n|---|{}", "---:|".repeat(self.metrics.len()));
        for row in &self.rows {
            let _ = write!(text, "| {} |", row.target);
            for metric in &self.metrics {
                let _ = write!(text, " {} |", self.cell(row, metric));
            }
            text.push('\n');
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }

    fn cell(&self, row: &Row, metric: &Metric) -> String {
        let Some(value) = row.turns.get(metric.name).and_then(|turns| median(turns)) else {
            return "–".to_owned();
        };
        let first = self
            .rows
            .iter()
            .find_map(|row| median(row.turns.get(metric.name)?));
        match first.filter(|first| metric.has_ratio && *first > 0.0) {
            Some(first) => format!("{} (×{:.2})", rounded(value), value / first),
            None => rounded(value),
        }
    }
}

/// The middle of `turns`.
pub(crate) fn median(turns: &[f64]) -> Option<f64> {
    let mut sorted = turns.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (
        sorted.get(sorted.len().checked_sub(1)? / 2)?,
        sorted.get(sorted.len() / 2)?,
    );
    Some((low + high) / 2.0)
}

/// Three digits that mean something.
fn rounded(value: f64) -> String {
    match value.abs() {
        whole if whole.fract() == 0.0 => format!("{value:.0}"),
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// All of one bench.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    name: &'static str,
    command: String,
    machine: Machine,
    tables: Vec<Table>,
    /// What makes the bench a failure, once it is written.
    failure: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
}

impl Report {
    pub(crate) fn new(name: &'static str, tables: Vec<Table>) -> Report {
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        Report {
            name,
            command: format!("lantern-bench {}", arguments.join(" ")),
            machine: Machine::this(),
            tables,
            failure: None,
        }
    }

    /// The bench has shown that something is broken.
    pub(crate) fn failed_if(mut self, is_broken: bool, failure: &'static str) -> Report {
        self.failure = self.failure.or(is_broken.then_some(failure));
        self
    }

    /// Prints the tables, and writes them to `dir` as Markdown, JSON and, where `python` has
    /// matplotlib, as a plot.
    pub(crate) fn publish(&self, dir: &Path, plotter: Option<&Plotter>) -> Result<()> {
        let markdown = self.markdown();
        println!("{markdown}");
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = |extension: &str| dir.join(self.name).with_extension(extension);
        fs::write(file("md"), markdown)?;
        fs::write(file("json"), serde_json::to_string_pretty(self)?)?;
        if let Some(plotter) = plotter {
            plotter.draw(&file("json"), &file("svg"))?;
        }
        eprintln!("written to {}", file("*").display());
        match self.failure {
            Some(failure) => bail!("{failure}"),
            None => Ok(()),
        }
    }

    fn markdown(&self) -> String {
        let Machine { cpu, cores, kernel } = &self.machine;
        let mut text = format!("`{}`, {cpu}, {cores} cores, Linux {kernel}\n", self.command);
        for table in &self.tables {
            let _ = write!(text, "\n{}", table.markdown());
        }
        text
    }
}

impl Machine {
    fn this() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        Machine {
            cpu: model.map_or("unknown CPU", |(_, name)| name).to_owned(),
            cores: cpus
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// A Python with matplotlib, and the script for it.
#[derive(Debug)]
pub(crate) struct Plotter {
    pub(crate) python: std::path::PathBuf,
    pub(crate) script: std::path::PathBuf,
}

impl Plotter {
    fn draw(&self, json: &Path, svg: &Path) -> Result<()> {
        let status = Command::new(&self.python)
            .arg(&self.script)
            .args([json, svg])
            .status()?;
        anyhow::ensure!(status.success(), "the plot could not be drawn");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Metric = Metric {
        name: "CPU",
        unit: "ns",
        has_ratio: true,
    };

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn rows_are_medians_and_multiples_of_the_first() {
        let mut table = Table::new("Relay");
        for (target, value) in [
            ("ours", 100.0),
            ("peer", 800.0),
            ("ours", 300.0),
            ("peer", 900.0),
        ] {
            table.add(target, vec![(CPU, value)]);
        }
        table.add("late", Vec::new());
        table.note("`x` is left out".to_owned());
        assert_eq!(
            table.markdown(),
            "### Relay\n\n| | CPU, ns |\n|---|---:|\n| ours | 200 (×1.00) |\n| peer | 850 (×4.25) |\n\
             | late | – |\n\n`x` is left out\n"
        );
    }
}
