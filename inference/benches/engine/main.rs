//! What the README says of the engine on this machine, as a table. Without HTTP, on a model with the shapes of a known
//! one and random weights: how long until it is ready, until the first token, from token to token, and what it gives with
//! many requests in flight (`steps`); a prefix that prompts share (`prefix`); ten times what fits (`overload`). Over
//! HTTP, on that model and on the bundled one: what spans cost (`spans`).
//!
//! `cargo bench -p lantern-inference --features cuda --bench engine -- --device cuda`, or
//! `cargo bench -p lantern-inference --bench engine -- --only prefix,overload,spans`; for a model that fills a good
//! part of a GPU also `--only steps --shapes llama-3-8b --dtype bfloat16 --max-num-batched-tokens 16384`.

mod load;
mod model;
mod overload;
mod prefix;
mod spans;
mod steps;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use lantern_inference::cpu_threads;
use lantern_inference::engine::EngineConfig;
use lantern_inference::loader::{DTypeChoice, DeviceChoice};

use model::{Model, Shapes};

#[derive(Parser)]
struct Options {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Steps, Part::Prefix, Part::Overload, Part::Spans])]
    only: Vec<Part>,
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
    /// Measures nothing, but writes the model into this folder, for others to serve.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Steps,
    Prefix,
    Overload,
    Spans,
}

fn main() -> anyhow::Result<()> {
    cpu_threads::bound();
    let options = Options::parse();
    if let Some(folder) = &options.keep {
        return options.shapes.write(folder);
    }
    let model = Model::write(&options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    println!("| what | measured |\n|---|---|");
    runtime.block_on(async {
        for part in &options.only {
            match part {
                Part::Steps => steps::measure(&model, &options).await?,
                Part::Prefix => prefix::measure(&model).await?,
                Part::Overload => overload::measure(&model).await?,
                Part::Spans => spans::measure(&model).await?,
            }
        }
        Ok(())
    })
}

/// One of the table.
fn row(what: &str, measured: Duration) {
    println!("| {what} | {measured:.2?} |");
}
