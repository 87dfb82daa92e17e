//! Llama 2 and 3 (Touvron et al., 2023; Grattafiori et al., 2024), and what has its shape: TinyLlama,
//! SmolLM, Qwen 2, 2.5 and 3. After transformers' `LlamaForCausalLM` and its kin.
//!
//! Letters in shapes as in `layers`.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::CausalLm;
use super::families::Blueprint;
use super::layers::{Loaded, NormPlace, Pass, Scope, in_one_product, run_layers};
use super::llama_config::LlamaConfig;
use crate::loader::weights::Weights;
use crate::ops::{
    Attention, DecoderLayer, Embedding, Epilogue, FeedForward, KvPages, KvShape, Linear, Norm, Ops,
    Rope, SelfAttention, StepInputs,
};

/// The whole model.
#[derive(Debug)]
struct Llama {
    device: Device,
    kv_shape: KvShape,
    embedding: Embedding,
    layers: Vec<DecoderLayer>,
    final_norm: Norm,
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
        let device = weights.device();
        let decoder = Scope::decoder(weights, &["model."], "embed_tokens.weight");
        let tokens = decoder.table("embed_tokens.weight", (self.vocab_size, self.hidden_size))?;
        let heads = self.heads;
        let rope = self.rope.rotation(heads.dim, device)?;
        Ok(Box::new(Llama {
            device: device.clone(),
            kv_shape: KvShape {
                layers: self.num_hidden_layers,
                heads: heads.keys,
                head_dim: heads.dim,
                dtype: weights.dtype(),
            },
            layers: (0..self.num_hidden_layers)
                .map(|index| self.layer(index, &decoder, &rope))
                .collect::<Loaded<_>>()?,
            final_norm: self.norm(&decoder, "norm")?,
            head: decoder.head(&tokens, self.tie_word_embeddings)?,
            embedding: Embedding {
                tokens,
                scale: None,
                positions: None,
            },
        }))
    }
}

impl LlamaConfig {
    fn layer(&self, index: usize, decoder: &Scope<'_>, rope: &Arc<Rope>) -> Loaded<DecoderLayer> {
        let layer = decoder.within(&format!("layers.{index}"));
        Ok(DecoderLayer {
            attention_norm: self.norm(&layer, "input_layernorm")?,
            attention: self.attention(index, &layer.within("self_attn"), rope)?,
            feed_forward_norm: self.norm(&layer, "post_attention_layernorm")?,
            feed_forward: self.feed_forward(&layer.within("mlp"))?,
        })
    }

    fn attention(
        &self,
        layer: usize,
        scope: &Scope<'_>,
        rope: &Arc<Rope>,
    ) -> Loaded<SelfAttention> {
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
            qkv: in_one_product(&[
                projection("q_proj", queries)?,
                projection("k_proj", keys)?,
                projection("v_proj", keys)?,
            ])?,
            attention: Attention {
                head_norms,
                rope: Some(Arc::clone(rope)),
                ..Attention::plain(layer, heads)
            },
            out: scope.linear("o_proj", (queries, hidden), self.out_bias)?,
        })
    }

    fn feed_forward(&self, scope: &Scope<'_>) -> Loaded<FeedForward> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |name: &str, from_to| scope.linear(name, from_to, self.mlp_bias);
        Ok(FeedForward {
            up: in_one_product(&[
                linear("gate_proj", (hidden, inner))?,
                linear("up_proj", (hidden, inner))?,
            ])?,
            epilogue: Epilogue::Gated(self.activation),
            down: linear("down_proj", (inner, hidden))?,
        })
    }

    fn norm(&self, scope: &Scope<'_>, name: &str) -> Loaded<Norm> {
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

    fn forward(&self, ops: &dyn Ops, step: &StepInputs, pages: &KvPages) -> Result<Tensor> {
        let pass = Pass { ops, step, pages };
        let hidden = ops.embed(step, &self.embedding)?; // (T, H)
        run_layers(&self.layers, hidden, NormPlace::Before, pass)
    }

    fn logits(&self, ops: &dyn Ops, hidden: &Tensor) -> Result<Tensor> {
        ops.project(hidden, Some(&self.final_norm), &self.head, Epilogue::None)
    }
}
