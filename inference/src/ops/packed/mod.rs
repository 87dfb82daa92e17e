//! Matrices for products on a CPU: plain numbers and GGUF's block types, laid out anew for SIMD.
//!
//! Files store one row after another, which makes every product end in a sum across lanes. Here 16 rows are a
//! panel: a vector has numbers of each of them, and what it is multiplied with is one broadcast that all rows
//! share. Of quantised rows it has 4 columns, for a dot product of 4 bytes that adds to 16 results at once. Blocks of
//! 32 columns keep their codes as narrow as they came; all types are one kernel with other widths.
//!
//! # Layout
//! - `numbers`: rows of f32, f16 or bf16, packed, and their products in f32
//! - `format`: GGUF's types: codes, scales and minima of 32 columns
//! - `panels`: rows of one such type, packed; `activations`: what they are multiplied with
//! - `kernel`: products of such a panel, in SIMD where the CPU has it; `portable`: in plain Rust
//! - here: matrices of several parts, and their products on several threads

mod activations;
mod format;
mod kernel;
mod numbers;
mod panels;
mod portable;

use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

use activations::Activations;
use kernel::{Kernel, TILE_ROWS};
use numbers::NumberPanels;
use panels::Panels;

pub(crate) use format::is_packable;
pub(super) use kernel::{Work, in_wide_vectors};
pub(super) use numbers::{Lanes, add_panel_products};
pub(super) use panels::PANEL_ROWS;

/// Bytes of weights per task: some microseconds of work, so that starting a task costs little.
const TASK_BYTES: usize = 32 << 10;
/// Rows of activations that are multiplied before the next ones: every task reads them all, from a cache that has them.
const ROWS_AT_ONCE: usize = 128;
/// Panels per task, at least: as many as a kernel takes at once.
const TASK_PANELS: usize = 2;

/// A matrix (out, in) of rows that may be stored in different ways, such as queries and keys in 5
/// bits and values in 8.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    /// Rows from the first on; all have as many columns.
    parts: Vec<Arc<Part>>,
}

/// Rows that are stored alike.
#[derive(Debug)]
enum Part {
    /// Quantised.
    Blocks(Panels),
    /// Not quantised.
    Numbers(NumberPanels),
}

/// Rows as a GGUF file has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    /// How they are quantised: a type that [`is_packable`].
    pub(crate) dtype: GgmlDType,
    /// Their blocks.
    pub(crate) bytes: &'a [u8],
    /// (out, in)
    pub(crate) shape: (usize, usize),
}

impl PackedMatrix {
    /// Packs rows; `order` tells which stored row is the n-th.
    pub(crate) fn pack(stored: StoredRows<'_>, order: impl Fn(usize) -> usize) -> Result<Self> {
        Ok(Self::of(Part::Blocks(Panels::pack(stored, order)?)))
    }

    /// Packs a tensor on the CPU, (out, in): f16 and bf16 as they are, other types as f32.
    pub(crate) fn pack_numbers(tensor: &Tensor) -> Result<Self> {
        Ok(Self::of(Part::Numbers(NumberPanels::pack(tensor)?)))
    }

    fn of(part: Part) -> Self {
        Self {
            parts: vec![Arc::new(part)],
        }
    }

