//! Products, by a kernel of ours or cuBLASLt's.

use candle_core::{Result, Tensor};

use super::CudaOps;
use super::blas::{Blas, BlasProduct};
use super::kernels::{self, Launcher, Product, int};
use crate::ops::{Epilogue, Linear, Matrix, Norm, Ops};

impl CudaOps {
    pub(super) fn product(
        &self,
        x: &Tensor,
        norm: Option<&Norm>,
        linear: &Linear,
        (epilogue, residual): (Epilogue, Option<&Tensor>),
    ) -> Result<Tensor> {
        let (rows, inputs) = x.dims2()?;
        let (number, sizes) = (kernels::dtype(x)?, (int(rows)?, int(inputs)?));
        if !Launcher::product_fits(sizes.0, sizes.1, number) {
            return self.large_product(x, norm, linear, (epilogue, residual));
        }
        let weight = dense(&linear.weight)?;
        let outputs = weight.dim(0)?;
        let (activation, gated) = kernels::epilogue(epilogue);
        let taken_along = Launcher::product_norms(sizes.0, sizes.1, number);
        let normed = match norm {
            Some(norm) if !taken_along => Some(self.norm(x, norm, None)?),
            _ => None,
        };
        let width = if gated == 1 { outputs / 2 } else { outputs };
        let out = self.output(rows, width, x.dtype())?;
        let product = Product {
            x: self.address(normed.as_ref().unwrap_or(x))?,
            weight: self.address(weight)?,
            bias: self.optional(linear.bias.as_ref())?,
            residual: self.optional(residual)?,
            out: self.address(&out)?,
            norm: self.norm_arguments(norm.filter(|_| taken_along))?,
            rows: sizes.0,
            inputs: sizes.1,
            outputs: int(outputs)?,
            activation,
            gated,
            dtype: number,
        };
        // SAFETY: the addresses are of tensors whose sizes are those given; memory that is freed on a stream is
        // reused behind what is on it already.
        unsafe { self.launcher.product(&product)? };
        Ok(out)
    }

    /// A product that none of our kernels is for.
    fn large_product(
        &self,
        x: &Tensor,
        norm: Option<&Norm>,
        linear: &Linear,
        (epilogue, residual): (Epilogue, Option<&Tensor>),
    ) -> Result<Tensor> {
        let normed = norm.map(|norm| self.norm(x, norm, None)).transpose()?;
        let weight = dense(&linear.weight)?;
        let ((rows, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
        let inside = match epilogue {
            Epilogue::Activation(activation) if Blas::has(activation) => Some(activation),
            _ => None,
        };
        let out = self.output(rows, outputs, x.dtype())?;
        let product = BlasProduct {
            x: self.address(normed.as_ref().unwrap_or(x))?,
            weight: self.address(weight)?,
            bias: self.optional(linear.bias.as_ref())?,
            residual: self.optional(residual)?,
            out: self.address(&out)?,
            rows,
            inputs,
            outputs,
            activation: inside,
            dtype: x.dtype(),
        };
        // SAFETY: as in `product`.
        unsafe { self.blas.product(&product)? };
        if inside.is_some() {
            return Ok(out);
        }
        self.activate(out, epilogue)
    }

    /// What comes after a product, by itself.
    fn activate(&self, x: Tensor, epilogue: Epilogue) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let (out, results) = match epilogue {
            Epilogue::None => return Ok(x),
            Epilogue::Activation(_) => (x.clone(), width),
            Epilogue::Gated(_) => (self.output(rows, width / 2, x.dtype())?, width / 2),
        };
        let addresses = [self.address(&x)?, self.address(&out)?];
        let (how, number) = (kernels::epilogue(epilogue), kernels::dtype(&x)?);
        let sizes = (int(rows)?, int(results)?);
        // SAFETY: as in `product`.
        unsafe { self.launcher.activate(addresses, sizes, how, number)? };
        Ok(out)
    }
}

/// The matrix as the kernels take it: the loader packs none for a GPU.
pub(super) fn dense(matrix: &Matrix) -> Result<&Tensor> {
    match matrix {
        Matrix::Dense(weight) => Ok(weight),
        Matrix::Packed { .. } => candle_core::bail!("packed matrices are for CPUs"),
    }
}
