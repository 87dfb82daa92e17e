//! What a GGUF's metadata says, as the config.json of the same model says it.

use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Value as Json, json};

use super::{Gguf, GgufError, scalar, widened};

/// Llama 3.1's original context: what `rope_freqs` was made for.
const LLAMA3_CONTEXT_TOKENS: u32 = 8192;
/// How far apart two frequencies may be that are meant to be the same.
const FREQUENCY_TOLERANCE: f64 = 1e-3;

/// A field of config.json, its key behind the architecture's name, and whether it must be there.
type Field = (&'static str, &'static str, bool);

const LLAMA: &[Field] = &[
    ("hidden_size", "embedding_length", true),
    ("intermediate_size", "feed_forward_length", true),
    ("num_hidden_layers", "block_count", true),
    ("num_attention_heads", "attention.head_count", true),
    ("num_key_value_heads", "attention.head_count_kv", false),
    ("max_position_embeddings", "context_length", true),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon", false),
    ("rope_theta", "rope.freq_base", false),
];

const GPT2: &[Field] = &[
    ("n_embd", "embedding_length", true),
    ("n_inner", "feed_forward_length", false),
    ("n_layer", "block_count", true),
    ("n_head", "attention.head_count", true),
    ("n_positions", "context_length", true),
    ("layer_norm_epsilon", "attention.layer_norm_epsilon", false),
];

impl Gguf {
    /// The config.json of the same model. Families refuse what they lack in it, by its fields' names.
    pub(crate) fn config(&self) -> Result<Json, GgufError> {
        let mut config = Map::new();
        let model_type = match self.architecture.as_str() {
            "gemma3" => "gemma3_text",
            other => other,
        };
        config.insert("model_type".to_owned(), model_type.into());
        let (fields, embedding) = match self.architecture.as_str() {
            "gpt2" => (GPT2, "transformer.wte.weight"),
            _ => (LLAMA, "model.embed_tokens.weight"),
        };
        for (field, key, needed) in fields {
            match self.own(key) {
                Some(value) => {
                    config.insert((*field).to_owned(), self.for_all_layers(key, value)?);
                }
                None if *needed => return Err(self.missing(&self.key(key), "a number")),
                None => {}
            }
        }
        self.refuse_experts()?;
        let vocabulary = self.rows(embedding).or_else(|| {
            let tokens = self.list("tokenizer.ggml.tokens").ok()?;
            Some(tokens.len())
        });
        config.insert("vocab_size".to_owned(), json!(vocabulary));
        let tied = !self.contains("lm_head.weight");
        config.insert("tie_word_embeddings".to_owned(), tied.into());
        config.insert("eos_token_id".to_owned(), self.end_tokens().into());
        // The converter takes an architecture's one activation for granted: it is the family's default.
        match self.architecture.as_str() {
            "gpt2" => {}
            "gemma3" => {
                self.add_attention(&mut config)?;
                self.add_gemma3(&mut config)?;
            }
            _ => self.add_attention(&mut config)?,
        }
        Ok(config.into())
    }

    /// D.
    pub(super) fn head_dim(&self) -> Result<usize, GgufError> {
        let number = |key| self.number(&self.key(key));
        let dim = match number("attention.key_length") {
            Some(dim) => dim,
            None => {
                let needed = |key| {
                    let found = number(key).filter(|number| *number > 0);
                    found.ok_or_else(|| self.missing(&self.key(key), "a whole number from 1"))
                };
                needed("embedding_length")? / needed("attention.head_count")?
            }
        };
        let values = number("attention.value_length").unwrap_or(dim);
        if values != dim {
            let supported = format!("attention.key_length, {dim}, is");
            return Err(self.unsupported(&self.key("attention.value_length"), &values, supported));
        }
        Ok(dim as usize)
    }

    /// Tokens that end a text: the file's, and those that end a turn by their names, as llama.cpp has it.
    fn end_tokens(&self) -> Vec<u64> {
        const TURN_ENDS: [&str; 5] = [
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
        ];
        let mut ids: Vec<u64> = ["eos_token_id", "eot_token_id", "eom_token_id"]
            .into_iter()
            .filter_map(|key| self.number(&format!("tokenizer.ggml.{key}")))
            .collect();
        let tokens = self.list("tokenizer.ggml.tokens").unwrap_or_default();
        for (id, token) in tokens.iter().enumerate() {
            let ends_turn =
                matches!(token, Value::String(text) if TURN_ENDS.contains(&text.as_str()));
            if ends_turn && !ids.contains(&(id as u64)) {
                ids.push(id as u64);
            }
        }
        ids
    }