    /// One below the other.
    pub(crate) fn stack<'a>(matrices: impl Iterator<Item = &'a Self>) -> Result<Self> {
        let parts: Vec<_> = matrices.flat_map(|it| it.parts.iter().cloned()).collect();
        let columns = parts.first().map_or(0, |part| part.columns());
        if let Some(other) = parts.iter().find(|part| part.columns() != columns) {
            let other = other.columns();
            candle_core::bail!("rows of {other} numbers do not go below rows of {columns}");
        }
        Ok(Self { parts })
    }

    /// Numbers that a product gives.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows()).sum()
    }

    /// Numbers that a product takes.
    pub fn columns(&self) -> usize {
        self.parts.first().map_or(0, |part| part.columns())
    }

    /// The numbers of some rows, one row after another.
    pub(crate) fn read_rows(&self, ids: impl IntoIterator<Item = u32>) -> Vec<f32> {
        let mut numbers = Vec::new();
        for id in ids {
            let mut row = id as usize;
            for part in &self.parts {
                if row < part.rows() {
                    part.read_row(row, &mut numbers);
                    break;
                }
                row -= part.rows();
            }
        }
        numbers
    }

    /// `x . W^T`: (T, in) -> (T, out), row after row. Runs on the threads of the rayon pool it is called in.
    pub(crate) fn product(&self, x: &[f32]) -> Vec<f32> {
        self.product_by(Kernel::best(), x)
    }

    fn product_by(&self, kernel: Kernel, x: &[f32]) -> Vec<f32> {
        let columns = self.columns();
        if columns == 0 {
            return Vec::new();
        }
        let mut out = vec![0.0; x.len() / columns * self.rows()];
        let some_x = x.chunks(ROWS_AT_ONCE * columns);
        for (x, out) in some_x.zip(out.chunks_mut(ROWS_AT_ONCE * self.rows())) {
            self.product_into(kernel, x, out);
        }
        out
    }

    /// (T, in) into (T, out).
    fn product_into(&self, kernel: Kernel, x: &[f32], out: &mut [f32]) {
        let is_quantised = |part: &Arc<Part>| matches!(**part, Part::Blocks(_));
        let input = Input {
            x,
            activations: self
                .parts
                .iter()
                .any(is_quantised)
                .then(|| Activations::quantise(x, self.columns())),
        };
        let tasks = self.tasks(out);
        if tasks.len() == 1 {
            tasks.into_iter().for_each(|task| task.run(kernel, &input));
        } else {
            tasks
                .into_par_iter()
                .with_max_len(1)
                .for_each(|task| task.run(kernel, &input));
        }
    }

    /// A product into `out`, (T, out), cut into pieces.
    fn tasks<'a>(&'a self, out: &'a mut [f32]) -> Vec<Task<'a>> {
        let mut tasks = Vec::new();
        for part in &self.parts {
            let panels_per_task = (TASK_BYTES / part.panel_bytes()).max(TASK_PANELS);
            for first in (0..part.panels()).step_by(panels_per_task) {
                let end = part.panels().min(first + panels_per_task);
                tasks.push(Task {
                    part,
                    panels: (first, end),
                    out: Vec::new(),
                });
            }
        }
        for mut rest in out.chunks_exact_mut(self.rows()) {
            for task in &mut tasks {
                let (own, others) = rest.split_at_mut(task.rows());
                task.out.push(own);
                rest = others;
            }
        }
        tasks
    }
}

impl Part {
    fn rows(&self) -> usize {
        match self {
            Self::Blocks(panels) => panels.rows(),
            Self::Numbers(panels) => panels.rows(),
        }
    }

    fn columns(&self) -> usize {
        match self {
            Self::Blocks(panels) => panels.columns(),
            Self::Numbers(panels) => panels.columns(),
        }
    }

    /// Number of panels.
    fn panels(&self) -> usize {
        self.rows().div_ceil(PANEL_ROWS)
    }

    /// Bytes of one panel's weights.
    fn panel_bytes(&self) -> usize {
        match self {
            Self::Blocks(panels) => panels.panel_bytes(),
            Self::Numbers(panels) => panels.panel_bytes(),
        }
    }

    /// Appends a row's numbers to `to`.
    fn read_row(&self, row: usize, to: &mut Vec<f32>) {
        match self {
            Self::Blocks(panels) => panels.read_row(row, to),
            Self::Numbers(panels) => panels.read_row(row, to),
        }
    }
}

/// What a matrix is multiplied with.
struct Input<'a> {
    /// (T, in)
    x: &'a [f32],
    /// The same for quantised rows, if there are any.
    activations: Option<Activations>,
}

/// Some panels of a product.
struct Task<'a> {
    part: &'a Part,
    /// From, to.
    panels: (usize, usize),
    /// Their share of every row of the result.
    out: Vec<&'a mut [f32]>,
}

impl Task<'_> {
    /// Numbers of a row of the result.
    fn rows(&self) -> usize {
        let (first, end) = self.panels;
        (end * PANEL_ROWS).min(self.part.rows()) - first * PANEL_ROWS
    }

    fn run(mut self, kernel: Kernel, input: &Input<'_>) {
        let (first, end) = self.panels;
        match (self.part, &input.activations) {
            (Part::Numbers(panels), _) => {
                panels.multiply(kernel, first..end, input.x, &mut self.out);
            }
            (Part::Blocks(panels), Some(activations)) => {
                self.run_blocks(panels, kernel, activations);
            }
            (Part::Blocks(_), None) => unreachable!("activations are quantised if rows are"),
        }
    }

    fn run_blocks(&mut self, panels: &Panels, kernel: Kernel, activations: &Activations) {
        let mut sums = [[0.0; PANEL_ROWS]; TILE_ROWS];
        let (first, end) = self.panels;
        for (index, panel) in (first..end).enumerate() {
            let panel = panels.panel(panel);
            let from = index * PANEL_ROWS;
            for (tile, outs) in self.out.chunks_mut(TILE_ROWS).enumerate() {
                let rows = activations.tile(tile * TILE_ROWS, outs.len());
                kernel.multiply(&panel, rows, &mut sums[..outs.len()]);
                for (out, sums) in outs.iter_mut().zip(&sums) {
                    let to = out.len().min(from + PANEL_ROWS);
                    out[from..to].copy_from_slice(&sums[..to - from]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
