//! OPT (Zhang et al., 2022), all published shapes, after transformers' `OPTForCausalLM`.
//!
//! Letters in shapes: T rows of a batch, H hidden size, E embedding size, V vocabulary, N heads, D head size.

use candle_core::{Device, IndexOp, Module, Result, Tensor};
use candle_nn::{Activation, LayerNorm, Linear};

use super::attention::{Masks, Qkv, Step, attend};
use super::opt_config::OptConfig;
use super::{CausalLm, KvCache, KvShape, RaggedBatch};
use crate::loader::weights::{Weights, WeightsError};

/// Rows 0 and 1 of the position table belong to padding, which we never have.
const POSITION_OFFSET: u32 = 2;

/// transformers leaves OPT's norms at PyTorch's default.
const LAYER_NORM_EPS: f64 = 1e-5;

/// The whole model.
#[derive(Debug)]
pub struct Opt {
    config: OptConfig,
    device: Device,
    /// (V, E)
    token_embedding: Tensor,
    /// (`max_position_embeddings` + 2, H)
    position_embedding: Tensor,
    /// E -> H, where they differ.
    project_in: Option<Linear>,
    layers: Vec<DecoderLayer>,
    final_layer_norm: Option<LayerNorm>,
    /// H -> E, where they differ.
    project_out: Option<Linear>,
    /// E -> V.
    head: Linear,
}

#[derive(Debug)]
struct DecoderLayer {
    /// H -> 3H: queries, keys and values in one product.
    qkv: Linear,
    out: Linear,
    attention_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    feed_forward_norm: LayerNorm,
}

impl Opt {
    /// Takes the model's tensors out of `weights`.
    pub fn load(config: OptConfig, weights: &Weights) -> std::result::Result<Self, WeightsError> {
        let OptConfig {
            vocab_size,
            hidden_size,
            word_embed_proj_dim,
            ..
        } = config;
        let decoder = Decoder {
            config: &config,
            weights,
            prefix: decoder_prefix(weights),
        };
        let token_embedding =
            decoder.tensor("embed_tokens.weight", &[vocab_size, word_embed_proj_dim])?;
        let positions = config.max_position_embeddings + POSITION_OFFSET as usize;
        let position_embedding =
            decoder.tensor("embed_positions.weight", &[positions, hidden_size])?;
        let projected = word_embed_proj_dim != hidden_size;
        let projection = |name: &str, from: usize, to: usize| {
            projected
                .then(|| decoder.linear(name, from, to, false))
                .transpose()
        };
        let project_in = projection("project_in", word_embed_proj_dim, hidden_size)?;
        let project_out = projection("project_out", hidden_size, word_embed_proj_dim)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| decoder.layer(index))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let final_layer_norm = config
            .final_layer_norm
            .then(|| decoder.norm("final_layer_norm"))
            .transpose()?;
        let head = if config.tie_word_embeddings {
            token_embedding.clone()
        } else {
            weights.get("lm_head.weight", &[vocab_size, word_embed_proj_dim])?
        };
        Ok(Self {
            device: weights.device().clone(),
            token_embedding,
            position_embedding,
            project_in,
            layers,
            final_layer_norm,
            project_out,
            head: Linear::new(head, None),
            config,
        })
    }

    /// Token and position embeddings: (T) -> (T, H).
    fn embed(&self, batch: &RaggedBatch) -> Result<Tensor> {
        let rows = batch.tokens.len();
        let tokens = Tensor::from_slice(&batch.tokens, rows, &self.device)?;
        let positions: Vec<u32> = batch
            .positions
            .iter()
            .map(|at| at + POSITION_OFFSET)
            .collect();
        let positions = Tensor::from_vec(positions, rows, &self.device)?;
        let embedded = self.token_embedding.index_select(&tokens, 0)?; // (T, E)
        let embedded = match &self.project_in {
            Some(project_in) => project_in.forward(&embedded)?,
            None => embedded,
        };
        embedded + self.position_embedding.index_select(&positions, 0)?
    }
}

impl CausalLm for Opt {
    fn device(&self) -> &Device {
        &self.device
    }

    fn kv_shape(&self) -> KvShape {
        KvShape {
            layers: self.config.num_hidden_layers,
            heads: self.config.num_attention_heads,
            head_dim: self.config.head_dim(),
            dtype: self.token_embedding.dtype(),
        }
    }

