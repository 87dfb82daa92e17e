//! Prompts in the four forms that completions take, as tokens.

use serde_json::Value;

use crate::tokenizer::Tokenizer;

use super::App;
use super::error::ApiError;
use super::fields::wrong;

/// Most prompts in one request.
const MAX_PROMPTS: usize = 256;
/// More text than this, that of all prompts of a request together, is tokenized or decoded away
/// from the threads that serve connections.
const BLOCKING_TEXT_BYTES: usize = 16 * 1024;
/// Usual length of a token's text.
const BYTES_PER_TOKEN: usize = 4;

/// A prompt as the request has it.
#[derive(Debug, PartialEq)]
pub(super) enum RawPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A prompt for the engine.
pub(super) struct TokenizedPrompt {
    /// The text, as sent or as the tokens read; empty where nobody asks for it.
    pub(super) text: String,
    /// At least one.
    pub(super) tokens: Vec<u32>,
    /// The text is as sent: special tokens were added to the tokens alone.
    pub(super) from_text: bool,
}

/// Reads `prompt`: a string, strings, token ids, or lists of token ids.
pub(super) fn parse(value: Option<Value>, vocab_size: usize) -> Result<Vec<RawPrompt>, ApiError> {
    let expected = "a string, a list of strings, a list of token ids or a list of such lists";
    let Some(value) = value else {
        return Err(ApiError::parameter("prompt", "prompt is required"));
    };
    let prompts = match value {
        Value::String(text) => vec![RawPrompt::Text(text)],
        Value::Array(items) if items.iter().all(Value::is_number) => {
            vec![RawPrompt::Tokens(token_ids(&items, "prompt", vocab_size)?)]
        }
        Value::Array(items) => {
            let prompts = items.into_iter().map(|item| match item {
                Value::String(text) => Ok(RawPrompt::Text(text)),
                Value::Array(ids) => Ok(RawPrompt::Tokens(token_ids(&ids, "prompt", vocab_size)?)),
                other => Err(wrong("prompt", expected, &other)),
            });
            prompts.collect::<Result<_, _>>()?
        }
        other => return Err(wrong("prompt", expected, &other)),
    };
    if prompts.len() > MAX_PROMPTS {
        let message = format!(
            "prompt has {} prompts, at most {MAX_PROMPTS} are allowed",
            prompts.len()
        );
        return Err(ApiError::parameter("prompt", message));
    }
    Ok(prompts)
}

/// Token ids, all of them the model's.
pub(super) fn token_ids(
    values: &[Value],
    param: &'static str,
    vocab_size: usize,
) -> Result<Vec<u32>, ApiError> {
    let ids = values.iter().map(|value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|&id| (id as usize) < vocab_size)
            .ok_or_else(|| wrong(param, &format!("token ids below {vocab_size}"), value))
    });
    ids.collect()
}

impl RawPrompt {
    /// What it takes to tokenize, or to read where `want_text`, in bytes of text.
    fn work_bytes(&self, want_text: bool) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(tokens) if want_text => decode_bytes(tokens),
            Self::Tokens(_) => 0,
        }
    }

    fn tokenize(
        self,
        tokenizer: &Tokenizer,
        add_special_tokens: bool,
        want_text: bool,
    ) -> Result<TokenizedPrompt, ApiError> {
        let prompt = match self {
            Self::Text(text) => TokenizedPrompt {
                tokens: tokenizer.encode(&text, add_special_tokens)?,
                text,
                from_text: true,
            },
            Self::Tokens(tokens) => TokenizedPrompt {
                text: if want_text {
                    tokenizer.decode(&tokens, false)?
                } else {
                    String::new()
                },
                tokens,
                from_text: false,
            },
        };
        if prompt.tokens.is_empty() {
            return Err(ApiError::parameter("prompt", "the prompt has no tokens"));
        }
        Ok(prompt)
    }
}

impl App {
    /// Turns prompts into tokens. With `want_text` token ids become text as well.
    pub(super) async fn tokenize_prompts(
        &self,
        prompts: Vec<RawPrompt>,
        add_special_tokens: bool,
        want_text: bool,
    ) -> Result<Vec<TokenizedPrompt>, ApiError> {
        let bytes = prompts.iter().map(|prompt| prompt.work_bytes(want_text));
        self.with_tokenizer(bytes.sum(), move |tokenizer| {
            let prompts = prompts.into_iter();
            prompts
                .map(|prompt| prompt.tokenize(tokenizer, add_special_tokens, want_text))
                .collect()
        })
        .await
    }

    /// Does the tokenizer's work on so many bytes of text where it holds up nobody else.
    pub(super) async fn with_tokenizer<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Tokenizer) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let tokenizer = self.generator.tokenizer.clone();
        in_place_or_apart(bytes, move || work(&tokenizer)).await
    }
}

/// The bytes of text that tokens read as, about.
pub(super) fn decode_bytes(tokens: &[u32]) -> usize {
    tokens.len().saturating_mul(BYTES_PER_TOKEN)
}

/// Little work is done at once, much on a thread of its own.
async fn in_place_or_apart<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= BLOCKING_TEXT_BYTES {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::Tokenizer(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn much_text_is_tokenized_away_from_the_threads_that_serve() {
        let here = thread::current().id();
        for (bytes, stays) in [
            (BLOCKING_TEXT_BYTES, true),
            (BLOCKING_TEXT_BYTES + 1, false),
        ] {
            let worker = in_place_or_apart(bytes, || Ok(thread::current().id()));
            assert_eq!(worker.await.expect("it does not fail") == here, stays);
        }
    }

    #[test]
    fn work_is_text_to_read_and_tokens_whose_text_is_wanted() {
        let text = RawPrompt::Text("x".repeat(1000));
        let tokens = RawPrompt::Tokens(vec![1; 1000]);
        assert_eq!(text.work_bytes(false), 1000);
        assert_eq!(tokens.work_bytes(false), 0);
        assert!(tokens.work_bytes(true) >= 1000);
    }
}
