//! Products of a panel of 16 rows with a few rows of activations, by the widest SIMD that the CPU has.
//!
//! A block's codes are unpacked into vectors once and multiplied with all rows of the tile: what is read
//! from memory and unpacked serves up to 16 rows of a prompt. The one module of the CPU path with `unsafe`:
//! loads and stores of whole vectors, and the calls of functions for features that were looked for; others have theirs
//! by [`in_wide_vectors`].
#![cfg_attr(
    target_arch = "x86_64",
    allow(unsafe_code, reason = "SIMD by std::arch; see each SAFETY comment")
)]

use super::activations::Tile;
use super::numbers::{Lanes, add_products};
use super::panels::{PANEL_ROWS, Panel};
use super::portable;

/// Most rows of activations that are multiplied with a panel at once.
pub(super) const TILE_ROWS: usize = 16;

/// Who multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Plain Rust.
    Portable,
    /// 256 bits: AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512 bits, with the dot product of bytes (VNNI).
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Plain Rust to be compiled for vectors of several widths. What is large is a type whose `run` is
/// `#[inline(always)]`: the compiler inlines no large closure in as many places.
pub(in crate::ops) trait Work {
    /// What it gives.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

impl<R, F: FnOnce() -> R> Work for F {
    type Output = R;

    #[inline(always)]
    fn run(self) -> R {
        self()
    }
}

/// Runs plain Rust compiled for the widest vectors that this CPU has, as far as it is inlined: what the compiler
/// takes without being told are those that all CPUs have.
#[inline]
pub(in crate::ops) fn in_wide_vectors<W: Work>(work: W) -> W::Output {
    Kernel::best().in_vectors(work)
}

/// What a product is compiled for: code width, whether there are minima, and rows at once.
macro_rules! by_format {
    ($module:ident, $rows:literal, $panel:expr, $tile:expr, $sums:expr) => {{
        let (rows, rest) = $tile.split::<$rows>();
        let (sums, others) = $sums.split_at_mut($rows);
        let panel: &Panel<'_> = $panel;
        match (panel.format.bits, panel.format.has_min) {
            (4, false) => $module::multiply::<4, false, $rows>(panel, rows, sums),
            (4, true) => $module::multiply::<4, true, $rows>(panel, rows, sums),
            (5, false) => $module::multiply::<5, false, $rows>(panel, rows, sums),
            (5, true) => $module::multiply::<5, true, $rows>(panel, rows, sums),
            (6, _) => $module::multiply::<6, false, $rows>(panel, rows, sums),
            _ => $module::multiply::<8, false, $rows>(panel, rows, sums),
        }
        (rest, others)
    }};
}

impl Kernel {
    /// The fastest that this CPU has.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
            {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Runs plain Rust compiled for this kernel's vectors.
    #[inline]
    pub(super) fn in_vectors<W: Work>(self, work: W) -> W::Output {
        match self {
            Self::Portable => work.run(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `best` names a kernel only where the CPU has its features.
            Self::Avx2 => unsafe { avx2::run(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512 => unsafe { avx512::run(work) },
        }
    }

    /// Adds the products of `M` rows with `P` panels of plain numbers. Not by [`Kernel::in_vectors`]: it is slow by
    /// orders where it is not inlined.
    pub(super) fn add_products<const M: usize, const P: usize>(
        self,
        sums: &mut [[Lanes; P]; M],
        rows: [&[f32]; M],
        block: [&[Lanes]; P],
    ) {
        match self {
            // Fused where that is an instruction, and not a function of the C library.
            Self::Portable if cfg!(target_arch = "aarch64") => {
                add_products::<M, P, true>(sums, rows, block);
            }
            Self::Portable => add_products::<M, P, false>(sums, rows, block),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `best` names a kernel only where the CPU has its features.
            Self::Avx2 => unsafe { avx2::add_products(sums, rows, block) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512 => unsafe { avx512::add_products(sums, rows, block) },
        }
    }

    /// All that this CPU has.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Self> {
        match Self::best() {
            Self::Portable => vec![Self::Portable],
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => vec![Self::Portable, Self::Avx2],
            // Every CPU with AVX-512 has AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => vec![Self::Portable, Self::Avx2, Self::Avx512],
        }
    }

    /// Products of the panel's 16 rows with each row of the tile, as many as `sums` has.
    pub(super) fn multiply(
        self,
        panel: &Panel<'_>,
        mut tile: Tile<'_>,
        mut sums: &mut [[f32; PANEL_ROWS]],
    ) {
        while !sums.is_empty() {
            (tile, sums) = match (self, tile.rows()) {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `best` names a kernel only where the CPU has its features.
                (Self::Avx512, rows) => unsafe {
                    match rows {
                        16.. => by_format!(avx512, 16, panel, tile, sums),
                        8.. => by_format!(avx512, 8, panel, tile, sums),
                        4.. => by_format!(avx512, 4, panel, tile, sums),
                        2.. => by_format!(avx512, 2, panel, tile, sums),
                        _ => by_format!(avx512, 1, panel, tile, sums),
                    }
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                (Self::Avx2, rows) => unsafe {
                    match rows {
                        4.. => by_format!(avx2, 4, panel, tile, sums),
                        2.. => by_format!(avx2, 2, panel, tile, sums),
                        _ => by_format!(avx2, 1, panel, tile, sums),
                    }
                },
                (Self::Portable, _) => {
                    let (row, rest) = tile.split::<1>();
                    let (own, others) = sums.split_at_mut(1);
                    portable::multiply(panel, row, own);
                    (rest, others)
                }
            };
        }
    }
}

/// Scales of a block of codes this wide.
#[cfg(target_arch = "x86_64")]
const fn scales(bits: usize) -> usize {
    if bits == 6 { 2 } else { 1 }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m256i, __m512, __m512i, _mm256_load_si256, _mm512_and_si512, _mm512_cvtepi32_ps,
        _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_mul_ps,
        _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_setzero_si512, _mm512_slli_epi16, _mm512_srli_epi16, _mm512_storeu_ps,
    };

    use super::super::activations::ActivationBlock;
    use super::super::numbers::{self, Lanes};
    use super::super::panels::{Halves, Line, PANEL_ROWS, Panel, QUADS};
    use super::{Work, scales};

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
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256, __m256i, _mm_load_si128, _mm256_abs_epi8, _mm256_add_epi16,
        _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps,
        _mm256_load_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256,
        _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_setzero_si256, _mm256_sign_epi8, _mm256_slli_epi16, _mm256_srli_epi16,
        _mm256_storeu_ps, _mm256_xor_si256,
    };

    use super::super::activations::ActivationBlock;
    use super::super::numbers::{self, Lanes};
    use super::super::panels::{Halves, Line, PANEL_ROWS, Panel, QUADS};
    use super::{Work, scales};

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
}
