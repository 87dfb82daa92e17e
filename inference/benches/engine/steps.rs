//! How long until the first token, from token to token, and what many requests in flight give.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use lantern_inference::engine::{Engine, EngineConfig};
use lantern_inference::sampling_params::SamplingParams;

use crate::load::{Served, drawn, greedy, median, request, serve, serve_with};
use crate::model::{Model, prompt};
use crate::{Options, row};

/// Tokens that requests of the decode rows have before they are timed; they are timed around 512.
const DECODE_PROMPT: usize = 448;
const DECODE_TOKENS: usize = 128;

pub(crate) async fn measure(model: &Model, options: &Options) -> anyhow::Result<()> {
    let begun = Instant::now();
    let started = model.start(EngineConfig {
        max_num_batched_tokens: options.max_num_batched_tokens,
        ..EngineConfig::default()
    })?;
    row("start to ready", begun.elapsed());
    let engine = &started.engine;
    let first = serve(engine, &[prompt(0, 128)], 1).await?;
    row("first request, first token", first[0].first_token());

    let mut firsts = Vec::new();
    for index in 1..=20 {
        let served = serve(engine, &[prompt(index, 128)], 1).await?;
        firsts.push(served[0].first_token());
    }
    row("first token of 128", median(firsts));
    row("all first tokens of 8 x 2000", long_prompts(engine).await?);
    for (how, params) in [
        ("", greedy(DECODE_TOKENS)),
        (", drawn at 0.7 with top-p 0.9", drawn(DECODE_TOKENS)),
    ] {
        for &batch in &options.batches {
            let step = decode_step(engine, batch, &params).await?;
            row(
                &format!("decode step, {batch} at context 448 to 576{how}"),
                step,
            );
        }
        throughput(engine, options, how, &params).await?;
    }
    started.stop()
}

/// From token to token, with so many sequences decoding and nobody else.
async fn decode_step(
    engine: &Engine,
    batch: usize,
    params: &SamplingParams,
) -> anyhow::Result<Duration> {
    let prompts: Vec<_> = (0..batch)
        .map(|index| prompt(1000 + index, DECODE_PROMPT))
        .collect();
    let mut medians = Vec::new();
    for _ in 0..3 {
        let served = serve_with(engine, &prompts, params).await?;
        // While all of them decode: from the last one's first token to the first one's last.
        let from = served.iter().map(|served| served.tokens[0]).max();
        let to = served
            .iter()
            .map(|served| served.tokens[DECODE_TOKENS - 1])
            .min();
        let during = |pair: &&[Instant]| Some(pair[0]) >= from && Some(pair[1]) <= to;
        let gaps = served[0].tokens.windows(2).filter(during);
        medians.push(median(gaps.map(|pair| pair[1] - pair[0]).collect()));
    }
    Ok(median(medians))
}

/// What many requests in flight give.
async fn throughput(
    engine: &Engine,
    options: &Options,
    how: &str,
    params: &SamplingParams,
) -> anyhow::Result<()> {
    let prompts: Vec<_> = (0..options.requests)
        .map(|index| prompt(5000 + index, 128))
        .collect();
    let begun = Instant::now();
    let requests = prompts.iter().map(|prompt| request(engine, prompt, params));
    let served = stream::iter(requests).buffer_unordered(options.in_flight);
    let served: Vec<_> = served.collect().await;
    let seconds = begun.elapsed().as_secs_f64();
    let served = served.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let tokens: usize = served.iter().map(|served| served.tokens.len()).sum();
    println!(
        "| {} requests of 128/128, {} at a time{how} | {:.0} output tokens/s |",
        options.requests,
        options.in_flight,
        tokens as f64 / seconds
    );
    let firsts = served.iter().map(Served::first_token);
    row(&format!("their first token{how}"), median(firsts.collect()));
    Ok(())
}

/// How long it takes until eight prompts of 2000 tokens have their first tokens.
async fn long_prompts(engine: &Engine) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for round in 0..3 {
        let prompts: Vec<_> = (0..8)
            .map(|index| prompt(100 + round * 8 + index, 2000))
            .collect();
        let served = serve(engine, &prompts, 1).await?;
        times.extend(served.iter().map(Served::first_token).max());
    }
    Ok(median(times))
}
