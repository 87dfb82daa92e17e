//! The operations on a CPU: candle's products, and passes of ours over their results.
//!
//! A step runs when it is launched and has been computed when that returns: nothing is to be gained by a
//! thread more, since the products have all cores already.
//!
//! # Layout
//! - `attention`: heads against the pages
//! - `epilogue`: what comes after a product, in place
//! - `number`: the types that tensors have, and access to their memory; `math`: functions of f32

mod attention;
mod epilogue;
mod math;
mod number;

use std::cell::RefCell;
use std::collections::VecDeque;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    Attention, Embedding, Epilogue, LayerPages, Linear, Matrix, Norm, NormKind, Ops, Pass,
    PositionTable, RowResult, StepInputs, StepResult, StepTensors,
};

/// The CPU.
#[derive(Debug, Default)]
pub(super) struct CpuOps {
    /// Computed and not collected.
    results: RefCell<VecDeque<StepResult>>,
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
        let rows = match logits {
            Some(logits) => logits.to_dtype(DType::F32)?.to_vec2()?,
            None => Vec::new(),
        };
        self.results.borrow_mut().push_back(StepResult {
            rows: rows.into_iter().map(RowResult::Logits).collect(),
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
        let Matrix::Dense(table) = &embedding.tokens;
        let mut rows = look_up(table, &step.tokens)?;
        if let Some(scale) = embedding.scale {
            rows = (rows * f64::from(scale))?;
        }
        match &embedding.positions {
            Some(positions) => rows + self.embed_positions(step, positions)?,
            None => Ok(rows),
        }
    }

    fn embed_positions(&self, step: &StepInputs, positions: &PositionTable) -> Result<Tensor> {
        let rows = step.positions.iter().map(|at| at + positions.offset);
        look_up(&positions.table, &rows.collect::<Vec<_>>())
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
        let normed = match (norm.kind, &norm.bias) {
            (NormKind::Rms, _) => candle_nn::ops::rms_norm(x, &norm.weight, norm.eps)?,
            (NormKind::Layer, Some(bias)) => {
                candle_nn::ops::layer_norm(x, &norm.weight, bias, norm.eps)?
            }
            (NormKind::Layer, None) => {
                let bias = norm.weight.zeros_like()?;
                candle_nn::ops::layer_norm(x, &norm.weight, &bias, norm.eps)?
            }
        };
        match residual {
            Some(residual) => residual + normed,
            None => Ok(normed),
        }
    }

    fn attend(
        &self,
        qkv: &Tensor,
        attention: &Attention,
        step: &StepInputs,
        pages: &LayerPages,
    ) -> Result<Tensor> {
        attention::attend(qkv, attention, step, pages)
    }

    fn wanted(&self, x: &Tensor, step: &StepInputs) -> Result<Tensor> {
        let rows: Vec<u32> = step.wanted.iter().map(|wanted| wanted.row).collect();
        if rows.len() == step.tokens.len() {
            return Ok(x.clone());
        }
        look_up(x, &rows)
    }
}

/// The rows `ids` of a table: (R, W) -> (T, W).
fn look_up(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0)
}

/// (T, I) . (O, I)^T -> (T, O)
fn product(x: &Tensor, weight: &Matrix) -> Result<Tensor> {
    match weight {
        Matrix::Dense(weight) => x.matmul(&weight.t()?),
    }
}
