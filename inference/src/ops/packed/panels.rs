//! Rows of one type in panels of 16.

use candle_core::Result;
use half::f16;

use super::StoredRows;
use super::format::{BLOCK_COLUMNS, Format};

/// Rows of a panel: as many as a vector has lanes of 32 bits.
pub(in crate::ops) const PANEL_ROWS: usize = 16;
/// Vectors that the codes of a block fill when a byte each: 4 columns of 16 rows in one.
pub(super) const QUADS: usize = BLOCK_COLUMNS / 4;

/// One vector, and one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// A number for each row of a panel, as 16-bit floats.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
pub(super) struct Halves(pub(super) [u16; PANEL_ROWS]);

/// Rows of one type, packed.
#[derive(Debug)]
pub(super) struct Panels {
    format: Format,
    rows: usize,
    /// 32-column blocks of a row.
    blocks: usize,
    /// Per panel, per block: the vectors of codes.
    codes: Vec<Line>,
    /// Per panel, per block: scales, then minima.
    scales: Vec<Halves>,
}

/// 16 rows.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) format: Format,
    /// `format.bits` for each block.
    pub(super) codes: &'a [Line],
    /// `format.scales`, and one more with a minimum, for each block.
    pub(super) scales: &'a [Halves],
}

impl Panels {
    pub(super) fn pack(stored: StoredRows<'_>, order: impl Fn(usize) -> usize) -> Result<Self> {
        let StoredRows {
            dtype,
            bytes,
            shape,
        } = stored;
        let (rows, columns) = shape;
        let Some(format) = Format::of(dtype) else {
            candle_core::bail!("matrices of type {dtype:?} are not packed");
        };
        let row_bytes = columns / format.stored_columns() * format.stored_bytes();
        if !columns.is_multiple_of(format.stored_columns()) || bytes.len() != rows * row_bytes {
            let found = bytes.len();
            candle_core::bail!("{rows} rows of {columns} {dtype:?} are not {found} bytes");
        }
        let blocks = columns / BLOCK_COLUMNS;
        let count = rows.div_ceil(PANEL_ROWS) * blocks;
        let mut packed = Self {
            format,
            rows,
            blocks,
            codes: vec![Line([0; 64]); count * format.bits],
            scales: vec![Halves([0; PANEL_ROWS]); count * format.halves()],
        };
        for row in 0..rows {
            let own = &bytes[order(row) * row_bytes..][..row_bytes];
            packed.set_row(row, own);
        }
        Ok(packed)
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.blocks * BLOCK_COLUMNS
    }

    /// Bytes of one panel's codes.
    pub(super) fn panel_bytes(&self) -> usize {
        self.blocks * self.format.bits * size_of::<Line>()
    }

    pub(super) fn panel(&self, index: usize) -> Panel<'_> {
        let (codes, scales) = (
            self.blocks * self.format.bits,
            self.blocks * self.format.halves(),
        );
        Panel {
            format: self.format,
            codes: &self.codes[index * codes..][..codes],
            scales: &self.scales[index * scales..][..scales],
        }
    }

    /// Appends a row's numbers to `to`.
    pub(super) fn read_row(&self, row: usize, to: &mut Vec<f32>) {
        let (panel, lane) = (self.panel(row / PANEL_ROWS), row % PANEL_ROWS);
        for block in 0..self.blocks {
            let codes = unpack_codes(self.format.bits, panel.block_codes(block));
            let scales = panel.block_scales(block);
            let number = |at: usize| f16::from_bits(scales[at].0[lane]).to_f32();
            let min = if self.format.has_min {
                number(self.format.scales)
            } else {
                0.0
            };
            to.extend((0..BLOCK_COLUMNS).map(|column| {
                let scale = number(column * self.format.scales / BLOCK_COLUMNS);
                let code = codes[column / 4].0[4 * lane + column % 4];
                scale * (i32::from(code) - self.format.offset) as f32 + min
            }));
        }
    }

    fn set_row(&mut self, row: usize, stored: &[u8]) {
        let (panel, lane) = (row / PANEL_ROWS, row % PANEL_ROWS);
        let format = self.format;
        let together = stored.chunks_exact(format.stored_bytes());
        let blocks =
            together.flat_map(|stored| (0..format.blocks()).map(|at| format.block(stored, at)));
        for (index, block) in blocks.enumerate() {
            let at = panel * self.blocks + index;
            let codes = &mut self.codes[at * format.bits..][..format.bits];
            for (column, code) in block.codes.into_iter().enumerate() {
                let byte = 4 * lane + column % 4;
                set_code(format.bits, codes, (column / 4, byte), code);
            }
            let halves = &mut self.scales[at * format.halves()..][..format.halves()];
            let numbers = block.scales[..format.scales].iter().chain([&block.min]);
            for (half, number) in halves.iter_mut().zip(numbers) {
                half.0[lane] = f16::from_f32(*number).to_bits();
            }
        }
    }
}

impl Format {
    /// Numbers of a block beside its codes.
    pub(super) fn halves(self) -> usize {
        self.scales + usize::from(self.has_min)
    }
}

impl<'a> Panel<'a> {
    fn block_codes(&self, block: usize) -> &'a [Line] {
        &self.codes[block * self.format.bits..][..self.format.bits]
    }

    fn block_scales(&self, block: usize) -> &'a [Halves] {
        &self.scales[block * self.format.halves()..][..self.format.halves()]
    }
}

/// Puts a code into a block of zeros. Codes of 8 bits are 8 vectors. Of others the lower 4 bits are
/// 4 vectors, vector q in the lower and q + 4 in the upper halves of the bytes; then come the
/// fifth bits as one vector, bit q of its bytes for vector q, or the fifth and sixth as two, the bits
/// from 2 * (q % 4) of vector q / 4.
fn set_code(bits: usize, lines: &mut [Line], (quad, byte): (usize, usize), code: u8) {
    if bits == 8 {
        lines[quad].0[byte] = code;
        return;
    }
    lines[quad % 4].0[byte] |= (code & 0x0f) << (quad / 4 * 4);
    match bits {
        5 => lines[4].0[byte] |= (code >> 4) << quad,
        6 => lines[4 + quad / 4].0[byte] |= (code >> 4) << (2 * (quad % 4)),
        _ => {}
    }
}

/// A block's codes as bytes.
pub(super) fn unpack_codes(bits: usize, lines: &[Line]) -> [Line; QUADS] {
    std::array::from_fn(|quad| {
        Line(std::array::from_fn(|byte| {
            let low = |line: usize| lines[line].0[byte];
            let nibble = (low(quad % 4) >> (quad / 4 * 4)) & 0x0f;
            match bits {
                4 => nibble,
                5 => nibble | ((low(4) >> quad) & 1) << 4,
                6 => nibble | ((low(4 + quad / 4) >> (2 * (quad % 4))) & 3) << 4,
                _ => low(quad),
            }
        }))
    })
}
