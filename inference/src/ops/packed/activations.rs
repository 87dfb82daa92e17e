//! What a packed matrix is multiplied with: rows of f32, rounded to bytes block by block.

use super::format::BLOCK_COLUMNS;
use super::kernel::in_wide_vectors;

/// Largest code; -128 is left out, so that signs can be swapped.
const LARGEST: f32 = 127.0;
/// 1.5 * 2^23: added to a small float, the sum's last bits are that float rounded to an integer.
const ROUNDER: f32 = 12_582_912.0;

/// 32 columns of a row: `scale * code`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ActivationBlock {
    /// The codes, signed bytes, 4 in each number, the first one lowest.
    pub(super) quads: [i32; BLOCK_COLUMNS / 4],
    pub(super) scale: f32,
    /// Sum of the first and of the last 16 codes.
    pub(super) sums: [i32; 2],
}

impl ActivationBlock {
    /// `numbers` are 32.
    #[inline(always)]
    fn quantise(numbers: &[f32]) -> Self {
        // By its bits, as a maximum of floats would leave out what is not a number.
        let sizes = numbers.iter().map(|number| number.abs().to_bits());
        let largest = f32::from_bits(sizes.max().unwrap_or(0));
        if !largest.is_finite() {
            return Self {
                scale: f32::NAN,
                ..Self::default()
            };
        }
        let scale = largest / LARGEST;
        let inverse = LARGEST / largest;
        if inverse.is_infinite() {
            return Self::default();
        }
        let mut codes = [0i32; BLOCK_COLUMNS];
        for (code, number) in codes.iter_mut().zip(numbers) {
            *code = (number * inverse + ROUNDER).to_bits() as i32 - ROUNDER.to_bits() as i32;
        }
        let (first, last) = codes.split_at(BLOCK_COLUMNS / 2);
        Self {
            quads: std::array::from_fn(|quad| {
                let byte = |at: usize| codes[4 * quad + at] as u8;
                i32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
            }),
            scale,
            sums: [first.iter().sum(), last.iter().sum()],
        }
    }
}

/// (T, in) in blocks.
pub(super) struct Activations {
    blocks: Vec<ActivationBlock>,
    blocks_per_row: usize,
}

impl Activations {
    /// (T, in); `columns` are a multiple of 32.
    pub(super) fn quantise(x: &[f32], columns: usize) -> Self {
        let numbers = x.chunks_exact(BLOCK_COLUMNS);
        let mut blocks = vec![ActivationBlock::default(); numbers.len()];
        in_wide_vectors(|| {
            for (block, numbers) in blocks.iter_mut().zip(numbers) {
                *block = ActivationBlock::quantise(numbers);
            }
        });
        Self {
            blocks,
            blocks_per_row: columns / BLOCK_COLUMNS,
        }
    }

    /// Some rows.
    pub(super) fn tile(&self, first: usize, rows: usize) -> Tile<'_> {
        let from = first * self.blocks_per_row;
        Tile {
            blocks: &self.blocks[from..from + rows * self.blocks_per_row],
            blocks_per_row: self.blocks_per_row,
        }
    }
}

/// Some rows.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    blocks: &'a [ActivationBlock],
    blocks_per_row: usize,
}

impl<'a> Tile<'a> {
    /// Number of rows.
    pub(super) fn rows(self) -> usize {
        self.blocks.len() / self.blocks_per_row
    }

    /// The first `M` rows, and those after them.
    pub(super) fn split<const M: usize>(self) -> ([&'a [ActivationBlock]; M], Self) {
        let rows = std::array::from_fn(|row| self.row(row));
        let rest = Self {
            blocks: &self.blocks[M * self.blocks_per_row..],
            ..self
        };
        (rows, rest)
    }

    fn row(self, row: usize) -> &'a [ActivationBlock] {
        &self.blocks[row * self.blocks_per_row..(row + 1) * self.blocks_per_row]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_the_nearest_of_255_steps() {
        let numbers: Vec<f32> = (0..32).map(|index| index as f32 - 10.0).collect();
        let block = ActivationBlock::quantise(&numbers);
        let codes = block.quads.iter().flat_map(|quad| quad.to_le_bytes());
        let codes: Vec<i32> = codes.map(|byte| i32::from(byte as i8)).collect();
        for (code, number) in codes.iter().zip(&numbers) {
            let error = (*code as f32 * block.scale - number).abs();
            assert!(error <= block.scale * 0.5001, "{number}: {code}");
        }
        assert_eq!(codes[31], 127);
        let sums = [codes[..16].iter().sum(), codes[16..].iter().sum::<i32>()];
        assert_eq!(block.sums, sums);
    }

    #[test]
    fn a_block_of_zeros_stays_one() {
        for nothing in [0.0, -0.0, f32::from_bits(1)] {
            let block = ActivationBlock::quantise(&[nothing; 32]);
            assert_eq!(block, ActivationBlock::default());
        }
    }

    #[test]
    fn what_is_not_a_finite_number_spoils_its_block_and_is_not_lost() {
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = [1.0; 32];
            numbers[9] = wrong;
            let block = ActivationBlock::quantise(&numbers);
            assert!(block.scale.is_nan(), "{wrong}: {block:?}");
            assert_eq!((block.quads, block.sums), ([0; 8], [0; 2]));
        }
    }
}
