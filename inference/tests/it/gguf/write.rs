//! Writes GGUFs: the goldens' models under llama.cpp's names, and models of random weights.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use crate::support::{self, goldens};

/// A GGUF to be.
pub(super) struct File {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, QTensor>,
}

/// A list of texts.
pub(super) fn texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    let texts = texts.into_iter().map(|text| Value::String(text.to_owned()));
    Value::Array(texts.collect())
}

/// Numbers of config.json, and where they are in the metadata.
const NUMBERS: [(&str, &str); 15] = [
    ("sliding_window", "attention.sliding_window"),
    ("hidden_size", "embedding_length"),
    ("n_embd", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("n_layer", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("n_head", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("n_positions", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
    ("rope_theta", "rope.freq_base"),
];

/// Parts of tensors' names, in the order in which they are replaced.
const NAMES: [(&str, &str); 26] = [
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("transformer.", ""),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers", "blk"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("ln_f", "output_norm"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("wte", "token_embd"),
];

impl File {
    /// One of the models that transformers made.
    pub(super) fn of_golden(name: &str) -> Self {
        let folder = goldens().join(name);
        let config: Json = support::json(&folder.join("config.json"));
        let weights = folder.join("model.safetensors");
        let stored = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
        Self::of(&config, &stored, GgmlDType::F32)
    }

    /// A Llama whose sizes fit all block types, its matrices stored as `dtype`.
    pub(super) fn random_llama(dtype: GgmlDType) -> Self {
        let (hidden, inner, vocabulary) = (256, 512, 320);
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        });
        let mut tensors = HashMap::new();
        let mut seed = 0;
        let mut add = |name: String, shape: &[usize]| {
            seed += 1;
            let width = *shape.last().expect("there is a last dimension");
            let size = 0.25 * (width as f64).powf(-0.5);
            let wave = |at: usize| ((at * (2 * seed + 1)) as f64).sin() * (at % 7 + 1) as f64;
            let numbers = (0..shape.iter().product()).map(|at| (wave(at) * size) as f32);
            let numbers: Vec<f32> = numbers.collect();
            let tensor = match shape {
                [_] => Tensor::ones(shape, DType::F32, &Device::Cpu),
                _ => Tensor::from_vec(numbers, shape, &Device::Cpu),
            };
            tensors.insert(name, tensor.unwrap());
        };
        add(
            "model.embed_tokens.weight".to_owned(),
            &[vocabulary, hidden],
        );
        add("lm_head.weight".to_owned(), &[vocabulary, hidden]);
        add("model.norm.weight".to_owned(), &[hidden]);
        for layer in 0..2 {
            for (part, shape) in [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![hidden / 2, hidden]),
                ("self_attn.v_proj", vec![hidden / 2, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ] {
                add(format!("model.layers.{layer}.{part}.weight"), &shape);
            }
        }
        Self::of(&config, &tensors, dtype)
    }

    fn of(config: &Json, tensors: &HashMap<String, Tensor>, dtype: GgmlDType) -> Self {
        let gemma = config["model_type"] == "gemma3_text";
        let family = if gemma {
            "gemma3"
        } else {
            config["model_type"].as_str().unwrap()
        };
        let mut file = Self {
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        file.set("general.architecture", Value::String(family.to_owned()));
        file.set("tokenizer.ggml.eos_token_id", Value::U32(2));
        let rope = &config["rope_parameters"];
        let rope = rope.get("full_attention").unwrap_or(rope);
        if gemma {
            // The golden's layers: the second of every two sees all.
            file.set("gemma3.attention.sliding_window_pattern", Value::U32(2));
        }
        for (field, key) in NUMBERS {
            let value = config.get(field).or_else(|| rope.get(field));
            let value = match value {
                Some(number) if number.is_u64() => Value::U32(number.as_u64().unwrap() as u32),
                Some(number) if number.is_f64() => Value::F32(number.as_f64().unwrap() as f32),
                _ => continue,
            };
            file.set(&format!("{family}.{key}"), value);
        }
        if let Some(kind) = rope["rope_type"].as_str().filter(|kind| *kind != "default") {
            let factor = rope["factor"].as_f64().unwrap() as f32;
            file.set(
                &format!("{family}.rope.scaling.type"),
                Value::String(kind.to_owned()),
            );
            file.set(&format!("{family}.rope.scaling.factor"), Value::F32(factor));
        }
        let heads = |field: &str| config[field].as_u64().map(|heads| heads as usize);
        for (name, tensor) in tensors {
            let mut tensor = tensor.to_dtype(DType::F32).unwrap();
            if gemma && name.contains("norm") {
                tensor = (tensor + 1.0).unwrap();
            }
            let tensor = match name.as_str() {
                _ if family == "gpt2" && name.contains(".c_") && tensor.rank() == 2 => tensor.t(),
                name if family == "llama" && name.contains(".q_proj.") => {
                    paired(&tensor, heads("num_attention_heads"))
                }
                name if family == "llama" && name.contains(".k_proj.") => {
                    let keys = heads("num_key_value_heads");
                    paired(&tensor, keys.or_else(|| heads("num_attention_heads")))
                }
                _ => Ok(tensor),
            };
            let tensor = tensor.unwrap().contiguous().unwrap();
            let dtype = if tensor.rank() == 2 {
                dtype
            } else {
                GgmlDType::F32
            };
            let stored = QTensor::quantize(&tensor, dtype).unwrap();
            let name = if gemma {
                name.replace("post_attention_layernorm", "post_attention_norm")
            } else {
                name.clone()
            };
            file.tensors.insert(stored_name(&name), stored);
        }
        file
    }

    /// Sets a value of the metadata.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.metadata.insert(key.to_owned(), value);
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, key: &str) {
        self.metadata.remove(key).expect("it was there");
    }

    /// Adds a tensor of one dimension.
    pub(super) fn add_vector(&mut self, name: &str, numbers: &[f32]) {
        let vector = Tensor::new(numbers, &Device::Cpu).unwrap();
        let stored = QTensor::quantize(&vector, GgmlDType::F32).unwrap();
        self.tensors.insert(name.to_owned(), stored);
    }

    pub(super) fn write(&self, path: &Path) {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let mut file = std::fs::File::create(path).unwrap();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    }
}

/// Heads with their halves side by side: the converter's `permute`.
fn paired(tensor: &Tensor, heads: Option<usize>) -> candle_core::Result<Tensor> {
    let heads = heads.expect("the config has them");
    let dims = tensor.dims().to_vec();
    let half = dims[0] / heads / 2;
    let rest = tensor.elem_count() / dims[0];
    tensor
        .reshape((heads, 2, half, rest))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape(dims)
}

fn stored_name(name: &str) -> String {
    let mut name = NAMES
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    name = name.replace("wpe", "position_embd");
    match name.strip_prefix("h.") {
        Some(layer) => format!("blk.{layer}"),
        None => name,
    }
}
