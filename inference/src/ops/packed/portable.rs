//! A panel's products in plain Rust: for CPUs without the SIMD of `kernel`, which it is tested against.

use half::f16;

use super::activations::ActivationBlock;
use super::panels::{Halves, Line, PANEL_ROWS, Panel, unpack_codes};

/// Products of 16 rows with `M` rows.
pub(super) fn multiply<const M: usize>(
    panel: &Panel<'_>,
    rows: [&[ActivationBlock]; M],
    sums: &mut [[f32; PANEL_ROWS]],
) {
    let format = panel.format;
    sums.fill([0.0; PANEL_ROWS]);
    let blocks = panel
        .codes
        .chunks_exact(format.bits)
        .zip(panel.scales.chunks_exact(format.halves()));
    for (index, (codes, halves)) in blocks.enumerate() {
        let codes = unpack_codes(format.bits, codes);
        for (row, sums) in rows.iter().zip(sums.iter_mut()) {
            let block = &row[index];
            let per_scale = codes.len() / format.scales;
            for (part, codes) in codes.chunks_exact(per_scale).enumerate() {
                let quads = &block.quads[part * per_scale..];
                let total = if format.scales == 1 {
                    block.sums[0] + block.sums[1]
                } else {
                    block.sums[part]
                };
                let dots = dots(codes, quads, -format.offset * total);
                add(sums, &dots, block.scale, &halves[part]);
            }
            if format.has_min {
                let total = (block.sums[0] + block.sums[1]) as f32 * block.scale;
                let mins = halves[format.scales].0;
                for (sum, min) in sums.iter_mut().zip(mins) {
                    *sum += f16::from_bits(min).to_f32() * total;
                }
            }
        }
    }
}

/// Dot products of 16 rows of codes with one row's, from `start` on.
fn dots(codes: &[Line], quads: &[i32], start: i32) -> [i32; PANEL_ROWS] {
    let mut dots = [start; PANEL_ROWS];
    for (line, quad) in codes.iter().zip(quads) {
        let bytes = quad.to_le_bytes();
        for (dot, codes) in dots.iter_mut().zip(line.0.chunks_exact(4)) {
            for (code, byte) in codes.iter().zip(bytes) {
                *dot += i32::from(*code) * i32::from(byte as i8);
            }
        }
    }
    dots
}

fn add(sums: &mut [f32; PANEL_ROWS], dots: &[i32; PANEL_ROWS], scale: f32, scales: &Halves) {
    for ((sum, dot), own) in sums.iter_mut().zip(dots).zip(scales.0) {
        *sum += *dot as f32 * scale * f16::from_bits(own).to_f32();
    }
}
