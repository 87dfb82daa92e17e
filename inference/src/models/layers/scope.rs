//! Where in the weights a layer's tensors are, and layers made of them.

use candle_core::Tensor;

use crate::loader::weights::{Weights, WeightsError};
use crate::ops::{Linear, Matrix, Norm, NormKind};

/// What making a layer gives.
pub(crate) type Loaded<T> = std::result::Result<T, WeightsError>;

/// The tensors whose names begin alike, such as `model.layers.3.mlp.`.
pub(crate) struct Scope<'a> {
    weights: &'a Weights,
    /// Empty, or with the dot at its end.
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The decoder's tensors, among which there is `tensor`, behind one of these prefixes, or behind none in files saved
    /// without the head. Where it is missing, it is so by the first of them.
    pub(crate) fn decoder(weights: &'a Weights, prefixes: &[&str], tensor: &str) -> Self {
        let has = |prefix: &&&str| weights.contains(&format!("{prefix}{tensor}"));
        let found = [""].iter().chain(prefixes).find(has);
        let prefix = found.or_else(|| prefixes.first());
        Self {
            weights,
            prefix: prefix.copied().unwrap_or_default().to_owned(),
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

    /// A token table, (V, E).
    pub(crate) fn table(&self, name: &str, shape: (usize, usize)) -> Loaded<Matrix> {
        self.weights
            .matrix(&format!("{}{name}", self.prefix), shape)
    }

    /// A product: `from` -> `to`.
    pub(crate) fn linear(
        &self,
        name: &str,
        (from, to): (usize, usize),
        with_bias: bool,
    ) -> Loaded<Linear> {
        let layer = self.within(name);
        let weight = layer.table("weight", (to, from))?;
        let bias = with_bias.then(|| layer.tensor("bias", &[to])).transpose()?;
        Ok(Linear { weight, bias })
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
        let name = format!("{}weight", layer.prefix);
        Ok(Linear {
            weight: self.weights.transposed_matrix(&name, (to, from))?,
            bias: Some(layer.tensor("bias", &[to])?),
        })
    }

    /// A norm of `size` numbers around their mean.
    pub(crate) fn layer_norm(&self, name: &str, size: usize, eps: f64) -> Loaded<Norm> {
        let layer = self.within(name);
        Ok(Norm {
            kind: NormKind::Layer,
            weight: layer.tensor("weight", &[size])?,
            bias: Some(layer.tensor("bias", &[size])?),
            eps: eps as f32,
        })
    }

    /// One without parameters: the operations want them, so the neutral ones.
    pub(crate) fn plain_layer_norm(&self, size: usize, eps: f64) -> Loaded<Norm> {
        let (dtype, device) = (self.weights.dtype(), self.weights.device());
        Ok(Norm {
            kind: NormKind::Layer,
            weight: Tensor::ones(size, dtype, device)?,
            bias: Some(Tensor::zeros(size, dtype, device)?),
            eps: eps as f32,
        })
    }

    /// A norm of `size` numbers around 0.
    pub(crate) fn rms_norm(&self, name: &str, size: usize, eps: f64) -> Loaded<Norm> {
        Ok(Norm {
            kind: NormKind::Rms,
            weight: self.within(name).tensor("weight", &[size])?,
            bias: None,
            eps: eps as f32,
        })
    }

    /// The same where what is stored is the weight's distance from 1, as in Gemma's own files.
    pub(crate) fn rms_norm_from_one(&self, name: &str, size: usize, eps: f64) -> Loaded<Norm> {
        let mut norm = self.rms_norm(name, size, eps)?;
        if !self.weights.has_whole_norms() {
            norm.weight = (norm.weight + 1.0)?;
        }
        Ok(norm)
    }

    /// E -> V: the token embedding (V, E) again, or `lm_head`, which is outside the decoder.
    pub(crate) fn head(&self, token_embedding: &Matrix, tied: bool) -> Loaded<Linear> {
        let weight = if tied {
            token_embedding.clone()
        } else {
            let shape = token_embedding.shape()?;
            self.weights.matrix("lm_head.weight", shape)?
        };
        Ok(Linear { weight, bias: None })
    }
}

/// Several projections of the same input as one.
pub(crate) fn in_one_product(parts: &[Linear]) -> Loaded<Linear> {
    let weights: Vec<_> = parts.iter().map(|part| &part.weight).collect();
    let biases: Option<Vec<_>> = parts.iter().map(|part| part.bias.as_ref()).collect();
    Ok(Linear {
        weight: Matrix::stack(&weights)?,
        bias: biases.map(|biases| Tensor::cat(&biases, 0)).transpose()?,
    })
}
