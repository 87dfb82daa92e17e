//! config.json of Gemma 3's text models, with the defaults of transformers' `Gemma3TextConfig`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{
    ConfigError, activation, check_divisor, check_sizes, fields as read_fields, unsupported,
};
use super::layers::{Rope, RopeScaling};
use super::rope_config;
use crate::ops::{Activation, Heads};

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// What the model is built from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gemma3Config {
    /// V.
    pub(super) vocab_size: usize,
    /// H.
    pub(super) hidden_size: usize,
    /// Width of the feed-forward layer.
    pub(super) intermediate_size: usize,
    /// N, K and D.
    pub(super) heads: Heads,
    /// Longest sequence.
    pub(super) max_position_embeddings: usize,
    /// On the gate of the feed-forward layer.
    pub(super) activation: Activation,
    /// Of all norms.
    pub(super) rms_norm_eps: f64,
    /// Scores are divided by its root.
    pub(super) query_pre_attn_scalar: f64,
    /// One for each layer: how many tokens it sees, or all.
    pub(super) windows: Vec<Option<usize>>,
    /// Rotation in layers that see all.
    pub(super) full_rope: Rope,
    /// In the others.
    pub(super) sliding_rope: Rope,
    /// The head is the embedding.
    pub(super) tie_word_embeddings: bool,
}

/// The fields as they are spelled.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Fields {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    max_position_embeddings: usize,
    hidden_activation: String,
    rms_norm_eps: f64,
    query_pre_attn_scalar: f64,
    sliding_window: usize,
    /// Every how many layers one sees all, where `layer_types` does not say.
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_theta: f64,
    rope_local_base_freq: f64,
    attention_bias: bool,
    use_bidirectional_attention: bool,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    tie_word_embeddings: bool,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            vocab_size: 262_208,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            max_position_embeddings: 131_072,
            hidden_activation: "gelu_pytorch_tanh".to_owned(),
            rms_norm_eps: 1e-6,
            query_pre_attn_scalar: 256.0,
            sliding_window: 4096,
            sliding_window_pattern: None,
            layer_types: None,
            rope_theta: 1_000_000.0,
            rope_local_base_freq: 10_000.0,
            attention_bias: false,
            use_bidirectional_attention: false,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            tie_word_embeddings: true,
        }
    }
}

impl Gemma3Config {
    /// Reads what a model that sees images, too, says of its half that reads and writes text.
    pub(super) fn read_text_half(json: &Value) -> Result<Self, ConfigError> {
        if json.get("tie_word_embeddings") == Some(&Value::Bool(false)) {
            return Err(unsupported("tie_word_embeddings", &false, "true is"));
        }
        let text = json.get("text_config").filter(|text| text.is_object());
        let supported = "what describes the text model is";
        Self::read(text.ok_or_else(|| unsupported("text_config", &"null", supported))?)
    }

    /// Reads a config.json; refuses by name what the model does not do.
    pub(super) fn read(json: &Value) -> Result<Self, ConfigError> {
        let fields: Fields = read_fields(json)?;
        fields.check()?;
        let windows = fields.windows()?;
        let (full_rope, sliding_rope) = fields.ropes(json)?;
        Ok(Self {
            vocab_size: fields.vocab_size,
            hidden_size: fields.hidden_size,
            intermediate_size: fields.intermediate_size,
            heads: Heads {
                queries: fields.num_attention_heads,
                keys: fields.num_key_value_heads,
                dim: fields.head_dim,
            },
            max_position_embeddings: fields.max_position_embeddings,
            activation: activation("hidden_activation", &fields.hidden_activation)?,
            rms_norm_eps: fields.rms_norm_eps,
            query_pre_attn_scalar: fields.query_pre_attn_scalar,
            windows,
            full_rope,
            sliding_rope,
            tie_word_embeddings: fields.tie_word_embeddings,
        })
    }
}

