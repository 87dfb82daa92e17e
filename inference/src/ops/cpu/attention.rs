//! Attention over pages: each row against the keys and values of its own sequence, where they lie.
//!
//! Nothing is gathered: a head's block of keys, and of values, is a panel of [`packed`](crate::ops::packed) that is
//! multiplied where it lies, and the softmax is carried from block to block (Milakov and Gimelshein, 2018), so that
//! memory does not grow with the context. The rows of a prompt are taken some at a time, to read a block once for all
//! of them, and with them the heads of queries that share a head of keys. Angles of rotation come from `rotation`,
//! where in a page a number is from `places`. A dot product for each key, tried before, took twice the time: its sum
//! across lanes cost as much as its products.

mod mixture;
mod places;

use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use super::math::dot;
use super::number::{Number, read, widened, write};
use super::rotation::Angle;
use crate::ops::packed::{Work, in_wide_vectors};
use crate::ops::{Attention, Heads, KV_BLOCK_TOKENS, LayerPages, Norm, NormKind, Span, StepInputs};
use mixture::Mixture;

/// Queries that a task takes, of some rows of one sequence: all heads that share one of keys.
const TASK_QUERIES: usize = 32;
/// Fewer multiplications than this are not worth a second thread.
const PARALLEL_PRODUCTS: usize = 256 * 1024;

/// As [`crate::ops::Ops::attend`] has it: (T, (N + 2K) * D) -> (T, N * D). `rotation` is what the attention's rope makes
/// of the step: (T, D / 2).
pub(super) fn attend(
    qkv: &Tensor,
    (attention, rotation): (&Attention, Option<&[Angle]>),
    step: &StepInputs,
    pages: &LayerPages,
) -> Result<Tensor> {
    let placing = Placing::new(attention, rotation)?;
    match qkv.dtype() {
        DType::F32 => attend_as::<f32>(qkv, (attention, &placing), step, pages),
        DType::F16 => attend_as::<f16>(qkv, (attention, &placing), step, pages),
        DType::BF16 => attend_as::<bf16>(qkv, (attention, &placing), step, pages),
        other => bail!("no attention over numbers of type {other:?}"),
    }
}

fn attend_as<T: Number>(
    qkv: &Tensor,
    (attention, placing): (&Attention, &Placing<'_>),
    step: &StepInputs,
    pages: &LayerPages,
) -> Result<Tensor> {
    let heads = attention.heads;
    let queries = read::<T, _>(qkv, |qkv| {
        let rows = Rows { qkv, heads };
        write::<T>(&pages.keys, |keys| {
            placing.write_keys(&rows, step, keys);
            Ok(())
        })?;
        write::<T>(&pages.values, |values| {
            write_values(&rows, step, values);
            Ok(())
        })?;
        Ok(placing.queries(&rows, attention.scale))
    })?;
    let mixed = read::<T, _>(&pages.keys, |keys| {
        read::<T, _>(&pages.values, |values| {
            let heads_of = |task: &Task| {
                let context = Context {
                    step,
                    attention,
                    queries: &queries,
                    keys,
                    values,
                };
                in_wide_vectors((task, &context))
            };
            Ok(mix::<T>(&tasks(step, heads), heads, step, heads_of))
        })
    })?;
    Tensor::from_vec(
        mixed,
        (step.tokens.len(), heads.query_width()),
        qkv.device(),
    )
}

/// (T, (N + 2K) * D)
struct Rows<'a, T> {
    qkv: &'a [T],
    heads: Heads,
}

impl<T: Number> Rows<'_, T> {
    /// Head `index` of a row: queries from 0, keys from N, values from N + K.
    fn head(&self, row: usize, index: usize) -> &[T] {
        let Heads { queries, keys, dim } = self.heads;
        let start = (row * (queries + 2 * keys) + index) * dim;
        &self.qkv[start..start + dim]
    }
}

fn write_values<T: Number>(rows: &Rows<'_, T>, step: &StepInputs, pages: &mut [T]) {
    let heads = rows.heads;
    for (row, &slot) in step.slots.iter().enumerate() {
        for head in 0..heads.keys {
            let values = rows.head(row, heads.queries + heads.keys + head);
            places::put_value(values, (slot as usize, head), heads, pages);
        }
    }
}

