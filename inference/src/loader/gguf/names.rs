//! The names that a GGUF's tensors have in a model directory, after llama.cpp's `tensor_mapping.py`.

use std::collections::HashMap;

use super::{Gguf, GgufError, RowOrder};

/// A tensor's names here and there, without `.weight` or `.bias`.
type Pair = (&'static str, &'static str);

/// One architecture's names.
struct Spelling {
    /// Outside the layers.
    top: &'static [Pair],
    /// Before a layer's number in model directories; `blk.` in GGUF.
    layers: &'static str,
    /// Within a layer.
    layer: &'static [Pair],
}

const TOP: &[Pair] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// Llama's names, and Qwen's.
const LLAMA: Spelling = Spelling {
    top: TOP,
    layers: "model.layers.",
    layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
};

/// Gemma 3's names.
const GEMMA3: Spelling = Spelling {
    top: TOP,
    layers: "model.layers.",
    layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
};

const GPT2: Spelling = Spelling {
    top: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    layers: "transformer.h.",
    layer: &[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
};

/// From names in model directories to names in the file.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<String, (String, RowOrder)>,
    /// Those in the file that no model directory has.
    unknown: Vec<String>,
}

impl Names {
    pub(super) fn new(gguf: &Gguf) -> Result<Self, GgufError> {
        let spelling = match gguf.architecture.as_str() {
            "llama" | "qwen2" | "qwen3" => &LLAMA,
            "gemma3" => &GEMMA3,
            "gpt2" => &GPT2,
            other => {
                let supported = "gemma3, gpt2, llama, qwen2 and qwen3 are";
                return Err(gguf.unsupported("general.architecture", &other, supported));
            }
        };
        let dim = gguf.head_dim()?;
        if gguf.architecture == "llama" && (dim == 0 || !dim.is_multiple_of(2)) {
            let supported = "an even number from 2 is";
            return Err(gguf.unsupported("llama.attention.key_length", &dim, supported));
        }
        let mut names = Self::default();
        for stored in gguf.content.tensor_infos.keys() {
            let Some(name) = spelling.name(stored) else {
                names.unknown.push(stored.clone());
                continue;
            };
            // llama.cpp rotates neighbours where the model was trained with halves.
            let turned = name.contains(".q_proj.") || name.contains(".k_proj.");
            let order = if gguf.architecture == "llama" && turned {
                RowOrder::Paired { dim }
            } else {
                RowOrder::Kept
            };
            names.known.insert(name, (stored.clone(), order));
        }
        Ok(names)
    }

    /// All names, in model directories where they have one there, each with the one in the file.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        let known = self.known.iter();
        let known = known.map(|(name, (stored, _))| (name.as_str(), stored.as_str()));
        known.chain(
            self.unknown
                .iter()
                .map(|stored| (stored.as_str(), stored.as_str())),
        )
    }

    /// The name in the file, and how its rows are ordered there.
    pub(super) fn stored(&self, name: &str) -> Option<(&str, RowOrder)> {
        let (stored, order) = self.known.get(name)?;
        Some((stored, *order))
    }
}

impl Spelling {
    /// The name in a model directory; none of what only llama.cpp has.
    fn name(&self, stored: &str) -> Option<String> {
        let (part, kind) = stored.rsplit_once('.')?;
        let find = |pairs: &[Pair], part: &str| {
            let found = pairs.iter().find(|(here, _)| *here == part);
            found.map(|(_, there)| *there)
        };
        if let Some(name) = find(self.top, part) {
            return Some(format!("{name}.{kind}"));
        }
        let (layer, part) = part.strip_prefix("blk.")?.split_once('.')?;
        let name = find(self.layer, part)?;
        Some(format!("{}{layer}.{name}.{kind}", self.layers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_go_by_the_names_of_model_directories() {
        for (spelling, stored, name) in [
            (
                &LLAMA,
                "token_embd.weight",
                Some("model.embed_tokens.weight"),
            ),
            (
                &LLAMA,
                "blk.12.attn_q.bias",
                Some("model.layers.12.self_attn.q_proj.bias"),
            ),
            (
                &GPT2,
                "blk.0.ffn_up.weight",
                Some("transformer.h.0.mlp.c_fc.weight"),
            ),
            (
                &GEMMA3,
                "blk.3.ffn_norm.weight",
                Some("model.layers.3.pre_feedforward_layernorm.weight"),
            ),
            (&GPT2, "blk.0.ffn_gate.weight", None),
            (&LLAMA, "rope_freqs.weight", None),
        ] {
            assert_eq!(spelling.name(stored).as_deref(), name, "{stored}");
        }
    }
}
