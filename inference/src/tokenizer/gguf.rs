//! A GGUF's own tokenizer: SentencePiece's BPE by scores, or GPT-2's byte-level BPE by merges.
//!
//! Both become the tokenizer that transformers makes of the same model.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::{TokenizerError, around};
use crate::loader::{Gguf, GgufError};

/// SentencePiece's sign for a space.
const SPACE: &str = "\u{2581}";
/// What tokens are: `llama_token_type` of llama.cpp.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// The tokens, by id.
struct Tokens<'a> {
    texts: Vec<&'a str>,
    /// What each is; empty: all are ordinary.
    kinds: Vec<u64>,
}

/// The tokenizer of a GGUF.
pub(super) fn read(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
    const MODEL: &str = "tokenizer.ggml.model";
    let tokens = Tokens::read(gguf)?;
    let mut tokenizer = match gguf.text(MODEL)? {
        "llama" => sentence_piece(gguf, &tokens)?,
        "gpt2" => byte_level(gguf, &tokens)?,
        other => return Err(gguf.unsupported(MODEL, &other, "llama and gpt2 are").into()),
    };
    let special = tokens.of_kind(&[CONTROL, UNKNOWN], true);
    tokenizer.add_special_tokens(special)?;
    tokenizer.add_tokens(tokens.of_kind(&[USER_DEFINED], false))?;
    let token = |role: &str| {
        let id = gguf.number(&format!("tokenizer.ggml.{role}_token_id"))?;
        let text = tokens.texts.get(usize::try_from(id).ok()?)?;
        Some(((*text).to_owned(), id as u32))
    };
    let begin = adds(gguf, "bos").then(|| token("bos")).flatten();
    let end = adds(gguf, "eos").then(|| token("eos")).flatten();
    if begin.is_some() || end.is_some() {
        tokenizer.with_post_processor(Some(around(begin, end)?));
    }
    Ok(tokenizer)
}

/// Whether a token is put around every text; where the file does not say, as llama.cpp does it.
fn adds(gguf: &Gguf, role: &str) -> bool {
    let usual = role == "bos"
        && (gguf.optional_text("tokenizer.ggml.model") == Some("llama")
            || LLAMA3.contains(&pre_tokenizer(gguf)));
    gguf.flag(&format!("tokenizer.ggml.add_{role}_token"))
        .unwrap_or(usual)
}

impl<'a> Tokens<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self, GgufError> {
        let kinds = match gguf.value(KINDS) {
            Some(_) => whole_numbers(gguf, KINDS)?,
            None => Vec::new(),
        };
        let texts = texts(gguf, "tokenizer.ggml.tokens")?;
        if !kinds.is_empty() && kinds.len() != texts.len() {
            let supported = format!("as many as tokens, {}, are", texts.len());
            return Err(gguf.unsupported(KINDS, &format!("{} kinds", kinds.len()), supported));
        }
        Ok(Self { texts, kinds })
    }

    fn vocabulary(&self) -> Vocab {
        let ids = self.texts.iter().zip(0..);
        ids.map(|(text, id)| ((*text).to_owned(), id)).collect()
    }

    fn is(&self, id: usize, kinds: &[u64]) -> bool {
        self.kinds.get(id).is_some_and(|kind| kinds.contains(kind))
    }

    fn of_kind(&self, kinds: &[u64], special: bool) -> Vec<AddedToken> {
        let tokens = self.texts.iter().enumerate();
        tokens
            .filter(|(id, _)| self.is(*id, kinds))
            .map(|(_, text)| AddedToken::from((*text).to_owned(), special).normalized(false))
            .collect()
    }
}

const KINDS: &str = "tokenizer.ggml.token_type";