/// What becomes of heads before they are compared: norms, and rotation by position.
struct Placing<'a> {
    query_norm: Option<HeadNorm>,
    key_norm: Option<HeadNorm>,
    /// (T, D / 2)
    rotation: Option<&'a [Angle]>,
    pairs: usize,
}

struct HeadNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl HeadNorm {
    fn new(norm: &Norm) -> Result<Self> {
        if norm.kind != NormKind::Rms {
            bail!("heads have norms around 0 alone")
        }
        Ok(Self {
            weight: widened(&norm.weight)?,
            eps: norm.eps,
        })
    }

    fn apply(&self, head: &mut [f32]) {
        let mean = dot(head, head) / head.len() as f32;
        let factor = (mean + self.eps).sqrt().recip();
        for (number, weight) in head.iter_mut().zip(&self.weight) {
            *number *= factor * weight;
        }
    }
}

impl<'a> Placing<'a> {
    fn new(attention: &Attention, rotation: Option<&'a [Angle]>) -> Result<Self> {
        let (query_norm, key_norm) = match &attention.head_norms {
            Some((queries, keys)) => (Some(HeadNorm::new(queries)?), Some(HeadNorm::new(keys)?)),
            None => (None, None),
        };
        Ok(Self {
            query_norm,
            key_norm,
            rotation,
            pairs: attention.heads.dim / 2,
        })
    }

    /// One head of a row, widened, into `placed`.
    fn place<T: Number>(
        &self,
        (row, head): (usize, &[T]),
        norm: Option<&HeadNorm>,
        placed: &mut [f32],
    ) {
        for (wide, number) in placed.iter_mut().zip(head) {
            *wide = number.widen();
        }
        if let Some(norm) = norm {
            norm.apply(placed);
        }
        if let Some(rotation) = self.rotation {
            let angles = &rotation[row * self.pairs..][..self.pairs];
            let (left, right) = placed.split_at_mut(self.pairs);
            for ((left, right), Angle { cos, sin }) in left.iter_mut().zip(right).zip(angles) {
                (*left, *right) = (*left * cos - *right * sin, *right * cos + *left * sin);
            }
        }
    }

    fn write_keys<T: Number>(&self, rows: &Rows<'_, T>, step: &StepInputs, pages: &mut [T]) {
        let heads = rows.heads;
        let mut placed = vec![0.0; heads.dim];
        for (row, &slot) in step.slots.iter().enumerate() {
            for head in 0..heads.keys {
                let key = rows.head(row, heads.queries + head);
                self.place((row, key), self.key_norm.as_ref(), &mut placed);
                places::put_key(&placed, (slot as usize, head), heads, pages);
            }
        }
    }

    /// All queries, scaled: (T, N, D).
    fn queries<T: Number>(&self, rows: &Rows<'_, T>, scale: f32) -> Vec<f32> {
        let Heads { queries, keys, dim } = rows.heads;
        let count = rows.qkv.len() / ((queries + 2 * keys) * dim) * queries;
        let mut all = vec![0.0; count * dim];
        let place = |(index, placed): (usize, &mut [f32])| {
            let (row, head) = (index / queries, index % queries);
            let query = rows.head(row, head);
            self.place((row, query), self.query_norm.as_ref(), placed);
            placed.iter_mut().for_each(|number| *number *= scale);
        };
        if all.len() < PARALLEL_PRODUCTS {
            all.chunks_mut(dim).enumerate().for_each(place);
        } else {
            all.par_chunks_mut(dim).enumerate().for_each(place);
        }
        all
    }
}

/// Some rows of one sequence and the heads of queries that share one head of keys.
struct Task {
    span: Span,
    /// Of the step.
    first_row: usize,
    rows: usize,
    key_head: usize,
}

fn tasks(step: &StepInputs, heads: Heads) -> Vec<Task> {
    let mut tasks = Vec::new();
    let task_rows = (TASK_QUERIES * heads.keys / heads.queries).max(1);
    for &span in &step.spans {
        let end = span.start + span.len;
        for first_row in (span.start..end).step_by(task_rows) {
            tasks.extend((0..heads.keys).map(|key_head| Task {
                span,
                first_row,
                rows: task_rows.min(end - first_row),
                key_head,
            }));
        }
    }
    tasks
}

