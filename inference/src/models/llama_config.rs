//! config.json of Llama and of what has its shape, with the defaults of transformers' `LlamaConfig`,
//! `Qwen2Config` and `Qwen3Config`.

use serde::Deserialize;
use serde_json::Value;

use super::config::{
    ConfigError, activation, check_divisor, check_sizes, fields as read_fields, unsupported,
};
use super::layers::Rope;
use super::rope_config;
use crate::ops::{Activation, Heads};

/// How a family differs from its kin, beyond what config.json says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variant {
    /// Biases of the attention's projections.
    attention_bias: AttentionBias,
    /// Norms of queries and keys, head by head.
    head_norms: bool,
    /// D where config.json has none; else a head's share of H.
    head_dim: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttentionBias {
    /// `attention_bias` decides, for all four.
    AsConfigured,
    /// Queries, keys and values have one, the output has none.
    Qkv,
}

/// Llama, and the many that carry its name.
pub(super) const LLAMA: Variant = Variant {
    attention_bias: AttentionBias::AsConfigured,
    head_norms: false,
    head_dim: None,
};

/// Qwen 2 and 2.5.
pub(super) const QWEN2: Variant = Variant {
    attention_bias: AttentionBias::Qkv,
    head_norms: false,
    head_dim: None,
};

/// Qwen 3, dense.
pub(super) const QWEN3: Variant = Variant {
    attention_bias: AttentionBias::AsConfigured,
    head_norms: true,
    head_dim: Some(128),
};

/// What the model is built from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LlamaConfig {
    /// V.
    pub(super) vocab_size: usize,
    /// H: width of the residual stream.
    pub(super) hidden_size: usize,
    /// Width of the feed-forward layer.
    pub(super) intermediate_size: usize,
    /// Decoder layers.
    pub(super) num_hidden_layers: usize,
    /// N, K and D; N * D need not be H.
    pub(super) heads: Heads,
    /// Longest sequence.
    pub(super) max_position_embeddings: usize,
    /// On the gate of the feed-forward layer.
    pub(super) activation: Activation,
    /// Of all norms.
    pub(super) rms_norm_eps: f64,
    /// Rotation by position.
    pub(super) rope: Rope,
    /// Queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// The output of attention has one.
    pub(super) out_bias: bool,
    /// The feed-forward products have them.
    pub(super) mlp_bias: bool,
    /// Queries and keys are normalised head by head.
    pub(super) head_norms: bool,
    /// The head is the embedding.
    pub(super) tie_word_embeddings: bool,
}

/// The fields as they are spelled. Sizes have no defaults: every published file has them.
#[derive(Debug, Deserialize)]
struct Fields {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    #[serde(default = "default_max_window_layers")]
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
}

fn silu() -> String {
    "silu".to_owned()
}

fn default_eps() -> f64 {
    1e-6
}

fn default_max_window_layers() -> usize {
    28
}

impl LlamaConfig {
    /// Reads a config.json; refuses by name what the model does not do.
    pub(super) fn read(json: &Value, variant: Variant) -> Result<Self, ConfigError> {
        let fields: Fields = read_fields(json)?;
        let heads = fields.heads(variant)?;
        fields.check_full_attention()?;
        let (qkv_bias, out_bias) = match variant.attention_bias {
            AttentionBias::AsConfigured => (fields.attention_bias, fields.attention_bias),
            AttentionBias::Qkv => (true, false),
        };
        Ok(Self {
            vocab_size: fields.vocab_size,
            hidden_size: fields.hidden_size,
            intermediate_size: fields.intermediate_size,
            num_hidden_layers: fields.num_hidden_layers,
            heads,
            max_position_embeddings: fields.max_position_embeddings,
            activation: activation("hidden_act", &fields.hidden_act)?,
            rms_norm_eps: fields.rms_norm_eps,
            rope: rope_config::read(json, fields.max_position_embeddings)?,
            qkv_bias,
            out_bias,
            mlp_bias: fields.mlp_bias,
            head_norms: variant.head_norms,
            tie_word_embeddings: fields.tie_word_embeddings,
        })
    }
}

