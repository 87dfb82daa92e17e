//! Memory that steps use beside tensors: where tokens are chosen, where split contexts meet, and what of the host
//! the device reads and writes.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result, sys,
};
use candle_core::{Error, Result};

use super::graphs;
use super::kernels::{Launcher, int};
use crate::ops::Heads;

/// Where tokens are chosen.
pub(super) struct Chosen {
    pub(super) tokens: CudaSlice<u32>,
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
    pub(super) start: CudaEvent,
    pub(super) end: CudaEvent,
}

impl Chosen {
    pub(super) fn new(stream: &Arc<CudaStream>, rows: usize) -> Result<Self> {
        Ok(Self {
            tokens: stream.alloc_zeros(rows).map_err(Error::wrap)?,
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
        // SAFETY: what is read of them was written before, inputs by `Inputs::upload`, tokens by `fetch`. Tokens are
        // read by the host, so their memory is not write-combined.
        let (inputs, tokens) = unsafe {
            let inputs = context.alloc_pinned(inputs).map_err(Error::wrap)?;
            (
                inputs,
                context
                    .alloc_pinned_with_flags(tokens, 0)
                    .map_err(Error::wrap)?,
            )
        };
        Ok(Self {
            inputs,
            tokens,
            start: timed()?,
            end: timed()?,
        })
    }

    /// Has chosen tokens copied here.
    pub(super) fn fetch(
        &mut self,
        choice: &Chosen,
        count: usize,
        stream: &CudaStream,
    ) -> Result<()> {
        let from = choice.tokens.device_ptr(stream).0;
        let to = &mut self.tokens.as_mut_slice().map_err(Error::wrap)?[..count];
        // SAFETY: both are kept until the step has been collected, which waits for `end`, recorded after this.
        let copied = unsafe { result::memcpy_dtoh_async(to, from, stream.cu_stream()) };
        copied.map_err(Error::wrap)
    }
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
