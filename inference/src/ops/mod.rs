//! The few fused operations that models are made of, and who carries them out.
//!
//! Models say what happens to the rows of a step ([`StepInputs`]); an [`Ops`] does it. Operations are as large
//! as a GPU kernel can be (a norm before a product and an activation after it are part of the product),
//! since what costs there is their number. Tensors are candle's.
//!
//! # Layout
//! - `step`: one step's rows, whose they are, and what is wanted of them
//! - `weights`: what operations take from the model's files
//! - `packed`: matrices on a CPU, quantised or plain numbers, and their products
//! - `pages`: keys and values of all sequences, in blocks
//! - `cpu`: the operations on a CPU; `cuda`: on a GPU; `plain`: on any other device
//! - `shared`: what is the same in those that run op by op
//!
//! Letters in shapes, here and in the models: T rows of a step, R of them wanted, H hidden size,
//! E embedding size, V vocabulary, N heads of queries, K heads of keys and values, D head size.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod packed;
mod pages;
mod plain;
mod shared;
mod step;
mod weights;

use std::time::Duration;

use candle_core::{Device, Result, Tensor};

pub use packed::PackedMatrix;
pub(crate) use packed::{StoredRows, is_packable};
pub use pages::{KV_BLOCK_TOKENS, KvPages, KvShape, LayerPages};
pub use step::{
    Carried, Choice, Draw, MAX_TOP_LOGPROBS, Penalized, Penalties, Sampling, Span, StepInputs,
    WantedRow,
};
pub use weights::{
    Activation, Attention, DecoderLayer, Embedding, Epilogue, FeedForward, Heads, Linear, Matrix,
    Norm, NormKind, PositionTable, Rope, SelfAttention,
};

/// What carries out a model's operations: one for each kind of device.
///
/// All but `device`, `launch` and `collect` are called by models, from inside the `forward` of a launch, and belong
/// to the step that was launched: an implementation may record them once and replay them for later steps
/// of the same shape. (`project` is called between steps too: for logits of more rows of the last one.)
/// Their arguments other than activations live as long as the model.
pub trait Ops: Send {
    /// Where tensors are.
    fn device(&self) -> &Device;

    /// Whether a step may be launched before the one before it is collected. Then the device chooses the tokens of
    /// all rows but those of [`Choice::Host`] itself, and a row may take its token from the step before.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Batch sizes whose first step of one row for each sequence takes longer, because it is recorded; ascending.
    fn recorded_batch_sizes(&self) -> &[usize] {
        &[]
    }

    /// Starts a step: its inputs go to the device, then `forward` runs, or what was recorded of it. At
    /// most one step more is launched before [`Ops::collect`] has the one before it. What steps read and write of
    /// the pages happens in the order of their launches: a block may belong to another sequence by the next one, and
    /// may be found there by its content before that has been computed.
    fn launch(
        &self,
        step: &StepInputs,
        forward: &mut dyn FnMut() -> Result<StepTensors>,
    ) -> Result<()>;

    /// Waits for the oldest step that was launched and not collected yet.
    fn collect(&self) -> Result<StepResult>;

    /// The rows' embeddings: token table, positions where it has them, scaled. -> (T, E)
    fn embed(&self, step: &StepInputs, embedding: &Embedding) -> Result<Tensor>;

    /// The rows of a table of positions alone, for models that project between. -> (T, H)
    fn embed_positions(&self, step: &StepInputs, positions: &PositionTable) -> Result<Tensor>;

    /// `epilogue(norm(x) . W^T + b)`: (T, I) -> (T, O), or (T, O / 2) if the epilogue is gated.
    fn project(
        &self,
        x: &Tensor,
        norm: Option<&Norm>,
        linear: &Linear,
        epilogue: Epilogue,
    ) -> Result<Tensor>;

    /// `residual + x . W^T + b`: (T, I), (T, O) -> (T, O)
    fn project_add(&self, x: &Tensor, linear: &Linear, residual: &Tensor) -> Result<Tensor>;

    /// `norm(x)`, or `residual + norm(x)`: (T, H) -> (T, H). For models with norms after their blocks.
    fn norm(&self, x: &Tensor, norm: &Norm, residual: Option<&Tensor>) -> Result<Tensor>;

    /// Splits queries, keys and values, norms and turns their heads as `attention` says, writes keys and
    /// values to their slots in `pages`, and attends causally to all that the rows' sequences have there:
    /// (T, (N + 2K) * D) -> (T, N * D)
    fn attend(
        &self,
        qkv: &Tensor,
        attention: &Attention,
        step: &StepInputs,
        pages: &LayerPages,
    ) -> Result<Tensor>;

    /// All of `layers`, one after another, their norms before their blocks: (T, H) -> (T, H). `None` where that
    /// has no way of its own: then they run operation by operation, which gives the same.
    fn run_layers(
        &self,
        _hidden: &Tensor,
        _layers: &[DecoderLayer],
        _pages: &KvPages,
    ) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The rows that are wanted, in order: (T, H) -> (R, H). All of them: `x` itself.
    fn wanted(&self, x: &Tensor, step: &StepInputs) -> Result<Tensor>;
}

/// Opens the first GPU, as [`for_device`] needs it.
#[cfg(feature = "cuda")]
pub(crate) fn open_gpu() -> Result<Device> {
    cuda::open()
}

/// The operations for tensors on `device`.
pub fn for_device(device: &Device) -> Result<Box<dyn Ops>> {
    Ok(match device {
        Device::Cpu => Box::new(cpu::CpuOps::default()),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => Box::new(cuda::CudaOps::new(device)?),
        other => plain(other),
    })
}

/// Those made of candle's own, which any device has: slow, and what others are compared with.
pub fn plain(device: &Device) -> Box<dyn Ops> {
    Box::new(plain::PlainOps::new(device))
}

/// What a model's forward pass gives.
#[derive(Debug, Clone)]
pub struct StepTensors {
    /// Before the final norm, (T, H).
    pub hidden: Tensor,
    /// Of the rows that are wanted, (R, V); none where R is 0.
    pub logits: Option<Tensor>,
}

/// What a step gave.
#[derive(Debug)]
pub struct StepResult {
    /// One for each wanted row, in order.
    pub rows: Vec<RowResult>,
    /// Before the final norm, (T, H); valid until the next launch.
    pub hidden: Tensor,
    /// Time on the device, where that is not the time of the call.
    pub device_time: Option<Duration>,
    /// How the pass was run.
    pub pass: Pass,
}

/// What a wanted row gave.
#[derive(Debug, Clone, PartialEq)]
pub enum RowResult {
    /// What was chosen on the device.
    Token(ChosenToken),
    /// Logits (V), for the host to choose by.
    Logits(Vec<f32>),
}

/// A token that the device chose.
#[derive(Debug, Clone, PartialEq)]
pub struct ChosenToken {
    /// Its id.
    pub token: u32,
    /// If they were asked for.
    pub logprobs: Option<RowLogprobs>,
}

/// Log probabilities of the distribution that a row's logits say.
#[derive(Debug, Clone, PartialEq)]
pub struct RowLogprobs {
    /// Of the token chosen.
    pub chosen: f32,
    /// Its place among all, by their logits: 1 is the best.
    pub rank: u32,
    /// The best tokens and theirs, best first, of equals the lower id first.
    pub top: Vec<(u32, f32)>,
}

/// How a forward pass was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// One recorded graph was replayed.
    Graph,
    /// Operation by operation.
    Eager {
        /// Why no graph was replayed.
        reason: &'static str,
    },
}
