//! The number types that tensors have on a CPU, all computed with in f32, and access to their memory.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};

/// A number in memory.
pub(super) trait Number: WithDType {
    /// As f32.
    fn widen(self) -> f32;

    /// The nearest to a f32.
    fn narrow(value: f32) -> Self;

    /// All numbers of a storage of this type.
    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// Numbers as f32: themselves if they are, or else in the beginning of `buffer`.
    fn widen_all<'a>(numbers: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
        let buffer = &mut buffer[..numbers.len()];
        for (wide, number) in buffer.iter_mut().zip(numbers) {
            *wide = number.widen();
        }
        buffer
    }
}

impl Number for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn narrow(value: f32) -> Self {
        value
    }

    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(numbers) => Some(numbers),
            _ => None,
        }
    }

    fn widen_all<'a>(numbers: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        numbers
    }
}

impl Number for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F16(numbers) => Some(numbers),
            _ => None,
        }
    }
}

impl Number for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::BF16(numbers) => Some(numbers),
            _ => None,
        }
    }
}

/// Calls `read` with the numbers of a contiguous tensor.
pub(super) fn read<T: Number, R>(
    tensor: &Tensor,
    read: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("a tensor of {:?} is not on the CPU", tensor.device())
    };
    let numbers = T::cpu_storage_as_slice(storage)?;
    let (start, end) = contiguous(layout)?;
    read(&numbers[start..end])
}

/// The numbers of a contiguous tensor as f32.
pub(super) fn widened(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(candle_core::DType::F32)?.to_vec1()
}

/// Calls `write` with the numbers of a contiguous tensor, to change them in place.
pub(super) fn write<T: Number>(
    tensor: &Tensor,
    write: impl Fn(&mut [T]) -> Result<()>,
) -> Result<()> {
    tensor.inplace_op1(&Write(|storage: &mut CpuStorage, layout: &Layout| {
        let dtype = tensor.dtype();
        let Some(numbers) = T::of_storage(storage) else {
            bail!("a tensor of {dtype:?} is not {:?}", T::DTYPE)
        };
        let (start, end) = contiguous(layout)?;
        write(&mut numbers[start..end])
    }))
}

struct Write<F>(F);

impl<F: Fn(&mut CpuStorage, &Layout) -> Result<()>> InplaceOp1 for Write<F> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.0(storage, layout)
    }
}

fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    let range = layout.contiguous_offsets();
    range.ok_or_else(|| candle_core::Error::msg("a tensor is not contiguous"))
}
