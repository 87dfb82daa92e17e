//! `queue inspect`, `queue show` and `queue replay`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use lantern_telemetry::Settings;

use super::replay::{Replay, To, told};
use super::show::Lines;
use crate::log;
use crate::log::dead_letters::Letters;
use crate::log::inspect::{Records, SegmentSurvey, Survey, survey};

/// What can be done with a queue.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum QueueCommand {
    /// Prints its segments, what waits, and what is damaged
    Inspect {
        /// What --queue-dir named
        dir: PathBuf,
    },
    /// Prints what waits as OTLP/JSON, one request a line
    Show {
        /// What --queue-dir named
        dir: PathBuf,
        /// Begin here, delivered or not, instead of with what waits
        #[arg(long, value_name = "RECORD")]
        from: Option<u64>,
    },
    /// Sends what waits to a backend, and leaves the queue as it is
    Replay {
        /// What --queue-dir named
        dir: PathBuf,
        /// Begin here, delivered or not, instead of with what waits
        #[arg(long, value_name = "RECORD")]
        from: Option<u64>,
        #[command(flatten)]
        to: To,
    },
}

pub(super) async fn run(command: QueueCommand, settings: Settings) -> anyhow::Result<()> {
    match command {
        QueueCommand::Inspect { dir } => inspect(&mut io::stdout().lock(), &dir),
        QueueCommand::Show { dir, from } => show(&dir, from),
        QueueCommand::Replay { dir, from, to } => {
            let replay = Replay::new(&to, settings)?;
            self::replay(&dir, from, replay).await
        }
    }
}

fn inspect(out: &mut impl Write, dir: &Path) -> anyhow::Result<()> {
    let survey = survey(dir)?;
    let mut letters = Letters::open(dir)?;
    let mut letter_count = 0;
    while letters.next()?.is_some() {
        letter_count += 1;
    }
    let total = |of: fn(&SegmentSurvey) -> u64| survey.segments.iter().map(of).sum::<u64>();
    let state = if survey.is_in_use {
        "in use by a shim: what it writes and removes meanwhile is told as it was found"
    } else {
        "not in use"
    };
    writeln!(out, "queue         {} ({state})", dir.display())?;
    for (backend, seq) in &survey.cursors {
        writeln!(
            out,
            "cursor        record {seq} is the first to be delivered to {backend}"
        )?;
    }
    if survey.cursors.is_empty() {
        writeln!(out, "cursor        none: all of it is to be delivered")?;
    }
    writeln!(
        out,
        "waiting       {} records, {}, {} bytes",
        total(|segment| segment.waiting_records),
        told(|signal| {
            let of = survey.segments.iter();
            of.map(|segment| segment.waiting.items.of(signal)).sum()
        }),
        total(|segment| segment.waiting.bytes as u64),
    )?;
    let damaged = total(|segment| segment.damaged_records) + between(&survey);
    writeln!(out, "damaged       {damaged} records")?;
    writeln!(
        out,
        "torn          {} bytes",
        total(|segment| segment.torn_bytes)
    )?;
    writeln!(
        out,
        "dead letters  {letter_count} requests, {} damaged lines",
        letters.damaged_lines
    )?;
    segments(out, &survey)?;
    Ok(())
}

/// Records that are missing between one segment's last and the next one's first.
fn between(survey: &Survey) -> u64 {
    let pairs = survey.segments.windows(2);
    pairs
        .map(|pair| pair[1].base_seq.saturating_sub(pair[0].end_seq))
        .sum()
}

fn segments(out: &mut impl Write, survey: &Survey) -> io::Result<()> {
    if survey.segments.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<50} {:>12} {:>12} {:>12} {:>8} {:>10} {:>8} {:>8} {:>8}",
        "segment", "bytes", "first", "end", "records", "items", "waiting", "damaged", "torn"
    )?;
    for segment in &survey.segments {
        writeln!(
            out,
            "{:<50} {:>12} {:>12} {:>12} {:>8} {:>10} {:>8} {:>8} {:>8}",
            segment.file_name,
            segment.bytes,
            segment.base_seq,
            segment.end_seq,
            segment.records,
            segment.items,
            segment.waiting_records,
            segment.damaged_records,
            segment.torn_bytes,
        )?;
    }
    Ok(())
}

fn show(dir: &Path, from: Option<u64>) -> anyhow::Result<()> {
    let mut records = Records::open(dir, from)?;
    let mut lines = Lines::new();
    while let Some(payload) = records.next()? {
        lines.write(&payload)?;
    }
    lines.finish()
}

async fn replay(dir: &Path, from: Option<u64>, mut replay: Replay) -> anyhow::Result<()> {
    // A shim that runs sends them itself.
    let _lock = log::lock(dir)?;
    let mut records = Records::open(dir, from)?;
    while let Some(payload) = records.next()? {
        let seq = payload.seq;
        if replay.send(payload).await? {
            tracing::info!(record = seq, "the backend has answered for all before it");
        }
    }
    replay.finish().await
}
