//! Whole decoder layers of one row.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::{CudaOps, Sides, in_step};
use crate::ops::cpu::CpuOps;
use crate::ops::{
    Activation, Attention, Choice, DecoderLayer, Epilogue, FeedForward, Heads, KvPages, KvShape,
    Linear, Norm, NormKind, Ops, Rope, SelfAttention, StepInputs,
};

/// Layers of the same random weights on both sides, (CPU's, ours).
fn decoder_layers(
    sides: &Sides,
    (hidden, heads, inner): (usize, Heads, usize),
    (kind, epilogue): (NormKind, Epilogue),
    attention: [&Attention; 2],
) -> Result<(Vec<DecoderLayer>, Vec<DecoderLayer>)> {
    let width = (heads.queries + 2 * heads.keys) * heads.dim;
    let layers = (0..2).map(|layer| {
        let (first, second) = (sides.norm(kind, hidden)?, sides.norm(kind, hidden)?);
        let (qkv, out) = (
            sides.linear(hidden, width)?,
            sides.linear(heads.query_width(), hidden)?,
        );
        let (up, down) = (sides.linear(hidden, inner)?, sides.linear(inner, hidden)?);
        let [of_cpu, ours] = attention.map(|attention| Attention {
            layer,
            ..attention.clone()
        });
        let layer = |norms: [Norm; 2], products: [Linear; 4], attention| {
            let [attention_norm, feed_forward_norm] = norms;
            let [qkv, out, up, down] = products;
            DecoderLayer {
                attention_norm,
                attention: SelfAttention {
                    qkv,
                    attention,
                    out,
                },
                feed_forward_norm,
                feed_forward: FeedForward { up, epilogue, down },
            }
        };
        Ok((
            layer([first.0, second.0], [qkv.0, out.0, up.0, down.0], of_cpu),
            layer([first.1, second.1], [qkv.1, out.1, up.1, down.1], ours),
        ))
    });
    layers.collect()
}

/// One layer after another, operation by operation.
fn one_by_one(
    ops: &dyn Ops,
    hidden: &Tensor,
    layers: &[DecoderLayer],
    (step, pages): (&StepInputs, &KvPages),
) -> Result<Tensor> {
    layers.iter().try_fold(hidden.clone(), |hidden, layer| {
        let SelfAttention {
            qkv,
            attention,
            out,
        } = &layer.attention;
        let FeedForward { up, epilogue, down } = &layer.feed_forward;
        let qkv = ops.project(&hidden, Some(&layer.attention_norm), qkv, Epilogue::None)?;
        let mixed = ops.attend(&qkv, attention, step, pages.layer(attention.layer))?;
        let hidden = ops.project_add(&mixed, out, &hidden)?;
        let inner = ops.project(&hidden, Some(&layer.feed_forward_norm), up, *epilogue)?;
        ops.project_add(&inner, down, &hidden)
    })
}

/// A row with layers in two kernels each, after a context of every length given.
fn layers_at_once_equal_the_cpus(
    (hidden, heads, inner): (usize, usize, usize),
    what: (NormKind, Epilogue),
    contexts: &[usize],
    rotated: bool,
) -> Result<()> {
    let cpu = CpuOps::default();
    let heads = Heads {
        queries: heads,
        keys: heads,
        dim: 64,
    };
    for dtype in [DType::F16, DType::BF16] {
        let mut sides = Sides::new(dtype)?;
        let frequencies: Vec<f32> = (0..32).map(|pair| 0.7_f32.powi(pair)).collect();
        let norms = (
            sides.norm(NormKind::Rms, 64)?,
            sides.norm(NormKind::Rms, 64)?,
        );
        let attention = |norms, device: &Device| -> Result<Attention> {
            let mut attention = Attention::plain(0, heads);
            if rotated {
                attention.window = Some(90);
                attention.head_norms = Some(norms);
                attention.rope = Some(Arc::new(Rope {
                    on_device: Tensor::new(frequencies.as_slice(), device)?,
                    frequencies: frequencies.clone(),
                }));
            }
            Ok(attention)
        };
        let of_cpu = attention((norms.0.0, norms.1.0), &Device::Cpu)?;
        let ours = attention((norms.0.1, norms.1.1), &sides.gpu)?;
        let sizes = (hidden, heads, inner);
        let (cpus_layers, our_layers) = decoder_layers(&sides, sizes, what, [&of_cpu, &ours])?;
        for &context in contexts {
            let blocks: Vec<u32> = (0..=(context as u32 + 2) / 16).rev().collect();
            let pages = |dtype, device| {
                let shape = KvShape {
                    layers: 2,
                    heads: heads.keys,
                    head_dim: 64,
                    dtype,
                };
                KvPages::new(&shape, blocks.len(), device)
            };
            let (cpus, gpus) = (pages(DType::F32, &Device::Cpu)?, pages(dtype, &sides.gpu)?);
            let what = format!("{hidden}, {heads:?}, {inner}, {what:?}, {context} before");
            if context > 0 {
                let mut prompt = StepInputs::default();
                prompt.push(&vec![1; context], 0, &blocks);
                let width = (heads.queries + 2 * heads.keys) * heads.dim;
                for layer in 0..2 {
                    let x = sides.random(&[context, width], 1.0)?;
                    in_step(&cpu, &prompt, || {
                        cpu.attend(&x.0, &of_cpu, &prompt, cpus.layer(layer))
                    })?;
                    in_step(&sides.cuda, &prompt, || {
                        sides.cuda.attend(&x.1, &ours, &prompt, gpus.layer(layer))
                    })?;
                }
            }
            // The second one finds what the first has written. Each has operations of its own: what the first one's have
            // recorded is of its row.
            for context in [context, context + 1] {
                sides.cuda = CudaOps::new(&sides.gpu)?;
                let mut step = StepInputs::default();
                step.push(&[1], context, &blocks);
                step.want_last(Choice::GREEDY);
                let x = sides.random(&[1, hidden], 1.0)?;
                let expected = in_step(&cpu, &step, || {
                    one_by_one(&cpu, &x.0, &cpus_layers, (&step, &cpus))
                })?;
                let got = in_step(&sides.cuda, &step, || {
                    let at_once = sides.cuda.run_layers(&x.1, &our_layers, &gpus)?;
                    Ok(at_once.expect("there are kernels for these"))
                })?;
                sides.assert_close(&what, &got, &expected)?;
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn layers_of_one_row_at_once_equal_the_cpus() -> Result<()> {
    let relu = (NormKind::Layer, Epilogue::Activation(Activation::Relu));
    let gelu = (NormKind::Rms, Epilogue::Activation(Activation::GeluTanh));
    layers_at_once_equal_the_cpus((768, 12, 3072), relu, &[0, 1, 37, 511, 2500], false)?;
    layers_at_once_equal_the_cpus((192, 3, 768), relu, &[5, 300], false)?;
    layers_at_once_equal_the_cpus((256, 4, 1024), gelu, &[0, 64, 200], true)
}
