//! The kernels of `kernels/`, as they are called: mirrors `kernels/interface.h`.

use std::ffi::{CStr, c_char, c_int};

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr};
use candle_core::{DType, Result, Storage, Tensor};

use crate::ops::{Activation, Epilogue, Heads, MAX_TOP_LOGPROBS, Norm, NormKind};

/// An address on the device, or 0: what C has as a pointer, and the driver as a number.
pub(super) type Address = u64;
const _: () = assert!(size_of::<Address>() == size_of::<*const u8>());

/// What is not there.
pub(super) const NULL: Address = 0;

/// `cudaError_t`.
type Status = c_int;

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct NormArguments {
    weight: Address,
    bias: Address,
    eps: f32,
    kind: c_int,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Product {
    pub(super) x: Address,
    pub(super) weight: Address,
    pub(super) bias: Address,
    pub(super) residual: Address,
    pub(super) out: Address,
    pub(super) norm: NormArguments,
    pub(super) rows: c_int,
    pub(super) inputs: c_int,
    pub(super) outputs: c_int,
    pub(super) activation: c_int,
    pub(super) gated: c_int,
    pub(super) dtype: c_int,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct EmbeddingArguments {
    pub(super) tokens: Address,
    pub(super) table: Address,
    pub(super) out: Address,
    pub(super) ids: Address,
    pub(super) positions: Address,
    pub(super) scale: f32,
    pub(super) offset: c_int,
    pub(super) rows: c_int,
    pub(super) size: c_int,
    pub(super) dtype: c_int,
}

/// One row of the residual stream: itself, or in parts on its way between kernels.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct StreamArguments {
    pub(super) row: Address,
    pub(super) lines: Address,
    pub(super) parts: c_int,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct AttentionBlockArguments {
    pub(super) x: StreamArguments,
    pub(super) norm: NormArguments,
    pub(super) qkv_weight: Address,
    pub(super) qkv_bias: Address,
    pub(super) out_weight: Address,
    pub(super) out_bias: Address,
    pub(super) out: Address,
    pub(super) step: Address,
    pub(super) attention: AttentionArguments,
    pub(super) hidden: c_int,
    pub(super) dtype: c_int,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct FeedForwardArguments {
    pub(super) x: StreamArguments,
    pub(super) norm: NormArguments,
    pub(super) up_weight: Address,
    pub(super) up_bias: Address,
    pub(super) down_weight: Address,
    pub(super) down_bias: Address,
    pub(super) out: Address,
    pub(super) step: Address,
    pub(super) hidden: c_int,
    pub(super) inner: c_int,
    pub(super) activation: c_int,
    pub(super) dtype: c_int,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct AttentionArguments {
    pub(super) qkv: Address,
    pub(super) keys: Address,
    pub(super) values: Address,
    pub(super) out: Address,
    pub(super) positions: Address,
    pub(super) slots: Address,
    pub(super) span_of: Address,
    pub(super) table_starts: Address,
    pub(super) tables: Address,
    pub(super) frequencies: Address,
    pub(super) query_norm: NormArguments,
    pub(super) key_norm: NormArguments,
    pub(super) scratch: Address,
    pub(super) arrivals: Address,
    pub(super) scale: f32,
    pub(super) window: c_int,
    pub(super) rows: c_int,
    pub(super) single_rows: Address,
    pub(super) singles: c_int,
    pub(super) tiles: c_int,
    pub(super) tile_rows: Address,
    pub(super) tile_lengths: Address,
    pub(super) heads: c_int,
    pub(super) kv_heads: c_int,
    pub(super) dim: c_int,
    pub(super) dtype: c_int,
    pub(super) splits: c_int,
}

/// How a row's token is chosen: words of a step's inputs.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct ChoiceWords {
    pub(super) temperature: f32,
    pub(super) min_p: f32,
    pub(super) top_k: u32,
    pub(super) top_p: f32,
    pub(super) key_low: u32,
    pub(super) key_high: u32,
    pub(super) repetition: f32,
    pub(super) frequency: f32,
    pub(super) presence: f32,
    pub(super) penalized: u32,
    pub(super) penalized_count: u32,
    pub(super) counts_last: u32,
    pub(super) logprobs: u32,
}

impl ChoiceWords {
    pub(super) const LEN: usize = size_of::<Self>() / size_of::<u32>();

    /// As they are in memory.
    pub(super) fn words(self) -> [u32; Self::LEN] {
        // SAFETY: both are 32-bit numbers, as many of them.
        unsafe { std::mem::transmute(self) }
    }
}

/// Words of a row's log probabilities: of the token chosen, its rank, the best tokens, theirs.
pub(super) const LOGPROBS_WORDS: usize = 2 + 2 * MAX_TOP_LOGPROBS;

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct ChooseArguments {
    pub(super) logits: Address,
    pub(super) choices: Address,
    pub(super) wanted: Address,
    pub(super) ids: Address,
    pub(super) penalized: Address,
    pub(super) chosen: Address,
    pub(super) logprobs: Address,
    pub(super) rows: c_int,
    pub(super) vocabulary: c_int,
    pub(super) dtype: c_int,
}

/// The most parts that the residual stream has between kernels.
pub(super) const MAX_PARTS: usize = 16;

/// Rows of a prompt that are attended with together.
pub(super) const TILE_ROWS: usize = 64;

unsafe extern "C" {
    fn lantern_product_fits(rows: c_int, inputs: c_int, dtype: c_int) -> c_int;
    fn lantern_product_norms(rows: c_int, inputs: c_int, dtype: c_int) -> c_int;
    fn lantern_product(product: *const Product, stream: Address) -> Status;
    fn lantern_activate(
        x: Address,
        out: Address,
        rows: c_int,
        results: c_int,
        activation: c_int,
        gated: c_int,
        dtype: c_int,
        stream: Address,
    ) -> Status;
    fn lantern_norm(
        x: Address,
        residual: Address,
        out: Address,
        norm: *const NormArguments,
        rows: c_int,
        size: c_int,
        dtype: c_int,
        stream: Address,
    ) -> Status;
    fn lantern_embed(embedding: *const EmbeddingArguments, stream: Address) -> Status;
    fn lantern_gather(
        x: Address,
        rows: Address,
        out: Address,
        count: c_int,
        size: c_int,
        dtype: c_int,
        stream: Address,
    ) -> Status;
    fn lantern_attention_splits(rows: c_int, kv_heads: c_int) -> c_int;
    fn lantern_attention_scratch_bytes(
        rows: c_int,
        heads: c_int,
        dim: c_int,
        splits: c_int,
    ) -> usize;
    fn lantern_attention(attention: *const AttentionArguments, stream: Address) -> Status;
    fn lantern_layer_fits(
        hidden: c_int,
        heads: c_int,
        kv_heads: c_int,
        dim: c_int,
        inner: c_int,
        dtype: c_int,
    ) -> c_int;
    fn lantern_layer_parts(inner: c_int) -> c_int;
    fn lantern_attention_block(block: *const AttentionBlockArguments, stream: Address) -> Status;
    fn lantern_feed_forward(block: *const FeedForwardArguments, stream: Address) -> Status;
    fn lantern_add_parts(
        x: *const StreamArguments,
        out: Address,
        step: Address,
        hidden: c_int,
        dtype: c_int,
        stream: Address,
    ) -> Status;
    fn lantern_choose(choose: *const ChooseArguments, stream: Address) -> Status;
    fn lantern_carry(
        ids: Address,
        rows: Address,
        from: Address,
        chosen: Address,
        count: c_int,
        stream: Address,
    ) -> Status;
    fn cudaGetErrorString(status: Status) -> *const c_char;
}

/// What a kernel's launch gave.
fn checked(name: &str, status: Status) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the runtime gives a static string for every number.
    let reason = unsafe { CStr::from_ptr(cudaGetErrorString(status)) };
    candle_core::bail!("{name}: {}", reason.to_string_lossy())
}

/// A size as the kernels take it.
pub(super) fn int(size: usize) -> Result<c_int> {
    c_int::try_from(size).map_err(candle_core::Error::wrap)
}

/// Numbers of a type as the kernels name it.
pub(super) fn dtype(tensor: &Tensor) -> Result<c_int> {
    match tensor.dtype() {
        DType::F32 => Ok(0),
        DType::F16 => Ok(1),
        DType::BF16 => Ok(2),
        other => candle_core::bail!("there are no kernels for {other:?}"),
    }
}

/// Where a tensor's first number is; it must be contiguous, and on the device.
pub(super) fn address(tensor: &Tensor, stream: &CudaStream) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else {
        candle_core::bail!("a kernel needs a contiguous tensor, not {layout:?}")
    };
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("a kernel needs a tensor on the device")
    };
    // All work is on one stream, so nothing needs the guards that would order streams.
    let base = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(stream).0,
        CudaStorageSlice::F16(slice) => slice.device_ptr(stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(stream).0,
        _ => candle_core::bail!("there are no kernels for {:?}", tensor.dtype()),
    };
    let offset = start * tensor.dtype().size_in_bytes();
    Ok(base + offset as Address)
}

