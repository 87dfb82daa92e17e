//! Ten times the requests that fit, all at once: how long they wait beside what the arithmetic says, and what memory
//! does meanwhile. Memory of the KV cache is the system's until it is first written: so it is as small as it can be here,
//! one sequence of full length, and written all over before memory is looked at. What grows then is something else.

use std::time::{Duration, Instant};

use anyhow::Context;
use lantern_inference::engine::EngineConfig;

use crate::load::{Served, median, serve};
use crate::model::{Model, prompt};
use crate::row;

/// Sequences that fit.
const FITTING: usize = 8;
const TIMES: usize = 10;
const PROMPT_TOKENS: usize = 16;
const OUTPUT_TOKENS: usize = 16;
const ROUNDS: usize = 4;

pub(crate) async fn measure(model: &Model) -> anyhow::Result<()> {
    let mut kv_cache_bytes = 0;
    let started = model.start_for(|model| {
        kv_cache_bytes = model.max_model_len as u64 * model.kv_bytes_per_token();
        EngineConfig {
            max_num_seqs: FITTING,
            kv_cache_bytes: Some(kv_cache_bytes),
            ..EngineConfig::default()
        }
    })?;
    let engine = &started.engine;
    let prompts = |round: usize, count: usize| -> Vec<_> {
        let first = round * FITTING * TIMES;
        (first..first + count)
            .map(|index| prompt(index, PROMPT_TOKENS))
            .collect()
    };
    // First what memory serving takes, then rounds of a batch alone and of ten at once.
    let fresh = resident_mib()?;
    serve(engine, &prompts(0, FITTING * TIMES), OUTPUT_TOKENS).await?;
    let mut resident = vec![resident_mib()?];
    let (mut alone, mut waits, mut longest) = (Vec::new(), Vec::new(), Duration::ZERO);
    for round in 0..ROUNDS {
        let batch = serve(engine, &prompts(2 * round + 1, FITTING), OUTPUT_TOKENS).await?;
        alone.extend(batch.iter().map(Served::whole).max());
        let begun = Instant::now();
        let served = serve(
            engine,
            &prompts(2 * round + 2, FITTING * TIMES),
            OUTPUT_TOKENS,
        )
        .await?;
        longest = longest.max(begun.elapsed());
        let mut queued: Vec<_> = served.iter().map(Served::queued).collect();
        queued.sort_unstable();
        waits.push(queued[queued.len() * 99 / 100]);
        resident.push(resident_mib()?);
    }
    let alone = median(alone);
    let what = format!("{} requests at once, {FITTING} fit", FITTING * TIMES);
    println!("| {what}: answered | all, none refused or failed |");
    row("a batch that fits, alone", alone);
    row("p99 of the time in the queue", median(waits));
    row("the last batch's by arithmetic", alone * (TIMES as u32 - 1));
    row("the longest round", longest);
    println!(
        "| memory of an engine that has served nobody | {fresh} MiB, and a KV cache of {} MiB to write |",
        kv_cache_bytes >> 20
    );
    let resident: Vec<_> = resident.iter().map(u64::to_string).collect();
    println!(
        "| the same once that is written, and after each round | {} MiB |",
        resident.join(", ")
    );
    started.stop()
}

/// Memory of this process.
fn resident_mib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib
        .context("no VmRSS in /proc/self/status")?
        .parse::<u64>()?
        / 1024)
}
