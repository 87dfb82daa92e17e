//! The model runner: a step's forward pass, with the caches of the sequences in it.

use std::collections::HashMap;

use candle_core::{DType, Result, Tensor};

use super::scheduler::KV_BLOCK_TOKENS;
use super::sequence::SequenceId;
use crate::models::{CausalLm, KvCache, RaggedBatch};

/// Rows whose logits are computed at once when every prompt position's are wanted: (64, V) in f32 is
/// 13 MB for OPT, all 2048 rows of a prompt would be 412 MB.
const PROMPT_LOGITS_ROWS: usize = 64;

/// One sequence's part in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) id: SequenceId,
    /// Its next tokens.
    pub(crate) tokens: &'a [u32],
    /// How many came before.
    pub(crate) context: usize,
    /// Whether the logits after the last one are wanted.
    pub(crate) samples: bool,
}

/// Tensors of the engine: the model and a cache per sequence that runs.
pub(crate) struct ModelRunner {
    model: Box<dyn CausalLm>,
    caches: HashMap<SequenceId, KvCache>,
}

/// What a step computed.
#[derive(Debug)]
pub(crate) struct Output {
    /// (T, E)
    hidden: Tensor,
    /// Logits (V) after each part that samples, in order.
    pub(crate) logits: Vec<Vec<f32>>,
}

impl ModelRunner {
    pub(crate) fn new(model: Box<dyn CausalLm>) -> Self {
        Self {
            model,
            caches: HashMap::new(),
        }
    }

    /// Runs one step.
    pub(crate) fn run(&mut self, parts: &[Part<'_>]) -> Result<Output> {
        let mut batch = RaggedBatch::default();
        let mut caches = Vec::with_capacity(parts.len());
        let mut sampled_rows = Vec::with_capacity(parts.len());
        for part in parts {
            batch.push(part.tokens, part.context);
            if part.samples {
                sampled_rows.push(batch.tokens.len() as u32 - 1);
            }
            caches.push(
                self.caches
                    .remove(&part.id)
                    .unwrap_or_else(|| self.empty_cache()),
            );
        }
        let hidden = self.model.forward(&batch, &mut caches)?;
        self.caches
            .extend(parts.iter().map(|part| part.id).zip(caches));
        let logits = if sampled_rows.is_empty() {
            Vec::new()
        } else if sampled_rows.len() == batch.tokens.len() {
            self.logits(&hidden)?
        } else {
            let rows = Tensor::new(sampled_rows, self.model.device())?;
            self.logits(&hidden.index_select(&rows, 0)?)?
        };
        Ok(Output { hidden, logits })
    }

    /// Calls `each` with the logits (V) of the rows from `start` to `end` of a step, in order.
    pub(crate) fn for_each_row(
        &self,
        output: &Output,
        (start, end): (usize, usize),
        mut each: impl FnMut(&[f32]),
    ) -> Result<()> {
        for from in (start..end).step_by(PROMPT_LOGITS_ROWS) {
            let rows = PROMPT_LOGITS_ROWS.min(end - from);
            let logits = self.logits(&output.hidden.narrow(0, from, rows)?)?;
            logits.iter().for_each(|row| each(row));
        }
        Ok(())
    }

    /// Forgets a sequence's cache.
    pub(crate) fn free(&mut self, id: SequenceId) {
        self.caches.remove(&id);
    }

    /// (R, E) -> R rows of V, on the host.
    fn logits(&self, hidden: &Tensor) -> Result<Vec<Vec<f32>>> {
        self.model.logits(hidden)?.to_dtype(DType::F32)?.to_vec2()
    }

    fn empty_cache(&self) -> KvCache {
        KvCache::new(self.model.kv_shape(), KV_BLOCK_TOKENS)
    }
}
