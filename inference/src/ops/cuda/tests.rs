//! The kernels against the CPU's operations. They need a GPU: `cargo test --features cuda -- --ignored`.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::CudaOps;
use crate::ops::cpu::CpuOps;
use crate::ops::{
    Activation, Attention, Choice, DecoderLayer, Draw, Embedding, Epilogue, FeedForward, Heads,
    KvPages, KvShape, Linear, Matrix, Norm, NormKind, Ops, Pass, PositionTable, Rope, RowResult,
    SelfAttention, StepInputs, StepTensors,
};

/// What 16-bit results may differ by: distance over length.
fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 3e-3,
        _ => 2e-2,
    }
}

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The same numbers on both sides: the CPU computes in f32 what the device does in `dtype`.
struct Sides {
    cuda: CudaOps,
    gpu: Device,
    dtype: DType,
}

/// A tensor on the CPU, and on the device.
type Both = (Tensor, Tensor);

impl Sides {
    fn new(dtype: DType) -> Result<Self> {
        let gpu = super::open()?;
        let cuda = CudaOps::new(&gpu)?;
        Ok(Self { cuda, gpu, dtype })
    }

    /// Random numbers that `dtype` has.
    fn random(&self, shape: &[usize], scale: f32) -> Result<Both> {
        let random = Tensor::rand(-scale, scale, shape, &Device::Cpu)?.to_dtype(self.dtype)?;
        Ok((random.to_dtype(DType::F32)?, random.to_device(&self.gpu)?))
    }

    fn norm(&self, kind: NormKind, size: usize) -> Result<(Norm, Norm)> {
        let (weight, bias) = (self.random(&[size], 1.0)?, self.random(&[size], 0.2)?);
        let norm = |weight, bias| Norm {
            kind,
            weight,
            bias: (kind == NormKind::Layer).then_some(bias),
            eps: 1e-5,
        };
        Ok((norm(weight.0, bias.0), norm(weight.1, bias.1)))
    }

    fn linear(&self, inputs: usize, outputs: usize) -> Result<(Linear, Linear)> {
        let (weight, bias) = (
            self.random(&[outputs, inputs], 0.1)?,
            self.random(&[outputs], 0.5)?,
        );
        let linear = |weight, bias| Linear {
            weight: Matrix::Dense(weight),
            bias: Some(bias),
        };
        Ok((linear(weight.0, bias.0), linear(weight.1, bias.1)))
    }

    /// Asserts that both give the same.
    fn assert_close(&self, what: &str, ours: &Tensor, cpus: &Tensor) -> Result<()> {
        let ours = ours.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let length = |tensor: &Tensor| tensor.sqr()?.sum_all()?.to_scalar::<f32>();
        let error = (length(&(&ours - cpus)?)? / length(cpus)?).sqrt();
        let most = tolerance(self.dtype);
        assert!(
            error < most,
            "{what}, {:?}: {error} is not below {most}",
            self.dtype
        );
        Ok(())
    }
}

/// Runs `operation` in a step of its own.
fn in_step(
    ops: &dyn Ops,
    step: &StepInputs,
    operation: impl Fn() -> Result<Tensor>,
) -> Result<Tensor> {
    let mut pass = || {
        Ok(StepTensors {
            hidden: operation()?,
            logits: None,
        })
    };
    ops.launch(step, &mut pass)?;
    Ok(ops.collect()?.hidden)
}

