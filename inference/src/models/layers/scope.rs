//! Where in the weights a layer's tensors are, and layers made of them.

use candle_core::Tensor;
use candle_nn::{LayerNorm, Linear, RmsNorm};

use crate::loader::weights::{Weights, WeightsError};

/// What making a layer gives.
pub(crate) type Loaded<T> = std::result::Result<T, WeightsError>;

/// The tensors whose names begin alike, such as `model.layers.3.mlp.`.
pub(crate) struct Scope<'a> {
    weights: &'a Weights,
    /// Empty, or with the dot at its end.
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The decoder's tensors. Files saved without the head have names without the model's
    /// `prefix`: those that have `tensor` at the top.
    pub(crate) fn decoder(weights: &'a Weights, prefix: &str, tensor: &str) -> Self {
        let bare = weights.contains(tensor);
        Self {
            weights,
            prefix: if bare {
                String::new()
            } else {
                prefix.to_owned()
            },
        }
    }

    /// A part of this one.
    pub(crate) fn within(&self, part: &str) -> Self {
        Self {
            weights: self.weights,
            prefix: format!("{}{part}.", self.prefix),
        }
    }

    /// One tensor.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Loaded<Tensor> {
        self.weights.get(&format!("{}{name}", self.prefix), shape)
    }

    /// A product: `from` -> `to`.
    pub(crate) fn linear(
        &self,
        name: &str,
        (from, to): (usize, usize),
        with_bias: bool,
    ) -> Loaded<Linear> {
        let layer = self.within(name);
        let weight = layer.tensor("weight", &[to, from])?;
        let bias = with_bias.then(|| layer.tensor("bias", &[to])).transpose()?;
        Ok(Linear::new(weight, bias))
    }

    /// A product whose weight is stored the other way round, (from, to), as GPT-2's `Conv1D` has it.
    pub(crate) fn transposed_linear(
        &self,
        name: &str,
        (from, to): (usize, usize),
    ) -> Loaded<Linear> {
        if self.weights.outputs_first() {
            return self.linear(name, (from, to), true);
        }
        let layer = self.within(name);
        let weight = layer.tensor("weight", &[from, to])?.t()?.contiguous()?;
        Ok(Linear::new(weight, Some(layer.tensor("bias", &[to])?)))
    }

    /// A norm of `size` numbers around their mean.
    pub(crate) fn layer_norm(&self, name: &str, size: usize, eps: f64) -> Loaded<LayerNorm> {
        let layer = self.within(name);
        let weight = layer.tensor("weight", &[size])?;
        Ok(LayerNorm::new(weight, layer.tensor("bias", &[size])?, eps))
    }

    /// One without parameters: candle's fused kernel wants them, so the neutral ones.
    pub(crate) fn plain_layer_norm(&self, size: usize, eps: f64) -> Loaded<LayerNorm> {
        let (dtype, device) = (self.weights.dtype(), self.weights.device());
        let weight = Tensor::ones(size, dtype, device)?;
        let bias = Tensor::zeros(size, dtype, device)?;
        Ok(LayerNorm::new(weight, bias, eps))
    }

    /// A norm of `size` numbers around 0.
    pub(crate) fn rms_norm(&self, name: &str, size: usize, eps: f64) -> Loaded<RmsNorm> {
        let weight = self.within(name).tensor("weight", &[size])?;
        Ok(RmsNorm::new(weight, eps))
    }

    /// E -> V: the token embedding (V, E) again, or `lm_head`, which is outside the decoder.
    pub(crate) fn head(&self, token_embedding: &Tensor, tied: bool) -> Loaded<Linear> {
        let weight = if tied {
            token_embedding.clone()
        } else {
            self.weights.get("lm_head.weight", token_embedding.dims())?
        };
        Ok(Linear::new(weight, None))
    }
}
