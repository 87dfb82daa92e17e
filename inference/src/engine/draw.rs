//! A draw from a distribution of tokens, with a random stream of its own: here, or by keys for a device.

use candle_core::{Device, Result, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::ops;
use crate::sampling_params::SamplingParams;

/// Draws one sequence's tokens, by candle-transformers' processor. Its own `top_p` puts the whole vocabulary in
/// order for each token; ours only what can be kept.
pub(super) struct Draw {
    seed: u64,
    processor: LogitsProcessor,
    top_p: f32,
}

impl Draw {
    pub(super) fn new(params: &SamplingParams) -> Self {
        let seed = params.seed.unwrap_or_else(rand::random);
        let temperature = f64::from(params.temperature);
        Self {
            seed,
            processor: LogitsProcessor::from_sampling(seed, Sampling::All { temperature }),
            top_p: params.top_p,
        }
    }

    /// The same for a device. A token's place in its sequence, and the seed, are all that its chance depends on: what
    /// runs again gives the same.
    pub(super) fn at(&self, place: usize, params: &SamplingParams) -> ops::Draw {
        ops::Draw {
            temperature: params.temperature,
            min_p: params.min_p,
            top_k: params
                .top_k
                .map_or(0, |k| u32::try_from(k).unwrap_or(u32::MAX)),
            top_p: params.top_p,
            key: mix(mix(self.seed).wrapping_add(place as u64)),
        }
    }

    /// A token as likely as its logit says at the temperature, of the fewest that together have `top_p`. Logits (V,)
    /// whose best is not finite are an error.
    pub(super) fn token(&mut self, logits: Vec<f32>) -> Result<u32> {
        let logits = Tensor::new(logits, &Device::Cpu)?;
        self.processor.sample_f(&logits, |probabilities| {
            if self.top_p < 1.0 {
                keep_top_p(probabilities, self.top_p);
            }
        })
    }
}

/// Spreads a number over all 64 bits: the finalizer of `SplitMix64`, <https://doi.org/10.1145/2660193.2660195>.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
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
    fn a_devices_chance_is_another_at_each_place_and_the_same_for_a_seed() {
        let draw = |seed| {
            let seeded = SamplingParams {
                seed: Some(seed),
                ..SamplingParams::default()
            };
            let draw = Draw::new(&seeded);
            let keys = (0..100).map(|place| draw.at(place, &seeded).key);
            keys.collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        let mut all = [draw(7), draw(8)].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 200);
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
            assert!(draw.token(vec![best, f32::NEG_INFINITY]).is_err(), "{best}");
        }
        let token = draw.token(vec![f32::NEG_INFINITY, 0.0]);
        assert_eq!(token.expect("a token can be drawn"), 1);
    }
}
