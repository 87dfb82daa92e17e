//! The operations on a CUDA device: kernels of ours, and decode steps as graphs.
//!
//! Everything is launched on the one stream that the device was opened with, so work is ordered without events.
//! Decode steps of a batch size run as they come the first time, which is before there are requests, are recorded
//! then, and replayed after: one upload, one graph. Tokens are chosen on the device, greedy or drawn, with penalties and
//! log probabilities, and the next step may take them from there.
//!
//! # Layout
//! - `kernels/`: the kernels; `interface.h` is what they offer
//! - `kernels.rs`: how they are called
//! - `steps`: a step launched and collected; `inputs`: its way to the device
//! - `layers`: decoder layers of one row, in two kernels each
//! - `products`: by which kernel; `blas`: those with many rows
//! - `buffers`, `graphs`: where recorded passes write, and the recordings; `memory`: other memory
#![allow(
    unsafe_code,
    reason = "memory on the device is known by its address alone"
)]

mod blas;
mod buffers;
mod graphs;
mod inputs;
mod kernels;
mod layers;
mod memory;
mod products;
mod steps;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr};
use candle_core::{DType, Device, Error, Result, Tensor};

use self::blas::Blas;
use self::buffers::Buffers;
use self::graphs::Graphs;
use self::inputs::Inputs;
use self::kernels::{
    Address, AttentionArguments, EmbeddingArguments, Launcher, NULL, NormArguments, address, int,
    optional,
};
use self::layers::Exchange;
use self::memory::{Chosen, Pinned, Scratch, keep_freed_memory};
use self::products::dense;
use self::steps::{Current, Launched};
use super::{
    Attention, DecoderLayer, Embedding, Epilogue, Heads, KvPages, LayerPages, Linear, Norm, Ops,
    PositionTable, StepInputs, StepResult, StepTensors,
};

/// The longest tail of a recorded step's inputs (block tables, and tokens that are penalized); a step with a longer one
/// runs as it comes. 4 MB on the device.
const MAX_RECORDED_TAIL: usize = 1 << 20;

/// A CUDA device.
pub(super) struct CudaOps {
    device: Device,
    stream: Arc<CudaStream>,
    launcher: Launcher,
    blas: Blas,
    state: RefCell<State>,
    graphs: RefCell<Graphs>,
    exchange: RefCell<Exchange>,
}

struct State {
    /// Of recorded steps.
    recorded_inputs: Arc<Inputs>,
    buffers: Buffers,
    recorded_choice: Arc<Chosen>,
    /// Memory for contexts that are split.
    scratch: HashMap<Heads, Scratch>,
    /// Pinned memory of steps that were collected.
    spare: Vec<Pinned>,
    under_way: VecDeque<Launched>,
    /// What the step launched last chose.
    last_choice: Option<Arc<Chosen>>,
    current: Option<Current>,
}

/// Opens the first GPU, with a stream of its own: what goes to the default one cannot be recorded.
pub(super) fn open() -> Result<Device> {
    const FIRST_GPU: usize = 0;
    let device = Device::new_cuda_with_stream(FIRST_GPU)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: there is no other stream whose work would have to be waited for.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}

