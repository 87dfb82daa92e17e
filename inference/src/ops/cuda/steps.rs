//! Steps: their inputs to the device, their pass run or replayed, their tokens back.

use std::sync::Arc;
use std::time::Duration;

use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::{Error, Result, Tensor};

use super::CudaOps;
use super::graphs::{self, Graphs};
use super::inputs::{self, Inputs};
use super::kernels::{self, int};
use super::memory::{Chosen, Pinned};
use crate::ops::{Choice, Pass, RowResult, StepInputs, StepResult, StepTensors, WantedRow, shared};

/// What [`crate::ops::Ops::launch`] allows: steps that are launched and not collected.
const STEPS_UNDER_WAY: usize = 2;

/// What the kernels give for a row whose logits are not numbers.
const NO_TOKEN: u32 = u32::MAX;

/// The step whose operations are being launched.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) inputs: Arc<Inputs>,
    /// T, filled up if it is recorded.
    pub(super) rows: usize,
    /// Spans of one row, and tiles of the others.
    pub(super) singles: usize,
    pub(super) tiles: usize,
    /// Whether outputs go to the buffers of recorded passes.
    pub(super) buffered: bool,
}

/// A step that is under way.
pub(super) struct Launched {
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
    Fetched(RowResult),
}

impl CudaOps {
    /// See [`crate::ops::Ops::launch`].
    pub(super) fn launch_step(
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
            singles: step.spans.iter().filter(|span| span.len == 1).count(),
            tiles: inputs::tiles(step).count(),
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

    /// See [`crate::ops::Ops::collect`].
    pub(super) fn collect_step(&self) -> Result<StepResult> {
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
            AwaitedRow::Fetched(row) => row,
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
        let current = self.state.borrow_mut().current.take();
        let tensors = tensors?;
        if let (Some(logits), Some(current)) = (&tensors.logits, current) {
            self.choose(logits, &current.inputs, choice)?;
        }
        Ok(tensors)
    }

    /// A token for each row of logits (R, V).
    fn choose(&self, logits: &Tensor, inputs: &Inputs, choice: &Chosen) -> Result<()> {
        let (rows, vocabulary) = logits.dims2()?;
        let tokens = choice.tokens.device_ptr(&self.stream).0;
        let sizes = (int(rows)?, int(vocabulary)?);
        let dtype = kernels::dtype(logits)?;
        let addresses = [self.address(logits)?, tokens];
        // SAFETY: the choice, and the inputs' draws, have room for as many rows.
        unsafe {
            self.launcher
                .choose(addresses, &inputs.draws(), sizes, dtype)
        }
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
        let rows = step.wanted.iter().enumerate();
        let of_host = |(index, wanted): (usize, &WantedRow)| {
            (wanted.choice == Choice::Host).then_some(index as u32)
        };
        let rows: Vec<u32> = rows.filter_map(of_host).collect();
        let mut logits = Vec::new();
        if let Some(all) = tensors.logits.as_ref().filter(|_| !rows.is_empty()) {
            logits = shared::rows_of(Some(&shared::look_up(all, &rows)?))?;
        }
        let mut logits = logits.into_iter();
        let awaited = step.wanted.iter().enumerate().map(|(index, wanted)| {
            let fetched = (wanted.choice == Choice::Host).then(|| logits.next());
            match fetched.flatten() {
                Some(row) => AwaitedRow::Fetched(row),
                None => AwaitedRow::Token(index),
            }
        });
        Ok(awaited.collect())
    }
}
