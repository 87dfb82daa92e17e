//! Keys and values of one sequence, one pair of tensors per layer.
//!
//! Kept behind this type so that a paged pool can take its place. Tensors grow by whole blocks, so a
//! sequence is copied once in a block's worth of tokens and never in between.

use candle_core::{Device, Result, Tensor};

use super::KvShape;

/// The cache of one sequence.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    block_tokens: usize,
    /// Tokens stored.
    len: usize,
    /// Tokens that fit.
    capacity: usize,
    layers: Vec<Layer>,
}

/// Keys and values, (heads, capacity, head_dim) each.
#[derive(Debug)]
struct Layer {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// An empty cache that grows by `block_tokens` at a time.
    pub fn new(shape: KvShape, block_tokens: usize) -> Self {
        Self {
            shape,
            block_tokens,
            len: 0,
            capacity: 0,
            layers: Vec::new(),
        }
    }

    /// Tokens stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `tokens` more, and counts them as stored: every layer must write them next.
    pub fn extend(&mut self, tokens: usize, device: &Device) -> Result<()> {
        let len = self.len + tokens;
        if len > self.capacity {
            let capacity = len.next_multiple_of(self.block_tokens);
            for layer in 0..self.shape.layers {
                // One layer at a time: old and new of a single layer are alive together.
                let grown = self.grown(layer, capacity, device)?;
                if layer < self.layers.len() {
                    self.layers[layer] = grown;
                } else {
                    self.layers.push(grown);
                }
            }
            self.capacity = capacity;
        }
        self.len = len;
        Ok(())
    }

    fn grown(&self, layer: usize, capacity: usize, device: &Device) -> Result<Layer> {
        let KvShape {
            heads,
            head_dim,
            dtype,
            ..
        } = self.shape;
        let empty = || Tensor::zeros((heads, capacity, head_dim), dtype, device);
        let grown = Layer {
            keys: empty()?,
            values: empty()?,
        };
        if let Some(old) = self.layers.get(layer) {
            grown.keys.slice_set(&old.keys, 1, 0)?;
            grown.values.slice_set(&old.values, 1, 0)?;
        }
        Ok(grown)
    }

    /// Writes the newest tokens of a layer, (heads, t, head_dim) each, and returns all keys and
    /// values of it, (heads, len, head_dim): views, not copies.
    pub fn write(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let layer = &self.layers[layer];
        let start = self.len - keys.dim(1)?;
        layer.keys.slice_set(keys, 1, start)?;
        layer.values.slice_set(values, 1, start)?;
        Ok((
            layer.keys.narrow(1, 0, self.len)?,
            layer.values.narrow(1, 0, self.len)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn what_was_written_survives_growth() -> Result<()> {
        let device = Device::Cpu;
        let shape = KvShape {
            layers: 2,
            heads: 2,
            head_dim: 3,
            dtype: DType::F32,
        };
        let mut cache = KvCache::new(shape, 4);
        let all = Tensor::arange(0f32, 2.0 * 9.0 * 3.0, &device)?.reshape((2, 9, 3))?;
        let mut written = 0;
        for tokens in [1, 2, 1, 5] {
            cache.extend(tokens, &device)?;
            for layer in 0..2 {
                let new = all.narrow(1, written, tokens)?.contiguous()?;
                let (keys, values) = cache.write(layer, &new, &new)?;
                let expected = all.narrow(1, 0, written + tokens)?.to_vec3::<f32>()?;
                assert_eq!(keys.to_vec3::<f32>()?, expected);
                assert_eq!(values.to_vec3::<f32>()?, expected);
            }
            written += tokens;
        }
        assert_eq!((cache.len(), cache.capacity), (9, 12));
        Ok(())
    }
}