impl CudaOps {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let Device::Cuda(cuda) = device else {
            candle_core::bail!("not a CUDA device: {device:?}")
        };
        let stream = cuda.cuda_stream();
        keep_freed_memory(&stream)?;
        let state = State {
            recorded_inputs: Arc::new(Inputs::new(&stream, graphs::MAX_ROWS, MAX_RECORDED_TAIL)?),
            buffers: Buffers::new(graphs::MAX_ROWS),
            recorded_choice: Arc::new(Chosen::new(&stream, graphs::MAX_ROWS)?),
            scratch: HashMap::new(),
            spare: Vec::new(),
            under_way: VecDeque::new(),
            last_choice: None,
            current: None,
        };
        Ok(Self {
            device: device.clone(),
            launcher: Launcher::new(&stream),
            blas: Blas::new(&stream)?,
            exchange: RefCell::new(Exchange::new(&stream)?),
            stream,
            state: RefCell::new(state),
            graphs: RefCell::default(),
        })
    }

    fn address(&self, tensor: &Tensor) -> Result<Address> {
        address(tensor, &self.stream)
    }

    fn optional(&self, tensor: Option<&Tensor>) -> Result<Address> {
        optional(tensor, &self.stream)
    }

    /// The step under way.
    fn current(&self) -> Result<Current> {
        let current = self.state.borrow().current.clone();
        current.ok_or_else(|| Error::msg("this operation belongs to a step, and none is launched"))
    }

    /// Memory for an operation's output; what is in it is to be overwritten whole.
    fn output(&self, rows: usize, width: usize, dtype: DType) -> Result<Tensor> {
        let mut state = self.state.borrow_mut();
        if state.current.as_ref().is_some_and(|step| step.buffered) {
            return state.buffers.next((rows, width), dtype, &self.device);
        }
        // SAFETY: every operation writes all of its output.
        unsafe { Tensor::empty((rows, width), dtype, &self.device) }
    }

    /// A norm for a kernel.
    fn norm_arguments(&self, norm: Option<&Norm>) -> Result<NormArguments> {
        norm.map_or(Ok(NormArguments::NONE), |norm| {
            NormArguments::new(norm, &self.stream)
        })
    }

    fn look_up(
        &self,
        tokens: Option<(&Tensor, f32)>,
        positions: Option<&PositionTable>,
    ) -> Result<Tensor> {
        let current = self.current()?;
        let table = positions.map(|positions| &positions.table);
        let Some(any) = tokens.map(|(table, _)| table).or(table) else {
            candle_core::bail!("an embedding of neither tokens nor positions")
        };
        let out = self.output(current.rows, any.dim(1)?, any.dtype())?;
        let embedding = EmbeddingArguments {
            tokens: self.optional(tokens.map(|(table, _)| table))?,
            table: self.optional(table)?,
            out: self.address(&out)?,
            ids: current.inputs.ids(),
            positions: current.inputs.positions(),
            scale: tokens.map_or(1.0, |(_, scale)| scale),
            offset: positions.map_or(Ok(0), |positions| int(positions.offset as usize))?,
            rows: int(current.rows)?,
            size: int(any.dim(1)?)?,
            dtype: kernels::dtype(any)?,
        };
        // SAFETY: as in `product`; token ids are below the vocabulary's size, positions below the table's.
        unsafe { self.launcher.embed(&embedding)? };
        Ok(out)
    }

    /// Attention of the step under way, but for what it reads and gives.
    fn attention_arguments(
        &self,
        current: &Current,
        attention: &Attention,
        pages: &LayerPages,
    ) -> Result<AttentionArguments> {
        let heads = attention.heads;
        let decoding = if current.tiles == 0 {
            current.rows
        } else {
            current.singles.max(1)
        };
        let splits = Launcher::splits(int(decoding)?, int(heads.keys)?);
        let (tile_rows, tile_lengths) = current.inputs.tiles();
        let [scratch, arrivals] = self.scratch(heads)?;
        let rope = attention.rope.as_ref().map(|rope| &rope.on_device);
        let head_norms = attention.head_norms.as_ref();
        Ok(AttentionArguments {
            qkv: NULL,
            keys: self.address(&pages.keys)?,
            values: self.address(&pages.values)?,
            out: NULL,
            positions: current.inputs.positions(),
            slots: current.inputs.slots(),
            span_of: current.inputs.span_of(),
            table_starts: current.inputs.table_starts(),
            tables: current.inputs.tables(),
            frequencies: self.optional(rope)?,
            query_norm: self.norm_arguments(head_norms.map(|norms| &norms.0))?,
            key_norm: self.norm_arguments(head_norms.map(|norms| &norms.1))?,
            scratch,
            arrivals,
            scale: attention.scale,
            window: int(attention.window.unwrap_or(0))?,
            rows: int(current.rows)?,
            single_rows: current.inputs.single_rows(),
            singles: int(current.singles)?,
            tiles: int(current.tiles)?,
            tile_rows,
            tile_lengths,
            heads: int(heads.queries)?,
            kv_heads: int(heads.keys)?,
            dim: int(heads.dim)?,
            dtype: kernels::dtype(&pages.keys)?,
            splits,
        })
    }

    fn scratch(&self, heads: Heads) -> Result<[Address; 2]> {
        let mut state = self.state.borrow_mut();
        if !state.scratch.contains_key(&heads) {
            let scratch = Scratch::new(&self.stream, heads)?;
            state.scratch.insert(heads, scratch);
        }
        let scratch = &state.scratch[&heads];
        let sums = scratch.sums.device_ptr(&self.stream).0;
        Ok([sums, scratch.arrivals.device_ptr(&self.stream).0])
    }
}

