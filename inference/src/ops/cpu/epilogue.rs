//! What comes after a product: bias, activation, residual, in one pass over its result.

use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use super::math::{gelu_tanh, silu};
use super::number::{Number, read, widened, write};
use crate::ops::packed::in_wide_vectors;
use crate::ops::{Activation, Epilogue};

/// Fewer numbers than this are not worth a second thread.
const PARALLEL_NUMBERS: usize = 32 * 1024;

/// `epilogue(product + bias)`: (T, O) -> (T, O), or (T, O / 2) if the epilogue is gated.
pub(super) fn finish(product: Tensor, bias: Option<&Tensor>, epilogue: Epilogue) -> Result<Tensor> {
    let bias = bias.map(widened).transpose()?;
    match product.dtype() {
        DType::F32 => finish_as::<f32>(product, bias.as_deref(), epilogue),
        DType::F16 => finish_as::<f16>(product, bias.as_deref(), epilogue),
        DType::BF16 => finish_as::<bf16>(product, bias.as_deref(), epilogue),
        other => bail!("no product has numbers of type {other:?}"),
    }
}

/// `product + bias + residual`: (T, O) -> (T, O)
pub(super) fn add(product: Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
    let bias = bias.map(widened).transpose()?;
    match product.dtype() {
        DType::F32 => add_as::<f32>(product, bias.as_deref(), residual),
        DType::F16 => add_as::<f16>(product, bias.as_deref(), residual),
        DType::BF16 => add_as::<bf16>(product, bias.as_deref(), residual),
        other => bail!("no product has numbers of type {other:?}"),
    }
}

fn finish_as<T: Number>(
    product: Tensor,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
) -> Result<Tensor> {
    match epilogue {
        Epilogue::None => {
            if bias.is_some() {
                each_row::<T>(&product, bias, |sum| sum)?;
            }
            Ok(product)
        }
        Epilogue::Activation(Activation::Relu) => {
            each_row::<T>(&product, bias, |sum| sum.max(0.0))?;
            Ok(product)
        }
        Epilogue::Activation(Activation::GeluTanh) => {
            each_row::<T>(&product, bias, gelu_tanh)?;
            Ok(product)
        }
        Epilogue::Activation(Activation::Silu) => {
            each_row::<T>(&product, bias, silu)?;
            Ok(product)
        }
        Epilogue::Activation(Activation::Gelu) => {
            each_row::<T>(&product, bias, |sum| sum)?;
            product.gelu_erf()
        }
        Epilogue::Gated(Activation::GeluTanh) => gate::<T>(&product, bias, gelu_tanh),
        Epilogue::Gated(Activation::Silu) => gate::<T>(&product, bias, silu),
        Epilogue::Gated(Activation::Relu) => gate::<T>(&product, bias, |sum| sum.max(0.0)),
        Epilogue::Gated(Activation::Gelu) => {
            each_row::<T>(&product, bias, |sum| sum)?;
            let half = product.dim(1)? / 2;
            product.narrow(1, 0, half)?.gelu_erf()? * product.narrow(1, half, half)?
        }
    }
}

/// Each number with its bias through `activation`, in place.
fn each_row<T: Number>(
    product: &Tensor,
    bias: Option<&[f32]>,
    activation: impl Fn(f32) -> f32 + Sync,
) -> Result<()> {
    let width = product.dim(1)?;
    let row = |row: &mut [T]| {
        in_wide_vectors(|| match bias {
            Some(bias) => {
                for (number, bias) in row.iter_mut().zip(bias) {
                    *number = T::narrow(activation(number.widen() + bias));
                }
            }
            None => {
                for number in row {
                    *number = T::narrow(activation(number.widen()));
                }
            }
        });
    };
    write::<T>(product, |numbers| {
        if numbers.len() < PARALLEL_NUMBERS {
            numbers.chunks_mut(width).for_each(row);
        } else {
            numbers.par_chunks_mut(width).for_each(row);
        }
        Ok(())
    })
}

/// `activation(gate) * rest` of each row, whose first half is the gate's: (T, O) -> (T, O / 2)
fn gate<T: Number>(
    product: &Tensor,
    bias: Option<&[f32]>,
    activation: impl Fn(f32) -> f32 + Sync,
) -> Result<Tensor> {
    if bias.is_some() {
        each_row::<T>(product, bias, |sum| sum)?;
    }
    let (rows, width) = product.dims2()?;
    let half = width / 2;
    let gated = read::<T, _>(product, |numbers| {
        let mut gated = vec![T::zero(); rows * half];
        let row = |(out, row): (&mut [T], &[T])| {
            let (gate, rest) = row.split_at(half);
            in_wide_vectors(|| {
                for ((out, gate), rest) in out.iter_mut().zip(gate).zip(rest) {
                    *out = T::narrow(activation(gate.widen()) * rest.widen());
                }
            });
        };
        if numbers.len() < PARALLEL_NUMBERS {
            let rows = gated.chunks_mut(half).zip(numbers.chunks(width));
            rows.for_each(row);
        } else {
            let rows = gated.par_chunks_mut(half).zip(numbers.par_chunks(width));
            rows.for_each(row);
        }
        Ok(gated)
    })?;
    Tensor::from_vec(gated, (rows, half), product.device())
}

fn add_as<T: Number>(product: Tensor, bias: Option<&[f32]>, residual: &Tensor) -> Result<Tensor> {
    let width = product.dim(1)?;
    read::<T, _>(residual, |residual| {
        write::<T>(&product, |numbers| {
            for (row, residual) in numbers.chunks_mut(width).zip(residual.chunks(width)) {
                match bias {
                    Some(bias) => {
                        for ((number, residual), bias) in row.iter_mut().zip(residual).zip(bias) {
                            *number = T::narrow(number.widen() + residual.widen() + bias);
                        }
                    }
                    None => {
                        for (number, residual) in row.iter_mut().zip(residual) {
                            *number = T::narrow(number.widen() + residual.widen());
                        }
                    }
                }
            }
            Ok(())
        })
    })?;
    Ok(product)
}
