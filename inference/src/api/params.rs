//! OpenAI's and vLLM's sampling fields, checked once: what leaves here the engine can use as is.

use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::Value;

use crate::generation::{BeamParams, GenerationParams};
use crate::grammar::GrammarCompiler;
use crate::sampling_params::SamplingParams;

use super::error::ApiError;
use super::fields::{Fields, wrong};
use super::structured::Structure;

/// Most sequences for one prompt: OpenAI's bound.
const MAX_CHOICES: usize = 128;
/// Widest beam search: each of its steps costs as many requests.
const MAX_BEAM_WIDTH: usize = 32;
/// Most stop strings.
const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string.
const MAX_STOP_BYTES: usize = 1024;
/// Most stop token ids.
const MAX_STOP_TOKEN_IDS: usize = 128;
/// Most log probabilities per token: vLLM's default bound.
const MAX_LOGPROBS: usize = 20;
/// Least and greatest repetition penalty: beyond, logits would lose their order or overflow.
const REPETITION_PENALTIES: RangeInclusive<f32> = 0.01..=100.0;
/// Below this a temperature only risks overflow, so it counts as this: vLLM's rule.
const MIN_TEMPERATURE: f64 = 0.01;

/// What the request says about lengths; completed for each prompt by [`Sampling::for_prompt`].
pub(super) struct Sampling {
    /// Everything that does not depend on the prompt's length.
    params: GenerationParams,
    /// `max_tokens` as given, or the field that gave it.
    max_tokens: Option<(usize, &'static str)>,
    /// When it is not given: as many as the context leaves, or at most this many.
    default_max_tokens: Option<usize>,
    /// What the output must be, until it is compiled.
    structure: Option<Structure>,
}

impl Sampling {
    /// Reads the fields that completions and chats have in common.
    pub(super) fn parse(
        fields: &mut Fields,
        logprobs: Option<usize>,
        default_max_tokens: Option<usize>,
    ) -> Result<Self, ApiError> {
        refuse_unsupported(fields)?;
        let mut max_tokens = None;
        for name in ["max_tokens", "max_completion_tokens"] {
            if let Some(tokens) = fields.integer(name)? {
                max_tokens = Some((at_least(name, tokens, 0)?, name));
            }
        }
        let n = bounded(fields, "n", 1, MAX_CHOICES)?.unwrap_or(1);
        let best_of = bounded(fields, "best_of", 1, MAX_CHOICES)?.unwrap_or(n);
        if best_of < n {
            let message = format!("best_of must be at least n = {n}, got {best_of}");
            return Err(ApiError::parameter("best_of", message));
        }
        let beam = beam(fields, n)?;
        let sampling = sampling(fields, logprobs)?;
        let structure = Structure::parse(fields)?;
        if let Some(structure) = &structure {
            check_structured(structure, &sampling, beam.is_some())?;
        }
        let prompt_only = matches!(max_tokens, Some((0, _)));
        if sampling.temperature == 0.0 && beam.is_none() && best_of > 1 {
            let (param, count) = if n > 1 {
                ("n", n)
            } else {
                ("best_of", best_of)
            };
            let message = format!("{param} must be 1 when using greedy sampling, got {count}");
            return Err(ApiError::parameter(param, message));
        }
        let params = GenerationParams {
            sampling,
            prompt_only,
            n,
            // Without tokens there is nothing to rank or to search.
            best_of: if prompt_only { n } else { best_of },
            beam: beam.filter(|_| !prompt_only),
            stop: stop(fields)?,
            include_stop_str_in_output: fields
                .boolean("include_stop_str_in_output")?
                .unwrap_or(false),
            skip_special_tokens: fields.boolean("skip_special_tokens")?.unwrap_or(true),
        };
        Ok(Self {
            params,
            max_tokens,
            default_max_tokens,
            structure,
        })
    }

    /// Sequences per prompt in the response.
    pub(super) fn n(&self) -> usize {
        self.params.n
    }

    /// Sequences per prompt that the engine has at once, and the field that asks for so many.
    pub(super) fn sequences(&self) -> (usize, &'static str) {
        let sequences = self.params.sequences();
        let param = if sequences > self.params.n {
            "best_of"
        } else {
            "n"
        };
        (sequences, param)
    }

    /// The stop strings.
    pub(super) fn stops(&self) -> Arc<[String]> {
        Arc::clone(&self.params.stop)
    }

    /// Whether the response reports log probabilities.
    pub(super) fn wants_logprobs(&self) -> bool {
        self.params.sampling.logprobs.is_some()
    }

    /// Whether special tokens stay out of the text.
    pub(super) fn skips_special_tokens(&self) -> bool {
        self.params.skip_special_tokens
    }

    /// Whether the result is known only at its end: nothing to stream before.
    pub(super) fn is_collected(&self) -> bool {
        self.params.beam.is_some() || self.params.best_of > self.params.n
    }

