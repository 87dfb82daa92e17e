//! Memory that steps use beside tensors: where tokens are chosen, where split contexts meet, and what of the host
//! the device reads and writes.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, DeviceRepr, PinnedHostSlice, result, sys,
};
use candle_core::{Error, Result};

use super::graphs;
use super::kernels::{Address, LOGPROBS_WORDS, Launcher, int};
use crate::ops::Heads;

/// Where tokens are chosen, and their log probabilities said.
pub(super) struct Chosen {
    pub(super) tokens: CudaSlice<u32>,
    /// [`LOGPROBS_WORDS`] of each.
    pub(super) logprobs: CudaSlice<u32>,
}

pub(super) struct Scratch {
    pub(super) sums: CudaSlice<u8>,
    /// Zeros between steps.
    pub(super) arrivals: CudaSlice<u32>,
}

/// Memory of the host that the device reads and writes.
pub(super) struct Pinned {
    pub(super) inputs: PinnedHostSlice<u32>,
    pub(super) tokens: PinnedHostSlice<u32>,
    pub(super) logprobs: PinnedHostSlice<u32>,
    /// Of rows that the host chooses for, if there were any.
    pub(super) logits: Option<PinnedHostSlice<u8>>,
    pub(super) start: CudaEvent,
    pub(super) end: CudaEvent,
}

impl Chosen {
    pub(super) fn new(stream: &Arc<CudaStream>, rows: usize) -> Result<Self> {
        Ok(Self {
            tokens: stream.alloc_zeros(rows).map_err(Error::wrap)?,
            logprobs: stream
                .alloc_zeros(rows * LOGPROBS_WORDS)
                .map_err(Error::wrap)?,
        })
    }
}

impl Scratch {
    /// Enough for every number of rows.
    pub(super) fn new(stream: &Arc<CudaStream>, heads: Heads) -> Result<Self> {
        let (mut bytes, mut arrivals) = (1, 1);
        for rows in 1..=graphs::MAX_ROWS {
            let splits = Launcher::splits(int(rows)?, int(heads.keys)?);
            if splits > 1 {
                let (queries, dim) = (int(heads.queries)?, int(heads.dim)?);
                bytes = bytes.max(Launcher::scratch_bytes(int(rows)?, queries, dim, splits));
                arrivals = arrivals.max(rows * heads.keys);
            }
        }
        Ok(Self {
            sums: stream.alloc_zeros(bytes).map_err(Error::wrap)?,
            arrivals: stream.alloc_zeros(arrivals).map_err(Error::wrap)?,
        })
    }
}

impl Pinned {
    pub(super) fn new(stream: &Arc<CudaStream>, inputs: usize, tokens: usize) -> Result<Self> {
        let context = stream.context();
        let timed = || {
            let event = context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
            event.map_err(Error::wrap)
        };
        // SAFETY: what is read of it was written before, by `Inputs::upload`.
        let inputs = unsafe { context.alloc_pinned(inputs).map_err(Error::wrap)? };
        Ok(Self {
            inputs,
            tokens: read_by_host(stream, tokens)?,
            logprobs: read_by_host(stream, tokens * LOGPROBS_WORDS)?,
            logits: None,
            start: timed()?,
            end: timed()?,
        })
    }

    /// Has the tokens of so many rows copied here, with their log probabilities if those are `wanted`.
    pub(super) fn fetch(
        &mut self,
        choice: &Chosen,
        (count, logprobs_wanted): (usize, bool),
        stream: &CudaStream,
    ) -> Result<()> {
        let tokens = &mut self.tokens.as_mut_slice().map_err(Error::wrap)?[..count];
        // SAFETY: see `fetch_words`.
        unsafe { fetch_words(choice.tokens.device_ptr(stream).0, tokens, stream)? };
        if logprobs_wanted {
            let words = self.logprobs.as_mut_slice().map_err(Error::wrap)?;
            let words = &mut words[..count * LOGPROBS_WORDS];
            // SAFETY: see `fetch_words`.
            unsafe { fetch_words(choice.logprobs.device_ptr(stream).0, words, stream)? };
        }
        Ok(())
    }

    /// Has `rows` of logits copied here, which lie at `from` in rows of `bytes`.
    pub(super) fn fetch_logits(
        &mut self,
        (from, bytes): (Address, usize),
        rows: &[usize],
        stream: &CudaStream,
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let len = bytes * rows.len();
        if self.logits.as_ref().is_none_or(|it| it.len() < len) {
            self.logits = Some(read_by_host(stream, len.next_power_of_two())?);
        }
        let Some(logits) = &mut self.logits else {
            return Ok(());
        };
        let logits = logits.as_mut_slice().map_err(Error::wrap)?;
        for (to, row) in logits.chunks_exact_mut(bytes).zip(rows) {
            // SAFETY: see `fetch_words`.
            unsafe { fetch_words(from + (row * bytes) as Address, to, stream)? };
        }
        Ok(())
    }
}

/// Memory that the device writes to and the host reads: not write-combined.
fn read_by_host<T: DeviceRepr>(stream: &CudaStream, len: usize) -> Result<PinnedHostSlice<T>> {
    // SAFETY: what is read of it was fetched before.
    let pinned = unsafe { stream.context().alloc_pinned_with_flags(len, 0) };
    pinned.map_err(Error::wrap)
}

/// Has memory of the device copied to the host's.
///
/// # Safety
/// Both must be kept until a step has been collected whose `end` is recorded after this.
unsafe fn fetch_words<T>(from: Address, to: &mut [T], stream: &CudaStream) -> Result<()> {
    // SAFETY: the caller keeps both until the copy has been made.
    let copied = unsafe { result::memcpy_dtoh_async(to, from, stream.cu_stream()) };
    copied.map_err(Error::wrap)
}

/// Has the device's allocator keep what is freed: by default each wait for the device returns it to the driver.
pub(super) fn keep_freed_memory(stream: &CudaStream) -> Result<()> {
    let mut keep = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is the stream's, and the attribute's value is 64 bits.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device())
            .result()
            .map_err(Error::wrap)?;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast())
            .result()
            .map_err(Error::wrap)
    }
}
