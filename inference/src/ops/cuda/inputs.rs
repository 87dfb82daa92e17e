//! A step's inputs on their way to the device: all in one buffer, so that one copy takes them there.

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result,
};

use super::kernels::{Address, ChoiceWords, TILE_ROWS};
use crate::ops::{Choice, Penalties, Sampling, Span, StepInputs, WantedRow};

/// Of rows that fill up a recorded batch: their keys and values are kept nowhere. As `NO_SLOT` of the kernels.
const NO_SLOT: u32 = u32::MAX;

/// The parts of the buffer, each as long as the rows it is made for. Behind them are [`ChoiceWords`] of each row, then
/// the tail: block tables, and what rows have penalized as pairs of a token and how often it is in the output.
#[derive(Debug, Clone, Copy)]
enum Section {
    Ids,
    Positions,
    Slots,
    SpanOf,
    TableStarts,
    Wanted,
    CarriedRows,
    CarriedFrom,
    SingleRows,
    TileRows,
    TileLengths,
    Choices,
}

/// In place of a token that is not known yet.
const NO_TOKEN: u32 = u32::MAX;

/// Where the tail starts.
fn tail(rows: usize) -> usize {
    (Section::Choices as usize + ChoiceWords::LEN) * rows
}

/// The most numbers that a step's tail takes: what has no length of its own.
pub(super) fn tail_len(step: &StepInputs) -> usize {
    step.blocks.len() + 2 * (step.penalized.len() + step.carried.len())
}

/// A row's token that the step before has chosen counts among those that have occurred.
fn counts_last(step: &StepInputs, wanted: &WantedRow, sampling: &Sampling) -> bool {
    let carried = |row| step.carried.binary_search_by_key(&row, |it| it.row);
    sampling.penalties != Penalties::NONE && carried(wanted.row).is_ok()
}

/// How a row's token is chosen, if what it has penalized begins there in the tail.
fn choice_words(step: &StepInputs, wanted: &WantedRow, penalized: usize) -> ChoiceWords {
    let Choice::Device(sampling) = wanted.choice else {
        return ChoiceWords::default();
    };
    let counts_last = counts_last(step, wanted, &sampling);
    let count = wanted.penalized.len() + usize::from(counts_last);
    let penalties = sampling.penalties;
    let greedy = ChoiceWords {
        repetition: penalties.repetition,
        frequency: penalties.frequency,
        presence: penalties.presence,
        penalized: penalized as u32,
        penalized_count: count as u32,
        counts_last: u32::from(counts_last),
        logprobs: sampling.logprobs.map_or(0, |top| top + 1),
        ..ChoiceWords::default()
    };
    sampling.draw.map_or(greedy, |draw| ChoiceWords {
        temperature: draw.temperature,
        min_p: draw.min_p,
        top_k: draw.top_k,
        top_p: draw.top_p,
        key_low: draw.key as u32,
        key_high: (draw.key >> 32) as u32,
        ..greedy
    })
}

/// Rows of spans with more than one, as they are attended with together: where they start, and how many.
pub(super) fn tiles(step: &StepInputs) -> impl Iterator<Item = (u32, u32)> {
    let long = step.spans.iter().filter(|span| span.len > 1);
    long.flat_map(|span| {
        (0..span.len).step_by(TILE_ROWS).map(|at| {
            let len = TILE_ROWS.min(span.len - at);
            ((span.start + at) as u32, len as u32)
        })
    })
}