    /// Whether `max_tokens: 0` was given: the prompt alone, with `echo`.
    pub(super) fn generates_nothing(&self) -> bool {
        self.params.prompt_only
    }

    /// Asks for the prompt's log probabilities, as many as for the output.
    pub(super) fn want_prompt_logprobs(&mut self) {
        self.params.sampling.prompt_logprobs = self.params.sampling.logprobs;
    }

    /// What the output must be for a reason of its own.
    pub(super) fn demand(&mut self, structure: Structure) -> Result<(), ApiError> {
        if let Some(given) = &self.structure {
            let message = format!(
                "{} cannot be given together with {}",
                structure.field(),
                given.field()
            );
            return Err(ApiError::parameter(structure.field(), message));
        }
        check_structured(
            &structure,
            &self.params.sampling,
            self.params.beam.is_some(),
        )?;
        self.structure = Some(structure);
        Ok(())
    }

    /// Compiles what the output must be.
    pub(super) async fn compile(&mut self, grammars: &GrammarCompiler) -> Result<(), ApiError> {
        if let Some(structure) = self.structure.take() {
            self.params.sampling.constraint = Some(structure.compile(grammars).await?);
        }
        Ok(())
    }

    /// The parameters for a prompt of so many tokens, which leave room for the output.
    pub(super) fn for_prompt(
        &self,
        prompt_tokens: usize,
        prompt_param: &'static str,
        max_model_len: usize,
    ) -> Result<GenerationParams, ApiError> {
        let room = max_model_len.saturating_sub(prompt_tokens);
        if room == 0 {
            let message = format!(
                "this model's maximum context length is {max_model_len} tokens, but the prompt \
                 has {prompt_tokens} tokens: shorten the {prompt_param}"
            );
            return Err(ApiError::ContextLength {
                param: prompt_param,
                message,
            });
        }
        let max_tokens = match self.max_tokens {
            // The engine always generates.
            Some((0, _)) => 1,
            Some((tokens, param)) if tokens > room => {
                let message = format!(
                    "{param} = {tokens} is too large: this model's maximum context length is \
                     {max_model_len} tokens and the prompt has {prompt_tokens}, which leaves {room}"
                );
                return Err(ApiError::ContextLength { param, message });
            }
            Some((tokens, _)) => tokens,
            None => self.default_max_tokens.unwrap_or(room).min(room),
        };
        let min_tokens = self.params.sampling.min_tokens;
        if min_tokens > max_tokens {
            let message =
                format!("min_tokens must be at most max_tokens = {max_tokens}, got {min_tokens}");
            return Err(ApiError::parameter("min_tokens", message));
        }
        let mut params = self.params.clone();
        params.sampling.max_tokens = max_tokens;
        Ok(params)
    }
}

/// Fields that would change the result and are not there yet: better a refusal than a result that
/// silently ignores them.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in [
        "suffix",
        "logit_bias",
        "tools",
        "functions",
        "bad_words",
        "allowed_token_ids",
        "truncate_prompt_tokens",
        "prompt_logprobs",
        "prompt_embeds",
    ] {
        let is_empty = match fields.take(name) {
            None => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(values)) => values.is_empty(),
            Some(Value::Object(values)) => values.is_empty(),
            Some(_) => false,
        };
        if !is_empty {
            return Err(ApiError::parameter(
                name,
                format!("{name} is not currently supported"),
            ));
        }
    }
    Ok(())
}

/// What cannot go with an output whose end its structure decides.
fn check_structured(
    structure: &Structure,
    sampling: &SamplingParams,
    beams: bool,
) -> Result<(), ApiError> {
    let clashes = [
        ("use_beam_search", beams),
        ("min_tokens", sampling.min_tokens > 0),
        ("ignore_eos", sampling.ignore_eos),
    ];
    match clashes.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((param, _)) => {
            let message = format!("{param} cannot be used with {}", structure.field());
            Err(ApiError::parameter(param, message))
        }
    }
}

