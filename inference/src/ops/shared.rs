//! What the forms of the operations that run op by op have in common, on whatever device.

use candle_core::{DType, Result, Tensor};

use super::{Embedding, Norm, NormKind, PositionTable, RowResult, StepInputs};

/// The rows `ids` of a table: (R, W) -> (T, W).
pub(super) fn look_up(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let ids = Tensor::from_slice(ids, ids.len(), table.device())?;
    table.index_select(&ids, 0)
}

/// Embeddings of tokens, scaled, with those of their positions if the model adds them: (T, E) -> (T, E)
pub(super) fn finish_embedding(
    mut rows: Tensor,
    step: &StepInputs,
    embedding: &Embedding,
) -> Result<Tensor> {
    if let Some(scale) = embedding.scale {
        rows = (rows * f64::from(scale))?;
    }
    match &embedding.positions {
        Some(positions) => rows + embed_positions(step, positions)?,
        None => Ok(rows),
    }
}

pub(super) fn embed_positions(step: &StepInputs, positions: &PositionTable) -> Result<Tensor> {
    let rows = step.positions.iter().map(|at| at + positions.offset);
    look_up(&positions.table, &rows.collect::<Vec<_>>())
}

pub(super) fn norm(x: &Tensor, norm: &Norm, residual: Option<&Tensor>) -> Result<Tensor> {
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

/// The rows that are wanted: (T, H) -> (R, H).
pub(super) fn wanted(x: &Tensor, step: &StepInputs) -> Result<Tensor> {
    let rows: Vec<u32> = step.wanted.iter().map(|wanted| wanted.row).collect();
    if rows.len() == step.tokens.len() {
        return Ok(x.clone());
    }
    look_up(x, &rows)
}

/// Logits (R, V), brought to the host.
pub(super) fn rows_of(logits: Option<&Tensor>) -> Result<Vec<RowResult>> {
    let rows = match logits {
        Some(logits) => logits.to_dtype(DType::F32)?.to_vec2()?,
        None => Vec::new(),
    };
    Ok(rows.into_iter().map(RowResult::Logits).collect())
}
