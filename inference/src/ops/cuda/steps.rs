//! Steps: their inputs to the device, their pass run or replayed, their tokens back.

use std::sync::Arc;
use std::time::Duration;

use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::{DType, Device, Error, Result, Tensor};

use super::CudaOps;
use super::graphs::{self, Graphs};
use super::inputs::{self, Inputs};
use super::kernels::{self, ChooseArguments, LOGPROBS_WORDS, int};
use super::memory::{Chosen, Pinned};
use crate::ops::{
    Choice, ChosenToken, MAX_TOP_LOGPROBS, Pass, RowLogprobs, RowResult, StepInputs, StepResult,
    StepTensors,
};

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
    /// Of the logits, (R, V).
    logits: Option<(usize, DType)>,
    hidden: Tensor,
    pass: Pass,
    /// Kept until the device has read them.
    _inputs: Arc<Inputs>,
    _choice: Arc<Chosen>,
}

/// What a wanted row will give.
#[derive(Debug, Clone, Copy)]
enum AwaitedRow {
    /// The token chosen, and log probabilities of so many best ones beside it if they are wanted.
    Token(Option<usize>),
    /// The logits that are fetched at this place.
    Logits(usize),
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
        let (tokens, tail) = (step.tokens.len(), inputs::tail_len(step));
        let (recorded_inputs, recorded_choice) = {
            let state = self.state.borrow();
            (
                Arc::clone(&state.recorded_inputs),
                Arc::clone(&state.recorded_choice),
            )
        };
        let size = Graphs::size_for(step).and_then(|size| {
            let fits = recorded_inputs.has_room(size, tail);
            fits.then_some(size)
                .ok_or("its inputs are longer than any graph's")
        });
        let (inputs, choice) = if size.is_ok() {
            (recorded_inputs, recorded_choice)
        } else {
            let choice = Chosen::new(&self.stream, step.wanted.len().max(1))?;
            (
                Arc::new(Inputs::new(&self.stream, tokens, tail)?),
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
        let mut pinned = self.pinned(inputs.len_with(tail), step.wanted.len())?;
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
        let rows = tensors
            .logits
            .as_ref()
            .map_or_else(Vec::new, |_| awaited(step));
        let says_logprobs = |row: &AwaitedRow| matches!(row, AwaitedRow::Token(Some(_)));
        let fetched = (rows.len(), rows.iter().any(says_logprobs));
        pinned.fetch(&choice, fetched, &self.stream)?;
        let logits = self.fetch_logits(&rows, &tensors, &mut pinned)?;
        pinned.end.record(&self.stream).map_err(Error::wrap)?;
        let mut state = self.state.borrow_mut();
        state.last_choice = Some(Arc::clone(&choice));
        state.under_way.push_back(Launched {
            pinned,
            rows,
            logits,
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
        let rows = launched.rows.iter().enumerate();
        let rows = rows.map(|(index, row)| match *row {
            AwaitedRow::Token(logprobs) => chosen_row(&pinned, index, logprobs),
            AwaitedRow::Logits(place) => fetched_logits(&pinned, place, launched.logits),
        });
        let rows = rows.collect::<Result<_>>()?;
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
        let choose = ChooseArguments {
            logits: self.address(logits)?,
            choices: inputs.choices(),
            wanted: inputs.wanted(),
            ids: inputs.ids(),
            penalized: inputs.tables(),
            chosen: choice.tokens.device_ptr(&self.stream).0,
            logprobs: choice.logprobs.device_ptr(&self.stream).0,
            rows: int(rows)?,
            vocabulary: int(vocabulary)?,
            dtype: kernels::dtype(logits)?,
        };
        // SAFETY: the choice, and the inputs' words of it, have room for as many rows; pairs are within the tail.
        unsafe { self.launcher.choose(&choose) }
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

    /// Has the logits of rows that the host chooses for brought there; says how long a row is, and its numbers.
    fn fetch_logits(
        &self,
        rows: &[AwaitedRow],
        tensors: &StepTensors,
        pinned: &mut Pinned,
    ) -> Result<Option<(usize, DType)>> {
        let Some(logits) = &tensors.logits else {
            return Ok(None);
        };
        let (vocabulary, dtype) = (logits.dim(1)?, logits.dtype());
        let is_hosts = |(_, row): &(usize, &AwaitedRow)| matches!(row, AwaitedRow::Logits(_));
        let hosts = rows.iter().enumerate().filter(is_hosts);
        let hosts: Vec<usize> = hosts.map(|(index, _)| index).collect();
        let bytes = vocabulary * dtype.size_in_bytes();
        pinned.fetch_logits((self.address(logits)?, bytes), &hosts, &self.stream)?;
        Ok(Some((vocabulary, dtype)))
    }
}

/// What the wanted rows will give.
fn awaited(step: &StepInputs) -> Vec<AwaitedRow> {
    let mut places = 0..;
    let rows = step.wanted.iter().map(|wanted| match wanted.choice {
        Choice::Host => AwaitedRow::Logits(places.next().unwrap_or_default()),
        Choice::Device(sampling) => AwaitedRow::Token(sampling.logprobs.map(|top| top as usize)),
    });
    rows.collect()
}

/// The token that was chosen for the row at `index`, with log probabilities of the `top` best ones if there is a number.
fn chosen_row(pinned: &Pinned, index: usize, top: Option<usize>) -> Result<RowResult> {
    let token = pinned.tokens.as_slice().map_err(Error::wrap)?[index];
    if token == NO_TOKEN {
        // As the host would see it: that request fails, and no other.
        return Ok(RowResult::Logits(vec![f32::NAN]));
    }
    let logprobs = top.map(|top| {
        let words = pinned.logprobs.as_slice().map_err(Error::wrap)?;
        let words = &words[index * LOGPROBS_WORDS..][..LOGPROBS_WORDS];
        let (own, best) = words.split_at(2);
        let (tokens, values) = best.split_at(MAX_TOP_LOGPROBS);
        let best = tokens.iter().zip(values).take(top);
        Ok::<_, Error>(RowLogprobs {
            chosen: f32::from_bits(own[0]),
            rank: own[1],
            top: best
                .filter(|(token, _)| **token != NO_TOKEN)
                .map(|(token, value)| (*token, f32::from_bits(*value)))
                .collect(),
        })
    });
    Ok(RowResult::Token(ChosenToken {
        token,
        logprobs: logprobs.transpose()?,
    }))
}

/// The row of logits that was fetched to this place.
fn fetched_logits(
    pinned: &Pinned,
    place: usize,
    shape: Option<(usize, DType)>,
) -> Result<RowResult> {
    let (Some(bytes), Some((vocabulary, dtype))) = (&pinned.logits, shape) else {
        candle_core::bail!("no logits were fetched")
    };
    let len = vocabulary * dtype.size_in_bytes();
    let bytes = &bytes.as_slice().map_err(Error::wrap)?[place * len..][..len];
    let row = Tensor::from_raw_buffer(bytes, dtype, &[vocabulary], &Device::Cpu)?;
    Ok(RowResult::Logits(row.to_dtype(DType::F32)?.to_vec1()?))
}
