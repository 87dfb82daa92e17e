//! OPT (Zhang et al., 2022), all published shapes, after transformers' `OPTForCausalLM`.
//!
//! Letters in shapes as in `layers`.

use candle_core::{Device, Module, Result, Tensor};
use candle_nn::{LayerNorm, Linear};

use super::families::Blueprint;
use super::layers::{
    DecoderLayer, FeedForward, Loaded, NormPlace, Scope, SelfAttention, Step, in_one_product,
    look_up,
};
use super::opt_config::OptConfig;
use super::{CausalLm, KvCache, KvShape, RaggedBatch};
use crate::loader::weights::Weights;

/// Rows 0 and 1 of the position table belong to padding, which we never have.
const POSITION_OFFSET: u32 = 2;

/// transformers leaves OPT's norms at PyTorch's default.
const LAYER_NORM_EPS: f64 = 1e-5;

/// The whole model.
#[derive(Debug)]
struct Opt {
    device: Device,
    kv_shape: KvShape,
    /// (V, E)
    token_embedding: Tensor,
    /// (`max_position_embeddings` + 2, H)
    position_embedding: Tensor,
    /// E -> H, where they differ.
    project_in: Option<Linear>,
    layers: Vec<DecoderLayer<LayerNorm>>,
    norms: NormPlace,
    final_layer_norm: Option<LayerNorm>,
    /// H -> E, where they differ.
    project_out: Option<Linear>,
    /// E -> V.
    head: Linear,
}

impl Blueprint for OptConfig {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_tokens(&self) -> usize {
        self.max_position_embeddings
    }

    fn load(&self, weights: &Weights) -> Loaded<Box<dyn CausalLm>> {
        let (hidden, embedding) = (self.hidden_size, self.word_embed_proj_dim);
        let top = "decoder.embed_tokens.weight";
        let decoder = Scope::decoder(weights, "model.", top).within("decoder");
        let token_embedding =
            decoder.tensor("embed_tokens.weight", &[self.vocab_size, embedding])?;
        let positions = self.max_position_embeddings + POSITION_OFFSET as usize;
        let projection = |name: &str, from_to: (usize, usize)| {
            (embedding != hidden)
                .then(|| decoder.linear(name, from_to, false))
                .transpose()
        };
        let heads = self.heads();
        Ok(Box::new(Opt {
            device: weights.device().clone(),
            kv_shape: KvShape {
                layers: self.num_hidden_layers,
                heads: heads.keys,
                head_dim: heads.dim,
                dtype: weights.dtype(),
            },
            position_embedding: decoder.tensor("embed_positions.weight", &[positions, hidden])?,
            project_in: projection("project_in", (embedding, hidden))?,
            layers: (0..self.num_hidden_layers)
                .map(|index| self.layer(index, &decoder))
                .collect::<Loaded<_>>()?,
            norms: self.norms,
            final_layer_norm: self
                .final_layer_norm
                .then(|| self.norm(&decoder, "final_layer_norm"))
                .transpose()?,
            project_out: projection("project_out", (hidden, embedding))?,
            head: decoder.head(&token_embedding, self.tie_word_embeddings)?,
            token_embedding,
        }))
    }
}

impl OptConfig {
    fn layer(&self, index: usize, decoder: &Scope<'_>) -> Loaded<DecoderLayer<LayerNorm>> {
        let layer = decoder.within(&format!("layers.{index}"));
        let attention = layer.within("self_attn");
        let (hidden, inner) = (self.hidden_size, self.ffn_dim);
        let square = |part: &str| attention.linear(part, (hidden, hidden), self.enable_bias);
        Ok(DecoderLayer {
            attention_norm: self.norm(&layer, "self_attn_layer_norm")?,
            attention: SelfAttention {
                layer: index,
                heads: self.heads(),
                qkv: in_one_product(&[square("q_proj")?, square("k_proj")?, square("v_proj")?])?,
                head_norms: None,
                out: square("out_proj")?,
            },
            feed_forward_norm: self.norm(&layer, "final_layer_norm")?,
            feed_forward: FeedForward {
                gate: None,
                up: layer.linear("fc1", (hidden, inner), self.enable_bias)?,
                activation: self.activation,
                down: layer.linear("fc2", (inner, hidden), self.enable_bias)?,
            },
        })
    }

    fn norm(&self, scope: &Scope<'_>, name: &str) -> Loaded<LayerNorm> {
        if self.layer_norm_elementwise_affine {
            scope.layer_norm(name, self.hidden_size, LAYER_NORM_EPS)
        } else {
            scope.plain_layer_norm(self.hidden_size, LAYER_NORM_EPS)
        }
    }
}

impl Opt {
    /// Token and position embeddings: (T) -> (T, H).
    fn embed(&self, batch: &RaggedBatch) -> Result<Tensor> {
        let positions: Vec<u32> = batch
            .positions
            .iter()
            .map(|at| at + POSITION_OFFSET)
            .collect();
        let embedded = look_up(&self.token_embedding, &batch.tokens)?; // (T, E)
        let embedded = match &self.project_in {
            Some(project_in) => project_in.forward(&embedded)?,
            None => embedded,
        };
        embedded + look_up(&self.position_embedding, &positions)?
    }
}

impl CausalLm for Opt {
    fn device(&self) -> &Device {
        &self.device
    }

    fn kv_shape(&self) -> KvShape {
        self.kv_shape
    }

    fn forward(&self, batch: &RaggedBatch, caches: &mut [KvCache]) -> Result<Tensor> {
        let step = Step::begin(batch, caches, None, &self.device)?;
        let mut hidden = self.embed(batch)?; // (T, H)
        for layer in &self.layers {
            hidden = layer.forward(&hidden, self.norms, &step)?;
        }
        if let Some(norm) = &self.final_layer_norm {
            hidden = norm.forward(&hidden)?;
        }
        match &self.project_out {
            Some(project_out) => project_out.forward(&hidden), // (T, E)
            None => Ok(hidden),
        }
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }
}
