//! Which device and which number type a model runs with: the one place that knows how this was built.

use candle_core::{DType, Device};
use clap::ValueEnum;

use super::memory;
use crate::tensor_error::TensorError;

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DeviceChoice {
    /// The first GPU if this build and this machine have one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU.
    Cuda,
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DTypeChoice {
    /// On a CPU float32; on a GPU the model's own type, float32 becoming float16.
    #[default]
    Auto,
    /// 32 bits.
    #[value(alias = "float")]
    Float32,
    /// 16 bits, IEEE.
    #[value(alias = "half")]
    Float16,
    /// 16 bits with the range of 32.
    #[value(name = "bfloat16")]
    BFloat16,
}

/// A GPU was asked for and cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("device cuda is not available")]
pub struct DeviceError(#[source] TensorError);

/// Opens the device.
pub(crate) fn open(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda => open_gpu(),
        DeviceChoice::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(open_gpu().unwrap_or_else(|DeviceError(reason)| {
            tracing::warn!(%reason, "no GPU can be used: running on the CPU");
            Device::Cpu
        })),
    }
}

#[cfg(feature = "cuda")]
fn open_gpu() -> Result<Device, DeviceError> {
    crate::ops::open_gpu().map_err(|error| DeviceError(error.into()))
}

/// Says that this build has no GPU, in candle's words.
#[cfg(not(feature = "cuda"))]
fn open_gpu() -> Result<Device, DeviceError> {
    Device::new_cuda(0).map_err(|error| DeviceError(error.into()))
}

/// The type that weights, activations and KV cache get.
pub(crate) fn dtype(choice: DTypeChoice, device: &Device, stored: Option<&str>) -> DType {
    match (choice, device, stored) {
        (DTypeChoice::Float32, ..) => DType::F32,
        (DTypeChoice::Float16, ..) => DType::F16,
        (DTypeChoice::BFloat16, ..) => DType::BF16,
        (DTypeChoice::Auto, Device::Cpu, _) => DType::F32,
        (DTypeChoice::Auto, _, Some("bfloat16")) => DType::BF16,
        (DTypeChoice::Auto, ..) => DType::F16,
    }
}

/// Bytes left for a KV cache when all that is allocated together may take `share` of the device's
/// memory; `None` where the device does not say.
pub(crate) fn spare_bytes(device: &Device, share: f64) -> Result<Option<u64>, TensorError> {
    let spare = |(free, total): (u64, u64)| {
        let budget = (total as f64 * share) as u64;
        budget.saturating_sub(total - free)
    };
    Ok(gpu_memory(device)?.map(spare))
}

/// Bytes that can be had of a device's memory; `None` where nobody says.
pub(crate) fn free_bytes(device: &Device) -> Result<Option<u64>, TensorError> {
    match device {
        Device::Cpu => Ok(memory::available_bytes()),
        _ => Ok(gpu_memory(device)?.map(|(free, _)| free)),
    }
}

/// A GPU's bytes of memory: those that are free, and all.
#[cfg(feature = "cuda")]
fn gpu_memory(device: &Device) -> Result<Option<(u64, u64)>, TensorError> {
    let Device::Cuda(device) = device else {
        return Ok(None);
    };
    let info = device.cuda_stream().context().mem_get_info();
    let (free, total) = info.map_err(candle_core::Error::wrap)?;
    Ok(Some((free as u64, total as u64)))
}

/// Unknown: this build has no GPU.
#[cfg(not(feature = "cuda"))]
#[allow(clippy::unnecessary_wraps, reason = "with a GPU it can fail")]
fn gpu_memory(_: &Device) -> Result<Option<(u64, u64)>, TensorError> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_means_float32_on_a_cpu_whatever_is_stored() {
        for stored in [None, Some("float16"), Some("bfloat16")] {
            assert_eq!(dtype(DTypeChoice::Auto, &Device::Cpu, stored), DType::F32);
        }
        assert_eq!(
            dtype(DTypeChoice::BFloat16, &Device::Cpu, None),
            DType::BF16
        );
    }
}
