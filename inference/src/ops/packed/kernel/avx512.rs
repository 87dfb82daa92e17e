//! Vectors of 512 bits, with the dot product of bytes (VNNI).

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_load_si256, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_mul_ps,
    _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi16, _mm512_srli_epi16, _mm512_storeu_ps,
};

use super::{Work, scales};
use crate::ops::packed::activations::ActivationBlock;
use crate::ops::packed::numbers::{self, Lanes};
use crate::ops::packed::panels::{Halves, Line, PANEL_ROWS, Panel, QUADS};

/// Work that is compiled for these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn run<W: Work>(work: W) -> W::Output {
    work.run()
}

/// Products of plain numbers, compiled for these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn add_products<const M: usize, const P: usize>(
    sums: &mut [[Lanes; P]; M],
    rows: [&[f32]; M],
    block: [&[Lanes]; P],
) {
    numbers::add_products::<M, P, true>(sums, rows, block);
}

/// Products of 16 rows with `M` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn multiply<const BITS: usize, const MIN: bool, const M: usize>(
    panel: &Panel<'_>,
    rows: [&[ActivationBlock]; M],
    sums: &mut [[f32; PANEL_ROWS]],
) {
    let (codes, _) = panel.codes.as_chunks::<BITS>();
    let halves = scales(BITS) + if MIN { 1 } else { 0 };
    let mut rest = panel.scales;
    let mut totals = [_mm512_setzero_ps(); M];
    for (index, lines) in codes.iter().enumerate() {
        let codes = unpack(lines);
        let (own, others) = rest.split_at(halves);
        rest = others;
        for (row, total) in rows.iter().zip(totals.iter_mut()) {
            let block = &row[index];
            let scale = _mm512_set1_ps(block.scale);
            let mut quad = 0;
            let mut part = 0;
            while part < scales(BITS) {
                let sum = if BITS == 6 {
                    block.sums[part]
                } else {
                    block.sums[0] + block.sums[1]
                };
                let mut dots = _mm512_set1_epi32(-panel.format.offset * sum);
                while quad < QUADS / scales(BITS) * (part + 1) {
                    let bytes = _mm512_set1_epi32(block.quads[quad]);
                    dots = _mm512_dpbusd_epi32(dots, codes[quad], bytes);
                    quad += 1;
                }
                let dots = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale);
                *total = _mm512_fmadd_ps(dots, widen(&own[part]), *total);
                part += 1;
            }
            if MIN {
                let sum = (block.sums[0] + block.sums[1]) as f32 * block.scale;
                let min = widen(&own[scales(BITS)]);
                *total = _mm512_fmadd_ps(_mm512_set1_ps(sum), min, *total);
            }
        }
    }
    for (sum, total) in sums.iter_mut().zip(totals) {
        store(total, sum);
    }
}

/// A block's codes, a byte each: see `panels::set_code`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack<const BITS: usize>(lines: &[Line; BITS]) -> [__m512i; QUADS] {
    let mut codes = [_mm512_setzero_si512(); QUADS];
    if BITS == 8 {
        for (code, line) in codes.iter_mut().zip(lines) {
            *code = load(line);
        }
        return codes;
    }
    let nibble = _mm512_set1_epi8(0x0f);
    for quad in 0..QUADS / 2 {
        let line = load(&lines[quad]);
        codes[quad] = _mm512_and_si512(line, nibble);
        codes[quad + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(line), nibble);
    }
    if BITS == 5 {
        let bits = load(&lines[4]);
        let high = [
            _mm512_slli_epi16::<4>(bits),
            _mm512_slli_epi16::<3>(bits),
            _mm512_slli_epi16::<2>(bits),
            _mm512_slli_epi16::<1>(bits),
            bits,
            _mm512_srli_epi16::<1>(bits),
            _mm512_srli_epi16::<2>(bits),
            _mm512_srli_epi16::<3>(bits),
        ];
        let fifth = _mm512_set1_epi8(0x10);
        for (code, high) in codes.iter_mut().zip(high) {
            *code = _mm512_or_si512(*code, _mm512_and_si512(high, fifth));
        }
    }
    if BITS == 6 {
        let two = _mm512_set1_epi8(0x30);
        for part in 0..2 {
            let bits = load(&lines[4 + part]);
            let high = [
                _mm512_slli_epi16::<4>(bits),
                _mm512_slli_epi16::<2>(bits),
                bits,
                _mm512_srli_epi16::<2>(bits),
            ];
            for (code, high) in codes[4 * part..].iter_mut().zip(high) {
                *code = _mm512_or_si512(*code, _mm512_and_si512(high, two));
            }
        }
    }
    codes
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen(halves: &Halves) -> __m512 {
    let pointer: *const __m256i = halves.0.as_ptr().cast();
    // SAFETY: `Halves` is 32 bytes, and aligned to 32.
    _mm512_cvtph_ps(unsafe { _mm256_load_si256(pointer) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    let pointer: *const __m512i = line.0.as_ptr().cast();
    // SAFETY: `Line` is 64 bytes, and aligned to 64.
    unsafe { _mm512_load_si512(pointer) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(from: __m512, to: &mut [f32; PANEL_ROWS]) {
    // SAFETY: `to` has room for 16 numbers, and this store needs no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), from) }
}
