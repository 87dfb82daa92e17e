//! Text to token ids and back, as transformers' tokenizers do it.
//!
//! # Layout
//! - `gguf`: a tokenizer out of a GGUF's metadata; here: out of files
//! - `bytes`: what each token stands for

mod bytes;
mod gguf;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Model};

use crate::loader::{GgufError, ModelFiles, ModelSource, TokenizerFiles};

pub use bytes::TokenBytes;

/// Why a tokenizer could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The model came without one.
    #[error("the model has no tokenizer (tokenizer.json, or vocab.json and merges.txt)")]
    None,
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not understood: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A GGUF's is not one that can be made.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The text could not be encoded, or the ids not decoded.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

/// A tokenizer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// Makes the tokenizer of a model.
    pub fn load(source: &ModelSource) -> Result<Self, TokenizerError> {
        let tokenizer = match source {
            ModelSource::Files(files) => from_files(files)?,
            ModelSource::Gguf(gguf) => gguf::read(gguf)?,
        };
        Ok(Self {
            inner: Arc::new(tokenizer),
        })
    }

    /// Token ids of a text; with special tokens, those the model wants around every text (OPT: `</s>`
    /// in front).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, add_special_tokens)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        Ok(self.inner.decode(ids, skip_special)?)
    }

    /// A token's own text: half a character reads as U+FFFD.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)?;
        let alone = self.inner.decode(&[id], false).ok()?;
        // Some decoders drop the space that begins a text; behind itself the token has it.
        let twice = self.inner.decode(&[id, id], false).ok()?;
        let text = twice.strip_prefix(&alone).map(str::to_owned);
        Some(text.unwrap_or(alone))
    }

    /// True for tokens that stand for no text, such as `</s>`.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    }

    /// Number of tokens, special ones included. The model's own number may be larger: padding.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