    fn forward(&self, batch: &RaggedBatch, caches: &mut [KvCache]) -> Result<Tensor> {
        for (cache, span) in caches.iter_mut().zip(&batch.spans) {
            cache.extend(span.len, &self.device)?;
        }
        let step = Step {
            batch,
            masks: Masks::new(batch, &self.device)?,
            caches,
        };
        let mut hidden = self.embed(batch)?; // (T, H)
        for (index, layer) in self.layers.iter().enumerate() {
            let attention = |rows: &Tensor| layer.attend(index, rows, &self.config, &step);
            let norm_first = self.config.do_layer_norm_before;
            hidden = residual(&hidden, &layer.attention_norm, norm_first, attention)?;
            let activation = self.config.activation;
            let feed_forward = |rows: &Tensor| layer.feed_forward(rows, activation);
            hidden = residual(&hidden, &layer.feed_forward_norm, norm_first, feed_forward)?;
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

/// `rows` + `block`, normalised before the block or after the sum: (T, H) -> (T, H).
fn residual(
    rows: &Tensor,
    norm: &LayerNorm,
    norm_first: bool,
    block: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if norm_first {
        rows + block(&norm.forward(rows)?)?
    } else {
        norm.forward(&(rows + block(rows)?)?)
    }
}

impl DecoderLayer {
    /// (T, H) -> (T, H)
    fn attend(
        &self,
        index: usize,
        rows: &Tensor,
        config: &OptConfig,
        step: &Step<'_>,
    ) -> Result<Tensor> {
        let (heads, head_dim) = (config.num_attention_heads, config.head_dim());
        let qkv = self
            .qkv
            .forward(rows)?
            .reshape((rows.dim(0)?, 3, heads, head_dim))?;
        let qkv = Qkv {
            // transformers scales the queries, bias included.
            queries: (qkv.i((.., 0))? * (head_dim as f64).powf(-0.5))?, // (T, N, D)
            keys: qkv.i((.., 1))?,
            values: qkv.i((.., 2))?,
        };
        self.out.forward(&attend(index, &qkv, step)?)
    }

    /// (T, H) -> (T, H)
    fn feed_forward(&self, rows: &Tensor, activation: Activation) -> Result<Tensor> {
        self.fc2
            .forward(&activation.forward(&self.fc1.forward(rows)?)?)
    }
}

/// Names and shapes of a decoder's tensors.
struct Decoder<'a> {
    config: &'a OptConfig,
    weights: &'a Weights,
    prefix: &'static str,
}

/// Published files say `model.decoder.…` or, saved from the bare model, `decoder.…`.
fn decoder_prefix(weights: &Weights) -> &'static str {
    let bare = weights.contains("decoder.embed_tokens.weight");
    if bare { "decoder" } else { "model.decoder" }
}

impl Decoder<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, WeightsError> {
        self.weights.get(&format!("{}.{name}", self.prefix), shape)
    }

    fn linear(
        &self,
        name: &str,
        from: usize,
        to: usize,
        with_bias: bool,
    ) -> std::result::Result<Linear, WeightsError> {
        let weight = self.tensor(&format!("{name}.weight"), &[to, from])?;
        let bias = with_bias
            .then(|| self.tensor(&format!("{name}.bias"), &[to]))
            .transpose()?;
        Ok(Linear::new(weight, bias))
    }

    fn norm(&self, name: &str) -> std::result::Result<LayerNorm, WeightsError> {
        let size = self.config.hidden_size;
        if self.config.layer_norm_elementwise_affine {
            let weight = self.tensor(&format!("{name}.weight"), &[size])?;
            let bias = self.tensor(&format!("{name}.bias"), &[size])?;
            return Ok(LayerNorm::new(weight, bias, LAYER_NORM_EPS));
        }
        // candle's fused kernel wants both: the neutral ones.
        let (dtype, device) = (self.weights.dtype(), self.weights.device());
        let weight = Tensor::ones(size, dtype, device)?;
        let bias = Tensor::zeros(size, dtype, device)?;
        Ok(LayerNorm::new(weight, bias, LAYER_NORM_EPS))
    }

    fn layer(&self, index: usize) -> std::result::Result<DecoderLayer, WeightsError> {
        let OptConfig {
            hidden_size,
            ffn_dim,
            enable_bias,
            ..
        } = *self.config;
        let name = |part: &str| format!("layers.{index}.{part}");
        let square = |part: &str| {
            self.linear(
                &name(&format!("self_attn.{part}")),
                hidden_size,
                hidden_size,
                enable_bias,
            )
        };
        Ok(DecoderLayer {
            qkv: concat(&[square("q_proj")?, square("k_proj")?, square("v_proj")?])?,
            out: square("out_proj")?,
            attention_norm: self.norm(&name("self_attn_layer_norm"))?,
            fc1: self.linear(&name("fc1"), hidden_size, ffn_dim, enable_bias)?,
            fc2: self.linear(&name("fc2"), ffn_dim, hidden_size, enable_bias)?,
            feed_forward_norm: self.norm(&name("final_layer_norm"))?,
        })
    }
}

/// Several projections of the same input as one.
fn concat(parts: &[Linear]) -> Result<Linear> {
    let weights: Vec<_> = parts.iter().map(Linear::weight).collect();
    let biases: Option<Vec<_>> = parts.iter().map(Linear::bias).collect();
    let bias = biases.map(|biases| Tensor::cat(&biases, 0)).transpose()?;
    Ok(Linear::new(Tensor::cat(&weights, 0)?, bias))
}