impl Fields {
    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("sliding_window", self.sliding_window),
            (
                "sliding_window_pattern",
                self.sliding_window_pattern.unwrap_or(1),
            ),
        ])?;
        let of = ("num_attention_heads", self.num_attention_heads);
        check_divisor("num_key_value_heads", self.num_key_value_heads, of)?;
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            let supported = "an even number from 2 is";
            return Err(unsupported("head_dim", &self.head_dim, supported));
        }
        if self.query_pre_attn_scalar <= 0.0 {
            let value = self.query_pre_attn_scalar;
            let supported = "a number above 0 is";
            return Err(unsupported("query_pre_attn_scalar", &value, supported));
        }
        for (field, value) in [
            ("attention_bias", self.attention_bias),
            (
                "use_bidirectional_attention",
                self.use_bidirectional_attention,
            ),
        ] {
            if value {
                return Err(unsupported(field, &value, "false is"));
            }
        }
        for (field, value) in [
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ] {
            if let Some(value) = value {
                return Err(unsupported(field, &value, "null is"));
            }
        }
        Ok(())
    }

    fn windows(&self) -> Result<Vec<Option<usize>>, ConfigError> {
        const DEFAULT_PATTERN: usize = 6;
        let Some(types) = &self.layer_types else {
            let pattern = self.sliding_window_pattern.unwrap_or(DEFAULT_PATTERN);
            let window = |layer: usize| match layer % pattern {
                0 => None,
                _ => Some(self.sliding_window),
            };
            return Ok((1..=self.num_hidden_layers).map(window).collect());
        };
        if types.len() != self.num_hidden_layers {
            let value = format!("{} layers", types.len());
            let supported = format!(
                "as many as num_hidden_layers, {}, are",
                self.num_hidden_layers
            );
            return Err(unsupported("layer_types", &value, supported));
        }
        let window = |kind: &String| match kind.as_str() {
            FULL => Ok(None),
            SLIDING => Ok(Some(self.sliding_window)),
            other => {
                let supported = format!("{FULL} and {SLIDING} are");
                Err(unsupported("layer_types", &other, supported))
            }
        };
        types.iter().map(window).collect()
    }

    /// In either spelling: flat for layers that see all with a base for the others, or one for each
    /// kind in `rope_parameters` since transformers 5.
    fn ropes(&self, json: &Value) -> Result<(Rope, Rope), ConfigError> {
        let parameters = &json["rope_parameters"];
        if parameters.get(FULL).is_some() {
            let of = |kind: &str| {
                let own = json!({"rope_parameters": parameters[kind]});
                rope_config::read(&own, self.max_position_embeddings)
            };
            return Ok((of(FULL)?, of(SLIDING)?));
        }
        let flat = json!({
            "rope_theta": self.rope_theta,
            "rope_scaling": json["rope_scaling"],
            "partial_rotary_factor": json["partial_rotary_factor"],
        });
        let full = rope_config::read(&flat, self.max_position_embeddings)?;
        let sliding = Rope {
            base: self.rope_local_base_freq,
            scaling: RopeScaling::None,
        };
        Ok((full, sliding))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &Value) -> Gemma3Config {
        Gemma3Config::read(json).unwrap()
    }

    #[test]
    fn every_sixth_layer_sees_all_unless_said_otherwise() {
        let config = read(&json!({"num_hidden_layers": 7, "sliding_window": 512}));
        let sliding = Some(512);
        let expected = [sliding, sliding, sliding, sliding, sliding, None, sliding];
        assert_eq!(config.windows, expected);
        let types =
            json!({"num_hidden_layers": 2, "sliding_window": 8, "layer_types": [FULL, SLIDING]});
        assert_eq!(read(&types).windows, [None, Some(8)]);
    }

    #[test]
    fn both_spellings_of_the_two_rotations_mean_the_same() {
        let flat = read(&json!({
            "rope_theta": 500_000.0, "rope_local_base_freq": 5_000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }));
        let nested = read(&json!({"rope_parameters": {
            (FULL): {"rope_type": "linear", "factor": 8.0, "rope_theta": 500_000.0},
            (SLIDING): {"rope_type": "default", "rope_theta": 5_000.0},
        }}));
        assert_eq!(flat, nested);
        assert_eq!(flat.sliding_rope.base, 5_000.0);
        assert_eq!(flat.full_rope.scaling, RopeScaling::Linear { factor: 8.0 });
        let plain = read(&json!({}));
        assert_eq!((plain.full_rope.base, plain.sliding_rope.base), (1e6, 1e4));
    }

    #[test]
    fn what_is_lacking_is_refused_by_name() {
        for (json, message) in [
            (
                json!({"final_logit_softcapping": 30.0}),
                "final_logit_softcapping = 30 is not supported: null is",
            ),
            (
                json!({"use_bidirectional_attention": true}),
                "use_bidirectional_attention = true is not supported: false is",
            ),
            (
                json!({"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}),
                "layer_types = chunked_attention is not supported: full_attention and \
                 sliding_attention are",
            ),
            (
                json!({"num_hidden_layers": 3, "layer_types": [FULL]}),
                "layer_types = 1 layers is not supported: as many as num_hidden_layers, 3, are",
            ),
            (
                json!({"query_pre_attn_scalar": 0.0}),
                "query_pre_attn_scalar = 0 is not supported: a number above 0 is",
            ),
        ] {
            let error = Gemma3Config::read(&json).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json: {message}"));
        }
    }
}