impl Ops for CudaOps {
    fn device(&self) -> &Device {
        &self.device
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn recorded_batch_sizes(&self) -> &[usize] {
        &graphs::BATCH_SIZES
    }

    fn launch(
        &self,
        step: &StepInputs,
        forward: &mut dyn FnMut() -> Result<StepTensors>,
    ) -> Result<()> {
        self.launch_step(step, forward)
    }

    fn collect(&self) -> Result<StepResult> {
        self.collect_step()
    }

    fn embed(&self, _: &StepInputs, embedding: &Embedding) -> Result<Tensor> {
        let table = dense(&embedding.tokens)?;
        let tokens = (table, embedding.scale.unwrap_or(1.0));
        self.look_up(Some(tokens), embedding.positions.as_ref())
    }

    fn embed_positions(&self, _: &StepInputs, positions: &PositionTable) -> Result<Tensor> {
        self.look_up(None, Some(positions))
    }

    fn project(
        &self,
        x: &Tensor,
        norm: Option<&Norm>,
        linear: &Linear,
        epilogue: Epilogue,
    ) -> Result<Tensor> {
        self.product(x, norm, linear, (epilogue, None))
    }

    fn project_add(&self, x: &Tensor, linear: &Linear, residual: &Tensor) -> Result<Tensor> {
        self.product(x, None, linear, (Epilogue::None, Some(residual)))
    }

    fn norm(&self, x: &Tensor, norm: &Norm, residual: Option<&Tensor>) -> Result<Tensor> {
        let (rows, size) = x.dims2()?;
        let out = self.output(rows, size, x.dtype())?;
        let addresses = [
            self.address(x)?,
            self.optional(residual)?,
            self.address(&out)?,
        ];
        let (arguments, dtype) = (self.norm_arguments(Some(norm))?, kernels::dtype(x)?);
        let sizes = (int(rows)?, int(size)?);
        // SAFETY: as in `product`.
        unsafe { self.launcher.norm(addresses, &arguments, sizes, dtype)? };
        Ok(out)
    }

    fn attend(
        &self,
        qkv: &Tensor,
        attention: &Attention,
        _: &StepInputs,
        pages: &LayerPages,
    ) -> Result<Tensor> {
        let current = self.current()?;
        let out = self.output(current.rows, attention.heads.query_width(), qkv.dtype())?;
        let arguments = AttentionArguments {
            qkv: self.address(qkv)?,
            out: self.address(&out)?,
            ..self.attention_arguments(&current, attention, pages)?
        };
        // SAFETY: as in `product`; slots and tables name blocks of these pages. The operation may change `qkv`, which
        // nothing reads after it.
        unsafe { self.launcher.attention(&arguments)? };
        Ok(out)
    }

    fn run_layers(
        &self,
        hidden: &Tensor,
        layers: &[DecoderLayer],
        pages: &KvPages,
    ) -> Result<Option<Tensor>> {
        self.run_layers_of_one_row(hidden, layers, pages)
    }

    fn wanted(&self, x: &Tensor, step: &StepInputs) -> Result<Tensor> {
        let count = step.wanted.len();
        if count == step.tokens.len() {
            return Ok(x.clone());
        }
        let size = x.dim(1)?;
        let out = self.output(count, size, x.dtype())?;
        let rows = self.current()?.inputs.wanted();
        let addresses = [self.address(x)?, rows, self.address(&out)?];
        let dtype = kernels::dtype(x)?;
        // SAFETY: as in `product`; wanted rows are rows of `x`.
        unsafe {
            self.launcher
                .gather(addresses, (int(count)?, int(size)?), dtype)?
        };
        Ok(out)
    }
}
