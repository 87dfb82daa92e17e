//! A step's inputs on their way to the device: all in one buffer, so that one copy takes them there.

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result,
};

use super::kernels::{Address, DrawArguments, TILE_ROWS};
use crate::ops::{Choice, Draw, Span, StepInputs};

/// Of rows that fill up a recorded batch: their keys and values are kept nowhere. As `NO_SLOT` of the kernels.
const NO_SLOT: u32 = u32::MAX;

/// The parts of the buffer, each as long as the rows it is made for; the block tables come last.
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
    Temperatures,
    MinP,
    TopK,
    TopP,
    KeysLow,
    KeysHigh,
    Tables,
}

/// Of rows whose best token is wanted, or none. As the kernels have it: a temperature of 0.
const NO_DRAW: Draw = Draw {
    temperature: 0.0,
    min_p: 0.0,
    top_k: 0,
    top_p: 1.0,
    key: 0,
};

/// Numbers that inputs of so many rows and blocks take.
fn len(rows: usize, blocks: usize) -> usize {
    Section::Tables as usize * rows + blocks
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
    let draws = step.wanted.iter().map(|wanted| match wanted.choice {
        Choice::Draw(draw) => draw,
        Choice::Host | Choice::Greedy => NO_DRAW,
    });
    let draws: Vec<Draw> = draws.chain(std::iter::repeat_n(NO_DRAW, missing)).collect();
    let mut write_draws = |section, number: fn(&Draw) -> u32| {
        write(section, &mut draws.iter().map(number));
    };
    write_draws(Section::Temperatures, |draw| draw.temperature.to_bits());
    write_draws(Section::MinP, |draw| draw.min_p.to_bits());
    write_draws(Section::TopK, |draw| draw.top_k);
    write_draws(Section::TopP, |draw| draw.top_p.to_bits());
    write_draws(Section::KeysLow, |draw| draw.key as u32);
    write_draws(Section::KeysHigh, |draw| (draw.key >> 32) as u32);
    write(Section::Tables, &mut step.blocks.iter().copied());
    len(capacity, step.blocks.len())
}

/// A step's inputs on the device.
#[derive(Debug)]
pub(super) struct Inputs {
    buffer: CudaSlice<u32>,
    capacity: usize,
    base: Address,
}

impl Inputs {
    /// Room for steps of so many rows and blocks.
    pub(super) fn new(
        stream: &std::sync::Arc<CudaStream>,
        rows: usize,
        blocks: usize,
    ) -> Result<Self> {
        let buffer = stream
            .alloc_zeros(len(rows, blocks))
            .map_err(candle_core::Error::wrap)?;
        let base = buffer.device_ptr(stream).0;
        Ok(Self {
            buffer,
            capacity: rows,
            base,
        })
    }

    /// Whether a step finds room.
    pub(super) fn has_room(&self, rows: usize, blocks: usize) -> bool {
        rows <= self.capacity && len(self.capacity, blocks) <= self.buffer.len()
    }

    /// Numbers that a step with so many blocks takes.
    pub(super) fn len_with(&self, blocks: usize) -> usize {
        len(self.capacity, blocks)
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

    pub(super) fn tables(&self) -> Address {
        self.at(Section::Tables)
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
    pub(super) fn draws(&self) -> DrawArguments {
        DrawArguments {
            temperatures: self.at(Section::Temperatures),
            min_p: self.at(Section::MinP),
            top_k: self.at(Section::TopK),
            top_p: self.at(Section::TopP),
            keys_low: self.at(Section::KeysLow),
            keys_high: self.at(Section::KeysHigh),
        }
    }

    /// Rows that take their tokens from the step before, and which they take.
    pub(super) fn carried(&self) -> (Address, Address) {
        (self.at(Section::CarriedRows), self.at(Section::CarriedFrom))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Choice;

    #[test]
    fn a_step_is_filled_up_with_rows_that_are_kept_nowhere() {
        let mut step = StepInputs::default();
        step.push(&[7], 3, &[5]);
        step.want_last(Choice::Greedy);
        step.push(&[8], 17, &[6, 9]);
        step.want_last(Choice::Draw(Draw {
            temperature: 0.5,
            min_p: 0.25,
            top_k: 9,
            top_p: 0.75,
            key: 0x1_0000_0002,
        }));
        let mut out = vec![77; len(4, 3)];
        assert_eq!(lay_out(&step, 3, 4, &mut out), out.len());
        assert_eq!(out[..3], [7, 8, 0], "tokens");
        assert_eq!(out[4..7], [3, 17, 0], "positions");
        assert_eq!(out[8..11], [5 * 16 + 3, 9 * 16 + 1, NO_SLOT], "slots");
        assert_eq!(out[12..15], [0, 1, 0], "span of each row");
        assert_eq!(out[16..18], [0, 1], "where tables start");
        assert_eq!(out[20..22], [0, 1], "rows wanted");
        assert_eq!(out[32..34], [0, 1], "rows that are alone");
        let temperature = 0.5_f32.to_bits();
        assert_eq!(out[44..47], [0, temperature, 0], "temperatures");
        assert_eq!(out[48..50], [0, 0.25_f32.to_bits()], "min p");
        assert_eq!(out[52..54], [0, 9], "top k");
        let [all, share] = [1.0_f32, 0.75].map(f32::to_bits);
        assert_eq!(out[56..59], [all, share, all], "top p");
        assert_eq!([out[61], out[65]], [2, 1], "keys");
        assert_eq!(out[68..], [5, 6, 9], "tables");
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
