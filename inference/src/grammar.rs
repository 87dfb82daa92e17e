//! Structured output: what a request may say, as a grammar over the model's tokens. llguidance does the work.
//!
//! A [`Grammar`] is what the API read; [`GrammarCompiler`] makes a [`Constraint`] of it, before the request is queued and
//! on a thread of its own; the sampler of each sequence walks it with a `GrammarState`.

mod gbnf;

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::tokenizer::{TokenBytes, Tokenizer};

/// Longest grammar.
pub const MAX_GRAMMAR_BYTES: usize = 64 * 1024;
/// Grammars that are compiled at once; others wait.
const MAX_COMPILATIONS: usize = 2;
/// Grammars in memory, each until its request has ended; others wait.
const MAX_GRAMMARS: usize = 128;
/// The compiler follows rules that use rules by recursion: enough for a grammar of the greatest length.
const COMPILER_STACK_BYTES: usize = 256 * 1024 * 1024;
/// Work for one grammar's lexer, at about 50,000 a millisecond.
const COMPILER_FUEL: u64 = 1_000_000;
/// Work for one token's mask, at about 14,000 a millisecond: the engine's thread does it.
const MASK_FUEL: u64 = 200_000;
/// The parser's items for one token's mask, at about 20,000 a millisecond.
const MASK_ITEMS: usize = 50_000;
/// The states of one grammar's lexer, each of 1 to 2 KiB: a schema of ordinary size has some hundreds.
const MAX_LEXER_STATES: usize = 10_000;
/// Longest piece of the library's words that an error repeats.
const SHOWN_BYTES: usize = 400;
/// White space between JSON's tokens. Small models, left free, go on with it forever.
const JSON_WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";
/// The key of a schema that holds llguidance's own options.
const OPTIONS_KEY: &str = "x-guidance";

/// What an output must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that a schema describes.
    JsonSchema(Map<String, Value>),
    /// All of it matches a regular expression.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// What a grammar generates: in Lark's notation, or in llama.cpp's.
    Rules(String),
}

/// Why a grammar cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// It is wrong, or asks for too much.
    #[error("{0}")]
    Invalid(String),
    /// The model is not one whose tokens can be chosen by their text.
    #[error("the model has {0}")]
    Model(&'static str),
    /// The compiler's thread did not start, or ended without an answer.
    #[error("the grammar's compiler failed: {0}")]
    Compiler(String),
}

/// Makes constraints for one model; cheap to clone.
#[derive(Clone)]
pub struct GrammarCompiler {
    vocabulary: Arc<Vocabulary>,
    places: Arc<Semaphore>,
    compilations: Arc<Semaphore>,
}

/// The model's tokens.
struct Vocabulary {
    tokenizer: Tokenizer,
    size: usize,
    eos_token_ids: Vec<u32>,
    /// Made for the first grammar: most servers never see one.
    factory: OnceLock<Result<ParserFactory, &'static str>>,
}

impl GrammarCompiler {
    /// For a model whose token ids are below `vocab_size`.
    pub fn new(tokenizer: Tokenizer, vocab_size: usize, eos_token_ids: &[u32]) -> Self {
        let known = eos_token_ids.iter().copied();
        let vocabulary = Vocabulary {
            tokenizer,
            size: vocab_size,
            eos_token_ids: known.filter(|&id| (id as usize) < vocab_size).collect(),
            factory: OnceLock::new(),
        };
        Self {
            vocabulary: Arc::new(vocabulary),
            places: Arc::new(Semaphore::new(MAX_GRAMMARS)),
            compilations: Arc::new(Semaphore::new(MAX_COMPILATIONS)),
        }
    }

    /// Compiles a grammar. One that nobody waits for any more is not begun.
    pub async fn compile(&self, grammar: Grammar) -> Result<Constraint, GrammarError> {
        let place = permit(&self.places).await;
        let compilation = permit(&self.compilations).await;
        let vocabulary = Arc::clone(&self.vocabulary);
        let (sender, compiled) = oneshot::channel();
        let work = move || {
            let compiled = vocabulary.compile(grammar);
            drop(compilation);
            // Nobody may be waiting any more.
            let _ = sender.send(compiled.map(|matcher| Constraint::new(matcher, place)));
        };
        let thread = std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(COMPILER_STACK_BYTES);
        thread
            .spawn(work)
            .map_err(|error| GrammarError::Compiler(error.to_string()))?;
        let ended = |_| GrammarError::Compiler("its thread ended without an answer".to_owned());
        compiled.await.map_err(ended)?
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.expect("the semaphore is never closed")
}

impl Vocabulary {
    fn compile(&self, grammar: Grammar) -> Result<Matcher, GrammarError> {
        let factory = self.factory.get_or_init(|| self.factory());
        let factory = factory
            .as_ref()
            .map_err(|problem| GrammarError::Model(problem))?;
        let parser = factory.create_parser(grammar.checked()?);
        let mut matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(problem) => Err(GrammarError::Invalid(shown(&problem))),
            None => {
                for warning in matcher.grammar_warnings() {
                    tracing::debug!(warning, "a grammar");
                }
                Ok(matcher)
            }
        }
    }

