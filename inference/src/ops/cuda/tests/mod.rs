//! The kernels against the CPU's operations. They need a GPU: `cargo test --features cuda -- --ignored`.

use candle_core::{DType, Device, Result, Tensor};

use super::CudaOps;
use crate::ops::cpu::CpuOps;
use crate::ops::{
    Activation, Choice, Embedding, Epilogue, Linear, Matrix, Norm, NormKind, Ops, PositionTable,
    StepInputs, StepTensors,
};

mod attention;
mod choose;
mod layers;

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
