//! Rotary position embedding (Su et al., 2021): heads turned by angles that grow with the position,
//! and the ways of stretching those angles over longer contexts.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb::rope_thd;

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

/// Frequencies of a model's rotation.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// Radians per token in f32, (1, D / 2).
    frequencies: Tensor,
    /// What the angles' sines become.
    dtype: DType,
}

impl Rotary {
    /// For heads of `dim` numbers, an even number.
    pub(crate) fn new(dim: usize, rope: Rope, dtype: DType, device: &Device) -> Result<Self> {
        let frequencies = rope.frequencies(dim);
        let frequencies = frequencies.into_iter().map(|frequency| frequency as f32);
        let frequencies = Tensor::from_iter(frequencies, device)?.unsqueeze(0)?;
        Ok(Self { frequencies, dtype })
    }

    /// The rotation of a batch. Made anew for each step: a table of all positions would be 67 MB
    /// for Llama 3.1.
    pub(crate) fn at(&self, positions: &[u32]) -> Result<Rotation> {
        let positions = positions.iter().map(|position| *position as f32);
        let positions = Tensor::from_iter(positions, self.frequencies.device())?;
        // (T, 1) x (1, D / 2) -> (T, 1, D / 2)
        let angles = positions
            .unsqueeze(1)?
            .broadcast_mul(&self.frequencies)?
            .unsqueeze(1)?;
        Ok(Rotation {
            cos: angles.cos()?.to_dtype(self.dtype)?,
            sin: angles.sin()?.to_dtype(self.dtype)?,
        })
    }
}

/// Rotation of a batch's rows, (T, 1, D / 2) each.
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Turns each head by its row's position: (T, heads, D) -> (T, heads, D).
    pub(crate) fn apply(&self, heads: &Tensor) -> Result<Tensor> {
        // candle's op takes batches of sequences: each row is a sequence of its own.
        let rows = heads.unsqueeze(1)?.contiguous()?; // (T, 1, heads, D)
        rope_thd(&rows, &self.cos, &self.sin)?.squeeze(1)
    }
}
