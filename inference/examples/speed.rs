//! Tokens a second of a model on this machine, as the engine serves it without HTTP: prompts read at once, then
//! one token of each at a time. By the clock, and by the CPU time of all threads, which tells more where a machine is
//! shared (Linux alone; elsewhere it is 0).
//!
//! `cargo run --release -p lantern-inference --example speed -- MODEL --prompt 512 --decode 128 --batch 1`;
//! `RAYON_NUM_THREADS` is the number of threads. `benches/speed.py` runs it in turns with other engines.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use futures::StreamExt;
use futures::executor::block_on;
use lantern_inference::cpu_threads;
use lantern_inference::engine::request::{Event, Request, RequestStream};
use lantern_inference::engine::{Engine, EngineConfig};
use lantern_inference::loader::{self, DTypeChoice, DeviceChoice, HubOptions};
use lantern_inference::sampling_params::SamplingParams;
use opentelemetry::trace::SpanContext;

/// Measures a model's speed.
#[derive(Debug, Parser)]
struct Args {
    /// A directory, a .gguf file or a hub id
    model: String,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens made after each
    #[arg(long, default_value_t = 128)]
    decode: usize,
    /// Sequences at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// How often; each is printed
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Number type
    #[arg(long, value_enum, default_value = "auto")]
    dtype: DTypeChoice,
    /// Where it runs
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
}

fn main() -> anyhow::Result<()> {
    cpu_threads::bound();
    let args = Args::parse();
    let start = Instant::now();
    let source = loader::resolve(&args.model, &HubOptions::from_env())?;
    let model = loader::load(&source, args.device, args.dtype, None)?;
    let vocabulary = model.vocab_size;
    println!("loaded in {:.2} s", start.elapsed().as_secs_f64());
    let config = EngineConfig {
        max_num_seqs: args.batch,
        max_num_batched_tokens: args.prompt * args.batch,
        ..EngineConfig::default()
    };
    let (engine, thread) = Engine::start(model, config)?;
    for run in 0..args.runs {
        let [prefill, decode] = measure(&engine, &args, (run, vocabulary))?;
        let rate =
            |tokens: usize, time: Duration| (args.batch * tokens) as f64 / time.as_secs_f64();
        println!(
            "prefill {:.1} decode {:.1} tokens/s, prefill {:.1} decode {:.1} tokens/s of CPU time",
            rate(args.prompt, prefill.clock),
            rate(args.decode - 1, decode.clock),
            rate(args.prompt, prefill.cpu),
            rate(args.decode - 1, decode.cpu),
        );
    }
    engine.shut_down();
    thread.join()?;
    Ok(())
}

/// A moment, or the time between two.
#[derive(Clone, Copy)]
struct Times {
    clock: Duration,
    /// Of all threads.
    cpu: Duration,
}

impl Times {
    fn since(start: Instant) -> anyhow::Result<Self> {
        let mut nanoseconds = 0;
        if let Ok(threads) = std::fs::read_dir("/proc/self/task") {
            for thread in threads {
                let times = std::fs::read_to_string(thread?.path().join("schedstat"))?;
                let running = times.split_whitespace().next().context("an empty file")?;
                nanoseconds += running.parse::<u64>()?;
            }
        }
        Ok(Self {
            clock: start.elapsed(),
            cpu: Duration::from_nanos(nanoseconds),
        })
    }

    fn until(self, later: Self) -> Self {
        Self {
            clock: later.clock - self.clock,
            cpu: later.cpu.saturating_sub(self.cpu),
        }
    }
}

/// Time until every sequence has its first token, and from then until every one has its last.
fn measure(
    engine: &Engine,
    args: &Args,
    (run, vocabulary): (usize, usize),
) -> anyhow::Result<[Times; 2]> {
    let start = Instant::now();
    let begun = Times::since(start)?;
    let streams = (0..args.batch).map(|sequence| {
        // Prompts that share no prefix, with each other or with earlier runs.
        let first = (run * args.batch + sequence + 1) * 7919;
        let token = |at: usize| ((first + at * 31) % vocabulary) as u32;
        let request = Request {
            prompt_tokens: (0..args.prompt).map(token).collect(),
            params: SamplingParams {
                temperature: 0.0,
                ignore_eos: true,
                max_tokens: args.decode,
                ..SamplingParams::default()
            },
            span: SpanContext::NONE,
        };
        engine.submit(request).context("the engine takes requests")
    });
    let mut streams = streams.collect::<anyhow::Result<Vec<_>>>()?;
    for stream in &mut streams {
        take_tokens(stream, 1)?;
    }
    let first = Times::since(start)?;
    for stream in &mut streams {
        take_tokens(stream, args.decode - 1)?;
    }
    let last = Times::since(start)?;
    Ok([begun.until(first), first.until(last)])
}

/// Waits for so many tokens.
fn take_tokens(stream: &mut RequestStream, mut count: usize) -> anyhow::Result<()> {
    while count > 0 {
        match block_on(stream.next()) {
            Some(Event::Token { .. }) => count -= 1,
            Some(Event::Failed { message }) => bail!(message),
            Some(_) => {}
            None => bail!("{count} tokens did not come"),
        }
    }
    Ok(())
}
