//! OPT's config.json, with the defaults of transformers' `OPTConfig`.

use serde::Deserialize;
use serde_json::Value;

use super::config::{ConfigError, activation, check_divisor, check_sizes, fields};
use super::layers::NormPlace;
use crate::ops::{Activation, Heads};

/// What the model is built from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OptConfig {
    /// V.
    pub(super) vocab_size: usize,
    /// H: width of the residual stream.
    pub(super) hidden_size: usize,
    /// E: width of token embeddings; other than H in opt-350m.
    pub(super) word_embed_proj_dim: usize,
    /// Width of the feed-forward layer.
    pub(super) ffn_dim: usize,
    /// Decoder layers.
    pub(super) num_hidden_layers: usize,
    /// Attention heads; they divide H.
    pub(super) num_attention_heads: usize,
    /// Longest sequence.
    pub(super) max_position_embeddings: usize,
    /// Between the two feed-forward products.
    pub(super) activation: Activation,
    /// After attention and feed-forward in opt-350m only.
    pub(super) norms: NormPlace,
    /// A norm after the last layer.
    pub(super) final_layer_norm: bool,
    /// Norms have weights and biases.
    pub(super) layer_norm_elementwise_affine: bool,
    /// Projections have biases.
    pub(super) enable_bias: bool,
    /// The head is the embedding.
    pub(super) tie_word_embeddings: bool,
}

/// The fields as they are spelled. Those that only matter in training are not read.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Fields {
    vocab_size: usize,
    hidden_size: usize,
    word_embed_proj_dim: Option<usize>,
    ffn_dim: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    activation_function: String,
    do_layer_norm_before: bool,
    #[serde(rename = "_remove_final_layer_norm")]
    remove_final_layer_norm: bool,
    layer_norm_elementwise_affine: bool,
    enable_bias: bool,
    tie_word_embeddings: bool,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            vocab_size: 50272,
            hidden_size: 768,
            word_embed_proj_dim: None,
            ffn_dim: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 2048,
            activation_function: "relu".to_owned(),
            do_layer_norm_before: true,
            remove_final_layer_norm: false,
            layer_norm_elementwise_affine: true,
            enable_bias: true,
            tie_word_embeddings: true,
        }
    }
}

impl OptConfig {
    /// Reads a config.json; refuses by name what the model does not do.
    pub(super) fn read(json: &Value) -> Result<Self, ConfigError> {
        let fields: Fields = fields(json)?;
        fields.check()?;
        let norms = if fields.do_layer_norm_before {
            NormPlace::Before
        } else {
            NormPlace::After
        };
        Ok(Self {
            vocab_size: fields.vocab_size,
            hidden_size: fields.hidden_size,
            word_embed_proj_dim: fields.word_embed_proj_dim.unwrap_or(fields.hidden_size),
            ffn_dim: fields.ffn_dim,
            num_hidden_layers: fields.num_hidden_layers,
            num_attention_heads: fields.num_attention_heads,
            max_position_embeddings: fields.max_position_embeddings,
            activation: activation("activation_function", &fields.activation_function)?,
            norms,
            // With norms last, the last layer's own norm is the final one.
            final_layer_norm: norms == NormPlace::Before && !fields.remove_final_layer_norm,
            layer_norm_elementwise_affine: fields.layer_norm_elementwise_affine,
            enable_bias: fields.enable_bias,
            tie_word_embeddings: fields.tie_word_embeddings,
        })
    }

    /// All heads are of one kind and divide H.
    pub(super) fn heads(&self) -> Heads {
        Heads {
            queries: self.num_attention_heads,
            keys: self.num_attention_heads,
            dim: self.hidden_size / self.num_attention_heads,
        }
    }
}

impl Fields {
    fn check(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("word_embed_proj_dim", self.word_embed_proj_dim.unwrap_or(1)),
            ("ffn_dim", self.ffn_dim),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        let hidden = ("hidden_size", self.hidden_size);
        check_divisor("num_attention_heads", self.num_attention_heads, hidden)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_fields_have_the_defaults_of_opt_125m() {
        let config = OptConfig::read(&json!({})).unwrap();
        assert_eq!((config.hidden_size, config.word_embed_proj_dim), (768, 768));
        assert_eq!(config.heads().dim, 64);
        assert!(config.final_layer_norm && config.tie_word_embeddings && config.enable_bias);
    }

    #[test]
    fn opt_350m_has_its_norms_last_and_no_final_one() {
        let config = OptConfig::read(&json!({
            "do_layer_norm_before": false,
            "hidden_size": 1024,
            "word_embed_proj_dim": 512,
            "num_attention_heads": 16,
        }))
        .unwrap();
        assert_eq!(config.norms, NormPlace::After);
        assert!(!config.final_layer_norm);
        assert_eq!(config.word_embed_proj_dim, 512);
    }

    #[test]
    fn what_is_lacking_is_refused_by_name() {
        let refusal = |json: Value| OptConfig::read(&json).expect_err("refused").to_string();
        assert_eq!(
            refusal(json!({"activation_function": "mish"})),
            "config.json: activation_function = mish is not supported: relu, gelu, gelu_new, \
             gelu_pytorch_tanh and silu are"
        );
        assert_eq!(
            refusal(json!({"num_attention_heads": 5})),
            "config.json: num_attention_heads = 5 is not supported: a divisor of hidden_size, 768, is"
        );
        assert_eq!(
            refusal(json!({"ffn_dim": 0})),
            "config.json: ffn_dim = 0 is not supported: at least 1 is"
        );
    }
}