/// Lays a step out for a buffer made for `capacity` rows, filled up to `rows`; returns how much of `out` it took.
fn lay_out(step: &StepInputs, rows: usize, capacity: usize, out: &mut [u32]) -> usize {
    let mut write = |section: Section, values: &mut dyn Iterator<Item = u32>| {
        let start = section as usize * capacity;
        for (at, value) in out[start..].iter_mut().zip(values) {
            *at = value;
        }
    };
    let missing = rows - step.tokens.len();
    let filled = |values: &[u32], with: u32| {
        let values = values.to_vec().into_iter();
        values.chain(std::iter::repeat_n(with, missing))
    };
    write(Section::Ids, &mut filled(&step.tokens, 0));
    write(Section::Positions, &mut filled(&step.positions, 0));
    write(Section::Slots, &mut filled(&step.slots, NO_SLOT));
    let span_of = step.spans.iter().enumerate();
    let mut span_of = span_of.flat_map(|(index, span)| std::iter::repeat_n(index as u32, span.len));
    let fill = &mut std::iter::repeat_n(0, missing);
    write(Section::SpanOf, &mut (&mut span_of).chain(fill));
    let starts = &mut step.spans.iter().map(|span| span.table as u32);
    write(Section::TableStarts, starts);
    write(
        Section::Wanted,
        &mut step.wanted.iter().map(|wanted| wanted.row),
    );
    let carried = &step.carried;
    write(
        Section::CarriedRows,
        &mut carried.iter().map(|carried| carried.row),
    );
    write(
        Section::CarriedFrom,
        &mut carried.iter().map(|carried| carried.from),
    );
    let starts = |span: &Span| span.start as u32;
    let singles = step.spans.iter().filter(|span| span.len == 1);
    write(Section::SingleRows, &mut singles.map(starts));
    write(Section::TileRows, &mut tiles(step).map(|(start, _)| start));
    write(Section::TileLengths, &mut tiles(step).map(|(_, len)| len));
    let (mut choices, mut pairs) = (Vec::new(), Vec::new());
    for wanted in &step.wanted {
        let choice = choice_words(step, wanted, step.blocks.len() + pairs.len());
        if choice.penalized_count > 0 {
            let penalized = &step.penalized[wanted.penalized.clone()];
            pairs.extend(penalized.iter().flat_map(|it| [it.token, it.times]));
        }
        if choice.counts_last > 0 {
            pairs.extend([NO_TOKEN, 0]);
        }
        choices.extend(choice.words());
    }
    choices.resize(rows * ChoiceWords::LEN, 0);
    write(Section::Choices, &mut choices.into_iter());
    let tail = &mut out[tail(capacity)..];
    let (tables, rest) = tail.split_at_mut(step.blocks.len());
    tables.copy_from_slice(&step.blocks);
    rest[..pairs.len()].copy_from_slice(&pairs);
    self::tail(capacity) + step.blocks.len() + pairs.len()
}

/// A step's inputs on the device.
#[derive(Debug)]
pub(super) struct Inputs {
    buffer: CudaSlice<u32>,
    capacity: usize,
    base: Address,
}

impl Inputs {
    /// Room for steps of so many rows, and such a tail.
    pub(super) fn new(
        stream: &std::sync::Arc<CudaStream>,
        rows: usize,
        tail_len: usize,
    ) -> Result<Self> {
        let buffer = stream
            .alloc_zeros(tail(rows) + tail_len)
            .map_err(candle_core::Error::wrap)?;
        let base = buffer.device_ptr(stream).0;
        Ok(Self {
            buffer,
            capacity: rows,
            base,
        })
    }

    /// Whether a step finds room.
    pub(super) fn has_room(&self, rows: usize, tail_len: usize) -> bool {
        rows <= self.capacity && self.len_with(tail_len) <= self.buffer.len()
    }

    /// Numbers that a step with such a tail takes.
    pub(super) fn len_with(&self, tail_len: usize) -> usize {
        tail(self.capacity) + tail_len
    }

    /// Copies a step there, filled up to `rows`. `through` must not be in use by an earlier copy.
    pub(super) fn upload(
        &self,
        step: &StepInputs,
        rows: usize,
        through: &mut PinnedHostSlice<u32>,
        stream: &CudaStream,
    ) -> Result<()> {
        let host = through.as_mut_slice().map_err(candle_core::Error::wrap)?;
        let used = lay_out(step, rows, self.capacity, host);
        // SAFETY: the buffer is as long (`has_room`), and both it and the pinned memory are kept until the step has
        // been collected, which is after the copy.
        let copied =
            unsafe { result::memcpy_htod_async(self.base, &host[..used], stream.cu_stream()) };
        copied.map_err(candle_core::Error::wrap)
    }

    fn at(&self, section: Section) -> Address {
        self.base + (section as usize * self.capacity * size_of::<u32>()) as Address
    }

    pub(super) fn ids(&self) -> Address {
        self.at(Section::Ids)
    }

    pub(super) fn positions(&self) -> Address {
        self.at(Section::Positions)
    }

    pub(super) fn slots(&self) -> Address {
        self.at(Section::Slots)
    }

    pub(super) fn span_of(&self) -> Address {
        self.at(Section::SpanOf)
    }

