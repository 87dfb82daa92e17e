//! Rotary position embedding (Su et al., 2021): heads turned by angles that grow with the position,
//! and the ways of stretching those angles over longer contexts.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::ops;

/// A model's rotation as its config describes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rope {
    /// Wave lengths reach from 2π tokens to nearly 2π times this.
    pub(crate) base: f64,
    /// For contexts longer than those first trained on.
    pub(crate) scaling: RopeScaling,
}

/// How angles differ from those that the base alone gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RopeScaling {
    /// They do not.
    None,
    /// All are divided by `factor`.
    Linear {
        /// How much longer the context is.
        factor: f64,
    },
    /// Llama 3.1's: waves that end often within the original context stay, those that do not end
    /// in it are divided by `factor`, and between the two it is a mixture.
    Llama3 {
        /// How much longer the context is.
        factor: f64,
        /// Waves that fit less often than this into the original context are divided.
        low_freq_factor: f64,
        /// Waves that fit more often stay.
        high_freq_factor: f64,
        /// The context before it was stretched, in tokens.
        original_context: f64,
    },
}

impl Rope {
    /// The rotation of heads of `dim` numbers, an even number.
    pub(crate) fn rotation(&self, dim: usize, device: &Device) -> Result<Arc<ops::Rope>> {
        let frequencies = self.frequencies(dim).into_iter();
        let frequencies: Vec<_> = frequencies.map(|frequency| frequency as f32).collect();
        Ok(Arc::new(ops::Rope {
            on_device: Tensor::from_slice(&frequencies, frequencies.len(), device)?,
            frequencies,
        }))
    }

    /// Radians per token of the D / 2 pairs of numbers in a head.
    fn frequencies(&self, dim: usize) -> Vec<f64> {
        (0..dim)
            .step_by(2)
            .map(|index| self.base.powf(-(index as f64) / dim as f64))
            .map(|frequency| self.scaling.scale(frequency))
            .collect()
    }
}

impl RopeScaling {
    /// A frequency in radians per token, scaled.
    fn scale(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let waves = original_context * frequency / std::f64::consts::TAU;
                let kept = (waves - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}
