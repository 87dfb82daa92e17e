//! Requests as OTLP/JSON lines on stdout.

use std::io::{StdoutLock, Write as _};

use anyhow::Context as _;

use crate::encode::{self, Lossy};
use crate::queue::Payload;

pub(super) struct Lines {
    out: std::io::BufWriter<StdoutLock<'static>>,
    lossy: Lossy,
}

impl Lines {
    pub(super) fn new() -> Lines {
        Lines {
            out: std::io::BufWriter::new(std::io::stdout().lock()),
            lossy: Lossy::default(),
        }
    }

    pub(super) fn write(&mut self, payload: &Payload) -> anyhow::Result<()> {
        let plain = payload.decompressed();
        self.lossy += encode::to_json(&mut self.out, payload.signal, &plain)
            .with_context(|| format!("record {} is not OTLP", payload.seq))?;
        self.out.write_all(b"\n")?;
        Ok(())
    }

    /// Tells what the lines do not show.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.out.flush()?;
        if self.lossy.is_any() {
            let Lossy {
                unknown_fields,
                repaired_texts,
            } = self.lossy;
            tracing::warn!(
                unknown_fields,
                repaired_texts,
                "JSON does not show all of it: a replay sends the bytes as they came"
            );
        }
        Ok(())
    }
}
