//! A prefix that many prompts share: time to the first token with and without the cache of prefixes.

use std::time::Duration;

use lantern_inference::engine::EngineConfig;

use crate::load::{median, serve};
use crate::model::{Model, prompt};
use crate::row;

const SHARED_TOKENS: usize = 1000;
/// After the prefix, other ones in each prompt.
const OWN_TOKENS: usize = 24;
const PREFIXES: usize = 3;
/// Of each prefix, with the cache: the first finds nothing.
const PROMPTS: usize = 3;

pub(crate) async fn measure(model: &Model) -> anyhow::Result<()> {
    let what = format!("first token of {SHARED_TOKENS} shared and {OWN_TOKENS} own");
    let [without, _] = first_tokens(model, false, 1).await?;
    row(&format!("{what}, no cache of prefixes"), median(without));
    let [new, known] = first_tokens(model, true, PROMPTS).await?;
    row(&format!("{what}, with it, prefix new"), median(new));
    row(&format!("{what}, with it, prefix known"), median(known));
    Ok(())
}

/// Of the first prompt of each prefix, and of the others.
async fn first_tokens(
    model: &Model,
    enable_prefix_caching: bool,
    prompts: usize,
) -> anyhow::Result<[Vec<Duration>; 2]> {
    let started = model.start(EngineConfig {
        enable_prefix_caching,
        ..EngineConfig::default()
    })?;
    let mut firsts = [Vec::new(), Vec::new()];
    for prefix in 0..PREFIXES {
        for own in 0..prompts {
            let mut tokens = prompt(prefix, SHARED_TOKENS);
            tokens.extend(prompt(100 * (prefix + 1) + own, OWN_TOKENS));
            let served = serve(&started.engine, &[tokens], 1).await?;
            firsts[usize::from(own > 0)].push(served[0].first_token());
        }
    }
    started.stop()?;
    Ok(firsts)
}