    fn add_attention(&self, config: &mut Map<String, Json>) -> Result<(), GgufError> {
        let dim = self.head_dim()?;
        config.insert("head_dim".to_owned(), dim.into());
        let bias = |name: &str| self.contains(&format!("model.layers.0.{name}.bias"));
        let attention = bias("self_attn.o_proj") || bias("self_attn.q_proj");
        config.insert("attention_bias".to_owned(), attention.into());
        config.insert("mlp_bias".to_owned(), bias("mlp.up_proj").into());
        if let Some(turned) = self.number(&self.key("rope.dimension_count")) {
            let part = turned as f64 / dim as f64;
            config.insert("partial_rotary_factor".to_owned(), part.into());
        }
        if let Some(scaling) = self.rope_scaling(dim)? {
            config.insert("rope_scaling".to_owned(), scaling);
        }
        Ok(())
    }

    /// What only Gemma 3 has. Where the file does not say, as llama.cpp does it.
    fn add_gemma3(&self, config: &mut Map<String, Json>) -> Result<(), GgufError> {
        /// Layers of the one size whose scores are scaled by another number than the head's.
        const LAYERS_OF_27B: u64 = 62;
        let number = |key| self.number(&self.key(key));
        let scalar = match (number("block_count"), number("embedding_length")) {
            (Some(LAYERS_OF_27B), Some(width)) => {
                let heads = number("attention.head_count").filter(|heads| *heads > 0);
                width as f64 / heads.unwrap_or(1) as f64
            }
            _ => self.head_dim()? as f64,
        };
        config.insert("query_pre_attn_scalar".to_owned(), scalar.into());
        for (field, key) in [
            ("sliding_window", "attention.sliding_window"),
            ("sliding_window_pattern", "attention.sliding_window_pattern"),
            ("rope_local_base_freq", "rope.freq_base_swa"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ] {
            if let Some(value) = self.own(key) {
                config.insert(field.to_owned(), self.for_all_layers(key, value)?);
            }
        }
        Ok(())
    }

    fn rope_scaling(&self, dim: usize) -> Result<Option<Json>, GgufError> {
        if let Some(factors) = self.rope_factors()? {
            return self.llama3_scaling(dim, &factors).map(Some);
        }
        let kind = self.optional_text(&self.key("rope.scaling.type"));
        let Some(kind) = kind.filter(|kind| *kind != "none") else {
            return Ok(None);
        };
        let factor = self.own("rope.scaling.factor").and_then(scalar);
        Ok(Some(json!({"rope_type": kind, "factor": factor})))
    }

    /// What Llama 3.1's waves are divided by, where the file has that as a tensor.
    fn rope_factors(&self) -> Result<Option<Vec<f64>>, GgufError> {
        const NAME: &str = "rope_freqs.weight";
        if !self.content.tensor_infos.contains_key(NAME) {
            return Ok(None);
        }
        let stored = self.read_stored(NAME, super::RowOrder::Kept)?;
        let bytes = stored.bytes.as_chunks::<4>().0.iter();
        let factors = bytes.map(|bytes| widened(f32::from_le_bytes(*bytes)));
        Ok(Some(factors.collect()))
    }

    /// The parameters that such factors were made of: only those of Llama 3.1 and 3.2 are known.
    fn llama3_scaling(&self, dim: usize, factors: &[f64]) -> Result<Json, GgufError> {
        let factor = factors.iter().copied().fold(1.0, f64::max);
        let base = self.own("rope.freq_base").and_then(scalar);
        let base = base.and_then(|base| base.as_f64()).unwrap_or(10_000.0);
        let (low, high) = (1.0, 4.0);
        let expected = (0..dim).step_by(2).map(|index| {
            let frequency = base.powf(-(index as f64) / dim as f64);
            let waves = f64::from(LLAMA3_CONTEXT_TOKENS) * frequency / std::f64::consts::TAU;
            let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / (kept + (1.0 - kept) / factor)
        });
        let same = |(expected, found): (f64, &f64)| {
            (expected - found).abs() <= FREQUENCY_TOLERANCE * expected
        };
        if factors.len() != dim / 2 || !expected.zip(factors).all(same) {
            let supported = "only the factors of Llama 3.1's scaling are";
            return Err(self.unsupported("rope_freqs.weight", &"other factors", supported));
        }
        Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": LLAMA3_CONTEXT_TOKENS,
        }))
    }

    fn refuse_experts(&self) -> Result<(), GgufError> {
        match self.number(&self.key("expert_count")) {
            Some(experts) if experts > 0 => {
                let supported = "only dense models are";
                Err(self.unsupported(&self.key("expert_count"), &experts, supported))
            }
            _ => Ok(()),
        }
    }

    /// What may also be a list of one for each layer.
    fn for_all_layers(&self, key: &str, value: &Value) -> Result<Json, GgufError> {
        scalar(value).ok_or_else(|| {
            let supported = "one number for all layers is";
            self.unsupported(&self.key(key), &"a list", supported)
        })
    }

    /// A key of the architecture's own.
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn own(&self, key: &str) -> Option<&Value> {
        self.value(&self.key(key))
    }
}
