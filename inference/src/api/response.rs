//! What both endpoints answer with: usage, options of streams, and gathered results.

use futures::StreamExt;
use serde::Serialize;

use crate::engine::request::TokenLogprobs;
use crate::generation::{Batch, Finish, Output, OutputToken};

use super::error::ApiError;
use super::fields::Fields;

/// Tokens used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) completion_tokens: usize,
}

impl Usage {
    pub(super) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self {
            prompt_tokens,
            total_tokens,
            completion_tokens,
        }
    }
}

/// What every chunk and response begins with.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

/// A response or chunk with choices of either endpoint.
#[derive(Debug, Serialize)]
pub(super) struct Completion<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

impl Envelope {
    pub(super) fn wrap<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Usage>,
    ) -> Completion<'_, C> {
        let Self { id, created, model } = self;
        Completion {
            id,
            object,
            created: *created,
            model,
            choices,
            usage,
        }
    }
}

/// Whether and how to stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    pub(super) stream: bool,
    /// A last chunk with the usage.
    pub(super) include_usage: bool,
    /// The usage so far in every chunk.
    pub(super) continuous_usage: bool,
}

impl StreamOptions {
    pub(super) fn parse(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let Some(mut options) = fields.object("stream_options")? else {
            return Ok(Self {
                stream,
                ..Self::default()
            });
        };
        if !stream {
            let message = "stream_options can only be given with stream = true";
            return Err(ApiError::parameter("stream_options", message));
        }
        let include_usage = options.boolean("include_usage")?.unwrap_or(false);
        let continuous = options.boolean("continuous_usage_stats")?.unwrap_or(false);
        Ok(Self {
            stream,
            include_usage,
            continuous_usage: include_usage && continuous,
        })
    }
}

/// vLLM's `stop_reason`: what ended the sequence, where the request named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    Token(u32),
    Text(String),
}

impl StopReason {
    pub(super) fn of(finish: Option<&Finish>, stops: &[String]) -> Option<Self> {
        match finish? {
            Finish::StopToken(id) => Some(Self::Token(*id)),
            Finish::StopString(index) => stops.get(*index).cloned().map(Self::Text),
            Finish::Stop | Finish::Length => None,
        }
    }
}

/// One prompt's whole result.
#[derive(Debug, Default)]
pub(super) struct PromptResult {
    pub(super) prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    pub(super) choices: Vec<ChoiceResult>,
}

/// One sequence's whole result.
#[derive(Debug, Default)]
pub(super) struct ChoiceResult {
    pub(super) text: String,
    pub(super) tokens: Vec<OutputToken>,
    pub(super) finish: Option<Finish>,
}

/// Runs a batch to its end.
pub(super) async fn gather(
    mut batch: Batch,
    prompts: usize,
    n: usize,
) -> Result<Vec<PromptResult>, ApiError> {
    let empty = || PromptResult {
        choices: (0..n).map(|_| ChoiceResult::default()).collect(),
        prompt_logprobs: None,
    };
    let mut results: Vec<PromptResult> = (0..prompts).map(|_| empty()).collect();
    while let Some(output) = batch.next().await {
        match output? {
            (prompt, Output::PromptLogprobs(logprobs)) => {
                results[prompt].prompt_logprobs = Some(logprobs);
            }
            (prompt, Output::Delta(delta)) => {
                let choice = &mut results[prompt].choices[delta.index];
                choice.text.push_str(&delta.text);
                choice.tokens.extend(delta.tokens);
                choice.finish = delta.finish;
            }
        }
    }
    Ok(results)
}