/// The same of a tensor that may not be there.
pub(super) fn optional(tensor: Option<&Tensor>, stream: &CudaStream) -> Result<Address> {
    tensor.map_or(Ok(NULL), |tensor| address(tensor, stream))
}

impl NormArguments {
    /// No norm.
    pub(super) const NONE: Self = Self {
        weight: NULL,
        bias: NULL,
        eps: 0.0,
        kind: 0,
    };

    pub(super) fn new(norm: &Norm, stream: &CudaStream) -> Result<Self> {
        Ok(Self {
            weight: address(&norm.weight, stream)?,
            bias: optional(norm.bias.as_ref(), stream)?,
            eps: norm.eps,
            kind: match norm.kind {
                NormKind::Layer => 1,
                NormKind::Rms => 2,
            },
        })
    }
}

/// An epilogue as the kernels name it: activation, and whether it is gated.
pub(super) fn epilogue(epilogue: Epilogue) -> (c_int, c_int) {
    let number = |activation| match activation {
        Activation::Relu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::Silu => 4,
    };
    match epilogue {
        Epilogue::None => (0, 0),
        Epilogue::Activation(activation) => (number(activation), 0),
        Epilogue::Gated(activation) => (number(activation), 1),
    }
}

/// Launches kernels on one stream.
///
/// The addresses in what its functions take must be of memory as large as the sizes beside them say, and
/// alive until the stream has passed the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launcher(Address);