/// SentencePiece's BPE: of all neighbours that make a token, those with the best score are joined first.
fn sentence_piece(gguf: &Gguf, tokens: &Tokens<'_>) -> Result<Tokenizer, TokenizerError> {
    let unknown = gguf.number("tokenizer.ggml.unknown_token_id");
    let unknown = unknown.and_then(|id| tokens.texts.get(id as usize));
    let mut model = BPE::builder()
        .vocab_and_merges(tokens.vocabulary(), merges_by_score(gguf, tokens)?)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token((*unknown).to_owned());
    }
    let mut tokenizer = Tokenizer::new(model.build()?);
    let begins_with_space = gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let spaces = Replace::new(" ", SPACE)?;
    let mut decoders = vec![
        Replace::new(SPACE, " ")?.into(),
        ByteFallback::default().into(),
        Fuse::new().into(),
    ];
    if begins_with_space {
        let begin = Prepend::new(SPACE.to_owned());
        let both = Normalizers::new(vec![begin.into(), spaces.into()]);
        tokenizer.with_normalizer(Some(both))?;
        decoders.push(Strip::new(' ', 1, 0).into());
    } else {
        tokenizer.with_normalizer(Some(spaces))?;
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// Every pair of tokens that makes a token, the best made first.
fn merges_by_score(gguf: &Gguf, tokens: &Tokens<'_>) -> Result<Merges, GgufError> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores: Vec<f32> = gguf
        .list(SCORES)?
        .iter()
        .map(|score| score.to_f32())
        .collect::<Result<_, _>>()
        .map_err(|_| gguf.missing(SCORES, "a list of 32-bit floats"))?;
    let ids: HashMap<&str, usize> = tokens.texts.iter().copied().zip(0..).collect();
    let mut pairs = Vec::new();
    for (made, text) in tokens.texts.iter().enumerate() {
        if tokens.is(made, &[CONTROL, UNKNOWN, BYTE]) {
            continue;
        }
        let score = scores.get(made).copied().unwrap_or_default();
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                pairs.push((score, (*first, *second), (left, right)));
            }
        }
    }
    pairs.sort_by(|(score, ids, _), (other, other_ids, _)| {
        other.total_cmp(score).then(ids.cmp(other_ids))
    });
    let owned = |(left, right): (&str, &str)| (left.to_owned(), right.to_owned());
    Ok(pairs.into_iter().map(|(_, _, pair)| owned(pair)).collect())
}

/// GPT-2's BPE over bytes, with the file's way of cutting text into words.
fn byte_level(gguf: &Gguf, tokens: &Tokens<'_>) -> Result<Tokenizer, TokenizerError> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let merges: Option<Merges> = texts(gguf, MERGES)?
        .into_iter()
        .map(|merge| {
            // The first byte may be a space only in files that are wrong.
            let (left, right) = merge.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        })
        .collect();
    let merges = merges.ok_or_else(|| gguf.missing(MERGES, "a list of pairs"))?;
    let words = words(gguf)?;
    let model = BPE::builder()
        .vocab_and_merges(tokens.vocabulary(), merges)
        .ignore_merges(LLAMA3.contains(&pre_tokenizer(gguf)))
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    if pre_tokenizer(gguf) == QWEN2 {
        tokenizer.with_normalizer(Some(NFC))?;
    }
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(words)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// `tokenizer.ggml.pre` of Llama 3 and its kin.
const LLAMA3: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];
/// Of Qwen 2 to 3.
const QWEN2: &str = "qwen2";

fn pre_tokenizer(gguf: &Gguf) -> &str {
    gguf.optional_text(PRE_TOKENIZER).unwrap_or_default()
}

const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";

/// How a text is cut into words.
fn words(gguf: &Gguf) -> Result<Vec<PreTokenizerWrapper>, TokenizerError> {
    /// Llama 3's, with the number of digits that stay together.
    fn pattern(digits: &str) -> String {
        format!(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|\\p{{N}}{digits}\
             | ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        )
    }
    let bytes = |use_regex| ByteLevel::new(false, true, use_regex);
    let by_pattern = |digits| {
        let pattern = SplitPattern::Regex(pattern(digits));
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        Ok(vec![split.into(), bytes(false).into()])
    };
    match pre_tokenizer(gguf) {
        "gpt-2" => Ok(vec![bytes(true).into()]),
        "smollm" => Ok(vec![Digits::new(true).into(), bytes(true).into()]),
        QWEN2 => by_pattern(""),
        name if LLAMA3.contains(&name) => by_pattern("{1,3}"),
        other => {
            let supported = "gpt-2, llama-bpe, qwen2 and smollm are";
            Err(gguf.unsupported(PRE_TOKENIZER, &other, supported).into())
        }
    }
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>, GgufError> {
    let texts = gguf.list(key)?.iter().map(|value| match value {
        Value::String(text) => Some(text.as_str()),
        _ => None,
    });
    texts
        .collect::<Option<_>>()
        .ok_or_else(|| gguf.missing(key, "a list of texts"))
}

fn whole_numbers(gguf: &Gguf, key: &str) -> Result<Vec<u64>, GgufError> {
    let numbers = gguf.list(key)?.iter().map(|value| match value {
        Value::I32(number) => u64::try_from(*number).ok(),
        value => value.to_u64().ok(),
    });
    numbers
        .collect::<Option<_>>()
        .ok_or_else(|| gguf.missing(key, "a list of whole numbers"))
}