    fn factory(&self) -> Result<ParserFactory, &'static str> {
        let tokens = self.tokenizer.token_bytes(self.size);
        let tokens = tokens.ok_or("a vocabulary that is not written in bytes")?;
        let &end = self.eos_token_ids.first().ok_or("no end of sequence")?;
        let word = |(id, token): (usize, Option<TokenBytes>)| match token {
            Some(TokenBytes::Text(bytes)) if !self.eos_token_ids.contains(&(id as u32)) => bytes,
            Some(TokenBytes::Text(bytes)) => marked(&bytes),
            Some(TokenBytes::Special(name)) => marked(name.as_bytes()),
            // Padding of the table: never chosen.
            None => Vec::new(),
        };
        let words: Vec<_> = tokens.into_iter().enumerate().map(word).collect();
        let info = TokRxInfo::new(words.len() as u32, end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&self.eos_token_ids);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment)
            .map_err(|_| "tokens that no grammar can be made of")?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.initial_lexer_fuel = COMPILER_FUEL;
        limits.step_lexer_fuel = MASK_FUEL;
        limits.step_max_items = MASK_ITEMS;
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        Ok(factory)
    }
}

/// How the library knows tokens that are no text.
fn marked(name: &[u8]) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat()
}

fn shown(problem: &str) -> String {
    let mut shown = problem.trim_end().to_owned();
    if shown.len() > SHOWN_BYTES {
        shown.truncate(shown.floor_char_boundary(SHOWN_BYTES));
        shown.push('…');
    }
    shown
}

impl Grammar {
    /// As the library takes it, if it is not too long.
    fn checked(self) -> Result<TopLevelGrammar, GrammarError> {
        let bytes = match &self {
            Self::JsonSchema(schema) => json_bytes(schema),
            Self::Regex(text) | Self::Rules(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        };
        if bytes > MAX_GRAMMAR_BYTES {
            let message = format!("it has {bytes} bytes, at most {MAX_GRAMMAR_BYTES} are allowed");
            return Err(GrammarError::Invalid(message));
        }
        Ok(match self {
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(bounded(schema)),
            Self::Regex(regex) => TopLevelGrammar::from_regex(&regex),
            Self::Choice(texts) => {
                // The library's strings are JSON's.
                let texts = texts.into_iter().map(|text| Value::from(text).to_string());
                let texts: Vec<_> = texts.collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Rules(grammar) if gbnf::is_gbnf(&grammar) => {
                let lark = gbnf::to_lark(&grammar).map_err(GrammarError::Invalid)?;
                TopLevelGrammar::from_lark(lark)
            }
            Self::Rules(grammar) => TopLevelGrammar::from_lark(grammar),
        })
    }
}

fn json_bytes(schema: &Map<String, Value>) -> usize {
    let written = serde_json::to_vec(schema);
    written.expect("JSON can be written as it was read").len()
}

/// A schema that bounds white space, if it does not say itself what is allowed.
pub(crate) fn bounded(schema: Map<String, Value>) -> Value {
    let has_options = schema.contains_key(OPTIONS_KEY);
    let mut schema = Value::Object(schema);
    if !has_options {
        let options = JsonCompileOptions {
            whitespace_pattern: Some(JSON_WHITESPACE.to_owned()),
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
    }
    schema
}

/// A compiled grammar, to be walked by any number of sequences. Cheap to clone.
#[derive(Clone)]
pub struct Constraint(Arc<Compiled>);

struct Compiled {
    /// At the beginning. Those that walk share its lexer, and so its memory.
    matcher: Matcher,
    _place: OwnedSemaphorePermit,
}

impl Constraint {
    fn new(matcher: Matcher, place: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Compiled {
            matcher,
            _place: place,
        }))
    }

    /// The beginning of an output.
    pub(crate) fn begin(&self) -> GrammarState {
        GrammarState {
            matcher: self.0.matcher.clone(),
            next: None,
        }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}

/// Equal to itself alone.
impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// How far one output has come.
pub(crate) struct GrammarState {
    matcher: Matcher,
    /// What can come next, once it has been computed.
    next: Option<Result<SimpleVob, Stuck>>,
}

/// A grammar that asks too much of one token, or that no token of the model can go on with.
#[derive(Debug, thiserror::Error)]
#[error("the grammar cannot be followed: {0}")]
pub(crate) struct Stuck(String);

impl Stuck {
    fn new(problem: &impl ToString) -> Self {
        Self(shown(&problem.to_string()))
    }
}

impl GrammarState {
    /// Computes what [`GrammarState::mask`] needs: whoever has time for it may do so before there are logits.
    pub(crate) fn prepare(&mut self) {
        let matcher = &mut self.matcher;
        self.next.get_or_insert_with(|| {
            let allowed = matcher.compute_mask_or_eos();
            allowed.map_err(|error| Stuck::new(&error))
        });
    }

    /// Drops the logits of all tokens that cannot come next: at the end all but the end of sequence.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), Stuck> {
        self.prepare();
        let allowed = self.next.take().expect("it has been prepared")?;
        let known = allowed.len().min(logits.len());
        let (logits, unknown) = logits.split_at_mut(known);
        unknown.fill(f32::NEG_INFINITY);
        allowed.iter_unset_entries(|token| {
            if let Some(logit) = logits.get_mut(token) {
                *logit = f32::NEG_INFINITY;
            }
        });
        Ok(())
    }

    /// Goes on past a token, which the mask has let through.
    pub(crate) fn advance(&mut self, token: u32) -> Result<(), Stuck> {
        if self.matcher.is_stopped() {
            return Ok(());
        }
        let advanced = self.matcher.consume_token(token);
        advanced.map_err(|error| Stuck::new(&error))
    }
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