impl Launcher {
    pub(super) fn new(stream: &CudaStream) -> Self {
        Self(stream.cu_stream().expose_provenance() as Address)
    }

    /// Whether there is a kernel for a product of so many rows.
    pub(super) fn product_fits(rows: c_int, inputs: c_int, dtype: c_int) -> bool {
        // SAFETY: a function of numbers.
        unsafe { lantern_product_fits(rows, inputs, dtype) != 0 }
    }

    /// Whether it takes a norm of its activations along.
    pub(super) fn product_norms(rows: c_int, inputs: c_int, dtype: c_int) -> bool {
        // SAFETY: a function of numbers.
        unsafe { lantern_product_norms(rows, inputs, dtype) != 0 }
    }

    pub(super) unsafe fn product(self, product: &Product) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        checked("product", unsafe { lantern_product(product, self.0) })
    }

    pub(super) unsafe fn activate(
        self,
        [x, out]: [Address; 2],
        (rows, results): (c_int, c_int),
        (activation, gated): (c_int, c_int),
        dtype: c_int,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        let status =
            unsafe { lantern_activate(x, out, rows, results, activation, gated, dtype, self.0) };
        checked("activate", status)
    }

    pub(super) unsafe fn norm(
        self,
        [x, residual, out]: [Address; 3],
        norm: &NormArguments,
        (rows, size): (c_int, c_int),
        dtype: c_int,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        let status = unsafe { lantern_norm(x, residual, out, norm, rows, size, dtype, self.0) };
        checked("norm", status)
    }

    pub(super) unsafe fn embed(self, embedding: &EmbeddingArguments) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        checked("embed", unsafe { lantern_embed(embedding, self.0) })
    }

    pub(super) unsafe fn gather(
        self,
        [x, rows, out]: [Address; 3],
        (count, size): (c_int, c_int),
        dtype: c_int,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        let status = unsafe { lantern_gather(x, rows, out, count, size, dtype, self.0) };
        checked("gather", status)
    }

    /// Into how many parts contexts are split when so many rows decode.
    pub(super) fn splits(rows: c_int, kv_heads: c_int) -> c_int {
        // SAFETY: a function of numbers.
        unsafe { lantern_attention_splits(rows, kv_heads) }
    }

    /// Bytes of scratch memory that this takes.
    pub(super) fn scratch_bytes(rows: c_int, heads: c_int, dim: c_int, splits: c_int) -> usize {
        // SAFETY: a function of numbers.
        unsafe { lantern_attention_scratch_bytes(rows, heads, dim, splits) }
    }

    pub(super) unsafe fn attention(self, attention: &AttentionArguments) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        checked("attention", unsafe { lantern_attention(attention, self.0) })
    }

    /// Whether there are kernels for decoder layers of these sizes, of one row.
    pub(super) fn layer_fits(
        hidden: c_int,
        heads: Heads,
        inner: c_int,
        dtype: c_int,
    ) -> Result<bool> {
        let (queries, keys, dim) = (int(heads.queries)?, int(heads.keys)?, int(heads.dim)?);
        // SAFETY: a function of numbers.
        Ok(unsafe { lantern_layer_fits(hidden, queries, keys, dim, inner, dtype) } != 0)
    }

    /// As how many parts such a layer's feed-forward gives the residual stream.
    pub(super) fn layer_parts(inner: c_int) -> c_int {
        // SAFETY: a function of a number.
        unsafe { lantern_layer_parts(inner) }
    }

    pub(super) unsafe fn attention_block(self, block: &AttentionBlockArguments) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        let status = unsafe { lantern_attention_block(block, self.0) };
        checked("attention block", status)
    }

    pub(super) unsafe fn feed_forward(self, block: &FeedForwardArguments) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        checked("feed-forward", unsafe {
            lantern_feed_forward(block, self.0)
        })
    }

    pub(super) unsafe fn add_parts(
        self,
        x: &StreamArguments,
        [out, step]: [Address; 2],
        hidden: c_int,
        dtype: c_int,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        let status = unsafe { lantern_add_parts(x, out, step, hidden, dtype, self.0) };
        checked("adding parts up", status)
    }

    pub(super) unsafe fn choose(self, choose: &ChooseArguments) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        checked("choose", unsafe { lantern_choose(choose, self.0) })
    }

    pub(super) unsafe fn carry(
        self,
        [ids, rows, from, chosen]: [Address; 4],
        count: c_int,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses.
        checked("carry", unsafe {
            lantern_carry(ids, rows, from, chosen, count, self.0)
        })
    }
}