/// Runs all tasks and puts what they give to its places: (T, N * D).
fn mix<T: Number>(
    tasks: &[Task],
    heads: Heads,
    step: &StepInputs,
    run: impl Fn(&Task) -> Vec<f32> + Send + Sync,
) -> Vec<T> {
    let work = |span: &Span| span.len * (span.context + span.len) * heads.query_width();
    let results: Vec<_> = if step.spans.iter().map(work).sum::<usize>() < PARALLEL_PRODUCTS {
        tasks.iter().map(run).collect()
    } else {
        tasks.par_iter().map(run).collect()
    };
    let group = heads.query_width() / heads.keys;
    let mut mixed = vec![T::zero(); step.tokens.len() * heads.query_width()];
    for (task, result) in tasks.iter().zip(results) {
        for (index, heads_of_row) in result.chunks(group).enumerate() {
            let row = (task.first_row + index) * heads.query_width();
            let place = &mut mixed[row + task.key_head * group..][..group];
            for (number, value) in place.iter_mut().zip(heads_of_row) {
                *number = T::narrow(*value);
            }
        }
    }
    mixed
}

/// What all tasks of a layer read.
struct Context<'a, T> {
    step: &'a StepInputs,
    attention: &'a Attention,
    /// (T, N, D)
    queries: &'a [f32],
    /// As `places` has them.
    keys: &'a [T],
    values: &'a [T],
}

impl<T: Number> Work for (&Task, &Context<'_, T>) {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let (task, context) = self;
        task.run(context)
    }
}

impl Task {
    /// The heads of its rows, one row after another: (rows, N / K, D).
    #[inline(always)]
    fn run<T: Number>(&self, context: &Context<'_, T>) -> Vec<f32> {
        let Attention { heads, window, .. } = *context.attention;
        let group = heads.queries / heads.keys;
        let queries = self.queries(context);
        let mut mixture = Mixture::new(self.rows * group, heads.dim);
        let block_numbers = KV_BLOCK_TOKENS * heads.dim;
        let mut wide_keys = vec![0.0; block_numbers];
        let mut wide_values = vec![0.0; block_numbers];
        let first_position = self.span.context + self.first_row - self.span.start;
        let end_position = first_position + self.rows;
        let visible = |position: usize| {
            let from = window.map_or(0, |window| (position + 1).saturating_sub(window));
            from..position + 1
        };
        let table = context.step.table(&self.span);
        let blocks =
            visible(first_position).start / KV_BLOCK_TOKENS..end_position.div_ceil(KV_BLOCK_TOKENS);
        for index in blocks {
            let start = places::block_start(table[index] as usize, self.key_head, heads);
            let block = start..start + block_numbers;
            let keys = T::widen_all(&context.keys[block.clone()], &mut wide_keys);
            let values = T::widen_all(&context.values[block], &mut wide_values);
            let block_start = index * KV_BLOCK_TOKENS;
            mixture.compare(&queries, keys);
            for (query, softmax) in mixture.softmaxes().enumerate() {
                let visible = visible(first_position + query / group);
                let from = visible.start.saturating_sub(block_start);
                softmax.take_in(from..visible.end.saturating_sub(block_start));
            }
            // What lies after the last row is somebody else's, who may have had no numbers.
            mixture.add(values, KV_BLOCK_TOKENS.min(end_position - block_start));
        }
        mixture.finish()
    }

    /// Those of its rows: (rows, N / K, D).
    fn queries<T>(&self, context: &Context<'_, T>) -> Vec<f32> {
        let heads = context.attention.heads;
        let width = heads.query_width() / heads.keys;
        let rows = self.first_row..self.first_row + self.rows;
        rows.flat_map(|row| {
            let start = row * heads.query_width() + self.key_head * width;
            &context.queries[start..start + width]
        })
        .copied()
        .collect()
    }
}

#[cfg(test)]
mod tests;
