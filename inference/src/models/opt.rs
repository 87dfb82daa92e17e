//! OPT (Zhang et al., 2022), all published shapes, after transformers' `OPTForCausalLM`.
//!
//! Letters in shapes as in `layers`.

use candle_core::{Device, Result, Tensor};

use super::CausalLm;
use super::families::Blueprint;
use super::layers::{Loaded, NormPlace, Pass, Scope, in_one_product, run_layers};
use super::opt_config::OptConfig;
use crate::loader::weights::Weights;
use crate::ops::{
    Attention, DecoderLayer, Embedding, Epilogue, FeedForward, KvPages, KvShape, Linear, Matrix,
    Norm, Ops, PositionTable, SelfAttention, StepInputs,
};

/// Rows 0 and 1 of the position table belong to padding, which we never have.
const POSITION_OFFSET: u32 = 2;

/// transformers leaves OPT's norms at PyTorch's default.
const LAYER_NORM_EPS: f64 = 1e-5;

/// The whole model.
#[derive(Debug)]
struct Opt {
    device: Device,
    kv_shape: KvShape,
    embedding: OptEmbedding,
    layers: Vec<DecoderLayer>,
    norms: NormPlace,
    final_layer_norm: Option<Norm>,
    /// H -> E, where they differ.
    project_out: Option<Linear>,
    /// E -> V.
    head: Linear,
}

/// Tokens and positions as H numbers.
#[derive(Debug)]
enum OptEmbedding {
    /// E is H.
    Plain(Embedding),
    /// Tokens are projected before positions are added.
    Projected {
        tokens: Embedding,
        /// E -> H.
        project_in: Linear,
        positions: PositionTable,
    },
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
        let decoder = Scope::decoder(weights, &["model."], top).within("decoder");
        let tokens = decoder.table("embed_tokens.weight", (self.vocab_size, embedding))?;
        let rows = self.max_position_embeddings + POSITION_OFFSET as usize;
        let positions = PositionTable {
            table: decoder.tensor("embed_positions.weight", &[rows, hidden])?,
            offset: POSITION_OFFSET,
        };
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
            layers: (0..self.num_hidden_layers)
                .map(|index| self.layer(index, &decoder))
                .collect::<Loaded<_>>()?,
            norms: self.norms,
            final_layer_norm: self
                .final_layer_norm
                .then(|| self.norm(&decoder, "final_layer_norm"))
                .transpose()?,
            project_out: projection("project_out", (hidden, embedding))?,
            head: decoder.head(&tokens, self.tie_word_embeddings)?,
            embedding: OptEmbedding::new(
                tokens,
                positions,
                projection("project_in", (embedding, hidden))?,
            ),
        }))
    }
}

impl OptConfig {
    fn layer(&self, index: usize, decoder: &Scope<'_>) -> Loaded<DecoderLayer> {
        let layer = decoder.within(&format!("layers.{index}"));
        let attention = layer.within("self_attn");
        let (hidden, inner) = (self.hidden_size, self.ffn_dim);
        let square = |part: &str| attention.linear(part, (hidden, hidden), self.enable_bias);
        Ok(DecoderLayer {
            attention_norm: self.norm(&layer, "self_attn_layer_norm")?,
            attention: SelfAttention {
                qkv: in_one_product(&[square("q_proj")?, square("k_proj")?, square("v_proj")?])?,
                attention: Attention::plain(index, self.heads()),
                out: square("out_proj")?,
            },
            feed_forward_norm: self.norm(&layer, "final_layer_norm")?,
            feed_forward: FeedForward {
                up: layer.linear("fc1", (hidden, inner), self.enable_bias)?,
                epilogue: Epilogue::Activation(self.activation),
                down: layer.linear("fc2", (inner, hidden), self.enable_bias)?,
            },
        })
    }

    fn norm(&self, scope: &Scope<'_>, name: &str) -> Loaded<Norm> {
        if self.layer_norm_elementwise_affine {
            scope.layer_norm(name, self.hidden_size, LAYER_NORM_EPS)
        } else {
            scope.plain_layer_norm(self.hidden_size, LAYER_NORM_EPS)
        }
    }
}

impl OptEmbedding {
    fn new(tokens: Matrix, positions: PositionTable, project_in: Option<Linear>) -> Self {
        let embedding = |positions| Embedding {
            tokens,
            scale: None,
            positions,
        };
        match project_in {
            Some(project_in) => Self::Projected {
                tokens: embedding(None),
                project_in,
                positions,
            },
            None => Self::Plain(embedding(Some(positions))),
        }
    }

    /// (T) -> (T, H)
    fn forward(&self, ops: &dyn Ops, step: &StepInputs) -> Result<Tensor> {
        match self {
            Self::Plain(embedding) => ops.embed(step, embedding),
            Self::Projected {
                tokens,
                project_in,
                positions,
            } => {
                let tokens = ops.embed(step, tokens)?; // (T, E)
                let positions = ops.embed_positions(step, positions)?; // (T, H)
                ops.project_add(&tokens, project_in, &positions)
            }
        }
    }
}

impl CausalLm for Opt {
    fn device(&self) -> &Device {
        &self.device
    }

    fn kv_shape(&self) -> KvShape {
        self.kv_shape
    }

    fn forward(&self, ops: &dyn Ops, step: &StepInputs, pages: &KvPages) -> Result<Tensor> {
        let pass = Pass { ops, step, pages };
        let hidden = self.embedding.forward(ops, step)?; // (T, H)
        run_layers(&self.layers, hidden, self.norms, pass)
    }

    fn logits(&self, ops: &dyn Ops, hidden: &Tensor) -> Result<Tensor> {
        let norm = self.final_layer_norm.as_ref();
        match &self.project_out {
            Some(project_out) => {
                let embedded = ops.project(hidden, norm, project_out, Epilogue::None)?; // (R, E)
                ops.project(&embedded, None, &self.head, Epilogue::None)
            }
            None => ops.project(hidden, norm, &self.head, Epilogue::None),
        }
    }
}
