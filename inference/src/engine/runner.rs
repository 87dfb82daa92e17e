//! The model runner: a step's forward pass, with the pages of all sequences.

use candle_core::{DType, Result};

use crate::models::CausalLm;
use crate::ops::{Choice, KvPages, Ops, Penalized, StepInputs, StepResult, StepTensors};

/// Rows whose logits are computed at once when every prompt position's are wanted: (64, V) in f32 is
/// 13 MB for OPT, all 2048 rows of a prompt would be 412 MB.
const PROMPT_LOGITS_ROWS: usize = 64;

/// One sequence's part in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    /// Its next tokens.
    pub(crate) tokens: &'a [u32],
    /// How many came before.
    pub(crate) context: usize,
    /// Its blocks, enough for all of these.
    pub(crate) blocks: &'a [u32],
    /// Where its token comes from, if that is on the device.
    pub(crate) carried: Option<u32>,
    /// Who chooses the token after the last one, if there is to be one.
    pub(crate) choice: Option<Choice>,
    /// Tokens that this choice does not take as their logits say.
    pub(crate) penalized: &'a [Penalized],
    /// Tokens that it does not take at all.
    pub(crate) banned: &'a [u32],
}

/// Tensors of the engine: the model, and keys and values.
pub(crate) struct ModelRunner {
    model: Box<dyn CausalLm>,
    ops: Box<dyn Ops>,
    pages: KvPages,
}

impl ModelRunner {
    /// Allocates so many blocks of keys and values.
    pub(crate) fn new(
        model: Box<dyn CausalLm>,
        ops: Box<dyn Ops>,
        kv_blocks: usize,
    ) -> Result<Self> {
        let pages = KvPages::new(&model.kv_shape(), kv_blocks, model.device())?;
        Ok(Self { model, ops, pages })
    }

    /// Whether a step may be launched before the one before it is collected.
    pub(crate) fn runs_ahead(&self) -> bool {
        self.ops.runs_ahead()
    }

    /// Runs a step of each batch size that the device records, up to the one for so many sequences, so that no request
    /// waits for it. What that writes to the pages belongs to nobody yet.
    pub(crate) fn record(&self, max_num_seqs: usize) -> Result<()> {
        let mut smaller = 0;
        for &size in self.ops.recorded_batch_sizes() {
            if smaller >= max_num_seqs {
                break;
            }
            smaller = size;
            let row = Part {
                tokens: &[0],
                context: 0,
                blocks: &[0],
                carried: None,
                choice: Some(Choice::GREEDY),
                penalized: &[],
                banned: &[],
            };
            self.launch(&vec![row; size])?;
            self.collect()?;
        }
        Ok(())
    }

    /// Starts a step.
    pub(crate) fn launch(&self, parts: &[Part<'_>]) -> Result<()> {
        let mut step = StepInputs::default();
        for part in parts {
            step.push(part.tokens, part.context, part.blocks);
            if let Some(from) = part.carried {
                step.carry_last(from);
            }
            if let Some(choice) = part.choice {
                step.want_last_without(choice, part.penalized, part.banned);
            }
        }
        let (model, ops) = (&*self.model, &*self.ops);
        ops.launch(&step, &mut || {
            let hidden = model.forward(ops, &step, &self.pages)?;
            let logits = (!step.wanted.is_empty())
                .then(|| model.logits(ops, &ops.wanted(&hidden, &step)?))
                .transpose()?;
            Ok(StepTensors { hidden, logits })
        })
    }

    /// Waits for the oldest step that was launched and not collected.
    pub(crate) fn collect(&self) -> Result<StepResult> {
        self.ops.collect()
    }

    /// Calls `each` with the logits (V) of the rows from `start` to `end` of a step, in order.
    pub(crate) fn for_each_row(
        &self,
        result: &StepResult,
        (start, end): (usize, usize),
        mut each: impl FnMut(&[f32]),
    ) -> Result<()> {
        for from in (start..end).step_by(PROMPT_LOGITS_ROWS) {
            let rows = PROMPT_LOGITS_ROWS.min(end - from);
            let hidden = result.hidden.narrow(0, from, rows)?;
            let logits = self.model.logits(&*self.ops, &hidden)?;
            let logits = logits.to_dtype(DType::F32)?.to_vec2()?;
            logits.iter().for_each(|row: &Vec<f32>| each(row));
        }
        Ok(())
    }
}
