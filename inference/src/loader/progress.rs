//! Progress on stderr: a bar on a terminal, a log line elsewhere.

use std::time::Instant;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// What is shown of something that takes a while.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    started: Instant,
}

impl Progress {
    /// `what` reads as in "downloading model.safetensors".
    pub(crate) fn new(what: String, total_bytes: u64) -> Self {
        // indicatif draws nothing where stderr is no terminal.
        let bar = ProgressBar::new(total_bytes).with_message(what.clone());
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
        if bar.is_hidden() {
            tracing::info!("{what}, {}", HumanBytes(total_bytes));
        }
        Self {
            bar,
            what,
            started: Instant::now(),
        }
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Takes the bar away and says how long it took.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
        tracing::debug!("{}: {:.1?}", self.what, self.started.elapsed());
    }
}
