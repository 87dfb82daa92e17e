//! The operations on a CPU: products of packed matrices, and passes over their results.
//!
//! A step runs when it is launched and has been computed when that returns: nothing is to be gained by a
//! thread more, since the products have all cores already.
//!
//! # Layout
//! - `attention`: heads against the pages; `rotation`: the angles by which they are turned
//! - `epilogue`: what comes after a product, in place
//! - `number`: the types that tensors have, and access to their memory; `math`: functions of f32

mod attention;
mod epilogue;
mod math;
mod number;
mod rotation;

use std::cell::RefCell;
use std::collections::VecDeque;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    Attention, Embedding, Epilogue, LayerPages, Linear, Matrix, Norm, Ops, Pass, PositionTable,
    StepInputs, StepResult, StepTensors, shared,
};
use rotation::Rotations;

/// The CPU.
#[derive(Debug, Default)]
pub(super) struct CpuOps {
    /// Computed and not collected.
    results: RefCell<VecDeque<StepResult>>,
    /// Of the step that was last.
    rotations: RefCell<Rotations>,
}

impl Ops for CpuOps {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn launch(
        &self,
        _: &StepInputs,
        forward: &mut dyn FnMut() -> Result<StepTensors>,
    ) -> Result<()> {
        let StepTensors { hidden, logits } = forward()?;
        self.results.borrow_mut().push_back(StepResult {
            rows: shared::rows_of(logits.as_ref())?,
            hidden,
            device_time: None,
            pass: Pass::Eager { reason: "cpu" },
        });
        Ok(())
    }

    fn collect(&self) -> Result<StepResult> {
        let result = self.results.borrow_mut().pop_front();
        result.ok_or_else(|| candle_core::Error::msg("no step was launched"))
    }

    fn embed(&self, step: &StepInputs, embedding: &Embedding) -> Result<Tensor> {
        let rows = match &embedding.tokens {
            Matrix::Dense(table) => shared::look_up(table, &step.tokens)?,
            Matrix::Packed { rows, dtype } => {
                let shape = (step.tokens.len(), rows.columns());
                let rows = rows.read_rows(step.tokens.iter().copied());
                Tensor::from_vec(rows, shape, &Device::Cpu)?.to_dtype(*dtype)?
            }
        };
        shared::finish_embedding(rows, step, embedding)
    }

    fn embed_positions(&self, step: &StepInputs, positions: &PositionTable) -> Result<Tensor> {
        shared::embed_positions(step, positions)
    }

    fn project(
        &self,
        x: &Tensor,
        norm: Option<&Norm>,
        linear: &Linear,
        epilogue: Epilogue,
    ) -> Result<Tensor> {
        let normed = norm.map(|norm| self.norm(x, norm, None)).transpose()?;
        let product = product(normed.as_ref().unwrap_or(x), &linear.weight)?;
        epilogue::finish(product, linear.bias.as_ref(), epilogue)
    }

    fn project_add(&self, x: &Tensor, linear: &Linear, residual: &Tensor) -> Result<Tensor> {
        let product = product(x, &linear.weight)?;
        epilogue::add(product, linear.bias.as_ref(), residual)
    }

    fn norm(&self, x: &Tensor, norm: &Norm, residual: Option<&Tensor>) -> Result<Tensor> {
        shared::norm(x, norm, residual)
    }

    fn attend(
        &self,
        qkv: &Tensor,
        attention: &Attention,
        step: &StepInputs,
        pages: &LayerPages,
    ) -> Result<Tensor> {
        let rope = attention.rope.as_ref();
        let rotation = rope.map(|rope| self.rotations.borrow_mut().of(rope, step));
        attention::attend(qkv, (attention, rotation.as_deref()), step, pages)
    }

    fn wanted(&self, x: &Tensor, step: &StepInputs) -> Result<Tensor> {
        shared::wanted(x, step)
    }
}

/// (T, I) . (O, I)^T -> (T, O)
fn product(x: &Tensor, weight: &Matrix) -> Result<Tensor> {
    match weight {
        Matrix::Dense(weight) => x.matmul(&weight.t()?),
        Matrix::Packed { rows, .. } => {
            let wide = x.to_dtype(DType::F32)?.contiguous()?;
            let product = number::read::<f32, _>(&wide, |numbers| Ok(rows.product(numbers)))?;
            Tensor::from_vec(product, (x.dim(0)?, rows.rows()), &Device::Cpu)?.to_dtype(x.dtype())
        }
    }
}
