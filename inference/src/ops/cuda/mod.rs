//! The operations on a CUDA device: kernels of ours, and decode steps as graphs.
//!
//! Everything is launched on the one stream that the device was opened with, so work is ordered without events.
//! Decode steps of a batch size run as they come the first time, are recorded then, and replayed after: one
//! upload, one graph. Greedy tokens are chosen on the device, and the next step may take them from there.
//!
//! # Layout
//! - `kernels/`: the kernels; `interface.h` is what they offer
//! - `kernels.rs`: how they are called
//! - `inputs`: a step's way to the device
//! - `buffers`, `graphs`: where recorded passes write, and the recordings
//!
//! `unsafe` because memory on the device is known by its address alone.
#![allow(unsafe_code)] // see above

mod buffers;
mod graphs;
mod inputs;
mod kernels;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result, sys,
};
use candle_core::{DType, Device, Error, Result, Tensor};

use self::buffers::Buffers;
use self::graphs::Graphs;
use self::inputs::Inputs;
use self::kernels::{
    Address, AttentionArguments, EmbeddingArguments, Launcher, NormArguments, Product, address,
    int, optional,
};
use super::{
    Attention, Choice, Embedding, Epilogue, Heads, LayerPages, Linear, Matrix, Norm, Ops, Pass,
    PositionTable, RowResult, StepInputs, StepResult, StepTensors,
};

/// Blocks that the tables of a recorded step may name; a step that names more runs as it comes. 4 MB on the device.
const MAX_RECORDED_BLOCKS: usize = 1 << 20;

/// What [`Ops::launch`] allows: steps that are launched and not collected.
const STEPS_UNDER_WAY: usize = 2;

/// What the kernels give for a row whose logits are not numbers.
const NO_TOKEN: u32 = u32::MAX;

/// A CUDA device.
pub(super) struct CudaOps {
    device: Device,
    stream: Arc<CudaStream>,
    launcher: Launcher,
    state: RefCell<State>,
    graphs: RefCell<Graphs>,
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

/// The step whose operations are being launched.
#[derive(Clone)]
struct Current {
    inputs: Arc<Inputs>,
    /// T, filled up if it is recorded.
    rows: usize,
    /// Rows of its longest span.
    longest: usize,
    /// Whether outputs go to the buffers of recorded passes.
    buffered: bool,
}

/// Where greedy tokens are chosen.
struct Chosen {
    tokens: CudaSlice<u32>,
    /// Zeros between steps.
    best: CudaSlice<u64>,
}

struct Scratch {
    sums: CudaSlice<u8>,
    /// Zeros between steps.
    arrivals: CudaSlice<u32>,
}

/// Memory of the host that the device reads and writes.
struct Pinned {
    inputs: PinnedHostSlice<u32>,
    tokens: PinnedHostSlice<u32>,
    start: CudaEvent,
    end: CudaEvent,
}

/// A step that is under way.
struct Launched {
    pinned: Pinned,
    rows: Vec<AwaitedRow>,
    hidden: Tensor,
    pass: Pass,
    /// Kept until the device has read them.
    _inputs: Arc<Inputs>,
    _choice: Arc<Chosen>,
}

/// What a wanted row will give.
enum AwaitedRow {
    /// The token at this index.
    Token(usize),
    Logits(Vec<f32>),
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
            recorded_inputs: Arc::new(Inputs::new(&stream, graphs::MAX_ROWS, MAX_RECORDED_BLOCKS)?),
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

