//! OPT's config.json, with the defaults of transformers' `OPTConfig`.

use candle_nn::Activation;
use serde::Deserialize;

/// Why a config.json cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field of another type than it has.
    #[error("config.json is not understood")]
    Json(#[from] serde_json::Error),
    /// A model family that is not here.
    #[error("architecture {0} is not supported: opt is")]
    Architecture(String),
    /// A field asks for something this implementation lacks.
    #[error("config.json: {field} = {value} is not supported: {supported}")]
    Unsupported {
        /// Name in config.json.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is.
        supported: String,
    },
}

/// What the model is built from.
#[derive(Debug, Clone, PartialEq)]
pub struct OptConfig {
    /// V.
    pub vocab_size: usize,
    /// H: width of the residual stream.
    pub hidden_size: usize,
    /// E: width of token embeddings; other than H in opt-350m.
    pub word_embed_proj_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; they divide H.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Between the two feed-forward products.
    pub activation: Activation,
    /// Norms before attention and feed-forward; after them in opt-350m.
    pub do_layer_norm_before: bool,
    /// A norm after the last layer.
    pub final_layer_norm: bool,
    /// Norms have weights and biases.
    pub layer_norm_elementwise_affine: bool,
    /// Projections have biases.
    pub enable_bias: bool,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// `torch_dtype`, as stored, such as `float16`.
    pub stored_dtype: Option<String>,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
}

/// The fields as they are spelled. Those that only matter in training are not read.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Fields {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
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
    torch_dtype: Option<String>,
    /// What transformers 5 calls `torch_dtype`.
    dtype: Option<String>,
    eos_token_id: Option<TokenIds>,
    quantization_config: Option<serde_json::Value>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            model_type: None,
            architectures: None,
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
            torch_dtype: None,
            dtype: None,
            eos_token_id: Some(TokenIds::One(2)),
            quantization_config: None,
        }
    }
}

/// One token id or several: both spellings are in use.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    pub(crate) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl OptConfig {
    /// Reads a config.json; refuses by name what the model does not do.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let fields: Fields = serde_json::from_str(json)?;
        fields.check_architecture()?;
        fields.check_sizes()?;
        if let Some(quantization) = &fields.quantization_config {
            let value = quantization
                .get("quant_method")
                .unwrap_or(quantization)
                .to_string();
            return Err(unsupported(
                "quantization_config",
                value,
                "only unquantized weights are",
            ));
        }
        Ok(Self {
            vocab_size: fields.vocab_size,
            hidden_size: fields.hidden_size,
            word_embed_proj_dim: fields.word_embed_proj_dim.unwrap_or(fields.hidden_size),
            ffn_dim: fields.ffn_dim,
            num_hidden_layers: fields.num_hidden_layers,
            num_attention_heads: fields.num_attention_heads,
            max_position_embeddings: fields.max_position_embeddings,
            activation: activation(&fields.activation_function)?,
            do_layer_norm_before: fields.do_layer_norm_before,
            // With norms last, the last layer's own norm is the final one.
            final_layer_norm: fields.do_layer_norm_before && !fields.remove_final_layer_norm,
            layer_norm_elementwise_affine: fields.layer_norm_elementwise_affine,
            enable_bias: fields.enable_bias,
            tie_word_embeddings: fields.tie_word_embeddings,
            stored_dtype: fields.torch_dtype.or(fields.dtype),
            eos_token_ids: fields
                .eos_token_id
                .map(TokenIds::into_vec)
                .unwrap_or_default(),
        })
    }

    /// D: width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

impl Fields {
    fn check_architecture(&self) -> Result<(), ConfigError> {
        if let Some(model_type) = &self.model_type {
            if model_type != "opt" {
                return Err(ConfigError::Architecture(model_type.clone()));
            }
            return Ok(());
        }
        match self.architectures.as_deref() {
            Some([name, ..]) if !name.starts_with("OPT") => {
                Err(ConfigError::Architecture(name.clone()))
            }
            Some([_, ..]) => Ok(()),
            _ => Err(ConfigError::Architecture(
                "(config.json names none)".to_owned(),
            )),
        }
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("word_embed_proj_dim", self.word_embed_proj_dim.unwrap_or(1)),
            ("ffn_dim", self.ffn_dim),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((field, value)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(unsupported(field, value.to_string(), "at least 1 is"));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let supported = format!("a divisor of hidden_size, {}, is", self.hidden_size);
            let value = self.num_attention_heads.to_string();
            return Err(unsupported("num_attention_heads", value, &supported));
        }
        Ok(())
    }
}

fn activation(name: &str) -> Result<Activation, ConfigError> {
    match name {
        "relu" => Ok(Activation::Relu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluPytorchTanh),
        "silu" | "swish" => Ok(Activation::Silu),
        _ => {
            let supported = "relu, gelu, gelu_new, gelu_pytorch_tanh and silu are";
            Err(unsupported(
                "activation_function",
                name.to_owned(),
                supported,
            ))
        }
    }
}

fn unsupported(field: &'static str, value: String, supported: &str) -> ConfigError {
    ConfigError::Unsupported {
        field,
        value,
        supported: supported.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        OptConfig::from_json(json).expect_err("refused").to_string()
    }

    #[test]
    fn missing_fields_have_the_defaults_of_opt_125m() {
        let config = OptConfig::from_json(r#"{"model_type": "opt"}"#).unwrap();
        assert_eq!((config.hidden_size, config.word_embed_proj_dim), (768, 768));
        assert_eq!(
            (config.head_dim(), config.eos_token_ids.as_slice()),
            (64, &[2][..])
        );
        assert!(config.final_layer_norm && config.tie_word_embeddings && config.enable_bias);
    }

    #[test]
    fn opt_350m_has_its_norms_last_and_no_final_one() {
        let json = r#"{"model_type": "opt", "do_layer_norm_before": false, "hidden_size": 1024,
            "word_embed_proj_dim": 512, "num_attention_heads": 16, "eos_token_id": [2, 7]}"#;
        let config = OptConfig::from_json(json).unwrap();
        assert!(!config.final_layer_norm);
        assert_eq!(config.word_embed_proj_dim, 512);
        assert_eq!(config.eos_token_ids, [2, 7]);
    }

    #[test]
    fn what_is_lacking_is_refused_by_name() {
        assert_eq!(
            refusal(r#"{"model_type": "llama"}"#),
            "architecture llama is not supported: opt is"
        );
        assert_eq!(
            refusal(r#"{"architectures": ["GPT2LMHeadModel"]}"#),
            "architecture GPT2LMHeadModel is not supported: opt is"
        );
        assert_eq!(
            refusal(r#"{"model_type": "opt", "activation_function": "mish"}"#),
            "config.json: activation_function = mish is not supported: relu, gelu, gelu_new, \
             gelu_pytorch_tanh and silu are"
        );
        assert_eq!(
            refusal(r#"{"model_type": "opt", "num_attention_heads": 5}"#),
            "config.json: num_attention_heads = 5 is not supported: a divisor of hidden_size, 768, is"
        );
        assert!(
            refusal(r#"{"model_type": "opt", "quantization_config": {"quant_method": "gptq"}}"#)
                .contains("quantization_config = \"gptq\"")
        );
    }
}