    pub(super) fn table_starts(&self) -> Address {
        self.at(Section::TableStarts)
    }

    /// The tail, which begins with the block tables.
    pub(super) fn tables(&self) -> Address {
        self.base + (tail(self.capacity) * size_of::<u32>()) as Address
    }

    pub(super) fn wanted(&self) -> Address {
        self.at(Section::Wanted)
    }

    pub(super) fn single_rows(&self) -> Address {
        self.at(Section::SingleRows)
    }

    /// Where tiles start, and how many rows they have.
    pub(super) fn tiles(&self) -> (Address, Address) {
        (self.at(Section::TileRows), self.at(Section::TileLengths))
    }

    /// How the wanted rows' tokens are chosen.
    pub(super) fn choices(&self) -> Address {
        self.at(Section::Choices)
    }

    /// Rows that take their tokens from the step before, and which they take.
    pub(super) fn carried(&self) -> (Address, Address) {
        (self.at(Section::CarriedRows), self.at(Section::CarriedFrom))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Draw, Penalized};

    #[test]
    fn a_step_is_filled_up_with_rows_that_are_kept_nowhere() {
        let mut step = StepInputs::default();
        step.push(&[7], 3, &[5]);
        step.want_last(Choice::GREEDY);
        step.push(&[8], 17, &[6, 9]);
        step.carry_last(0);
        let draw = Draw {
            temperature: 0.5,
            min_p: 0.25,
            top_k: 9,
            top_p: 0.75,
            key: 0x1_0000_0002,
        };
        let penalties = Penalties {
            repetition: 2.0,
            frequency: 3.0,
            presence: 4.0,
        };
        let sampling = Sampling {
            penalties,
            draw: Some(draw),
            logprobs: Some(5),
        };
        let [twice, once] = [(70, 2), (71, 1)].map(|(token, times)| Penalized { token, times });
        step.want_last_without(Choice::Device(sampling), &[twice, once], &[71]);
        let mut out = vec![77; tail(4) + tail_len(&step)];
        let used = lay_out(&step, 3, 4, &mut out);
        assert_eq!(used, out.len());
        assert_eq!(out[..3], [7, 8, 0], "tokens");
        assert_eq!(out[4..7], [3, 17, 0], "positions");
        assert_eq!(out[8..11], [5 * 16 + 3, 9 * 16 + 1, NO_SLOT], "slots");
        assert_eq!(out[12..15], [0, 1, 0], "span of each row");
        assert_eq!(out[16..18], [0, 1], "where tables start");
        assert_eq!(out[20..22], [0, 1], "rows wanted");
        assert_eq!(out[32..34], [0, 1], "rows that are alone");
        let choices = out[44..].chunks(ChoiceWords::LEN);
        let choices: Vec<_> = choices.take(3).collect();
        let greedy = ChoiceWords {
            repetition: 1.0,
            penalized: 3,
            ..ChoiceWords::default()
        };
        assert_eq!(choices[0], greedy.words());
        let drawn = ChoiceWords {
            temperature: 0.5,
            min_p: 0.25,
            top_k: 9,
            top_p: 0.75,
            key_low: 2,
            key_high: 1,
            repetition: 2.0,
            frequency: 3.0,
            presence: 4.0,
            penalized: 3,
            penalized_count: 3,
            counts_last: 1,
            logprobs: 6,
        };
        assert_eq!(choices[1], drawn.words());
        assert_eq!(choices[2], [0; ChoiceWords::LEN]);
        let tables = [5, 6, 9];
        let penalized = [70, 2, 71, Penalized::NEVER, NO_TOKEN, 0];
        assert_eq!(out[tail(4)..], [&tables[..], &penalized].concat());
    }

    #[test]
    fn prompts_are_cut_into_tiles_and_single_rows_left_out() {
        let mut step = StepInputs::default();
        let blocks: Vec<u32> = (0..9).collect();
        step.push(&[7], 3, &blocks);
        step.push(&[1; TILE_ROWS + 5], 0, &blocks);
        step.push(&[1; 2], 9, &blocks);
        let expected = [
            (1, TILE_ROWS as u32),
            (1 + TILE_ROWS as u32, 5),
            (6 + TILE_ROWS as u32, 2),
        ];
        assert_eq!(tiles(&step).collect::<Vec<_>>(), expected);
    }
}
