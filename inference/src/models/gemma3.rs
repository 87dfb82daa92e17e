//! Gemma 3 (Gemma Team, 2025), text alone, after transformers' `Gemma3ForCausalLM`; of models that see images, too,
//! the half that reads and writes text.
//!
//! Letters in shapes as in [`crate::ops`].

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::CausalLm;
use super::families::Blueprint;
use super::gemma3_config::Gemma3Config;
use super::layers::{Loaded, Pass, Scope, in_one_product};
use crate::loader::weights::Weights;
use crate::ops::{
    Attention, Embedding, Epilogue, FeedForward, KvPages, KvShape, Linear, Norm, Ops, Rope,
    SelfAttention, StepInputs,
};

/// Before the names of tensors: in text models, and in those that see images, too, as they were saved at first and
/// since transformers 4.52.
const PREFIXES: [&str; 3] = ["model.", "language_model.model.", "model.language_model."];

/// The whole model.
#[derive(Debug)]
struct Gemma3 {
    device: Device,
    kv_shape: KvShape,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Norm,
    /// H -> V.
    head: Linear,
}

/// One layer: each block has a norm on what it reads, and one on what it writes.
#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    attention: SelfAttention,
    attention_out_norm: Norm,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
    feed_forward_out_norm: Norm,
}

impl Blueprint for Gemma3Config {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_tokens(&self) -> usize {
        self.max_position_embeddings
    }

    fn load(&self, weights: &Weights) -> Loaded<Box<dyn CausalLm>> {
        let device = weights.device();
        let decoder = Scope::decoder(weights, &PREFIXES, "embed_tokens.weight");
        let tokens = decoder.table("embed_tokens.weight", (self.vocab_size, self.hidden_size))?;
        let dim = self.heads.dim;
        let (full, sliding) = (
            self.full_rope.rotation(dim, device)?,
            self.sliding_rope.rotation(dim, device)?,
        );
        let layer = |(index, window): (usize, &Option<usize>)| {
            let rope = if window.is_some() { &sliding } else { &full };
            self.layer((index, *window), &decoder, rope)
        };
        Ok(Box::new(Gemma3 {
            device: device.clone(),
            kv_shape: KvShape {
                layers: self.windows.len(),
                heads: self.heads.keys,
                head_dim: dim,
                dtype: weights.dtype(),
            },
            layers: self
                .windows
                .iter()
                .enumerate()
                .map(layer)
                .collect::<Loaded<_>>()?,
            final_norm: self.norm(&decoder, "norm")?,
            head: decoder.head(&tokens, self.tie_word_embeddings)?,
            embedding: Embedding {
                tokens,
                scale: Some((self.hidden_size as f32).sqrt()),
                positions: None,
            },
        }))
    }
}

impl Gemma3Config {
    fn layer(
        &self,
        (index, window): (usize, Option<usize>),
        decoder: &Scope<'_>,
        rope: &Arc<Rope>,
    ) -> Loaded<Layer> {
        let layer = decoder.within(&format!("layers.{index}"));
        let scope = layer.within("self_attn");
        let (hidden, heads) = (self.hidden_size, self.heads);
        let (queries, keys) = (heads.query_width(), heads.key_width());
        let projection = |name: &str, width| scope.linear(name, (hidden, width), false);
        let head_norm = |name: &str| scope.rms_norm_from_one(name, heads.dim, self.rms_norm_eps);
        let attention = SelfAttention {
            qkv: in_one_product(&[
                projection("q_proj", queries)?,
                projection("k_proj", keys)?,
                projection("v_proj", keys)?,
            ])?,
            attention: Attention {
                scale: self.query_pre_attn_scalar.sqrt().recip() as f32,
                window,
                head_norms: Some((head_norm("q_norm")?, head_norm("k_norm")?)),
                rope: Some(Arc::clone(rope)),
                ..Attention::plain(index, heads)
            },
            out: scope.linear("o_proj", (queries, hidden), false)?,
        };
        Ok(Layer {
            attention_norm: self.norm(&layer, "input_layernorm")?,
            attention,
            attention_out_norm: self.norm(&layer, "post_attention_layernorm")?,
            feed_forward_norm: self.norm(&layer, "pre_feedforward_layernorm")?,
            feed_forward: self.feed_forward(&layer.within("mlp"))?,
            feed_forward_out_norm: self.norm(&layer, "post_feedforward_layernorm")?,
        })
    }

    fn feed_forward(&self, scope: &Scope<'_>) -> Loaded<FeedForward> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |name: &str, from_to| scope.linear(name, from_to, false);
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
        scope.rms_norm_from_one(name, self.hidden_size, self.rms_norm_eps)
    }
}

impl Layer {
    /// (T, H) -> (T, H)
    fn forward(&self, hidden: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        let Pass { ops, step, pages } = pass;
        let attention = &self.attention;
        let norm = Some(&self.attention_norm);
        let qkv = ops.project(hidden, norm, &attention.qkv, Epilogue::None)?; // (T, (N + 2K) * D)
        let pages = pages.layer(attention.attention.layer);
        let mixed = ops.attend(&qkv, &attention.attention, step, pages)?; // (T, N * D)
        let out = ops.project(&mixed, None, &attention.out, Epilogue::None)?;
        let hidden = ops.norm(&out, &self.attention_out_norm, Some(hidden))?;
        let feed_forward = &self.feed_forward;
        let norm = Some(&self.feed_forward_norm);
        let inner = ops.project(&hidden, norm, &feed_forward.up, feed_forward.epilogue)?;
        let out = ops.project(&inner, None, &feed_forward.down, Epilogue::None)?;
        ops.norm(&out, &self.feed_forward_out_norm, Some(&hidden))
    }
}

impl CausalLm for Gemma3 {
    fn device(&self) -> &Device {
        &self.device
    }

    fn kv_shape(&self) -> KvShape {
        self.kv_shape
    }

    fn forward(&self, ops: &dyn Ops, step: &StepInputs, pages: &KvPages) -> Result<Tensor> {
        let pass = Pass { ops, step, pages };
        let mut hidden = ops.embed(step, &self.embedding)?; // (T, H)
        for layer in &self.layers {
            hidden = layer.forward(&hidden, pass)?;
        }
        Ok(hidden)
    }

    fn logits(&self, ops: &dyn Ops, hidden: &Tensor) -> Result<Tensor> {
        ops.project(hidden, Some(&self.final_norm), &self.head, Epilogue::None)
    }
}
