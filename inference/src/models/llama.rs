//! Llama 2 and 3 (Touvron et al., 2023; Grattafiori et al., 2024), and what has its shape: TinyLlama,
//! SmolLM, Qwen 2, 2.5 and 3. After transformers' `LlamaForCausalLM` and its kin.
//!
//! Letters in shapes as in `layers`.

use candle_core::{Device, Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm};

use super::families::Blueprint;
use super::layers::{
    DecoderLayer, FeedForward, Loaded, NormPlace, Rotary, Scope, SelfAttention, Step,
    in_one_product, look_up,
};
use super::llama_config::LlamaConfig;
use super::{CausalLm, KvCache, KvShape, RaggedBatch};
use crate::loader::weights::Weights;

/// The whole model.
#[derive(Debug)]
struct Llama {
    device: Device,
    kv_shape: KvShape,
    /// (V, H)
    token_embedding: Tensor,
    rotary: Rotary,
    layers: Vec<DecoderLayer<RmsNorm>>,
    final_norm: RmsNorm,
    /// H -> V.
    head: Linear,
}

impl Blueprint for LlamaConfig {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_tokens(&self) -> usize {
        self.max_position_embeddings
    }

    fn load(&self, weights: &Weights) -> Loaded<Box<dyn CausalLm>> {
        let (device, dtype) = (weights.device(), weights.dtype());
        let decoder = Scope::decoder(weights, "model.", "embed_tokens.weight");
        let token_embedding =
            decoder.tensor("embed_tokens.weight", &[self.vocab_size, self.hidden_size])?;
        let heads = self.heads;
        Ok(Box::new(Llama {
            device: device.clone(),
            kv_shape: KvShape {
                layers: self.num_hidden_layers,
                heads: heads.keys,
                head_dim: heads.dim,
                dtype,
            },
            rotary: Rotary::new(heads.dim, self.rope, dtype, device)?,
            layers: (0..self.num_hidden_layers)
                .map(|index| self.layer(index, &decoder))
                .collect::<Loaded<_>>()?,
            final_norm: self.norm(&decoder, "norm")?,
            head: decoder.head(&token_embedding, self.tie_word_embeddings)?,
            token_embedding,
        }))
    }
}

impl LlamaConfig {
    fn layer(&self, index: usize, decoder: &Scope<'_>) -> Loaded<DecoderLayer<RmsNorm>> {
        let layer = decoder.within(&format!("layers.{index}"));
        Ok(DecoderLayer {
            attention_norm: self.norm(&layer, "input_layernorm")?,
            attention: self.attention(index, &layer.within("self_attn"))?,
            feed_forward_norm: self.norm(&layer, "post_attention_layernorm")?,
            feed_forward: self.feed_forward(&layer.within("mlp"))?,
        })
    }

    fn attention(&self, layer: usize, scope: &Scope<'_>) -> Loaded<SelfAttention> {
        let (hidden, heads) = (self.hidden_size, self.heads);
        let (queries, keys) = (heads.query_width(), heads.key_width());
        let projection = |name: &str, width| scope.linear(name, (hidden, width), self.qkv_bias);
        let head_norm = |name: &str| scope.rms_norm(name, heads.dim, self.rms_norm_eps);
        let head_norms = if self.head_norms {
            Some((head_norm("q_norm")?, head_norm("k_norm")?))
        } else {
            None
        };
        Ok(SelfAttention {
            layer,
            heads,
            qkv: in_one_product(&[
                projection("q_proj", queries)?,
                projection("k_proj", keys)?,
                projection("v_proj", keys)?,
            ])?,
            head_norms,
            out: scope.linear("o_proj", (queries, hidden), self.out_bias)?,
        })
    }

    fn feed_forward(&self, scope: &Scope<'_>) -> Loaded<FeedForward> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |name: &str, from_to| scope.linear(name, from_to, self.mlp_bias);
        Ok(FeedForward {
            gate: Some(linear("gate_proj", (hidden, inner))?),
            up: linear("up_proj", (hidden, inner))?,
            activation: self.activation,
            down: linear("down_proj", (inner, hidden))?,
        })
    }

    fn norm(&self, scope: &Scope<'_>, name: &str) -> Loaded<RmsNorm> {
        scope.rms_norm(name, self.hidden_size, self.rms_norm_eps)
    }
}

impl CausalLm for Llama {
    fn device(&self) -> &Device {
        &self.device
    }

    fn kv_shape(&self) -> KvShape {
        self.kv_shape
    }

    fn forward(&self, batch: &RaggedBatch, caches: &mut [KvCache]) -> Result<Tensor> {
        let rotation = self.rotary.at(&batch.positions)?;
        let step = Step::begin(batch, caches, Some(rotation), &self.device)?;
        let mut hidden = look_up(&self.token_embedding, &batch.tokens)?; // (T, H)
        for layer in &self.layers {
            hidden = layer.forward(&hidden, NormPlace::Before, &step)?;
        }
        self.final_norm.forward(&hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }
}
