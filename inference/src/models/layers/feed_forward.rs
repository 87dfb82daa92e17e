//! The feed-forward block, gated (SwiGLU and its kin) or plain.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Activation, Linear};

/// `down(activation(up(x)))`, or with a gate `down(activation(gate(x)) * up(x))`.
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) activation: Activation,
    pub(crate) down: Linear,
}

impl FeedForward {
    /// (T, H) -> (T, H)
    pub(crate) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let up = self.up.forward(rows)?;
        let inner = match &self.gate {
            // Two products and not one of twice the width: halves of its rows would have to be
            // copied apart.
            Some(gate) => (self.activation.forward(&gate.forward(rows)?)? * up)?,
            None => self.activation.forward(&up)?,
        };
        self.down.forward(&inner)
    }
}
