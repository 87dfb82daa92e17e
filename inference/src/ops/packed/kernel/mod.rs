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

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

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
