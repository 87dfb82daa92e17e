//! Log probabilities in OpenAI's two shapes: parallel lists for completions, objects for chats.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::engine::request::TokenLogprobs;
use crate::generation::OutputToken;
use crate::tokenizer::Tokenizer;

/// JSON has no infinity: the least log probability that is reported, as in vLLM.
const LEAST_LOGPROB: f32 = -9999.0;

/// Completions' `logprobs`.
#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<TopLogprobs>>,
}

/// Where in a choice's text the next token begins.
#[derive(Debug, Clone, Default)]
pub(super) struct TextOffset {
    pub(super) chars: usize,
    /// Special tokens are no part of the text.
    pub(super) special_hidden: bool,
}

/// Token to log probability, best first.
#[derive(Debug)]
struct TopLogprobs(Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

impl CompletionLogprobs {
    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Adds one token.
    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        logprobs: Option<&TokenLogprobs>,
        offset: &mut TextOffset,
    ) {
        let text = token_text(tokenizer, id);
        self.text_offset.push(offset.chars);
        if !(offset.special_hidden && tokenizer.is_special(id)) {
            offset.chars += text.chars().count();
        }
        self.tokens.push(text);
        self.token_logprobs
            .push(logprobs.map(|logprobs| reported(logprobs.token.1)));
        self.top_logprobs
            .push(logprobs.map(|logprobs| top(tokenizer, logprobs)));
    }
}

/// The most likely tokens, and the sampled one if it is not among them. Two tokens may read the
/// same (halves of characters): the likelier stays.
fn top(tokenizer: &Tokenizer, logprobs: &TokenLogprobs) -> TopLogprobs {
    let mut entries: Vec<(String, f32)> = Vec::with_capacity(logprobs.top.len() + 1);
    for &(id, logprob) in logprobs.top.iter().chain([&logprobs.token]) {
        let text = token_text(tokenizer, id);
        if !entries.iter().any(|(seen, _)| *seen == text) {
            entries.push((text, reported(logprob)));
        }
    }
    TopLogprobs(entries)
}

/// Chats' `logprobs`.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatToken>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: ChatTokenLogprob,
    top_logprobs: Vec<ChatTokenLogprob>,
}

#[derive(Debug, Serialize)]
struct ChatTokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// The log probabilities of sampled tokens.
    pub(super) fn new(tokenizer: &Tokenizer, tokens: &[OutputToken]) -> Self {
        let known = tokens.iter().filter_map(|token| token.logprobs.as_ref());
        let content = known.map(|logprobs| ChatToken {
            token: chat_token(tokenizer, logprobs.token),
            top_logprobs: logprobs
                .top
                .iter()
                .map(|&token| chat_token(tokenizer, token))
                .collect(),
        });
        Self {
            content: content.collect(),
        }
    }
}

fn chat_token(tokenizer: &Tokenizer, (id, logprob): (u32, f32)) -> ChatTokenLogprob {
    let token = token_text(tokenizer, id);
    ChatTokenLogprob {
        bytes: token.as_bytes().to_vec(),
        token,
        logprob: reported(logprob),
    }
}

/// A token's own text. Ids beyond the tokenizer's vocabulary (a model's padding) have none.
fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.token_text(id).unwrap_or_default()
}

fn reported(logprob: f32) -> f32 {
    logprob.max(LEAST_LOGPROB)
}
