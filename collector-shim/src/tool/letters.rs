//! `dead-letters list`, `dead-letters show` and `dead-letters replay`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use httpdate::fmt_http_date;
use lantern_telemetry::Settings;

use super::replay::{Replay, To};
use super::show::Lines;
use crate::log::dead_letters::{Letter, Letters};
use crate::queue::Payload;

/// What can be done with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum LettersCommand {
    /// Prints when and why each was refused
    List(Which),
    /// Prints them as OTLP/JSON, one request a line
    Show(Which),
    /// Sends them to a backend, and leaves them where they are
    Replay {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        to: To,
    },
}

/// Which letters.
#[derive(Debug, Clone, Args)]
pub(crate) struct Which {
    /// What --queue-dir named
    dir: PathBuf,
    /// Only the one of this number; the list has the numbers
    number: Option<u64>,
}

/// The letters that were asked for, with their numbers.
struct Chosen {
    letters: Letters,
    dir: PathBuf,
    only: Option<u64>,
    number: u64,
    found: u64,
}

impl Chosen {
    fn open(which: Which) -> anyhow::Result<Chosen> {
        let Which { dir, number: only } = which;
        let letters = Letters::open(&dir).with_context(|| cannot_read(&dir))?;
        Ok(Chosen {
            letters,
            dir,
            only,
            number: 0,
            found: 0,
        })
    }

    fn next(&mut self) -> anyhow::Result<Option<(u64, Letter)>> {
        loop {
            let letter = self
                .letters
                .next()
                .with_context(|| cannot_read(&self.dir))?;
            let Some(letter) = letter else {
                return self.end();
            };
            self.number += 1;
            if self.only.is_none_or(|only| only == self.number) {
                self.found += 1;
                return Ok(Some((self.number, letter)));
            }
        }
    }

    fn end<T>(&self) -> anyhow::Result<Option<T>> {
        let lines = self.letters.damaged_lines;
        if lines > 0 {
            tracing::warn!(lines, "lines that are no dead letters were passed over");
        }
        match self.only {
            Some(only) if self.found == 0 => {
                bail!("there is no letter {only} in {}", self.dir.display())
            }
            _ => Ok(None),
        }
    }
}

fn cannot_read(dir: &Path) -> String {
    format!("cannot read the dead letters in {}", dir.display())
}

pub(super) async fn run(command: LettersCommand, settings: Settings) -> anyhow::Result<()> {
    match command {
        LettersCommand::List(which) => list(&mut io::stdout().lock(), Chosen::open(which)?),
        LettersCommand::Show(which) => show(Chosen::open(which)?),
        LettersCommand::Replay { which, to } => {
            let replay = Replay::new(&to, settings)?;
            self::replay(Chosen::open(which)?, replay).await
        }
    }
}

fn list(out: &mut impl Write, mut chosen: Chosen) -> anyhow::Result<()> {
    writeln!(
        out,
        "{:>8}  {:<29}  {:<8}  {:>8}  {:>10}  {:<12}  reason",
        "number", "refused", "signal", "items", "bytes", "backend"
    )?;
    while let Some((number, letter)) = chosen.next()? {
        let Letter {
            written_at,
            reason,
            backend,
            payload,
        } = letter;
        writeln!(
            out,
            "{number:>8}  {:<29}  {:<8}  {:>8}  {:>10}  {backend:<12}  {reason}",
            fmt_http_date(written_at),
            payload.signal.as_str(),
            payload.items,
            payload.bytes.len(),
        )?;
    }
    Ok(())
}

fn show(mut chosen: Chosen) -> anyhow::Result<()> {
    let mut lines = Lines::new();
    while let Some((_, letter)) = chosen.next()? {
        lines.write(&letter.payload)?;
    }
    lines.finish()
}

async fn replay(mut chosen: Chosen, mut replay: Replay) -> anyhow::Result<()> {
    while let Some((number, letter)) = chosen.next()? {
        // Letters have no number of their own; should the replay end early, this one is named.
        let payload = Payload {
            seq: number,
            ..letter.payload
        };
        replay.send(payload).await?;
    }
    replay.finish().await
}
