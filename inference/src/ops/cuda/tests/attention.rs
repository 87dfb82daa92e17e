//! Attention over pages, whole and split.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::{Sides, TYPES, in_step};
use crate::ops::cpu::CpuOps;
use crate::ops::{Attention, Choice, Heads, KvPages, KvShape, NormKind, Ops, Rope, StepInputs};

/// Contexts of several lengths, in blocks out of order: first their prompts, then a row of each.
fn steps(contexts: &[usize]) -> (StepInputs, StepInputs, usize) {
    let (mut prompts, mut decode) = (StepInputs::default(), StepInputs::default());
    let mut next = contexts
        .iter()
        .map(|context| context / 16 + 1)
        .sum::<usize>();
    let blocks = next;
    for &context in contexts {
        let table: Vec<u32> = (0..=context / 16)
            .map(|index| (next - 1 - index) as u32)
            .collect();
        next -= table.len();
        prompts.push(&vec![1; context], 0, &table);
        decode.push(&[1], context, &table);
        decode.want_last(Choice::GREEDY);
    }
    (prompts, decode, blocks)
}

fn attention_equals_the_cpus(
    heads: Heads,
    contexts: &[usize],
    window: Option<usize>,
) -> Result<()> {
    let cpu = CpuOps::default();
    let (prompts, decode, blocks) = steps(contexts);
    for dtype in TYPES {
        let sides = Sides::new(dtype)?;
        let frequencies: Vec<f32> = (0..heads.dim / 2)
            .map(|pair| 0.7_f32.powi(pair as i32))
            .collect();
        let (queries, keys) = (
            sides.norm(NormKind::Rms, heads.dim)?,
            sides.norm(NormKind::Rms, heads.dim)?,
        );
        let attention = |norms, device: &Device| -> Result<Attention> {
            Ok(Attention {
                layer: 0,
                heads,
                scale: 0.2,
                window,
                head_norms: Some(norms),
                rope: Some(Arc::new(Rope {
                    on_device: Tensor::new(frequencies.as_slice(), device)?,
                    frequencies: frequencies.clone(),
                })),
            })
        };
        let of_cpu = attention((queries.0, keys.0), &Device::Cpu)?;
        let ours = attention((queries.1, keys.1), &sides.gpu)?;
        let pages = |dtype, device| {
            let shape = KvShape {
                layers: 1,
                heads: heads.keys,
                head_dim: heads.dim,
                dtype,
            };
            KvPages::new(&shape, blocks, device)
        };
        let (cpus_pages, our_pages) = (pages(DType::F32, &Device::Cpu)?, pages(dtype, &sides.gpu)?);
        let width = (heads.queries + 2 * heads.keys) * heads.dim;
        for (what, step) in [("prefill", &prompts), ("decode", &decode)] {
            let rows = step.tokens.len();
            let (x, on_gpu) = sides.random(&[rows, width], 1.0)?;
            let cpus = in_step(&cpu, step, || {
                cpu.attend(&x, &of_cpu, step, cpus_pages.layer(0))
            })?;
            let gpu = in_step(&sides.cuda, step, || {
                // As a product's output: filled up to the rows of a recorded step.
                let padded = sides.cuda.current()?.rows;
                let padding = Tensor::zeros((padded - rows, width), dtype, &sides.gpu)?;
                let filled = Tensor::cat(&[&on_gpu, &padding], 0)?;
                sides.cuda.attend(&filled, &ours, step, our_pages.layer(0))
            });
            let what = format!("{what} of {contexts:?}, {heads:?}, {window:?}");
            sides.assert_close(&what, &gpu?, &cpus)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn attention_over_ragged_contexts_equals_the_cpus() -> Result<()> {
    let heads = |queries, keys, dim| Heads { queries, keys, dim };
    for heads in [
        heads(12, 12, 64),
        heads(8, 2, 128),
        heads(4, 1, 256),
        heads(6, 2, 16),
    ] {
        attention_equals_the_cpus(heads, &[1, 16, 33, 100], None)?;
        attention_equals_the_cpus(heads, &[5, 90], Some(24))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn a_long_context_is_split_and_meets_again() -> Result<()> {
    let heads = Heads {
        queries: 2,
        keys: 1,
        dim: 64,
    };
    // Of which whole pages make fewer parts than there could be.
    attention_equals_the_cpus(heads, &[5637], None)
}