impl From<tokenizers::Error> for TokenizerError {
    fn from(error: tokenizers::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

fn from_files(files: &ModelFiles) -> Result<tokenizers::Tokenizer, TokenizerError> {
    match &files.tokenizer {
        Some(TokenizerFiles::Json(path)) => from_json(path),
        Some(TokenizerFiles::VocabAndMerges { vocab, merges }) => {
            byte_level_bpe(vocab, merges, &SpecialTokens::read(files)?)
        }
        None => Err(TokenizerError::None),
    }
}

fn from_json(path: &Path) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut tokenizer: tokenizers::Tokenizer = read(path)?
        .parse()
        .map_err(|error| format_error(path, &error))?;
    // Saved by some trainers; prompts are neither cut nor filled here.
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// GPT-2's tokenizer from its two files, as transformers' `GPT2Converter` makes it.
fn byte_level_bpe(
    vocab: &Path,
    merges: &Path,
    special: &SpecialTokens,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    for path in [vocab, merges] {
        // The library's own error would not say which.
        std::fs::metadata(path).map_err(|source| TokenizerError::Io {
            path: path.to_owned(),
            source,
        })?;
    }
    let (vocab_name, merges_name) = (vocab.to_string_lossy(), merges.to_string_lossy());
    let model = BPE::from_file(&vocab_name, &merges_name)
        .build()
        .map_err(|error| format_error(vocab, &error))?;
    let bos = special.bos.as_ref().filter(|_| special.add_bos);
    let bos =
        bos.and_then(|token| Some((token.content.clone(), model.token_to_id(&token.content)?)));
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(special.add_prefix_space, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_special_tokens(special.all.iter().cloned())?;
    if let Some((token, id)) = bos {
        tokenizer.with_post_processor(Some(around(Some((token, id)), None)?));
    } else {
        tokenizer.with_post_processor(Some(ByteLevel::default().trim_offsets(false)));
    }
    Ok(tokenizer)
}

/// Puts tokens before and after every text.
fn around(
    begin: Option<(String, u32)>,
    end: Option<(String, u32)>,
) -> Result<TemplateProcessing, TokenizerError> {
    let piece = |token: &Option<(String, u32)>| match token {
        Some((text, _)) => vec![format!("{text}:0")],
        None => Vec::new(),
    };
    let pieces = [piece(&begin), vec!["$A:0".to_owned()], piece(&end)].concat();
    let tokens: Vec<_> = begin.into_iter().chain(end).collect();
    let template = TemplateProcessing::builder()
        .try_single(pieces)
        .and_then(|builder| {
            let builder = builder.special_tokens(tokens);
            builder.build().map_err(|error| error.to_string())
        });
    template.map_err(TokenizerError::Failed)
}

/// What tokenizer_config.json, special_tokens_map.json and added_tokens.json say.
#[derive(Debug, Default)]
struct SpecialTokens {
    bos: Option<AddedToken>,
    add_bos: bool,
    add_prefix_space: bool,
    all: Vec<AddedToken>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    bos_token: Option<TokenSpec>,
    eos_token: Option<TokenSpec>,
    unk_token: Option<TokenSpec>,
    pad_token: Option<TokenSpec>,
    additional_special_tokens: Option<Vec<TokenSpec>>,
    added_tokens_decoder: Option<BTreeMap<String, TokenSpec>>,
    add_bos_token: Option<bool>,
    add_prefix_space: Option<bool>,
}

impl TokenizerConfig {
    /// The tokens that have a role.
    fn named(self) -> impl Iterator<Item = AddedToken> {
        let roles = [
            self.bos_token,
            self.eos_token,
            self.unk_token,
            self.pad_token,
        ];
        let additional = self.additional_special_tokens.into_iter().flatten();
        roles
            .into_iter()
            .flatten()
            .chain(additional)
            .map(TokenSpec::into_token)
    }
}

/// A token by its text alone, or with how it is matched.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum TokenSpec {
    Text(String),
    Full {
        content: String,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        normalized: Option<bool>,
        special: Option<bool>,
    },
}

impl TokenSpec {
    fn into_token(self) -> AddedToken {
        match self {
            Self::Text(content) => AddedToken::from(content, true),
            Self::Full {
                content,
                single_word,
                lstrip,
                rstrip,
                normalized,
                special,
            } => {
                let special = special.unwrap_or(true);
                AddedToken::from(content, special)
                    .single_word(single_word)
                    .lstrip(lstrip)
                    .rstrip(rstrip)
                    .normalized(normalized.unwrap_or(!special))
            }
        }
    }
}

impl SpecialTokens {
    fn read(files: &ModelFiles) -> Result<Self, TokenizerError> {
        let parse = |path: &Option<PathBuf>| match path {
            Some(path) => parse::<TokenizerConfig>(path),
            None => Ok(TokenizerConfig::default()),
        };
        let config = parse(&files.tokenizer_config)?;
        let map = parse(&files.special_tokens_map)?;
        let added: BTreeMap<String, u32> = match &files.added_tokens {
            Some(path) => self::parse(path)?,
            None => BTreeMap::new(),
        };
        let mut special = Self {
            add_bos: config.add_bos_token.unwrap_or(false),
            add_prefix_space: config.add_prefix_space.unwrap_or(false),
            ..Self::default()
        };
        // By id: a token that is not in the vocabulary gets the next free one.
        let mut decoder: Vec<_> = config
            .added_tokens_decoder
            .clone()
            .into_iter()
            .flatten()
            .collect();
        decoder.sort_by_key(|(id, _)| id.parse::<u64>().unwrap_or(u64::MAX));
        for (_, token) in decoder {
            special.add(token.into_token());
        }
        let bos = config.bos_token.clone().or_else(|| map.bos_token.clone());
        special.bos = bos.map(TokenSpec::into_token);
        let named: Vec<_> = [config, map]
            .into_iter()
            .flat_map(TokenizerConfig::named)
            .collect();
        let mut added: Vec<_> = added.into_iter().collect();
        added.sort_by_key(|(_, id)| *id);
        for (content, _) in added {
            let named = named.iter().find(|token| token.content == content);
            special.add(
                named
                    .cloned()
                    .unwrap_or_else(|| AddedToken::from(content, false)),
            );
        }
        named.into_iter().for_each(|token| special.add(token));
        Ok(special)
    }

    /// The first description of a token holds.
    fn add(&mut self, token: AddedToken) {
        if !self.all.iter().any(|known| known.content == token.content) {
            self.all.push(token);
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TokenizerError> {
    serde_json::from_str(&read(path)?).map_err(|error| format_error(path, &error))
}

fn read(path: &Path) -> Result<String, TokenizerError> {
    std::fs::read_to_string(path).map_err(|source| TokenizerError::Io {
        path: path.to_owned(),
        source,
    })
}

fn format_error(path: &Path, problem: &dyn Display) -> TokenizerError {
    TokenizerError::Format {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}
