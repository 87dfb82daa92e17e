//! What steps choose: the best token, one by chance, after penalties, and how likely it was.

use candle_core::{DType, Device, Result, Tensor};

use super::{Sides, TYPES};
use crate::engine::token_logprobs;
use crate::ops::{
    Choice, ChosenToken, Draw, Embedding, Epilogue, Linear, Matrix, Ops, Pass, Penalized,
    Penalties, RowLogprobs, RowResult, Sampling, StepInputs, StepTensors,
};

fn chosen(token: u32) -> RowResult {
    let logprobs = None;
    RowResult::Token(ChosenToken { token, logprobs })
}

#[test]
#[ignore = "needs a GPU"]
fn a_replayed_step_chooses_what_the_step_before_carries_over() -> Result<()> {
    // One that is filled up, one in two halves.
    [3, 130].into_iter().try_for_each(replay)
}

fn replay(rows: u32) -> Result<()> {
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
        for row in 0..rows {
            step.push(&[10 * row % 64], round as usize, &[row]);
            step.want_last(Choice::GREEDY);
            if round > 0 {
                // From the row beside it.
                let from = (row + 1) % rows;
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
        let expected = (0..rows).map(|row| chosen(((row + round) % rows * 10 + round + 1) % 64));
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
                        step.want_last(Choice::Device(Sampling {
                            penalties: Penalties::NONE,
                            draw: Some(Draw { key, ..draw }),
                            logprobs: None,
                        }));
                    }
                    sides.cuda.launch(&step, &mut || {
                        Ok(StepTensors {
                            hidden: hidden.clone(),
                            logits: Some(logits.clone()),
                        })
                    })?;
                    for row in sides.cuda.collect()?.rows {
                        let RowResult::Token(chosen) = row else {
                            panic!("{row:?}");
                        };
                        seen[chosen.token as usize] += 1.0;
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

/// The best token of a row after its penalties.
fn best(logits: &[f32], penalties: Penalties, penalized: &[Penalized]) -> u32 {
    let mut logits = logits.to_vec();
    for it in penalized {
        let logit = &mut logits[it.token as usize];
        *logit = match it.times {
            Penalized::NEVER => f32::NEG_INFINITY,
            times => penalties.applied(*logit, times),
        };
    }
    let mut best = 0;
    for token in 1..logits.len() {
        if logits[token] > logits[best] {
            best = token;
        }
    }
    best as u32
}

fn assert_logprobs(got: &RowLogprobs, logits: &[f32], token: u32, top: usize) {
    let expected = token_logprobs(logits, token, top);
    assert_eq!(got.rank as usize, expected.rank);
    let tokens = |top: &[(u32, f32)]| top.iter().map(|it| it.0).collect::<Vec<_>>();
    assert_eq!(tokens(&got.top), tokens(&expected.top));
    let values = expected.top.iter().chain([&expected.token]);
    let of_token = (token, got.chosen);
    for (got, expected) in got.top.iter().chain([&of_token]).zip(values) {
        let distance = (got.1 - expected.1).abs();
        assert!(distance < 1e-4, "{got:?} instead of {expected:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn penalties_and_log_probabilities_are_what_the_host_says() -> Result<()> {
    const ROWS: usize = 8;
    /// Of which rows the host chooses for.
    const HOSTS: usize = 5;
    for dtype in TYPES {
        for vocabulary in [64_usize, 61, 50_272] {
            let sides = Sides::new(dtype)?;
            let (rows, logits) = sides.random(&[ROWS, vocabulary], 3.0)?;
            let rows: Vec<Vec<f32>> = rows.to_vec2()?;
            let hidden = Tensor::zeros((ROWS, 8), dtype, &sides.gpu)?;
            let mut occurred: Vec<Vec<Penalized>> = vec![Vec::new(); ROWS];
            let mut last: Option<Vec<u32>> = None;
            for round in 0..12 {
                let mut step = StepInputs::default();
                let sampling = |row: usize| Sampling {
                    penalties: Penalties {
                        repetition: [1.0, 1.5, 0.7][row % 3],
                        frequency: [0.5, 0.25][row % 2],
                        presence: if row == 7 { 0.0 } else { 0.75 },
                    },
                    draw: None,
                    logprobs: [None, Some(0), Some(3), Some(20)][row % 4],
                };
                // The row's best token, in every other row.
                let banned = |row: usize| {
                    let best = best(&rows[row], Penalties::NONE, &[]);
                    if row.is_multiple_of(2) {
                        vec![best, best]
                    } else {
                        Vec::new()
                    }
                };
                for row in 0..ROWS {
                    step.push(&[0], round, &[row as u32]);
                    if last.is_some() {
                        step.carry_last(row as u32);
                    }
                    let choice = match row {
                        HOSTS => Choice::Host,
                        _ => Choice::Device(sampling(row)),
                    };
                    step.want_last_without(choice, &occurred[row], &banned(row));
                }
                let pass = || StepTensors {
                    hidden: hidden.clone(),
                    logits: Some(logits.clone()),
                };
                sides.cuda.launch(&step, &mut || Ok(pass()))?;
                let got = sides.cuda.collect()?;
                // Now the host has heard of the tokens of the step before.
                for (row, token) in last.iter().flatten().enumerate() {
                    let known = occurred[row].iter_mut().find(|it| it.token == *token);
                    match known {
                        Some(known) => known.times += 1,
                        None => occurred[row].push(Penalized {
                            token: *token,
                            times: 1,
                        }),
                    }
                }
                let mut tokens = Vec::new();
                for (row, got) in got.rows.into_iter().enumerate() {
                    let what = format!("{dtype:?}, {vocabulary}, row {row}, round {round}");
                    let token = match got {
                        RowResult::Logits(logits) => {
                            assert_eq!((row, &logits), (HOSTS, &rows[row]), "{what}");
                            // It has chosen one all the same, which nobody is to take.
                            best(&logits, Penalties::NONE, &[])
                        }
                        RowResult::Token(ChosenToken { token, logprobs }) => {
                            let taken = banned(row).into_iter().map(|token| Penalized {
                                token,
                                times: Penalized::NEVER,
                            });
                            let all: Vec<_> = occurred[row].iter().copied().chain(taken).collect();
                            assert_eq!(
                                token,
                                best(&rows[row], sampling(row).penalties, &all),
                                "{what}"
                            );
                            let wanted = sampling(row).logprobs;
                            assert_eq!(logprobs.is_some(), wanted.is_some(), "{what}");
                            if let (Some(got), Some(top)) = (logprobs, wanted) {
                                assert_logprobs(&got, &rows[row], token, top as usize);
                            }
                            token
                        }
                    };
                    tokens.push(token);
                }
                last = Some(tokens);
            }
        }
    }
    Ok(())
}
