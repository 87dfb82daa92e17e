//! A draw from a distribution of tokens, with a random stream of its own.

use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::{Error, WeightedIndex};
use rand::rngs::StdRng;

use super::sampler::max;
use crate::sampling_params::SamplingParams;

/// Draws one sequence's tokens.
pub(super) struct Draw {
    random: StdRng,
    temperature: f32,
    top_p: f32,
}

impl Draw {
    pub(super) fn new(params: &SamplingParams) -> Self {
        Self {
            random: StdRng::seed_from_u64(params.seed.unwrap_or_else(rand::random)),
            temperature: params.temperature,
            top_p: params.top_p,
        }
    }

    /// A token as likely as its logit says at the temperature, of the fewest that together have `top_p`. Logits whose
    /// best is not finite are an error.
    pub(super) fn token(&mut self, logits: &[f32]) -> Result<u32, Error> {
        let best = max(logits);
        let weight = |logit: &f32| ((logit - best) / self.temperature).exp();
        let mut weights: Vec<f32> = logits.iter().map(weight).collect();
        if self.top_p < 1.0 {
            keep_top_p(&mut weights, self.top_p);
        }
        Ok(WeightedIndex::new(weights)?.sample(&mut self.random) as u32)
    }
}

/// Drops all but the fewest best that together have `top_p` of the sum; equals of the last of them stay.
fn keep_top_p(weights: &mut [f32], top_p: f32) {
    let sum: f32 = weights.iter().sum();
    // All that are smaller are together less than what may be dropped: only the others need to be put in order.
    let least = (1.0 - top_p) * sum / weights.len() as f32;
    let large = weights.iter().copied().filter(|weight| *weight >= least);
    let mut best: Vec<f32> = large.collect();
    best.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut rest = top_p * sum;
    let last = best.iter().find(|weight| {
        rest -= **weight;
        rest <= 0.0
    });
    let last = last.copied().unwrap_or(least);
    for weight in weights {
        if *weight < last {
            *weight = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_are_kept_whose_sum_is_enough() {
        let check = |top_p: f32, expected: &[f32]| {
            let mut weights = [1.0, 4.0, 0.0, 2.0, 3.0];
            keep_top_p(&mut weights, top_p);
            assert_eq!(weights, expected, "{top_p}");
        };
        check(0.39, &[0.0, 4.0, 0.0, 0.0, 0.0]);
        check(0.41, &[0.0, 4.0, 0.0, 0.0, 3.0]);
        check(0.71, &[0.0, 4.0, 0.0, 2.0, 3.0]);
        check(0.99, &[1.0, 4.0, 0.0, 2.0, 3.0]);
        check(1e-9, &[0.0, 4.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn equals_of_the_last_stay() {
        let mut weights = [1.0; 1000];
        keep_top_p(&mut weights, 0.5);
        assert_eq!(weights, [1.0; 1000]);
    }

    #[test]
    fn a_best_that_is_not_finite_is_an_error() {
        let mut draw = Draw::new(&SamplingParams::default());
        for best in [f32::NEG_INFINITY, f32::INFINITY] {
            assert!(draw.token(&[best, f32::NEG_INFINITY]).is_err(), "{best}");
        }
        assert_eq!(draw.token(&[f32::NEG_INFINITY, 0.0]), Ok(1));
    }
}
