use candle_core::Device;

use super::*;
use crate::ops::{KvPages, KvShape};

const HEADS: Heads = Heads {
    queries: 6,
    keys: 2,
    dim: 20,
};
const WIDTH: usize = (HEADS.queries + 2 * HEADS.keys) * HEADS.dim;

/// Numbers from -1 to 1 that look random.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    let number = |index: usize| ((index * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    (0..count).map(number).collect()
}

/// Attention as its formula says, over a whole sequence (n, (N + 2K) * D): (n, N * D).
fn by_formula(qkv: &[f32], scale: f32, window: Option<usize>) -> Vec<f32> {
    let Heads { queries, keys, dim } = HEADS;
    let rows: Vec<_> = qkv.chunks(WIDTH).collect();
    let mut mixed = Vec::new();
    for (position, row) in rows.iter().enumerate() {
        for head in 0..queries {
            let query = &row[head * dim..][..dim];
            let key_head = head / (queries / keys);
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            let seen = &rows[first..=position];
            let part = |row: &[f32], head: usize| row[head * dim..][..dim].to_vec();
            let score = |row: &&[f32]| {
                let key = part(row, queries + key_head);
                let sum: f32 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                (sum * scale).exp()
            };
            let weights: Vec<f32> = seen.iter().map(score).collect();
            let sum: f32 = weights.iter().sum();
            let mut head = vec![0.0; dim];
            for (row, weight) in seen.iter().zip(weights) {
                let value = part(row, queries + keys + key_head);
                for (number, value) in head.iter_mut().zip(value) {
                    *number += weight / sum * value;
                }
            }
            mixed.extend(head);
        }
    }
    mixed
}

/// Runs two sequences in the given chunks, side by side, and compares all rows with the formula.
fn check(dtype: DType, window: Option<usize>, chunks: &[(usize, usize)], tolerance: f32) {
    let shape = KvShape {
        layers: 1,
        heads: HEADS.keys,
        head_dim: HEADS.dim,
        dtype,
    };
    let pages = KvPages::new(&shape, 16, &Device::Cpu).unwrap();
    let mut attention = Attention::plain(0, HEADS);
    attention.window = window;
    let lengths = chunks
        .iter()
        .fold((0, 0), |sum, chunk| (sum.0 + chunk.0, sum.1 + chunk.1));
    let sequences = [numbers(lengths.0 * WIDTH, 1), numbers(lengths.1 * WIDTH, 2)];
    let tables: [Vec<u32>; 2] = [vec![7, 0, 9, 4], vec![1, 15, 3, 2]];
    let expected = sequences.each_ref().map(|qkv| {
        let scale = attention.scale;
        by_formula(qkv, scale, window)
    });
    let mut done = [0, 0];
    for chunk in chunks {
        let mut step = StepInputs::default();
        let (mut qkv, mut wanted) = (Vec::new(), Vec::new());
        for (index, len) in [chunk.0, chunk.1].into_iter().enumerate() {
            if len == 0 {
                continue;
            }
            let (from, to) = (done[index], done[index] + len);
            step.push(&vec![0; len], from, &tables[index]);
            qkv.extend_from_slice(&sequences[index][from * WIDTH..to * WIDTH]);
            let width = HEADS.query_width();
            wanted.extend_from_slice(&expected[index][from * width..to * width]);
            done[index] = to;
        }
        let rows = step.tokens.len();
        let qkv = Tensor::from_vec(qkv, (rows, WIDTH), &Device::Cpu).unwrap();
        let qkv = qkv.to_dtype(dtype).unwrap();
        let mixed = attend(&qkv, (&attention, None), &step, pages.layer(0)).unwrap();
        assert_eq!(mixed.dims(), [rows, HEADS.query_width()]);
        let mixed = widened(&mixed.flatten_all().unwrap()).unwrap();
        for (ours, wanted) in mixed.iter().zip(&wanted) {
            assert!((ours - wanted).abs() < tolerance, "{ours} for {wanted}");
        }
    }
}

#[test]
fn rows_see_their_own_sequence_up_to_themselves_whatever_the_chunks() {
    check(DType::F32, None, &[(37, 3), (1, 20), (1, 1), (9, 0)], 1e-5);
}

#[test]
fn windows_end_inside_blocks_and_at_their_ends() {
    for window in [1, 7, 16, 17] {
        check(DType::F32, Some(window), &[(33, 2), (1, 1), (14, 40)], 1e-5);
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    check(DType::F16, None, &[(20, 5), (1, 1)], 2e-3);
    check(DType::BF16, Some(9), &[(20, 5), (1, 1)], 2e-2);
}

#[test]
fn large_batches_on_many_threads_are_the_same() {
    check(DType::F32, None, &[(60, 60), (1, 1)], 1e-5);
}
