//! Decode steps as recorded graphs, one for each of a few batch sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, sys};
use candle_core::{Error, Result};

use crate::ops::{StepInputs, StepTensors};
use crate::tensor_error::TensorError;

/// Batch sizes that graphs are made for; a batch runs in the next larger one.
pub(super) const BATCH_SIZES: [usize; 17] = [
    1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 512,
];

/// Rows of the largest.
pub(super) const MAX_ROWS: usize = BATCH_SIZES[BATCH_SIZES.len() - 1];

/// A pass as it was recorded, and what it gives.
pub(super) struct Recorded {
    graph: CudaGraph,
    pub(super) tensors: StepTensors,
}

// SAFETY: a graph may be used from any thread, by one at a time: it is reached through `&mut` alone.
unsafe impl Send for Recorded {}

impl Recorded {
    /// Runs it again, over the inputs that are there now.
    pub(super) fn replay(&self) -> Result<()> {
        self.graph.launch().map_err(Error::wrap)
    }
}

/// The graphs so far, by batch size.
#[derive(Default)]
pub(super) struct Graphs {
    recorded: BTreeMap<usize, Recorded>,
    /// Those that could not be recorded: not tried again.
    failed: BTreeSet<usize>,
}

impl Graphs {
    /// The batch size that a step runs in, or why it cannot be replayed.
    pub(super) fn size_for(step: &StepInputs) -> std::result::Result<usize, &'static str> {
        let rows = step.tokens.len();
        if step.spans.len() != rows {
            return Err("prefill");
        }
        if step.wanted.len() != rows {
            return Err("not every row is wanted");
        }
        let size = BATCH_SIZES.into_iter().find(|size| *size >= rows);
        size.ok_or("the batch is larger than any graph")
    }

    pub(super) fn get(&self, size: usize) -> Option<&Recorded> {
        self.recorded.get(&size)
    }

    /// Records what `pass` launches, running none of it, so that the next step of this size can be replayed. Where
    /// that fails, as it does when somebody else in this process waits for the whole device meanwhile, steps of
    /// this size run as they come.
    pub(super) fn record(
        &mut self,
        size: usize,
        stream: &Arc<CudaStream>,
        pass: impl FnOnce() -> Result<StepTensors>,
    ) {
        if self.failed.contains(&size) {
            return;
        }
        match capture(stream, pass) {
            Ok(recorded) => {
                self.recorded.insert(size, recorded);
            }
            Err(error) => {
                let error = TensorError::from(error);
                tracing::warn!(%error, batch_size = size, "a decode step could not be recorded");
                self.failed.insert(size);
            }
        }
    }
}

fn capture(
    stream: &Arc<CudaStream>,
    pass: impl FnOnce() -> Result<StepTensors>,
) -> Result<Recorded> {
    use sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as THIS_THREAD;
    stream.begin_capture(THIS_THREAD).map_err(Error::wrap)?;
    let tensors = pass();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    let tensors = tensors?;
    let Some(graph) = graph.map_err(Error::wrap)? else {
        candle_core::bail!("a recorded pass is empty")
    };
    graph.upload().map_err(Error::wrap)?;
    Ok(Recorded { graph, tensors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Choice;

    #[test]
    fn a_decode_step_runs_in_the_next_larger_batch_and_prefill_in_none() {
        let mut step = StepInputs::default();
        for _ in 0..5 {
            step.push(&[7], 3, &[5]);
            step.want_last(Choice::GREEDY);
        }
        assert_eq!(Graphs::size_for(&step), Ok(8));
        step.push(&[7, 8], 0, &[6]);
        step.want_last(Choice::Host);
        assert_eq!(Graphs::size_for(&step), Err("prefill"));
    }
}
