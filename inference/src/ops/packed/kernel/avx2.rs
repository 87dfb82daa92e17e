//! Vectors of 256 bits: AVX2, FMA and F16C.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_load_si128, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_load_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_sign_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_xor_si256,
};

use super::{Work, scales};
use crate::ops::packed::activations::ActivationBlock;
use crate::ops::packed::numbers::{self, Lanes};
use crate::ops::packed::panels::{Halves, Line, PANEL_ROWS, Panel, QUADS};

/// Rows of half a panel: a vector's lanes.
const LANES: usize = PANEL_ROWS / 2;

/// Work that is compiled for these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<W: Work>(work: W) -> W::Output {
    work.run()
}

/// Products of plain numbers, compiled for these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_products<const M: usize, const P: usize>(
    sums: &mut [[Lanes; P]; M],
    rows: [&[f32]; M],
    block: [&[Lanes]; P],
) {
    numbers::add_products::<M, P, true>(sums, rows, block);
}

/// Products of 16 rows with `M` rows, one half of the panel after the other: 16 registers hold the
/// codes of a half and the sums of 4 rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply<const BITS: usize, const MIN: bool, const M: usize>(
    panel: &Panel<'_>,
    rows: [&[ActivationBlock]; M],
    sums: &mut [[f32; PANEL_ROWS]],
) {
    let (codes, _) = panel.codes.as_chunks::<BITS>();
    let halves = scales(BITS) + if MIN { 1 } else { 0 };
    for side in 0..2 {
        let mut rest = panel.scales;
        let mut totals = [_mm256_setzero_ps(); M];
        for (index, lines) in codes.iter().enumerate() {
            let codes = unpack(lines, side);
            let (own, others) = rest.split_at(halves);
            rest = others;
            for (row, total) in rows.iter().zip(totals.iter_mut()) {
                let block = &row[index];
                *total = add::<BITS, MIN>(*total, &codes, block, (own, side));
            }
        }
        for (sum, total) in sums.iter_mut().zip(totals) {
            let (low, high) = sum.split_at_mut(LANES);
            store(total, if side == 0 { low } else { high });
        }
    }
}

/// Adds a block's products with one row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add<const BITS: usize, const MIN: bool>(
    mut total: __m256,
    codes: &[__m256i; QUADS],
    block: &ActivationBlock,
    (own, side): (&[Halves], usize),
) -> __m256 {
    let scale = _mm256_set1_ps(block.scale);
    let quads_per_scale = QUADS / scales(BITS);
    for (part, own) in own[..scales(BITS)].iter().enumerate() {
        let sum = if BITS == 6 {
            block.sums[part]
        } else {
            block.sums[0] + block.sums[1]
        };
        // Codes of 8 bits are signed here.
        let offset = match BITS {
            4 if !MIN => 8,
            5 if !MIN => 16,
            6 => 32,
            _ => 0,
        };
        let mut dots = _mm256_set1_epi32(-offset * sum);
        let mut quad = quads_per_scale * part;
        while quad < quads_per_scale * (part + 1) {
            let mut pairs = _mm256_setzero_si256();
            let end = quad + quads_at_once(BITS);
            while quad < end {
                let bytes = _mm256_set1_epi32(block.quads[quad]);
                let products = if BITS == 8 {
                    let size = _mm256_abs_epi8(codes[quad]);
                    _mm256_maddubs_epi16(size, _mm256_sign_epi8(bytes, codes[quad]))
                } else {
                    _mm256_maddubs_epi16(codes[quad], bytes)
                };
                pairs = _mm256_add_epi16(pairs, products);
                quad += 1;
            }
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            dots = _mm256_add_epi32(dots, fours);
        }
        let dots = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scale);
        total = _mm256_fmadd_ps(dots, widen(own, side), total);
    }
    if MIN {
        let sum = (block.sums[0] + block.sums[1]) as f32 * block.scale;
        let min = widen(&own[scales(BITS)], side);
        total = _mm256_fmadd_ps(_mm256_set1_ps(sum), min, total);
    }
    total
}

/// Vectors whose products, in pairs of at most 2 * 127 times the largest code, add up within 16 bits.
const fn quads_at_once(bits: usize) -> usize {
    match bits {
        4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    }
}

/// A block's codes of half a panel, a byte each, those of 8 bits signed.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack<const BITS: usize>(lines: &[Line; BITS], side: usize) -> [__m256i; QUADS] {
    let mut codes = [_mm256_setzero_si256(); QUADS];
    if BITS == 8 {
        let sign = _mm256_set1_epi8(-0x80);
        for (code, line) in codes.iter_mut().zip(lines) {
            *code = _mm256_xor_si256(load(line, side), sign);
        }
        return codes;
    }
    let nibble = _mm256_set1_epi8(0x0f);
    for quad in 0..QUADS / 2 {
        let line = load(&lines[quad], side);
        codes[quad] = _mm256_and_si256(line, nibble);
        codes[quad + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(line), nibble);
    }
    if BITS == 5 {
        let bits = load(&lines[4], side);
        let high = [
            _mm256_slli_epi16::<4>(bits),
            _mm256_slli_epi16::<3>(bits),
            _mm256_slli_epi16::<2>(bits),
            _mm256_slli_epi16::<1>(bits),
            bits,
            _mm256_srli_epi16::<1>(bits),
            _mm256_srli_epi16::<2>(bits),
            _mm256_srli_epi16::<3>(bits),
        ];
        let fifth = _mm256_set1_epi8(0x10);
        for (code, high) in codes.iter_mut().zip(high) {
            *code = _mm256_or_si256(*code, _mm256_and_si256(high, fifth));
        }
    }
    if BITS == 6 {
        let two = _mm256_set1_epi8(0x30);
        for part in 0..2 {
            let bits = load(&lines[4 + part], side);
            let high = [
                _mm256_slli_epi16::<4>(bits),
                _mm256_slli_epi16::<2>(bits),
                bits,
                _mm256_srli_epi16::<2>(bits),
            ];
            for (code, high) in codes[4 * part..].iter_mut().zip(high) {
                *code = _mm256_or_si256(*code, _mm256_and_si256(high, two));
            }
        }
    }
    codes
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen(halves: &Halves, side: usize) -> __m256 {
    let own: &[u16] = &halves.0[side * LANES..][..LANES];
    let pointer: *const __m128i = own.as_ptr().cast();
    // SAFETY: `own` is 16 bytes, and a half of what is aligned to 32.
    _mm256_cvtph_ps(unsafe { _mm_load_si128(pointer) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(line: &Line, side: usize) -> __m256i {
    let own: &[u8] = &line.0[side * 32..][..32];
    let pointer: *const __m256i = own.as_ptr().cast();
    // SAFETY: `own` is 32 bytes, and a half of what is aligned to 64.
    unsafe { _mm256_load_si256(pointer) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(from: __m256, to: &mut [f32]) {
    let to = &mut to[..LANES];
    // SAFETY: `to` has room for 8 numbers, and this store needs no alignment.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), from) }
}
