//! Where the programs are that are measured: ours beside this one, the peers where `peers.sh` put them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::report::Plotter;

/// Programs by name.
#[derive(Debug)]
pub(crate) struct Programs {
    ours: PathBuf,
    peers: HashMap<String, PathBuf>,
}

impl Programs {
    /// `bin_dir` has ours; without one they are where this program is.
    pub(crate) fn find(bin_dir: Option<PathBuf>) -> Result<Programs> {
        let beside_us = || Some(std::env::current_exe().ok()?.parent()?.to_owned());
        let script = source().join("peers.sh");
        let output = Command::new(&script)
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", script.display()))?;
        ensure!(output.status.success(), "{} failed", script.display());
        let lines = String::from_utf8(output.stdout)?;
        let pairs = lines.lines().filter_map(|line| line.split_once('='));
        Ok(Programs {
            ours: bin_dir.or_else(beside_us).context("name --bin-dir")?,
            peers: pairs
                .map(|(name, path)| (name.to_owned(), path.into()))
                .collect(),
        })
    }

    /// One of ours, which must be there.
    pub(crate) fn ours(&self, name: &str) -> Result<PathBuf> {
        let path = std::path::absolute(self.ours.join(name))?;
        ensure!(
            path.exists(),
            "{} is not there: build it, or name --bin-dir",
            path.display()
        );
        Ok(path)
    }

    /// A peer, if it could be had.
    pub(crate) fn peer(&self, name: &str) -> Option<PathBuf> {
        self.peers.get(name).cloned()
    }

    pub(crate) fn plotter(&self) -> Option<Plotter> {
        Some(Plotter {
            python: self.peer("python")?,
            script: source().join("plot.py"),
        })
    }
}

/// This crate's folder: the bench runs from a checkout.
fn source() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
