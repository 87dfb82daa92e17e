//! What operations take from the model's files: matrices, norms, tables, how attention differs, and layers of these.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::PackedMatrix;

/// A matrix of weights, one row for each number that a product with it gives.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// (out, in), in the model's type.
    Dense(Tensor),
    /// Laid out for products on a CPU, quantised or in the model's type.
    Packed {
        /// (out, in)
        rows: Arc<PackedMatrix>,
        /// The model's type.
        dtype: DType,
    },
}

impl Matrix {
    /// Numbers that a product gives, and that it takes.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(weight) => weight.dims2(),
            Self::Packed { rows, .. } => Ok((rows.rows(), rows.columns())),
        }
    }

    /// As a tensor in the model's type, (out, in): widened if it is packed.
    pub(crate) fn dense(&self) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight.clone()),
            Self::Packed { rows, dtype } => {
                let all = 0..rows.rows() as u32;
                Tensor::from_vec(rows.read_rows(all), self.shape()?, &Device::Cpu)?.to_dtype(*dtype)
            }
        }
    }

    /// One below the other.
    pub(crate) fn stack(parts: &[&Self]) -> Result<Self> {
        let mut packed = Vec::new();
        let mut common = None;
        for part in parts {
            if let Self::Packed { rows, dtype } = part {
                packed.push(&**rows);
                common = Some(*dtype);
            }
        }
        match common {
            Some(dtype) if packed.len() == parts.len() => Ok(Self::Packed {
                rows: Arc::new(PackedMatrix::stack(packed.into_iter())?),
                dtype,
            }),
            _ => {
                let parts = parts.iter().map(|part| part.dense());
                Ok(Self::Dense(Tensor::cat(
                    &parts.collect::<Result<Vec<_>>>()?,
                    0,
                )?))
            }
        }
    }
}

/// A product, with a bias where it has one.
#[derive(Debug, Clone)]
pub struct Linear {
    /// W, (out, in).
    pub weight: Matrix,
    /// b, (out).
    pub bias: Option<Tensor>,
}

/// What comes after a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// An activation.
    Activation(Activation),
    /// The product is a gate's and then as much again: `activation(gate) * rest`.
    Gated(Activation),
}

/// The activations there are, by what they compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x * Phi(x)`, by the error function.
    Gelu,
    /// The same by its tanh approximation.
    GeluTanh,
    /// `x * sigmoid(x)`
    Silu,
}

/// A norm over the last dimension, computed in f32.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Around what.
    pub kind: NormKind,
    /// (H)
    pub weight: Tensor,
    /// (H), of norms around the mean alone.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub eps: f32,
}

/// What a norm is around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// The mean.
    Layer,
    /// 0.
    Rms,
}

/// What a token becomes at first.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// (V, E)
    pub tokens: Matrix,
    /// What the token's row is multiplied by.
    pub scale: Option<f32>,
    /// Added to it.
    pub positions: Option<PositionTable>,
}

/// Learned positions.
#[derive(Debug, Clone)]
pub struct PositionTable {
    /// (positions + offset, H)
    pub table: Tensor,
    /// Row of position 0.
    pub offset: u32,
}

/// How many heads, and how wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heads {
    /// N.
    pub queries: usize,
    /// K: each serves N / K heads of queries.
    pub keys: usize,
    /// D.
    pub dim: usize,
}

impl Heads {
    /// N * D.
    pub fn query_width(&self) -> usize {
        self.queries * self.dim
    }

    /// K * D.
    pub fn key_width(&self) -> usize {
        self.keys * self.dim
    }
}

/// One layer's attention, between its products.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Which layer of the pages is its own.
    pub layer: usize,
    /// The heads in a row of queries, keys and values.
    pub heads: Heads,
    /// What scores are multiplied by before the softmax.
    pub scale: f32,
    /// A row sees this many tokens, itself included; `None`: all.
    pub window: Option<usize>,
    /// Over the D numbers of each head of queries, and of keys; before the rotation.
    pub head_norms: Option<(Norm, Norm)>,
    /// How queries and keys are turned.
    pub rope: Option<Arc<Rope>>,
}

impl Attention {
    /// Over all tokens, by scaled products alone.
    pub fn plain(layer: usize, heads: Heads) -> Self {
        Self {
            layer,
            heads,
            scale: (heads.dim as f32).sqrt().recip(),
            window: None,
            head_norms: None,
            rope: None,
        }
    }
}

/// One layer of a decoder.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    /// Of its attention.
    pub attention_norm: Norm,
    /// The first block.
    pub attention: SelfAttention,
    /// Of its feed-forward.
    pub feed_forward_norm: Norm,
    /// The second block.
    pub feed_forward: FeedForward,
}

/// The attention of one layer, with its products.
#[derive(Debug, Clone)]
pub struct SelfAttention {
    /// H -> (N + 2K) * D: queries, keys and values in one product.
    pub qkv: Linear,
    /// What is between the products.
    pub attention: Attention,
    /// N * D -> H.
    pub out: Linear,
}

/// `down(activation(up(x)))`, or with a gate `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// Gate and up in one product where there is a gate.
    pub up: Linear,
    /// The activation.
    pub epilogue: Epilogue,
    /// Back to H.
    pub down: Linear,
}

/// Rotation by position of the pairs (i, i + D / 2) of a head. Shared by the layers that turn alike.
#[derive(Debug)]
pub struct Rope {
    /// Radians per token, (D / 2), scaled already.
    pub frequencies: Vec<f32>,
    /// The same on the device.
    pub on_device: Tensor,
}
