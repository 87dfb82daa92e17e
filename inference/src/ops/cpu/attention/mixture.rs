//! What some queries take of the values of the tokens before them, one block of tokens after another.

use std::ops::Range;

use super::super::math::exp;
use crate::ops::KV_BLOCK_TOKENS;
use crate::ops::packed::{Lanes, PANEL_ROWS, add_panel_products};

/// As far as it has come.
pub(super) struct Mixture {
    /// D.
    dim: usize,
    /// Of the block at hand, (queries, tokens): scores, and then weights.
    scores: Vec<Lanes>,
    sums: Vec<Sum>,
    /// (D / 16, queries, 16), and what is left of D in the same way.
    mixed: Vec<Lanes>,
}

/// Of one query: weights are relative to the largest score so far.
#[derive(Clone, Copy)]
struct Sum {
    largest: f32,
    /// Of the weights, each token of a block by itself.
    weights: Lanes,
    /// What weights so far are to be multiplied with.
    shrink: f32,
}

/// A query's scores of the block at hand.
pub(super) struct Softmax<'a> {
    scores: &'a mut Lanes,
    sum: &'a mut Sum,
}

impl Mixture {
    pub(super) fn new(queries: usize, dim: usize) -> Self {
        let nothing_yet = Sum {
            largest: f32::NEG_INFINITY,
            weights: [0.0; PANEL_ROWS],
            shrink: 1.0,
        };
        Self {
            dim,
            scores: vec![[0.0; PANEL_ROWS]; queries],
            sums: vec![nothing_yet; queries],
            mixed: vec![[0.0; PANEL_ROWS]; queries * dim.div_ceil(PANEL_ROWS)],
        }
    }

    /// The scores of a block's keys, (D, tokens), for the queries, (queries, D).
    pub(super) fn compare(&mut self, queries: &[f32], keys: &[f32]) {
        self.scores.fill([0.0; PANEL_ROWS]);
        add_panel_products(&mut self.scores, (queries, self.dim), keys.as_chunks().0);
    }

    /// Those of each query.
    pub(super) fn softmaxes(&mut self) -> impl Iterator<Item = Softmax<'_>> {
        let each = self.scores.iter_mut().zip(&mut self.sums);
        each.map(|(scores, sum)| Softmax { scores, sum })
    }

    /// Adds the first `tokens` of a block's values, (D / 16, tokens, 16), by the weights of their tokens.
    #[inline(always)]
    pub(super) fn add(&mut self, values: &[f32], tokens: usize) {
        let (panels, rest) = values.as_chunks::<{ KV_BLOCK_TOKENS * PANEL_ROWS }>();
        let mixed = self.mixed.chunks_exact_mut(self.scores.len());
        for (panel, mixed) in mixed.enumerate() {
            for (mixed, sum) in mixed.iter_mut().zip(&self.sums) {
                if sum.shrink != 1.0 {
                    mixed.iter_mut().for_each(|number| *number *= sum.shrink);
                }
            }
            if let Some(panel) = panels.get(panel) {
                let weights = (self.scores.as_flattened(), PANEL_ROWS);
                add_panel_products(mixed, weights, &panel.as_chunks().0[..tokens]);
            } else {
                let width = rest.len() / KV_BLOCK_TOKENS;
                for (mixed, weights) in mixed.iter_mut().zip(&self.scores) {
                    for (weight, values) in weights.iter().zip(rest.chunks(width)).take(tokens) {
                        for (mixed, value) in mixed.iter_mut().zip(values) {
                            *mixed += weight * value;
                        }
                    }
                }
            }
        }
    }

    /// The mixtures: (queries, D).
    pub(super) fn finish(self) -> Vec<f32> {
        let queries = self.scores.len();
        let mut out = Vec::with_capacity(queries * self.dim);
        for (query, sum) in self.sums.iter().enumerate() {
            let factor = sum.weights.iter().sum::<f32>().recip();
            let panels = self.mixed.iter().skip(query).step_by(queries);
            let numbers = panels.flatten().take(self.dim);
            out.extend(numbers.map(|number| number * factor));
        }
        out
    }
}

impl Softmax<'_> {
    /// Makes weights of the scores of the tokens that are `seen`; of others they are 0.
    #[inline(always)]
    pub(super) fn take_in(self, seen: Range<usize>) {
        let Self { scores, sum } = self;
        // Copies and short loops, which the compiler makes vectors of.
        let mut numbers = *scores;
        for (token, number) in numbers.iter_mut().enumerate() {
            let is_seen = seen.start <= token && token < seen.end;
            *number = if is_seen { *number } else { f32::NEG_INFINITY };
        }
        let mut best = numbers;
        for half in [8, 4, 2, 1] {
            for token in 0..half {
                best[token] = best[token].max(best[token + half]);
            }
        }
        let largest = sum.largest.max(best[0]);
        sum.shrink = if largest > sum.largest {
            exp(sum.largest - largest)
        } else {
            1.0
        };
        sum.largest = largest;
        for number in &mut numbers {
            let is_seen = *number != f32::NEG_INFINITY;
            let weight = exp(*number - largest);
            *number = if is_seen { weight } else { 0.0 };
        }
        *scores = numbers;
        for (sum_of_token, weight) in sum.weights.iter_mut().zip(numbers) {
            *sum_of_token = *sum_of_token * sum.shrink + weight;
        }
    }
}