#[test]
#[ignore = "needs a GPU"]
fn products_equal_the_cpus_for_few_rows_and_for_many() -> Result<()> {
    let epilogues = [
        Epilogue::None,
        Epilogue::Activation(Activation::Relu),
        Epilogue::Activation(Activation::Gelu),
        Epilogue::Gated(Activation::Silu),
        Epilogue::Gated(Activation::GeluTanh),
    ];
    let cpu = CpuOps::default();
    for dtype in TYPES {
        let sides = Sides::new(dtype)?;
        for (inputs, outputs) in [(64, 48), (768, 2304), (3072, 768), (200, 72)] {
            let linear = sides.linear(inputs, outputs)?;
            for kind in [NormKind::Layer, NormKind::Rms] {
                let norm = sides.norm(kind, inputs)?;
                for (index, rows) in [1, 3, 8, 13, 24, 70, 130].into_iter().enumerate() {
                    let x = sides.random(&[rows, inputs], 1.0)?;
                    let epilogue = epilogues[index % epilogues.len()];
                    let what = format!("({rows}, {inputs}) x {outputs}, {kind:?}, {epilogue:?}");
                    let ours = sides
                        .cuda
                        .project(&x.1, Some(&norm.1), &linear.1, epilogue)?;
                    let cpus = cpu.project(&x.0, Some(&norm.0), &linear.0, epilogue)?;
                    sides.assert_close(&what, &ours, &cpus)?;
                    let residual = sides.random(&[rows, outputs], 1.0)?;
                    let ours = sides.cuda.project_add(&x.1, &linear.1, &residual.1)?;
                    let cpus = cpu.project_add(&x.0, &linear.0, &residual.0)?;
                    sides.assert_close(&what, &ours, &cpus)?;
                    let ours = sides.cuda.norm(&x.1, &norm.1, None)?;
                    sides.assert_close(&what, &ours, &cpu.norm(&x.0, &norm.0, None)?)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn embeddings_and_wanted_rows_equal_the_cpus() -> Result<()> {
    let cpu = CpuOps::default();
    for dtype in TYPES {
        let sides = Sides::new(dtype)?;
        let (tokens, table) = (sides.random(&[50, 96], 1.0)?, sides.random(&[40, 96], 1.0)?);
        let embedding = |tokens, table| Embedding {
            tokens: Matrix::Dense(tokens),
            scale: Some(1.5),
            positions: Some(PositionTable { table, offset: 2 }),
        };
        let (of_cpu, ours) = (embedding(tokens.0, table.0), embedding(tokens.1, table.1));
        let mut step = StepInputs::default();
        step.push(&[7, 49, 0], 20, &[0, 1]);
        step.push(&[3, 4], 0, &[2]);
        step.want_last(Choice::Host);
        let rows = |ops: &dyn Ops, embedding: &Embedding| {
            in_step(ops, &step, || {
                let embedded = ops.embed(&step, embedding)?;
                let wanted = ops.wanted(&embedded, &step)?;
                Tensor::cat(&[embedded, wanted], 0)
            })
        };
        let cpus = rows(&cpu, &of_cpu)?.narrow(0, 0, 5)?;
        sides.assert_close("embedding", &rows(&sides.cuda, &ours)?, &cpus)?;
    }
    Ok(())
}

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
        decode.want_last(Choice::Greedy);
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
                step.want_last(Choice::Greedy);
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

#[test]
#[ignore = "needs a GPU"]
fn a_head_of_many_tokens_equals_the_cpus() -> Result<()> {
    let cpu = CpuOps::default();
    for dtype in [DType::F16, DType::BF16] {
        let sides = Sides::new(dtype)?;
        for (inputs, outputs) in [(768, 50272), (1024, 20001)] {
            let (linear, norm) = (
                sides.linear(inputs, outputs)?,
                sides.norm(NormKind::Layer, inputs)?,
            );
            let x = sides.random(&[1, inputs], 1.0)?;
            let ours = sides
                .cuda
                .project(&x.1, Some(&norm.1), &linear.1, Epilogue::None)?;
            let cpus = cpu.project(&x.0, Some(&norm.0), &linear.0, Epilogue::None)?;
            sides.assert_close(&format!("({inputs}) x {outputs}"), &ours, &cpus)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn a_replayed_step_chooses_what_the_step_before_carries_over() -> Result<()> {
    let sides = Sides::new(DType::F16)?;
    // Token t is followed by t + 1: its embedding is the row of a unit matrix that the head has one row later.
    let unit = Tensor::eye(64, DType::F16, &sides.gpu)?;
    let shifted = Tensor::cat(&[&unit.narrow(0, 63, 1)?, &unit.narrow(0, 0, 63)?], 0)?;
    let embedding = Embedding {
        tokens: Matrix::Dense(unit),
        scale: None,
        positions: None,
    };
    let head = Linear {
        weight: Matrix::Dense(shifted.contiguous()?),
        bias: None,
    };
    let ops: &dyn Ops = &sides.cuda;
    let mut passes = Vec::new();
    for round in 0..4_u32 {
        let mut step = StepInputs::default();
        for row in 0..3 {
            step.push(&[10 * row], round as usize, &[row]);
            step.want_last(Choice::Greedy);
            if round > 0 {
                // From the row beside it.
                let from = (row + 1) % 3;
                step.carried.push(crate::ops::Carried { row, from });
            }
        }
        ops.launch(&step, &mut || {
            let hidden = ops.embed(&step, &embedding)?;
            let logits = Some(ops.project(&hidden, None, &head, Epilogue::None)?);
            Ok(StepTensors { hidden, logits })
        })?;
        let result = ops.collect()?;
        assert!(result.device_time.is_some());
        passes.push(result.pass);
        let expected = (0..3).map(|row| RowResult::Token((row + round) % 3 * 10 + round + 1));
        assert_eq!(result.rows, expected.collect::<Vec<_>>(), "round {round}");
    }
    let first = Pass::Eager {
        reason: "no graph of its batch size yet",
    };
    assert_eq!(passes, [first, Pass::Graph, Pass::Graph, Pass::Graph]);
    Ok(())
}

/// How likely each token is of those that `draw` leaves.
fn shares(logits: &[f32], draw: Draw) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut kept: Vec<usize> = (0..logits.len()).collect();
    kept.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let share = |token: usize| ((logits[token] - most) / draw.temperature).exp();
    kept.retain(|token| share(*token) >= draw.min_p);
    if draw.top_k > 0 {
        kept.truncate(draw.top_k as usize);
    }
    let mut rest = draw.top_p * kept.iter().map(|token| share(*token)).sum::<f32>();
    kept.retain(|token| {
        let is_wanted = rest > 0.0;
        rest -= share(*token);
        is_wanted
    });
    let sum: f32 = kept.iter().map(|token| share(*token)).sum();
    let mut shares = vec![0.0; logits.len()];
    for token in kept {
        shares[token] = share(token) / sum;
    }
    shares
}

#[test]
#[ignore = "needs a GPU"]
fn tokens_are_drawn_as_often_as_they_are_likely_and_only_those_that_are_left() -> Result<()> {
    const ROWS: u32 = 512;
    const ROUNDS: u64 = 24;
    let all = Draw {
        temperature: 1.0,
        min_p: 0.0,
        top_k: 0,
        top_p: 1.0,
        key: 0,
    };
    #[rustfmt::skip]
    let draws = [
        all,
        Draw { temperature: 0.6, ..all },
        Draw { min_p: 0.1, ..all },
        Draw { top_k: 7, ..all },
        Draw { top_p: 0.7, ..all },
        Draw { temperature: 1.7, min_p: 0.02, top_k: 30, top_p: 0.8, ..all },
    ];
    for dtype in TYPES {
        for vocabulary in [64_u32, 61] {
            let sides = Sides::new(dtype)?;
            // Each once, so that no two are equal.
            let numbers =
                (0..vocabulary).map(|token| (token * 23 % vocabulary) as f32 * 0.09 - 3.0);
            let logits = Tensor::from_iter(numbers, &Device::Cpu)?.to_dtype(dtype)?;
            let numbers: Vec<f32> = logits.to_dtype(DType::F32)?.to_vec1()?;
            let logits = logits.to_device(&sides.gpu)?.unsqueeze(0)?;
            let logits = logits.repeat((ROWS as usize, 1))?.contiguous()?;
            let hidden = Tensor::zeros((ROWS as usize, 8), dtype, &sides.gpu)?;
            for draw in draws {
                let mut seen = vec![0.0; numbers.len()];
                for round in 0..ROUNDS {
                    let mut step = StepInputs::default();
                    for row in 0..ROWS {
                        step.push(&[0], 0, &[row]);
                        let key = round * u64::from(ROWS) + u64::from(row);
                        step.want_last(Choice::Draw(Draw { key, ..draw }));
                    }
                    sides.cuda.launch(&step, &mut || {
                        Ok(StepTensors {
                            hidden: hidden.clone(),
                            logits: Some(logits.clone()),
                        })
                    })?;
                    for row in sides.cuda.collect()?.rows {
                        let RowResult::Token(token) = row else {
                            panic!("{row:?}");
                        };
                        seen[token as usize] += 1.0;
                    }
                }
                let draws = (ROUNDS * u64::from(ROWS)) as f32;
                for (token, share) in shares(&numbers, draw).into_iter().enumerate() {
                    let (seen, expected) = (seen[token], draws * share);
                    let most = 5.0 * (expected * (1.0 - share)).sqrt();
                    assert!(
                        (seen - expected).abs() <= most,
                        "{dtype:?}, {draw:?}: {token} {seen} times instead of {expected}"
                    );
                }
            }
        }
    }
    Ok(())
}
