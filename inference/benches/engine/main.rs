//! The engine without HTTP, on a model with the shapes of a known one and random weights: how long until it is ready,
//! until the first token, from token to token, and what it gives with many requests in flight.
//!
//! `cargo bench -p lantern-inference --features cuda --bench engine -- --device cuda`; for a model that fills a
//! good part of a GPU also `--shapes llama-3-8b --dtype bfloat16 --max-num-batched-tokens 16384`.

mod model;

use std::time::{Duration, Instant};

use clap::Parser;
use futures::stream::{self, StreamExt};
use lantern_inference::engine::request::{Event, Request};
use lantern_inference::engine::{Engine, EngineConfig};
use lantern_inference::loader::{self, DTypeChoice, DeviceChoice, HubOptions};
use lantern_inference::sampling_params::SamplingParams;

use self::model::Shapes;

/// Tokens that requests of the decode rows have before they are timed; they are timed around 512.
const DECODE_PROMPT: usize = 448;
const DECODE_TOKENS: usize = 128;

#[derive(Parser)]
struct Options {
    /// What to run on.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Of weights and KV cache.
    #[arg(long, default_value = "auto")]
    dtype: DTypeChoice,
    /// Whose shapes the model has.
    #[arg(long, default_value = "opt-125m")]
    shapes: Shapes,
    /// Tokens in one step, at most.
    #[arg(long, default_value_t = EngineConfig::default().max_num_batched_tokens)]
    max_num_batched_tokens: usize,
    /// Batch sizes whose steps are timed.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,256")]
    batches: Vec<usize>,
    /// Requests of 128 tokens in and 128 out.
    #[arg(long, default_value_t = 2048)]
    requests: usize,
    /// How many of these at a time.
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a request's stream told.
struct Served {
    submitted: Instant,
    tokens: Vec<Instant>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let folder = tempfile::tempdir()?;
    options.shapes.write(folder.path())?;
    let model = folder.path().to_string_lossy().into_owned();

    let config = EngineConfig {
        max_num_batched_tokens: options.max_num_batched_tokens,
        ..EngineConfig::default()
    };
    let begun = Instant::now();
    let source = loader::resolve(&model, &HubOptions::from_env())?;
    let loaded = loader::load(&source, options.device, options.dtype, None)?;
    let (engine, thread) = Engine::start(loaded, config)?;
    let ready = begun.elapsed();
    println!("| what | measured |\n|---|---|");
    println!("| start to ready | {ready:.2?} |");
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let first = runtime.block_on(serve(&engine, &[prompt(0, 128)], 1))?;
    println!(
        "| first request, first token | {:.2?} |",
        first_token(&first[0])
    );

    let firsts = (1..=20).map(|index| {
        let served = runtime.block_on(serve(&engine, &[prompt(index, 128)], 1))?;
        Ok(first_token(&served[0]))
    });
    let firsts = firsts.collect::<anyhow::Result<Vec<_>>>()?;
    println!("| first token of 128 | {:.2?} |", median(firsts));
    let mut eights = Vec::new();
    for round in 0..3 {
        let prompts: Vec<_> = (0..8)
            .map(|index| prompt(100 + round * 8 + index, 2000))
            .collect();
        let served = runtime.block_on(serve(&engine, &prompts, 1))?;
        eights.extend(served.iter().map(first_token).max());
    }
    println!("| all first tokens of 8 x 2000 | {:.1?} |", median(eights));
    for &batch in &options.batches {
        let prompts: Vec<_> = (0..batch)
            .map(|index| prompt(1000 + index, DECODE_PROMPT))
            .collect();
        let mut medians = Vec::new();
        for _ in 0..3 {
            let served = runtime.block_on(serve(&engine, &prompts, DECODE_TOKENS))?;
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
        println!(
            "| decode step, {batch} at context 448 to 576 | {:.1?} |",
            median(medians)
        );
    }

    let prompts: Vec<_> = (0..options.requests)
        .map(|index| prompt(5000 + index, 128))
        .collect();
    let begun = Instant::now();
    let served = runtime.block_on(async {
        let requests = prompts.iter().map(|prompt| request(&engine, prompt, 128));
        let served = stream::iter(requests).buffer_unordered(options.in_flight);
        served.collect::<Vec<_>>().await
    });
    let seconds = begun.elapsed().as_secs_f64();
    let served = served.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let tokens: usize = served.iter().map(|served| served.tokens.len()).sum();
    println!(
        "| {} requests of 128/128, {} at a time | {:.0} output tokens/s |",
        options.requests,
        options.in_flight,
        tokens as f64 / seconds
    );
    println!(
        "| their first token | {:.2?} |",
        median(served.iter().map(first_token).collect())
    );
    engine.shut_down();
    thread.join()?;
    Ok(())
}

/// All of them at once.
async fn serve(
    engine: &Engine,
    prompts: &[Vec<u32>],
    tokens: usize,
) -> anyhow::Result<Vec<Served>> {
    let requests = prompts.iter().map(|prompt| request(engine, prompt, tokens));
    futures::future::try_join_all(requests).await
}

async fn request(engine: &Engine, prompt: &[u32], tokens: usize) -> anyhow::Result<Served> {
    let submitted = Instant::now();
    let mut events = engine.submit(Request {
        prompt_tokens: prompt.to_vec(),
        params: SamplingParams {
            temperature: 0.0,
            max_tokens: tokens,
            ignore_eos: true,
            ..SamplingParams::default()
        },
        span: opentelemetry::trace::SpanContext::NONE,
    })?;
    let mut served = Served {
        submitted,
        tokens: Vec::with_capacity(tokens),
    };
    while let Some(event) = events.next().await {
        match event {
            Event::Token { at, .. } => served.tokens.push(at),
            Event::Failed { message } => anyhow::bail!(message),
            _ => {}
        }
    }
    Ok(served)
}

fn first_token(served: &Served) -> Duration {
    served.tokens[0] - served.submitted
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Tokens that no other prompt begins with.
fn prompt(index: usize, tokens: usize) -> Vec<u32> {
    let token = |at| (index * 31 + at * 7 + index * at) % (model::VOCAB_SIZE - 10) + 5;
    (0..tokens).map(|at| token(at) as u32).collect()
}