fn sampling(fields: &mut Fields, logprobs: Option<usize>) -> Result<SamplingParams, ApiError> {
    let defaults = SamplingParams::default();
    let temperature = number(fields, "temperature", "non-negative", |t| t >= 0.0)?;
    let temperature = match temperature {
        Some(temperature) if temperature > 0.0 => Some(temperature.max(MIN_TEMPERATURE as f32)),
        other => other,
    };
    let penalty = |fields: &mut Fields, name| {
        number(fields, name, "in [-2, 2]", |penalty| {
            (-2.0..=2.0).contains(&penalty)
        })
    };
    Ok(SamplingParams {
        temperature: temperature.unwrap_or(defaults.temperature),
        top_p: number(fields, "top_p", "in (0, 1]", |p| p > 0.0 && p <= 1.0)?
            .unwrap_or(defaults.top_p),
        top_k: top_k(fields)?,
        min_p: number(fields, "min_p", "in [0, 1]", |p| (0.0..=1.0).contains(&p))?
            .unwrap_or(defaults.min_p),
        // Negative seeds are as good as others: only their bits count.
        seed: fields.integer("seed")?.map(i64::cast_unsigned),
        presence_penalty: penalty(fields, "presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: penalty(fields, "frequency_penalty")?.unwrap_or(0.0),
        repetition_penalty: number(fields, "repetition_penalty", "in [0.01, 100]", |p| {
            REPETITION_PENALTIES.contains(&p)
        })?
        .unwrap_or(defaults.repetition_penalty),
        min_tokens: match fields.integer("min_tokens")? {
            Some(tokens) => at_least("min_tokens", tokens, 0)?,
            None => 0,
        },
        ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
        stop_token_ids: stop_token_ids(fields)?,
        logprobs,
        ..defaults
    })
}

fn beam(fields: &mut Fields, n: usize) -> Result<Option<BeamParams>, ApiError> {
    let wanted = fields.boolean("use_beam_search")?.unwrap_or(false);
    let length_penalty = fields.number("length_penalty")?.unwrap_or(1.0);
    let early_stopping = fields.boolean("early_stopping")?.unwrap_or(false);
    if !wanted {
        return Ok(None);
    }
    if n > MAX_BEAM_WIDTH {
        let message = format!("n must be at most {MAX_BEAM_WIDTH} with beam search, got {n}");
        return Err(ApiError::parameter("n", message));
    }
    Ok(Some(BeamParams {
        length_penalty,
        early_stopping,
    }))
}

fn top_k(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.integer("top_k")? {
        None | Some(-1 | 0) => Ok(None),
        Some(k) if k > 0 => Ok(Some(usize::try_from(k).unwrap_or(usize::MAX))),
        Some(k) => {
            let message = format!("top_k must be 0 or -1 for all tokens, or at least 1, got {k}");
            Err(ApiError::parameter("top_k", message))
        }
    }
}

/// Completions' `logprobs`, or chats' `top_logprobs`.
pub(super) fn logprobs(fields: &mut Fields, name: &'static str) -> Result<Option<usize>, ApiError> {
    bounded(fields, name, 0, MAX_LOGPROBS)
}

fn stop(fields: &mut Fields) -> Result<Arc<[String]>, ApiError> {
    let expected = "a string or a list of strings";
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(values)) => {
            let texts = values.into_iter().map(|value| match value {
                Value::String(text) => Ok(text),
                other => Err(wrong("stop", expected, &other)),
            });
            texts.collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong("stop", expected, &other)),
    };
    if stops.len() > MAX_STOP_STRINGS {
        let message = format!(
            "stop has {} strings, at most {MAX_STOP_STRINGS} are allowed",
            stops.len()
        );
        return Err(ApiError::parameter("stop", message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::parameter(
            "stop",
            "stop cannot contain an empty string",
        ));
    }
    if let Some(long) = stops.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
        let message = format!(
            "a stop string has {} bytes, at most {MAX_STOP_BYTES} are allowed",
            long.len()
        );
        return Err(ApiError::parameter("stop", message));
    }
    Ok(stops.into())
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let ids = fields.integers("stop_token_ids")?;
    if ids.len() > MAX_STOP_TOKEN_IDS {
        let message = format!(
            "stop_token_ids has {} ids, at most {MAX_STOP_TOKEN_IDS} are allowed",
            ids.len()
        );
        return Err(ApiError::parameter("stop_token_ids", message));
    }
    let checked = ids.into_iter().map(|id| {
        u32::try_from(id).map_err(|_| {
            let message = format!("stop_token_ids must be token ids, got {id}");
            ApiError::parameter("stop_token_ids", message)
        })
    });
    checked.collect()
}

fn number(
    fields: &mut Fields,
    name: &'static str,
    allowed: &str,
    holds: impl Fn(f32) -> bool,
) -> Result<Option<f32>, ApiError> {
    let Some(value) = fields.number(name)? else {
        return Ok(None);
    };
    let narrowed = value as f32;
    if narrowed.is_finite() && holds(narrowed) {
        return Ok(Some(narrowed));
    }
    Err(ApiError::parameter(
        name,
        format!("{name} must be {allowed}, got {value}"),
    ))
}

fn bounded(
    fields: &mut Fields,
    name: &'static str,
    least: usize,
    most: usize,
) -> Result<Option<usize>, ApiError> {
    let Some(value) = fields.integer(name)? else {
        return Ok(None);
    };
    let checked = at_least(name, value, least)?;
    if checked > most {
        return Err(ApiError::parameter(
            name,
            format!("{name} must be at most {most}, got {value}"),
        ));
    }
    Ok(Some(checked))
}

fn at_least(name: &'static str, value: i64, least: usize) -> Result<usize, ApiError> {
    usize::try_from(value)
        .ok()
        .filter(|&value| value >= least)
        .ok_or_else(|| {
            ApiError::parameter(
                name,
                format!("{name} must be at least {least}, got {value}"),
            )
        })
}
