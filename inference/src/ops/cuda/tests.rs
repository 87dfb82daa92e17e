//! The kernels against the CPU's operations. They need a GPU: `cargo test --features cuda -- --ignored`.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::CudaOps;
use crate::ops::cpu::CpuOps;
use crate::ops::{
    Activation, Attention, Choice, Embedding, Epilogue, Heads, KvPages, KvShape, Linear, Matrix,
    Norm, NormKind, Ops, Pass, PositionTable, Rope, RowResult, StepInputs, StepTensors,
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
