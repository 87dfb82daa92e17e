//! Prompts in the four forms that completions take, as tokens.

use serde_json::Value;

use crate::tokenizer::Tokenizer;

use super::App;
use super::error::ApiError;
use super::fields::wrong;

/// Most prompts in one request.
const MAX_PROMPTS: usize = 256;
/// Longer texts are tokenized away from the threads that serve connections.
const BLOCKING_TEXT_BYTES: usize = 16 * 1024;

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

impl App {
    /// Turns prompts into tokens. With `want_text` token ids become text as well.
    pub(super) async fn tokenize_prompts(
        &self,
        prompts: Vec<RawPrompt>,
        add_special_tokens: bool,
        want_text: bool,
    ) -> Result<Vec<TokenizedPrompt>, ApiError> {
        let mut tokenized = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let prompt = match prompt {
                RawPrompt::Text(text) => {
                    let (text, tokens) = self.encode(text, add_special_tokens).await?;
                    TokenizedPrompt {
                        text,
                        tokens,
                        from_text: true,
                    }
                }
                RawPrompt::Tokens(tokens) => {
                    let text = if want_text {
                        self.decode(&tokens, false)?
                    } else {
                        String::new()
                    };
                    TokenizedPrompt {
                        text,
                        tokens,
                        from_text: false,
                    }
                }
            };
            if prompt.tokens.is_empty() {
                return Err(ApiError::parameter("prompt", "the prompt has no tokens"));
            }
            tokenized.push(prompt);
        }
        Ok(tokenized)
    }

    /// The tokens of a text, which is given back.
    pub(super) async fn encode(
        &self,
        text: String,
        add_special_tokens: bool,
    ) -> Result<(String, Vec<u32>), ApiError> {
        if text.len() <= BLOCKING_TEXT_BYTES {
            return encode(&self.generator.tokenizer, text, add_special_tokens);
        }
        let tokenizer = self.generator.tokenizer.clone();
        tokio::task::spawn_blocking(move || encode(&tokenizer, text, add_special_tokens))
            .await
            .map_err(|error| ApiError::Tokenizer(error.to_string()))?
    }

    /// The text of tokens.
    pub(super) fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, ApiError> {
        let text = self.generator.tokenizer.decode(tokens, skip_special);
        text.map_err(|error| ApiError::Tokenizer(error.to_string()))
    }
}

fn encode(
    tokenizer: &Tokenizer,
    text: String,
    add_special_tokens: bool,
) -> Result<(String, Vec<u32>), ApiError> {
    let tokens = tokenizer.encode(&text, add_special_tokens);
    let tokens = tokens.map_err(|error| ApiError::Tokenizer(error.to_string()))?;
    Ok((text, tokens))
}
