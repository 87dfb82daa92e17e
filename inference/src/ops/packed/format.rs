//! GGUF's block types: how each stores the codes, scales and minima of its columns.
//!
//! After ggml's `ggml-common.h` and `ggml-quants.c`.

use candle_core::quantized::GgmlDType;
use half::f16;

/// Columns that share a scale, in all types but one.
pub(super) const BLOCK_COLUMNS: usize = 32;
/// Blocks that share what the K types store once.
const SUPER_BLOCKS: usize = 8;

/// How a type's codes are packed and read: `scale * (code - offset) + min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// As the file has it.
    dtype: GgmlDType,
    /// Width of a code.
    pub(super) bits: usize,
    /// The code of 0.
    pub(super) offset: i32,
    /// Scales of a block: 1, or 2 for 16 columns each.
    pub(super) scales: usize,
    /// Whether blocks have a minimum.
    pub(super) has_min: bool,
}

/// True for types that are packed; others are widened when loaded.
pub(crate) fn is_packable(dtype: GgmlDType) -> bool {
    Format::of(dtype).is_some()
}

impl Format {
    pub(super) fn of(dtype: GgmlDType) -> Option<Self> {
        let (bits, offset, scales, has_min) = match dtype {
            GgmlDType::Q4_0 => (4, 8, 1, false),
            GgmlDType::Q5_0 => (5, 16, 1, false),
            GgmlDType::Q8_0 => (8, 128, 1, false),
            GgmlDType::Q6K => (6, 32, 2, false),
            GgmlDType::Q4_1 | GgmlDType::Q4K => (4, 0, 1, true),
            GgmlDType::Q5_1 | GgmlDType::Q5K => (5, 0, 1, true),
            _ => return None,
        };
        Some(Self {
            dtype,
            bits,
            offset,
            scales,
            has_min,
        })
    }

    /// Columns that are stored together.
    pub(super) fn stored_columns(self) -> usize {
        self.dtype.block_size()
    }

    /// Bytes that they take.
    pub(super) fn stored_bytes(self) -> usize {
        self.dtype.type_size()
    }

    /// The `index`-th 32 columns of what is stored together.
    pub(super) fn block(self, stored: &[u8], index: usize) -> Block {
        match self.dtype {
            GgmlDType::Q4_0 => Block::new(half(stored, 0), 0.0, nibbles(&stored[2..18])),
            GgmlDType::Q4_1 => {
                Block::new(half(stored, 0), half(stored, 2), nibbles(&stored[4..20]))
            }
            GgmlDType::Q5_0 => {
                let codes = with_fifth_bits(nibbles(&stored[6..22]), &stored[2..6]);
                Block::new(half(stored, 0), 0.0, codes)
            }
            GgmlDType::Q5_1 => {
                let codes = with_fifth_bits(nibbles(&stored[8..24]), &stored[4..8]);
                Block::new(half(stored, 0), half(stored, 2), codes)
            }
            GgmlDType::Q8_0 => Block::new(
                half(stored, 0),
                0.0,
                std::array::from_fn(|column| stored[2 + column] ^ 0x80),
            ),
            GgmlDType::Q4K => {
                let (scale, min) = shared_scale(stored, index);
                Block::new(scale, min, k_nibbles(&stored[16..144], index))
            }
            GgmlDType::Q5K => {
                let (scale, min) = shared_scale(stored, index);
                let mut codes = k_nibbles(&stored[48..176], index);
                for (code, high) in codes.iter_mut().zip(&stored[16..48]) {
                    *code |= ((high >> index) & 1) << 4;
                }
                Block::new(scale, min, codes)
            }
            GgmlDType::Q6K => q6k(stored, index),
            _ => unreachable!("only types that have a format get here"),
        }
    }

    /// 32-column blocks of what is stored together.
    pub(super) fn blocks(self) -> usize {
        self.stored_columns() / BLOCK_COLUMNS
    }
}

/// 32 columns of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Block {
    /// Of the first and of the last 16 columns.
    pub(super) scales: [f32; 2],
    pub(super) min: f32,
    pub(super) codes: [u8; BLOCK_COLUMNS],
}

impl Block {
    fn new(scale: f32, min: f32, codes: [u8; BLOCK_COLUMNS]) -> Self {
        Self {
            scales: [scale; 2],
            min,
            codes,
        }
    }
}

/// The 16-bit float at this byte.
fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 16 bytes: the lower halves are the first 16 columns.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK_COLUMNS] {
    std::array::from_fn(|column| match column {
        0..16 => bytes[column] & 0x0f,
        _ => bytes[column - 16] >> 4,
    })
}

fn with_fifth_bits(mut codes: [u8; BLOCK_COLUMNS], bits: &[u8]) -> [u8; BLOCK_COLUMNS] {
    for (column, code) in codes.iter_mut().enumerate() {
        *code |= ((bits[column / 8] >> (column % 8)) & 1) << 4;
    }
    codes
}

/// The `index`-th 32 of 256 columns in 128 bytes: each 32 bytes have two times 32 columns.
fn k_nibbles(bytes: &[u8], index: usize) -> [u8; BLOCK_COLUMNS] {
    let own = &bytes[index / 2 * BLOCK_COLUMNS..];
    let shift = index % 2 * 4;
    std::array::from_fn(|column| (own[column] >> shift) & 0x0f)
}

/// Scale and minimum of a block of Q4_K or Q5_K: 6 bits each, times what all 8 blocks share.
fn shared_scale(stored: &[u8], index: usize) -> (f32, f32) {
    let packed = &stored[4..16];
    let (scale, min) = if index < SUPER_BLOCKS / 2 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        let low = packed[index + 4];
        (
            (low & 0x0f) | (packed[index - 4] >> 6 << 4),
            (low >> 4) | (packed[index] >> 6 << 4),
        )
    };
    let (scales, mins) = (half(stored, 0), half(stored, 2));
    (scales * f32::from(scale), -mins * f32::from(min))
}

/// A block of Q6_K: 4 bits here, 2 there, a scale for each 16 columns.
fn q6k(stored: &[u8], index: usize) -> Block {
    let (low, rest) = stored.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, shared) = rest.split_at(16);
    let (part, within) = (index / 4, index % 4); // 128 columns each; 32 of these
    let low = &low[64 * part + 32 * (within % 2)..];
    let high = &high[32 * part..];
    let codes = std::array::from_fn(|column| {
        let low = (low[column] >> (within / 2 * 4)) & 0x0f;
        low | ((high[column] >> (2 * within)) & 3) << 4
    });
    let shared = half(shared, 0);
    let scale = |at: usize| shared * f32::from(scales[2 * index + at] as i8);
    Block {
        scales: [scale(0), scale(1)],
        min: 0.0,
        codes,
    }
}
