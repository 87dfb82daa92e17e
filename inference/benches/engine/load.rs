//! Requests to an engine, and what their streams tell.

use std::time::{Duration, Instant};

use futures::StreamExt;
use lantern_inference::engine::Engine;
use lantern_inference::engine::request::{Event, Request};
use lantern_inference::sampling_params::SamplingParams;

/// What a request's stream told.
pub(crate) struct Served {
    submitted: Instant,
    scheduled: Instant,
    pub(crate) tokens: Vec<Instant>,
}

impl Served {
    /// From its arrival to its first step.
    pub(crate) fn queued(&self) -> Duration {
        self.scheduled - self.submitted
    }

    /// From its arrival to its first token.
    pub(crate) fn first_token(&self) -> Duration {
        self.tokens[0] - self.submitted
    }

    /// From its arrival to its last token.
    pub(crate) fn whole(&self) -> Duration {
        self.tokens[self.tokens.len() - 1] - self.submitted
    }
}

/// So many tokens, the best ones.
pub(crate) fn greedy(tokens: usize) -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        max_tokens: tokens,
        ignore_eos: true,
        ..SamplingParams::default()
    }
}

/// So many, drawn as chats often are.
pub(crate) fn drawn(tokens: usize) -> SamplingParams {
    SamplingParams {
        temperature: 0.7,
        top_p: 0.9,
        ..greedy(tokens)
    }
}

/// All of them at once, each with so many of its best tokens.
pub(crate) async fn serve(
    engine: &Engine,
    prompts: &[Vec<u32>],
    tokens: usize,
) -> anyhow::Result<Vec<Served>> {
    serve_with(engine, prompts, &greedy(tokens)).await
}

/// The same with tokens chosen as `params` say.
pub(crate) async fn serve_with(
    engine: &Engine,
    prompts: &[Vec<u32>],
    params: &SamplingParams,
) -> anyhow::Result<Vec<Served>> {
    let requests = prompts.iter().map(|prompt| request(engine, prompt, params));
    futures::future::try_join_all(requests).await
}

pub(crate) async fn request(
    engine: &Engine,
    prompt: &[u32],
    params: &SamplingParams,
) -> anyhow::Result<Served> {
    let submitted = Instant::now();
    let tokens = params.max_tokens;
    let mut events = engine.submit(Request {
        prompt_tokens: prompt.to_vec(),
        params: params.clone(),
        span: opentelemetry::trace::SpanContext::NONE,
    })?;
    let mut served = Served {
        submitted,
        scheduled: submitted,
        tokens: Vec::with_capacity(tokens),
    };
    while let Some(event) = events.next().await {
        match event {
            Event::Scheduled { at, .. } => served.scheduled = at,
            Event::Token { at, .. } => served.tokens.push(at),
            Event::Failed { message } => anyhow::bail!(message),
            _ => {}
        }
    }
    anyhow::ensure!(
        served.tokens.len() == tokens,
        "{} of {tokens} tokens came",
        served.tokens.len()
    );
    Ok(served)
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
