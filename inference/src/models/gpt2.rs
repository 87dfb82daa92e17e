//! GPT-2 (Radford et al., 2019), after transformers' `GPT2LMHeadModel`.
//!
//! Letters in shapes as in `layers`.

use candle_core::{Device, Result, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::CausalLm;
use super::config::{ConfigError, activation, check_divisor, check_sizes, fields, unsupported};
use super::families::Blueprint;
use super::layers::{Loaded, NormPlace, Pass, Scope, run_layers};
use crate::loader::weights::Weights;
use crate::ops::{
    Activation, Attention, DecoderLayer, Embedding, Epilogue, FeedForward, Heads, KvPages, KvShape,
    Linear, Norm, Ops, PositionTable, SelfAttention, StepInputs,
};

/// What the model is built from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gpt2Config {
    vocab_size: usize,
    /// Longest sequence.
    n_positions: usize,
    /// H: width of the residual stream, and of embeddings.
    n_embd: usize,
    /// Decoder layers.
    n_layer: usize,
    heads: Heads,
    /// Width of the feed-forward layer.
    n_inner: usize,
    activation: Activation,
    layer_norm_epsilon: f64,
    /// The head is the embedding.
    tie_word_embeddings: bool,
}

/// The fields as they are spelled, with the defaults of transformers' `GPT2Config`.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Fields {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    add_cross_attention: bool,
    tie_word_embeddings: bool,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: "gelu_new".to_owned(),
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            add_cross_attention: false,
            tie_word_embeddings: true,
        }
    }
}

impl Fields {
    fn check(&self) -> std::result::Result<(), ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", self.n_inner.unwrap_or(1)),
        ])?;
        check_divisor("n_head", self.n_head, ("n_embd", self.n_embd))?;
        let only = [
            ("scale_attn_weights", self.scale_attn_weights, true),
            (
                "scale_attn_by_inverse_layer_idx",
                self.scale_attn_by_inverse_layer_idx,
                false,
            ),
            ("add_cross_attention", self.add_cross_attention, false),
        ];
        match only.into_iter().find(|(_, value, done)| value != done) {
            Some((field, value, done)) => Err(unsupported(field, &value, format!("{done} is"))),
            None => Ok(()),
        }
    }
}

impl Gpt2Config {
    /// Reads a config.json; refuses by name what the model does not do.
    pub(super) fn read(json: &Value) -> std::result::Result<Self, ConfigError> {
        let fields: Fields = fields(json)?;
        fields.check()?;
        Ok(Self {
            vocab_size: fields.vocab_size,
            n_positions: fields.n_positions,
            n_embd: fields.n_embd,
            n_layer: fields.n_layer,
            heads: Heads {
                queries: fields.n_head,
                keys: fields.n_head,
                dim: fields.n_embd / fields.n_head,
            },
            n_inner: fields.n_inner.unwrap_or(4 * fields.n_embd),
            activation: activation("activation_function", &fields.activation_function)?,
            layer_norm_epsilon: fields.layer_norm_epsilon,
            tie_word_embeddings: fields.tie_word_embeddings,
        })
    }

    fn layer(&self, index: usize, decoder: &Scope<'_>) -> Loaded<DecoderLayer> {
        let layer = decoder.within(&format!("h.{index}"));
        let (attention, mlp) = (layer.within("attn"), layer.within("mlp"));
        let (hidden, inner) = (self.n_embd, self.n_inner);
        Ok(DecoderLayer {
            attention_norm: self.norm(&layer, "ln_1")?,
            attention: SelfAttention {
                qkv: attention.transposed_linear("c_attn", (hidden, 3 * hidden))?,
                attention: Attention::plain(index, self.heads),
                out: attention.transposed_linear("c_proj", (hidden, hidden))?,
            },
            feed_forward_norm: self.norm(&layer, "ln_2")?,
            feed_forward: FeedForward {
                up: mlp.transposed_linear("c_fc", (hidden, inner))?,
                epilogue: Epilogue::Activation(self.activation),
                down: mlp.transposed_linear("c_proj", (inner, hidden))?,
            },
        })
    }

    fn norm(&self, scope: &Scope<'_>, name: &str) -> Loaded<Norm> {
        scope.layer_norm(name, self.n_embd, self.layer_norm_epsilon)
    }
}

/// The whole model.
#[derive(Debug)]
struct Gpt2 {
    device: Device,
    kv_shape: KvShape,
    embedding: Embedding,
    layers: Vec<DecoderLayer>,
    final_norm: Norm,
    /// H -> V.
    head: Linear,
}

impl Blueprint for Gpt2Config {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_tokens(&self) -> usize {
        self.n_positions
    }

    fn load(&self, weights: &Weights) -> Loaded<Box<dyn CausalLm>> {
        let decoder = Scope::decoder(weights, &["transformer."], "wte.weight");
        let tokens = decoder.table("wte.weight", (self.vocab_size, self.n_embd))?;
        let positions = PositionTable {
            table: decoder.tensor("wpe.weight", &[self.n_positions, self.n_embd])?,
            offset: 0,
        };
        Ok(Box::new(Gpt2 {
            device: weights.device().clone(),
            kv_shape: KvShape {
                layers: self.n_layer,
                heads: self.heads.keys,
                head_dim: self.heads.dim,
                dtype: weights.dtype(),
            },
            layers: (0..self.n_layer)
                .map(|index| self.layer(index, &decoder))
                .collect::<Loaded<_>>()?,
            final_norm: self.norm(&decoder, "ln_f")?,
            head: decoder.head(&tokens, self.tie_word_embeddings)?,
            embedding: Embedding {
                tokens,
                scale: None,
                positions: Some(positions),
            },
        }))
    }
}

impl CausalLm for Gpt2 {
    fn device(&self) -> &Device {
        &self.device
    }

    fn kv_shape(&self) -> KvShape {
        self.kv_shape
    }

    fn forward(&self, ops: &dyn Ops, step: &StepInputs, pages: &KvPages) -> Result<Tensor> {
        let pass = Pass { ops, step, pages };
        let hidden = ops.embed(step, &self.embedding)?; // (T, H)
        run_layers(&self.layers, hidden, NormPlace::Before, pass)
    }

    fn logits(&self, ops: &dyn Ops, hidden: &Tensor) -> Result<Tensor> {
        ops.project(hidden, Some(&self.final_norm), &self.head, Epilogue::None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_fields_have_the_defaults_of_the_smallest_gpt2() {
        let config = Gpt2Config::read(&json!({})).unwrap();
        assert_eq!((config.n_embd, config.n_inner), (768, 3072));
        assert_eq!((config.heads.queries, config.heads.dim), (12, 64));
        assert_eq!(config.activation, Activation::GeluTanh);
    }

    #[test]
    fn what_is_lacking_is_refused_by_name() {
        for (json, message) in [
            (
                json!({"add_cross_attention": true}),
                "add_cross_attention = true is not supported: false is",
            ),
            (
                json!({"scale_attn_weights": false}),
                "scale_attn_weights = false is not supported: true is",
            ),
            (
                json!({"scale_attn_by_inverse_layer_idx": true}),
                "scale_attn_by_inverse_layer_idx = true is not supported: false is",
            ),
            (
                json!({"n_head": 7}),
                "n_head = 7 is not supported: a divisor of n_embd, 768, is",
            ),
        ] {
            let error = Gpt2Config::read(&json).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json: {message}"));
        }
    }
}
