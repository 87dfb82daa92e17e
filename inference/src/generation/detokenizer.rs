//! Token ids in, text out, one token at a time, without ever cutting a character in two.
//!
//! A token's text depends on its neighbours (a leading space, a character spread over several
//! byte tokens), so each step decodes a short window of recent tokens and emits what it adds.

use crate::tokenizer::Tokenizer;

use super::GenerationError;

/// Prompt tokens kept as the first window: enough for the decoder to see that text goes before.
const PROMPT_CONTEXT_TOKENS: usize = 5;
/// A window that never becomes whole (a model babbling invalid bytes) is cut at this length...
const WINDOW_LIMIT_TOKENS: usize = 64;
/// ...to its last tokens: more than the bytes of any one character.
const WINDOW_KEPT_TOKENS: usize = 8;
/// An incomplete character decodes to at most this many replacement characters.
const INCOMPLETE_CHARS: usize = 3;

/// The incremental decoder of one sequence.
#[derive(Debug)]
pub(super) struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The tokens that the next decode looks at.
    window: Vec<u32>,
    /// Tokens of the window that were whole at the last step: the next window starts after them.
    settled: usize,
    /// Bytes of the window's text that are out already.
    emitted_bytes: usize,
}

impl Detokenizer {
    /// A decoder for text that follows `prompt`.
    pub(super) fn new(
        tokenizer: Tokenizer,
        prompt: &[u32],
        skip_special: bool,
    ) -> Result<Self, GenerationError> {
        let window = prompt[prompt.len().saturating_sub(PROMPT_CONTEXT_TOKENS)..].to_vec();
        let mut detokenizer = Self {
            tokenizer,
            skip_special,
            settled: window.len(),
            window,
            emitted_bytes: 0,
        };
        let before = detokenizer.decode()?;
        // A prompt that ends inside a character: what completes it belongs to the output.
        detokenizer.emitted_bytes = stable(&before).len();
        Ok(detokenizer)
    }

    /// The text that `token` makes certain; empty while a character is incomplete.
    pub(super) fn push(&mut self, token: u32) -> Result<String, GenerationError> {
        self.window.push(token);
        let text = self.decode()?;
        let certain = stable(&text);
        let whole = certain.len() == text.len();
        // `get` and not an index: decoders may rewrite what they said before (a stray byte that
        // turns out to begin a character); then nothing new is certain yet.
        let new = certain
            .get(self.emitted_bytes..)
            .unwrap_or_default()
            .to_owned();
        self.emitted_bytes = self.emitted_bytes.max(certain.len());
        if whole {
            self.advance(self.settled)?;
        } else if self.window.len() > WINDOW_LIMIT_TOKENS {
            self.advance(self.window.len() - WINDOW_KEPT_TOKENS)?;
        }
        Ok(new)
    }

    /// Drops the first `tokens` of the window; the rest is what was just emitted.
    fn advance(&mut self, tokens: usize) -> Result<(), GenerationError> {
        self.window.drain(..tokens);
        self.settled = self.window.len();
        self.emitted_bytes = stable(&self.decode()?).len();
        Ok(())
    }

    fn decode(&self) -> Result<String, GenerationError> {
        self.tokenizer
            .decode(&self.window, self.skip_special)
            .map_err(|error| GenerationError::Tokenizer(error.to_string()))
    }
}

/// `text` without replacement characters at its end that further bytes may still complete.
fn stable(text: &str) -> &str {
    let mut rest = text;
    for _ in 0..INCOMPLETE_CHARS {
        match rest.strip_suffix(char::REPLACEMENT_CHARACTER) {
            Some(shorter) => rest = shorter,
            None => break,
        }
    }
    rest
}