impl Fields {
    fn heads(&self, variant: Variant) -> Result<Heads, ConfigError> {
        let queries = self.num_attention_heads;
        let keys = self.num_key_value_heads.unwrap_or(queries);
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", queries),
            ("num_key_value_heads", keys),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        let of = ("num_attention_heads", queries);
        check_divisor("num_key_value_heads", keys, of)?;
        let dim = match self.head_dim.or(variant.head_dim) {
            Some(dim) => dim,
            None => {
                check_divisor(
                    "num_attention_heads",
                    queries,
                    ("hidden_size", self.hidden_size),
                )?;
                self.hidden_size / queries
            }
        };
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(unsupported("head_dim", &dim, "an even number from 2 is"));
        }
        Ok(Heads { queries, keys, dim })
    }

    /// Refuses layers that see only a window of what came before.
    fn check_full_attention(&self) -> Result<(), ConfigError> {
        const FULL: &str = "full_attention";
        if let Some(types) = &self.layer_types {
            return match types.iter().find(|kind| *kind != FULL) {
                Some(other) => Err(unsupported("layer_types", &other, format!("{FULL} is"))),
                None => Ok(()),
            };
        }
        match self.sliding_window {
            Some(tokens)
                if self.use_sliding_window && self.max_window_layers < self.num_hidden_layers =>
            {
                Err(unsupported(
                    "sliding_window",
                    &tokens,
                    "only attention to all that came before is",
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A small config.json with some fields set, and those set to null left out.
    fn json(changes: Value) -> Value {
        let mut json = json!({
            "vocab_size": 320,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "max_position_embeddings": 128,
        });
        let Value::Object(changes) = changes else {
            panic!("changes are an object");
        };
        for (field, value) in changes {
            json[field] = value;
        }
        json
    }

    fn read(changes: Value, variant: Variant) -> LlamaConfig {
        LlamaConfig::read(&json(changes), variant).unwrap()
    }

    #[test]
    fn families_differ_by_their_biases_norms_and_head_size() {
        let none = || json!({});
        let bias = || json!({"attention_bias": true});
        let of = |config: &LlamaConfig| (config.qkv_bias, config.out_bias, config.head_norms);
        assert_eq!(of(&read(none(), LLAMA)), (false, false, false));
        assert_eq!(of(&read(bias(), LLAMA)), (true, true, false));
        assert_eq!(of(&read(none(), QWEN2)), (true, false, false));
        assert_eq!(of(&read(bias(), QWEN3)), (true, true, true));
        assert_eq!(read(none(), QWEN2).heads.dim, 8);
        assert_eq!(read(none(), QWEN3).heads.dim, 128);
        assert_eq!(read(json!({"head_dim": 16}), QWEN3).heads.dim, 16);
    }

    #[test]
    fn keys_have_as_many_heads_as_queries_unless_said_otherwise() {
        let keys = |changes| read(changes, LLAMA).heads.keys;
        assert_eq!(keys(json!({})), 6);
        assert_eq!(keys(json!({"num_key_value_heads": null})), 6);
        assert_eq!(keys(json!({"num_key_value_heads": 2})), 2);
    }

    #[test]
    fn a_sliding_window_that_is_not_in_use_is_no_obstacle() {
        // As Qwen 2.5 has it; and one that would begin above the last layer.
        read(
            json!({"use_sliding_window": false, "sliding_window": 32}),
            QWEN2,
        );
        let above =
            json!({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 2});
        read(above, QWEN2);
        read(
            json!({"layer_types": ["full_attention", "full_attention"]}),
            QWEN3,
        );
    }

    #[test]
    fn what_is_lacking_is_refused_by_name() {
        for (changes, message) in [
            (
                json!({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 1}),
                "sliding_window = 32 is not supported: only attention to all that came before is",
            ),
            (
                json!({"layer_types": ["full_attention", "sliding_attention"]}),
                "layer_types = sliding_attention is not supported: full_attention is",
            ),
            (
                json!({"num_key_value_heads": 4}),
                "num_key_value_heads = 4 is not supported: a divisor of num_attention_heads, 6, is",
            ),
            (
                json!({"num_attention_heads": 5}),
                "num_attention_heads = 5 is not supported: a divisor of hidden_size, 48, is",
            ),
            (
                json!({"head_dim": 7}),
                "head_dim = 7 is not supported: an even number from 2 is",
            ),
            (
                json!({"hidden_size": 0}),
                "hidden_size = 0 is not supported: at least 1 is",
            ),
        ] {
            let error = LlamaConfig::read(&json(changes), LLAMA).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json: {message}"));
        }
    }
}
