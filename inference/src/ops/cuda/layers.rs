//! Decoder layers of one row, two kernels each: the step of one sequence takes as long as its chain of kernels.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{Error, Result, Tensor};

use super::CudaOps;
use super::kernels::{
    self, Address, AttentionBlockArguments, FeedForwardArguments, Launcher, MAX_PARTS, NULL,
    StreamArguments, int,
};
use super::products::dense;
use super::steps::Current;
use crate::ops::{DecoderLayer, Epilogue, FeedForward, KvPages, SelfAttention};

/// The residual stream's way from kernel to kernel. No other memory would do: what is read before it is written in a
/// step must be zeros, or of a step before.
pub(super) struct Exchange {
    /// Between two kernels, by the first one's place in the pass and by H: 8 bytes for two numbers of each part.
    lines: HashMap<(usize, usize), CudaSlice<u64>>,
    /// Counts steps.
    step: CudaSlice<u32>,
    stream: Arc<CudaStream>,
}

impl Exchange {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            lines: HashMap::new(),
            step: stream.alloc_zeros(1).map_err(Error::wrap)?,
            stream: Arc::clone(stream),
        })
    }

    fn step(&self) -> Address {
        self.step.device_ptr(&self.stream).0
    }

    /// Lines from the kernel at `place` to the next one.
    fn lines(&mut self, place: usize, hidden: usize) -> Result<Address> {
        let key = (place, hidden);
        if !self.lines.contains_key(&key) {
            let zeros = self.stream.alloc_zeros(MAX_PARTS * hidden / 2);
            self.lines.insert(key, zeros.map_err(Error::wrap)?);
        }
        Ok(self.lines[&key].device_ptr(&self.stream).0)
    }
}

impl CudaOps {
    /// See [`crate::ops::Ops::run_layers`]: (1, H) -> (1, H).
    pub(super) fn run_layers_of_one_row(
        &self,
        hidden: &Tensor,
        layers: &[DecoderLayer],
        pages: &KvPages,
    ) -> Result<Option<Tensor>> {
        let current = self.current()?;
        let (rows, size) = hidden.dims2()?;
        for layer in layers {
            if rows != 1 || !fits(hidden, layer)? {
                return Ok(None);
            }
        }
        let mut stream = StreamArguments {
            row: self.address(hidden)?,
            lines: NULL,
            parts: 1,
        };
        for (index, layer) in layers.iter().enumerate() {
            let lines = self.lines(2 * index, size)?;
            let attention = self.attention_block(&current, (stream, lines), layer, pages)?;
            // SAFETY: as in `product`; the step's slot and table name blocks of these pages.
            unsafe { self.launcher.attention_block(&attention)? };
            stream = lines_of(lines, layer.attention.attention.heads.keys)?;
            let lines = self.lines(2 * index + 1, size)?;
            let feed_forward = self.feed_forward((stream, lines), layer)?;
            // SAFETY: as in `product`.
            unsafe { self.launcher.feed_forward(&feed_forward)? };
            stream = lines_of(lines, Launcher::layer_parts(feed_forward.inner) as usize)?;
        }
        let out = self.output(1, size, hidden.dtype())?;
        let addresses = [self.address(&out)?, self.exchange.borrow().step()];
        let (size, dtype) = (int(size)?, kernels::dtype(hidden)?);
        // SAFETY: as in `product`.
        unsafe { self.launcher.add_parts(&stream, addresses, size, dtype)? };
        Ok(Some(out))
    }

    fn lines(&self, place: usize, hidden: usize) -> Result<Address> {
        self.exchange.borrow_mut().lines(place, hidden)
    }

    fn attention_block(
        &self,
        current: &Current,
        (x, out): (StreamArguments, Address),
        layer: &DecoderLayer,
        pages: &KvPages,
    ) -> Result<AttentionBlockArguments> {
        let SelfAttention {
            qkv,
            attention,
            out: after,
        } = &layer.attention;
        let weight = dense(&qkv.weight)?;
        let pages = pages.layer(attention.layer);
        Ok(AttentionBlockArguments {
            x,
            norm: self.norm_arguments(Some(&layer.attention_norm))?,
            qkv_weight: self.address(weight)?,
            qkv_bias: self.optional(qkv.bias.as_ref())?,
            out_weight: self.address(dense(&after.weight)?)?,
            out_bias: self.optional(after.bias.as_ref())?,
            out,
            step: self.exchange.borrow().step(),
            attention: self.attention_arguments(current, attention, pages)?,
            hidden: int(weight.dim(1)?)?,
            dtype: kernels::dtype(weight)?,
        })
    }

    fn feed_forward(
        &self,
        (x, out): (StreamArguments, Address),
        layer: &DecoderLayer,
    ) -> Result<FeedForwardArguments> {
        let FeedForward { up, epilogue, down } = &layer.feed_forward;
        let weight = dense(&down.weight)?;
        let (hidden, inner) = weight.dims2()?;
        let (activation, _) = kernels::epilogue(*epilogue);
        Ok(FeedForwardArguments {
            x,
            norm: self.norm_arguments(Some(&layer.feed_forward_norm))?,
            up_weight: self.address(dense(&up.weight)?)?,
            up_bias: self.optional(up.bias.as_ref())?,
            down_weight: self.address(weight)?,
            down_bias: self.optional(down.bias.as_ref())?,
            out,
            step: self.exchange.borrow().step(),
            hidden: int(hidden)?,
            inner: int(inner)?,
            activation,
            dtype: kernels::dtype(weight)?,
        })
    }
}

fn lines_of(lines: Address, parts: usize) -> Result<StreamArguments> {
    Ok(StreamArguments {
        row: NULL,
        lines,
        parts: int(parts)?,
    })
}

/// Whether there are kernels for such a layer.
fn fits(hidden: &Tensor, layer: &DecoderLayer) -> Result<bool> {
    let (_, inner) = dense(&layer.feed_forward.down.weight)?.dims2()?;
    let gated = matches!(layer.feed_forward.epilogue, Epilogue::Gated(_));
    let heads = layer.attention.attention.heads;
    let (size, inner) = (int(hidden.dim(1)?)?, int(inner)?);
    Ok(!gated && Launcher::layer_fits(size, heads, inner, kernels::dtype(hidden)?)?)
}
