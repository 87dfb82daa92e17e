//! Keys and values of all sequences, in blocks of a few tokens: allocated once, at start.

use candle_core::{DType, Device, Result, Tensor};

/// Tokens per block.
pub const KV_BLOCK_TOKENS: usize = 16;

/// The sizes that a model's keys and values have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// K: heads of keys and values.
    pub heads: usize,
    /// D: numbers per head.
    pub head_dim: usize,
    /// Their type.
    pub dtype: DType,
}

impl KvShape {
    /// Keys and values of one token, all layers.
    pub fn bytes_per_token(&self) -> u64 {
        (2 * self.layers * self.heads * self.head_dim * self.dtype.size_in_bytes()) as u64
    }
}

/// The keys and values of one layer.
#[derive(Debug, Clone)]
pub struct LayerPages {
    /// (blocks, K, [`KV_BLOCK_TOKENS`], D); how the numbers of a block and head lie is up to the [`super::Ops`].
    pub keys: Tensor,
    /// The same shape.
    pub values: Tensor,
}

/// The keys and values of all layers. Written in place, by [`super::Ops::attend`] and [`super::Ops::run_layers`] alone.
#[derive(Debug)]
pub struct KvPages {
    layers: Vec<LayerPages>,
}

impl KvPages {
    /// Room for `blocks` blocks.
    pub fn new(shape: &KvShape, blocks: usize, device: &Device) -> Result<Self> {
        let dims = (blocks, shape.heads, KV_BLOCK_TOKENS, shape.head_dim);
        let empty = || Tensor::zeros(dims, shape.dtype, device);
        let layer = |_| {
            Ok(LayerPages {
                keys: empty()?,
                values: empty()?,
            })
        };
        let layers = (0..shape.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// Those of one layer.
    pub fn layer(&self, index: usize) -> &LayerPages {
        &self.layers[index]
    }
}
