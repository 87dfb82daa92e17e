//! Matrices of plain numbers in panels of 16 rows: a vector holds one column of all of them, so that a row of
//! activations is multiplied number by number, each broadcast to 16 results, and nothing is summed across lanes.
//!
//! Numbers of 16 bits stay so, and are widened a block at a time: all arithmetic is in f32. The loops are plain Rust
//! that the compiler makes vectors of. Tried before: candle's product, which lays the whole matrix out anew each time
//! (62 % of a step of 8 rows), and dot products of rows as they are stored, whose sums across lanes cost a
//! quarter at 768 columns.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::kernel::Kernel;
use super::panels::PANEL_ROWS;

/// Columns that are multiplied before the next ones: two panels' fit into half of the first cache.
const BLOCK_COLUMNS: usize = 128;

/// One column of a panel, in f32.
pub(in crate::ops) type Lanes = [f32; PANEL_ROWS];

/// Rows of plain numbers, packed.
#[derive(Debug)]
pub(super) struct NumberPanels {
    numbers: Numbers,
    rows: usize,
    columns: usize,
}

/// Per panel, per column: a number of each of its rows.
#[derive(Debug)]
enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl NumberPanels {
    /// (out, in), on the CPU.
    pub(super) fn pack(tensor: &Tensor) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        let tensor = tensor.flatten_all()?;
        let numbers = match tensor.dtype() {
            DType::F16 => Numbers::F16(interleave(&tensor.to_vec1()?, columns)),
            DType::BF16 => Numbers::BF16(interleave(&tensor.to_vec1()?, columns)),
            _ => Numbers::F32(interleave(
                &tensor.to_dtype(DType::F32)?.to_vec1()?,
                columns,
            )),
        };
        Ok(Self {
            numbers,
            rows,
            columns,
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of one panel.
    pub(super) fn panel_bytes(&self) -> usize {
        let number = match self.numbers {
            Numbers::F32(_) => size_of::<f32>(),
            Numbers::F16(_) | Numbers::BF16(_) => size_of::<f16>(),
        };
        self.columns * PANEL_ROWS * number
    }

    /// Appends a row's numbers to `to`.
    pub(super) fn read_row(&self, row: usize, to: &mut Vec<f32>) {
        let (panel, lane) = (row / PANEL_ROWS, row % PANEL_ROWS);
        let first = panel * self.columns;
        let places = (first..first + self.columns).map(|column| column * PANEL_ROWS + lane);
        match &self.numbers {
            Numbers::F32(numbers) => to.extend(places.map(|place| numbers[place])),
            Numbers::F16(numbers) => to.extend(places.map(|place| numbers[place].to_f32())),
            Numbers::BF16(numbers) => to.extend(places.map(|place| numbers[place].to_f32())),
        }
    }

    /// Products of some panels' rows with each row of `x`, (T, in), into the rows of `out`, T of them.
    pub(super) fn multiply(
        &self,
        kernel: Kernel,
        panels: Range<usize>,
        x: &[f32],
        out: &mut [&mut [f32]],
    ) {
        match kernel {
            // Half as many sums would wait for each other; twice as many are not kept in registers.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => self.multiply_by::<2>(kernel, panels, x, out),
            _ => self.multiply_by::<1>(kernel, panels, x, out),
        }
    }

    /// With `P` panels at a time, and with one what is left of these.
    fn multiply_by<const P: usize>(
        &self,
        kernel: Kernel,
        panels: Range<usize>,
        x: &[f32],
        out: &mut [&mut [f32]],
    ) {
        let mut widened = match self.numbers {
            Numbers::F32(_) => Vec::new(),
            _ => vec![[0.0; PANEL_ROWS]; P * BLOCK_COLUMNS],
        };
        let mut panel = panels.start;
        while panel < panels.end {
            let to = (panel - panels.start) * PANEL_ROWS;
            let together = if panel + P <= panels.end { P } else { 1 };
            for start in (0..self.columns).step_by(BLOCK_COLUMNS) {
                let columns = start..self.columns.min(start + BLOCK_COLUMNS);
                if together == P {
                    let block = self.block::<P>(kernel, panel, &columns, &mut widened);
                    each_tile(kernel, block, (x, self.columns), &columns, (out, to));
                } else {
                    let block = self.block::<1>(kernel, panel, &columns, &mut widened);
                    each_tile(kernel, block, (x, self.columns), &columns, (out, to));
                }
            }
            panel += together;
        }
    }

    /// Some columns of `P` panels, widened where they are not f32.
    fn block<'a, const P: usize>(
        &'a self,
        kernel: Kernel,
        first: usize,
        columns: &Range<usize>,
        widened: &'a mut [Lanes],
    ) -> [&'a [Lanes]; P] {
        let place = |panel: usize| {
            let start = ((first + panel) * self.columns + columns.start) * PANEL_ROWS;
            start..start + columns.len() * PANEL_ROWS
        };
        if let Numbers::F32(numbers) = &self.numbers {
            return std::array::from_fn(|panel| numbers[place(panel)].as_chunks().0);
        }
        let widened = &mut widened[..P * columns.len()];
        for (panel, wide) in widened.chunks_exact_mut(columns.len()).enumerate() {
            let wide = wide.as_flattened_mut();
            kernel.in_vectors(|| match &self.numbers {
                Numbers::F32(_) => {} // as above
                Numbers::F16(numbers) => widen(&numbers[place(panel)], wide, widen_f16),
                Numbers::BF16(numbers) => widen(&numbers[place(panel)], wide, widen_bf16),
            });
        }
        let widened = &*widened;
        std::array::from_fn(|panel| &widened[panel * columns.len()..][..columns.len()])
    }
}

#[inline(always)]
fn widen<T: Copy>(numbers: &[T], wide: &mut [f32], each: impl Fn(T) -> f32) {
    for (wide, number) in wide.iter_mut().zip(numbers) {
        *wide = each(*number);
    }
}

/// Without branches and calls, which `half`'s own has, so that it becomes vectors.
#[inline(always)]
fn widen_f16(number: f16) -> f32 {
    /// What exponents of the two formats differ by, as a factor: subnormal numbers need no case of their own.
    const REBIAS: f32 = f32::from_bits((254 - 15) << 23);
    const INFINITE: u32 = 0x7c00 << 13;
    let bits = u32::from(number.to_bits());
    let size = (bits & 0x7fff) << 13;
    let odd = if size >= INFINITE { 0x7f80_0000 } else { 0 };
    f32::from_bits((f32::from_bits(size) * REBIAS).to_bits() | odd | (bits & 0x8000) << 16)
}

#[inline(always)]
fn widen_bf16(number: bf16) -> f32 {
    f32::from_bits(u32::from(number.to_bits()) << 16)
}

/// Rows one after another as panels.
fn interleave<T: Copy + Default + Send + Sync>(numbers: &[T], columns: usize) -> Vec<T> {
    if columns == 0 {
        return Vec::new();
    }
    let panel_numbers = columns * PANEL_ROWS;
    let panels = numbers.len().div_ceil(panel_numbers);
    let mut packed = vec![T::default(); panels * panel_numbers];
    let pack = |(panel, rows): (&mut [T], &[T])| {
        for (column, lanes) in panel.chunks_exact_mut(PANEL_ROWS).enumerate() {
            let numbers = rows[column..].iter().step_by(columns);
            for (lane, number) in lanes.iter_mut().zip(numbers) {
                *lane = *number;
            }
        }
    };
    packed
        .par_chunks_mut(panel_numbers)
        .zip(numbers.par_chunks(panel_numbers))
        .for_each(pack);
    packed
}

/// All rows of `x`, (T, `width`), with a block of weights, four or fewer of them at a time; `out` has the sums of the
/// columns before.
fn each_tile<const P: usize>(
    kernel: Kernel,
    block: [&[Lanes]; P],
    (x, width): (&[f32], usize),
    columns: &Range<usize>,
    (out, to): (&mut [&mut [f32]], usize),
) {
    let mut row = 0;
    while row < out.len() {
        let x = &x[row * width..];
        let left = &mut out[row..];
        row += match left.len() {
            4.. => tile::<4, P>(kernel, block, (x, width), columns, (left, to)),
            2.. => tile::<2, P>(kernel, block, (x, width), columns, (left, to)),
            _ => tile::<1, P>(kernel, block, (x, width), columns, (left, to)),
        };
    }
}

/// Adds products of rows with one panel: (R, 16) += (R, C) . (C, 16). `width` is how far apart the rows are, of which the
/// first C numbers count.
pub(in crate::ops) fn add_panel_products(
    mut sums: &mut [Lanes],
    (mut rows, width): (&[f32], usize),
    panel: &[Lanes],
) {
    let kernel = Kernel::best();
    while !sums.is_empty() {
        let done = match sums.len() {
            // With fewer registers the sums of so many are not kept in them.
            #[cfg(target_arch = "x86_64")]
            8.. if kernel == Kernel::Avx512 => add_first::<8>(kernel, sums, (rows, width), panel),
            4.. => add_first::<4>(kernel, sums, (rows, width), panel),
            2.. => add_first::<2>(kernel, sums, (rows, width), panel),
            _ => add_first::<1>(kernel, sums, (rows, width), panel),
        };
        sums = &mut sums[done..];
        rows = &rows[done * width..];
    }
}

/// The first `M` rows; how many they are.
fn add_first<const M: usize>(
    kernel: Kernel,
    sums: &mut [Lanes],
    (rows, width): (&[f32], usize),
    panel: &[Lanes],
) -> usize {
    let rows = std::array::from_fn(|row| &rows[row * width..][..panel.len()]);
    let (sums, _) = sums.as_chunks_mut::<1>();
    let (sums, _) = sums.as_chunks_mut::<M>();
    kernel.add_products::<M, 1>(&mut sums[0], rows, [panel]);
    M
}

/// The first `M` rows of `x` and of `out`; how many they are.
fn tile<const M: usize, const P: usize>(
    kernel: Kernel,
    block: [&[Lanes]; P],
    (x, width): (&[f32], usize),
    columns: &Range<usize>,
    (out, to): (&mut [&mut [f32]], usize),
) -> usize {
    let mut sums = [[[0.0; PANEL_ROWS]; P]; M];
    let rows: [&[f32]; M] = std::array::from_fn(|row| &x[row * width..][columns.clone()]);
    if columns.start > 0 {
        for (sums, out) in sums.iter_mut().zip(&*out) {
            let sums = sums.as_flattened_mut();
            let count = sums.len().min(out.len() - to);
            sums[..count].copy_from_slice(&out[to..to + count]);
        }
    }
    kernel.add_products(&mut sums, rows, block);
    for (sums, out) in sums.iter().zip(out) {
        let sums = sums.as_flattened();
        let count = sums.len().min(out.len() - to);
        out[to..to + count].copy_from_slice(&sums[..count]);
    }
    M
}

/// The innermost loop, to be called by functions that are compiled for a kernel's vectors.
#[inline(always)]
pub(super) fn add_products<const M: usize, const P: usize, const FUSED: bool>(
    to: &mut [[Lanes; P]; M],
    rows: [&[f32]; M],
    block: [&[Lanes]; P],
) {
    // A copy, which stays in registers.
    let mut sums = *to;
    let columns = block[0].len();
    // What tells the compiler that no index is out of bounds.
    let (rows, block) = (
        rows.map(|row| &row[..columns]),
        block.map(|lanes| &lanes[..columns]),
    );
    for column in 0..columns {
        for row in 0..M {
            let number = rows[row][column];
            for panel in 0..P {
                for lane in 0..PANEL_ROWS {
                    let (weight, sum) = (block[panel][column][lane], &mut sums[row][panel][lane]);
                    *sum = if FUSED {
                        number.mul_add(weight, *sum)
                    } else {
                        number * weight + *sum
                    };
                }
            }
        }
    }
    *to = sums;
}
