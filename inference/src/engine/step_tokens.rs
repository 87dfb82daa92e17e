//! How many tokens the engine's steps have: noted by its thread, read by the metrics.

use prometheus_client::metrics::histogram::Histogram;

/// vLLM's buckets.
const BUCKETS: [f64; 13] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0,
];

/// A histogram of tokens per step, prompts included.
#[derive(Debug)]
pub(super) struct StepTokens(Histogram);

impl Default for StepTokens {
    fn default() -> Self {
        Self(Histogram::new(BUCKETS))
    }
}

impl StepTokens {
    /// A step was run.
    pub(super) fn note(&self, tokens: usize) {
        self.0.observe(tokens as f64);
    }

    /// The histogram itself: a clone of it sees what is noted later.
    pub(super) fn histogram(&self) -> Histogram {
        self.0.clone()
    }
}