    fn product(
        &self,
        x: &Tensor,
        norm: Option<&Norm>,
        linear: &Linear,
        (epilogue, residual): (Epilogue, Option<&Tensor>),
    ) -> Result<Tensor> {
        let weight = dense(&linear.weight)?;
        let (rows, inputs) = x.dims2()?;
        let outputs = weight.dim(0)?;
        let (activation, gated) = kernels::epilogue(epilogue);
        let dtype = kernels::dtype(x)?;
        let taken_along = Launcher::product_norms(int(rows)?, int(inputs)?, dtype);
        let normed = match norm {
            Some(norm) if !taken_along => Some(self.norm(x, norm, None)?),
            _ => None,
        };
        let width = if gated == 1 { outputs / 2 } else { outputs };
        let out = self.output(rows, width, x.dtype())?;
        let product = Product {
            x: self.address(normed.as_ref().unwrap_or(x))?,
            weight: self.address(weight)?,
            bias: self.optional(linear.bias.as_ref())?,
            residual: self.optional(residual)?,
            out: self.address(&out)?,
            norm: self.norm_arguments(norm.filter(|_| taken_along))?,
            rows: int(rows)?,
            inputs: int(inputs)?,
            outputs: int(outputs)?,
            activation,
            gated,
            dtype,
        };
        // SAFETY: the addresses are of tensors whose sizes are those given; memory that is freed on a stream is
        // reused behind what is on it already.
        unsafe { self.launcher.product(&product)? };
        Ok(out)
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

    /// Runs the pass, into the buffers of recorded passes or new ones.
    fn run_pass(
        &self,
        current: Current,
        forward: &mut dyn FnMut() -> Result<StepTensors>,
        choice: &Chosen,
    ) -> Result<StepTensors> {
        {
            let mut state = self.state.borrow_mut();
            state.buffers.rewind();
            state.current = Some(current);
        }
        let tensors = forward();
        self.state.borrow_mut().current = None;
        let tensors = tensors?;
        if let Some(logits) = &tensors.logits {
            self.choose(logits, choice)?;
        }
        Ok(tensors)
    }

    /// The best token of each row of logits (R, V).
    fn choose(&self, logits: &Tensor, choice: &Chosen) -> Result<()> {
        let (rows, vocabulary) = logits.dims2()?;
        let tokens = choice.tokens.device_ptr(&self.stream).0;
        let best = choice.best.device_ptr(&self.stream).0;
        let sizes = (int(rows)?, int(vocabulary)?);
        let dtype = kernels::dtype(logits)?;
        let addresses = [self.address(logits)?, best, tokens];
        // SAFETY: the choice has room for as many rows.
        unsafe { self.launcher.argmax(addresses, sizes, dtype) }
    }

    /// Puts tokens that the step before chose where this step's inputs want them.
    fn carry(&self, step: &StepInputs, inputs: &Inputs) -> Result<()> {
        if step.carried.is_empty() {
            return Ok(());
        }
        let last = self.state.borrow().last_choice.clone();
        let Some(last) = last else {
            candle_core::bail!("a first step has no tokens of one before it")
        };
        let chosen = last.tokens.device_ptr(&self.stream).0;
        let (rows, from) = inputs.carried();
        let addresses = [inputs.ids(), rows, from, chosen];
        // SAFETY: carried rows are rows of this step and of the one before, whose choice is kept.
        unsafe { self.launcher.carry(addresses, int(step.carried.len())?) }
    }

    /// Pinned memory with room for a step.
    fn pinned(&self, inputs: usize, tokens: usize) -> Result<Pinned> {
        let mut state = self.state.borrow_mut();
        let fits = |spare: &Pinned| spare.inputs.len() >= inputs && spare.tokens.len() >= tokens;
        if let Some(index) = state.spare.iter().position(fits) {
            return Ok(state.spare.swap_remove(index));
        }
        state.spare.truncate(STEPS_UNDER_WAY);
        Pinned::new(
            &self.stream,
            inputs.next_power_of_two(),
            tokens.max(graphs::MAX_ROWS),
        )
    }

    /// Runs a step on the device as a graph: replays it, or runs it and records it for the next time.
    fn run_recorded(
        &self,
        size: usize,
        current: &Current,
        forward: &mut dyn FnMut() -> Result<StepTensors>,
        choice: &Chosen,
    ) -> Result<(StepTensors, Pass)> {
        let mut graphs = self.graphs.borrow_mut();
        if let Some(recorded) = graphs.get(size) {
            recorded.replay()?;
            return Ok((recorded.tensors.clone(), Pass::Graph));
        }
        let tensors = self.run_pass(current.clone(), forward, choice)?;
        graphs.record(size, &self.stream, || {
            self.run_pass(current.clone(), forward, choice)
        });
        let reason = "no graph of its batch size yet";
        Ok((tensors, Pass::Eager { reason }))
    }

    /// What the wanted rows will give; logits are fetched now, since the next step may overwrite them.
    fn awaited(&self, step: &StepInputs, tensors: &StepTensors) -> Result<Vec<AwaitedRow>> {
        let mut rows = Vec::with_capacity(step.wanted.len());
        for (index, wanted) in step.wanted.iter().enumerate() {
            rows.push(match (wanted.choice, &tensors.logits) {
                (Choice::Host, Some(logits)) => {
                    let row = logits.narrow(0, index, 1)?.squeeze(0)?;
                    AwaitedRow::Logits(row.to_dtype(DType::F32)?.to_vec1()?)
                }
                _ => AwaitedRow::Token(index),
            });
        }
        Ok(rows)
    }

    /// Memory for contexts that are split into parts: sums, and how many parts have arrived.
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

    fn launch(
        &self,
        step: &StepInputs,
        forward: &mut dyn FnMut() -> Result<StepTensors>,
    ) -> Result<()> {
        self.stream
            .context()
            .bind_to_thread()
            .map_err(Error::wrap)?;
        let (tokens, blocks) = (step.tokens.len(), step.blocks.len());
        let (recorded_inputs, recorded_choice) = {
            let state = self.state.borrow();
            (
                Arc::clone(&state.recorded_inputs),
                Arc::clone(&state.recorded_choice),
            )
        };
        let size = Graphs::size_for(step).and_then(|size| {
            let fits = recorded_inputs.has_room(size, blocks);
            fits.then_some(size)
                .ok_or("its contexts are longer than any graph's")
        });
        let (inputs, choice) = if size.is_ok() {
            (recorded_inputs, recorded_choice)
        } else {
            let choice = Chosen::new(&self.stream, step.wanted.len().max(1))?;
            (
                Arc::new(Inputs::new(&self.stream, tokens, blocks)?),
                Arc::new(choice),
            )
        };
        let current = Current {
            rows: size.unwrap_or(tokens),
            longest: step.spans.iter().map(|span| span.len).max().unwrap_or(0),
            buffered: size.is_ok(),
            inputs: Arc::clone(&inputs),
        };
        let mut pinned = self.pinned(inputs.len_with(blocks), step.wanted.len())?;
        pinned.start.record(&self.stream).map_err(Error::wrap)?;
        inputs.upload(step, current.rows, &mut pinned.inputs, &self.stream)?;
        self.carry(step, &inputs)?;
        let (tensors, pass) = match size {
            Ok(size) => self.run_recorded(size, &current, forward, &choice)?,
            Err(reason) => {
                let tensors = self.run_pass(current, forward, &choice)?;
                (tensors, Pass::Eager { reason })
            }
        };
        let rows = self.awaited(step, &tensors)?;
        pinned.fetch(&choice, step.wanted.len(), &self.stream)?;
        pinned.end.record(&self.stream).map_err(Error::wrap)?;
        let mut state = self.state.borrow_mut();
        state.last_choice = Some(Arc::clone(&choice));
        state.under_way.push_back(Launched {
            pinned,
            rows,
            hidden: tensors.hidden.narrow(0, 0, tokens)?,
            pass,
            _inputs: inputs,
            _choice: choice,
        });
        Ok(())
    }

    fn collect(&self) -> Result<StepResult> {
        let launched = self.state.borrow_mut().under_way.pop_front();
        let Some(launched) = launched else {
            candle_core::bail!("no step was launched")
        };
        let pinned = launched.pinned;
        let milliseconds = pinned.start.elapsed_ms(&pinned.end).map_err(Error::wrap)?;
        let tokens = pinned.tokens.as_slice().map_err(Error::wrap)?;
        let rows = launched.rows.into_iter().map(|row| match row {
            AwaitedRow::Token(index) if tokens[index] != NO_TOKEN => {
                RowResult::Token(tokens[index])
            }
            // As the host would see it: that request fails, and no other.
            AwaitedRow::Token(_) => RowResult::Logits(vec![f32::NAN]),
            AwaitedRow::Logits(logits) => RowResult::Logits(logits),
        });
        let rows = rows.collect();
        self.state.borrow_mut().spare.push(pinned);
        Ok(StepResult {
            rows,
            hidden: launched.hidden,
            device_time: Some(Duration::from_secs_f64(f64::from(milliseconds) / 1e3)),
            pass: launched.pass,
        })
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
        let heads = attention.heads;
        let out = self.output(current.rows, heads.query_width(), qkv.dtype())?;
        let splits = Launcher::splits(int(current.rows)?, int(heads.keys)?);
        let [scratch, arrivals] = self.scratch(heads)?;
        let rope = attention.rope.as_ref().map(|rope| &rope.on_device);
        let head_norms = attention.head_norms.as_ref();
        let arguments = AttentionArguments {
            qkv: self.address(qkv)?,
            keys: self.address(&pages.keys)?,
            values: self.address(&pages.values)?,
            out: self.address(&out)?,
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
            longest: int(current.longest)?,
            heads: int(heads.queries)?,
            kv_heads: int(heads.keys)?,
            dim: int(heads.dim)?,
            dtype: kernels::dtype(qkv)?,
            splits,
        };
        // SAFETY: as in `product`; slots and tables name blocks of these pages. The operation may change `qkv`, which
        // nothing reads after it.
        unsafe { self.launcher.attention(&arguments)? };
        Ok(out)
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

/// The matrix as the kernels take it: the loader packs none for a GPU.
fn dense(matrix: &Matrix) -> Result<&Tensor> {
    match matrix {
        Matrix::Dense(weight) => Ok(weight),
        Matrix::Packed { .. } => candle_core::bail!("packed matrices are for CPUs"),
    }
}

impl Chosen {
    fn new(stream: &Arc<CudaStream>, rows: usize) -> Result<Self> {
        Ok(Self {
            tokens: stream.alloc_zeros(rows).map_err(Error::wrap)?,
            best: stream.alloc_zeros(rows).map_err(Error::wrap)?,
        })
    }
}

impl Scratch {
    /// Enough for every number of rows.
    fn new(stream: &Arc<CudaStream>, heads: Heads) -> Result<Self> {
        let (mut bytes, mut arrivals) = (1, 1);
        for rows in 1..=graphs::MAX_ROWS {
            let splits = Launcher::splits(int(rows)?, int(heads.keys)?);
            if splits > 1 {
                let (queries, dim) = (int(heads.queries)?, int(heads.dim)?);
                bytes = bytes.max(Launcher::scratch_bytes(int(rows)?, queries, dim, splits));
                arrivals = arrivals.max(rows * heads.keys);
            }
        }
        Ok(Self {
            sums: stream.alloc_zeros(bytes).map_err(Error::wrap)?,
            arrivals: stream.alloc_zeros(arrivals).map_err(Error::wrap)?,
        })
    }
}

impl Pinned {
    fn new(stream: &Arc<CudaStream>, inputs: usize, tokens: usize) -> Result<Self> {
        let context = stream.context();
        let timed = || {
            let event = context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
            event.map_err(Error::wrap)
        };
        // SAFETY: what is read of them was written before, inputs by `Inputs::upload`, tokens by `fetch`. Tokens are
        // read by the host, so their memory is not write-combined.
        let (inputs, tokens) = unsafe {
            let inputs = context.alloc_pinned(inputs).map_err(Error::wrap)?;
            (
                inputs,
                context
                    .alloc_pinned_with_flags(tokens, 0)
                    .map_err(Error::wrap)?,
            )
        };
        Ok(Self {
            inputs,
            tokens,
            start: timed()?,
            end: timed()?,
        })
    }

    /// Has chosen tokens copied here.
    fn fetch(&mut self, choice: &Chosen, count: usize, stream: &CudaStream) -> Result<()> {
        let from = choice.tokens.device_ptr(stream).0;
        let to = &mut self.tokens.as_mut_slice().map_err(Error::wrap)?[..count];
        // SAFETY: both are kept until the step has been collected, which waits for `end`, recorded after this.
        let copied = unsafe { result::memcpy_dtoh_async(to, from, stream.cu_stream()) };
        copied.map_err(Error::wrap)
    }
}

/// Has the device's allocator keep what is freed: by default each wait for the device returns it to the driver.
fn keep_freed_memory(stream: &CudaStream) -> Result<()> {
    let mut keep = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is the stream's, and the attribute's value is 64 bits.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device())
            .result()
            .map_err(Error::wrap)?;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast())
            .result()
            .map_err(Error::wrap)
    }
}
