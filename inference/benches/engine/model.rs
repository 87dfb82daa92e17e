//! Models as folders: config.json and model.safetensors, with random weights; engines that serve them, and prompts.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use clap::ValueEnum;
use lantern_inference::engine::{Engine, EngineConfig, EngineThread};
use lantern_inference::loader::{self, DTypeChoice, DeviceChoice, HubOptions, LoadedModel};
use serde_json::json;
use tempfile::TempDir;

use crate::Options;

/// Token ids that every model has.
const VOCAB_SIZE: usize = 50272;

/// Numbers that weights repeat, out of step with their rows: drawing all of a large model's takes minutes.
const DRAWN: usize = (1 << 22) - 3;

/// The bundled model.
pub(crate) const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");

/// The model as files.
pub(crate) struct Model {
    folder: TempDir,
    device: DeviceChoice,
    dtype: DTypeChoice,
}

/// An engine at work.
pub(crate) struct Started {
    pub(crate) engine: Engine,
    thread: EngineThread,
}

impl Model {
    pub(crate) fn write(options: &Options) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        options.shapes.write(folder.path())?;
        Ok(Self {
            folder,
            device: options.device,
            dtype: options.dtype,
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn start(&self, config: EngineConfig) -> anyhow::Result<Started> {
        self.start_for(|_| config)
    }

    /// The same with bounds that depend on the model.
    pub(crate) fn start_for(
        &self,
        config: impl FnOnce(&LoadedModel) -> EngineConfig,
    ) -> anyhow::Result<Started> {
        let source = self.folder.path().to_string_lossy();
        let source = loader::resolve(&source, &HubOptions::from_env())?;
        let loaded = loader::load(&source, self.device, self.dtype, None)?;
        let config = config(&loaded);
        let (engine, thread) = Engine::start(loaded, config)?;
        Ok(Started { engine, thread })
    }
}

impl Started {
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.engine.shut_down();
        Ok(self.thread.join()?)
    }
}

/// Tokens that no other prompt begins with.
pub(crate) fn prompt(index: usize, tokens: usize) -> Vec<u32> {
    let token = |at| (index * 31 + at * 7 + index * at) % (VOCAB_SIZE - 10) + 5;
    (0..tokens).map(|at| token(at) as u32).collect()
}

/// Whose shapes a model has.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shapes {
    #[value(name = "opt-125m")]
    Opt125m,
    #[value(name = "llama-3-8b")]
    Llama3With8b,
}

/// A model's weights, as they are made.
struct Weights {
    drawn: Tensor,
    tensors: HashMap<String, Tensor>,
}

impl Shapes {
    /// All files of the model, into a folder that is there.
    pub(crate) fn write(self, folder: &Path) -> anyhow::Result<()> {
        let (config, weights) = match self {
            Self::Opt125m => opt_125m()?,
            Self::Llama3With8b => llama_3_8b()?,
        };
        std::fs::write(folder.join("config.json"), config.to_string())?;
        candle_core::safetensors::save(&weights.tensors, folder.join("model.safetensors"))?;
        write_tokenizer(folder)
    }
}

/// A word for every token: the real ones would have to be fetched, and prompts here are token ids.
fn write_tokenizer(folder: &Path) -> anyhow::Result<()> {
    let special = ["<s>", "<pad>", "</s>", "<unk>"].map(str::to_owned);
    let words = (special.len()..VOCAB_SIZE).map(|id| format!("\u{120}w{id}"));
    let ids = special.into_iter().chain(words).zip(0..);
    let vocabulary: HashMap<String, u32> = ids.collect();
    std::fs::write(folder.join("vocab.json"), json!(vocabulary).to_string())?;
    std::fs::write(folder.join("merges.txt"), "#version: 0.2\n")?;
    Ok(())
}

impl Weights {
    fn new(dtype: DType) -> anyhow::Result<Self> {
        Ok(Self {
            drawn: Tensor::rand(-0.05_f32, 0.05, DRAWN, &Device::Cpu)?.to_dtype(dtype)?,
            tensors: HashMap::new(),
        })
    }

    fn add(&mut self, name: String, shape: &[usize]) -> anyhow::Result<()> {
        let numbers = shape.iter().product::<usize>();
        let repeated = self.drawn.repeat(numbers.div_ceil(DRAWN))?;
        let tensor = repeated.narrow(0, 0, numbers)?.reshape(shape)?;
        self.tensors.insert(name, tensor);
        Ok(())
    }
}

fn opt_125m() -> anyhow::Result<(serde_json::Value, Weights)> {
    let (hidden, inner, layers, context) = (768, 3072, 12, 2048);
    let config = json!({
        "model_type": "opt", "vocab_size": VOCAB_SIZE, "hidden_size": hidden, "ffn_dim": inner,
        "num_hidden_layers": layers, "num_attention_heads": 12, "word_embed_proj_dim": hidden,
        "max_position_embeddings": context, "torch_dtype": "float16",
    });
    let mut weights = Weights::new(DType::F16)?;
    let mut add =
        |name: String, shape: &[usize]| weights.add(format!("model.decoder.{name}"), shape);
    add("embed_tokens.weight".into(), &[VOCAB_SIZE, hidden])?;
    add("embed_positions.weight".into(), &[context + 2, hidden])?;
    for layer in 0..layers {
        let mut linear = |name: &str, from: usize, to: usize| {
            add(format!("layers.{layer}.{name}.weight"), &[to, from])?;
            add(format!("layers.{layer}.{name}.bias"), &[to])
        };
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            linear(&format!("self_attn.{name}"), hidden, hidden)?;
        }
        linear("fc1", hidden, inner)?;
        linear("fc2", inner, hidden)?;
        for name in ["self_attn_layer_norm", "final_layer_norm"] {
            add(format!("layers.{layer}.{name}.weight"), &[hidden])?;
            add(format!("layers.{layer}.{name}.bias"), &[hidden])?;
        }
    }
    add("final_layer_norm.weight".into(), &[hidden])?;
    add("final_layer_norm.bias".into(), &[hidden])?;
    Ok((config, weights))
}

fn llama_3_8b() -> anyhow::Result<(serde_json::Value, Weights)> {
    const VOCABULARY: usize = 128_256;
    let (hidden, inner, layers, keys) = (4096, 14336, 32, 1024);
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    let mut weights = Weights::new(DType::BF16)?;
    weights.add("lm_head.weight".into(), &[VOCABULARY, hidden])?;
    weights.add("model.embed_tokens.weight".into(), &[VOCABULARY, hidden])?;
    weights.add("model.norm.weight".into(), &[hidden])?;
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            weights.add(format!("model.layers.{layer}.{name}.weight"), shape)
        };
        add("input_layernorm", &[hidden])?;
        add("post_attention_layernorm", &[hidden])?;
        add("self_attn.q_proj", &[hidden, hidden])?;
        add("self_attn.k_proj", &[keys, hidden])?;
        add("self_attn.v_proj", &[keys, hidden])?;
        add("self_attn.o_proj", &[hidden, hidden])?;
        add("mlp.gate_proj", &[inner, hidden])?;
        add("mlp.up_proj", &[inner, hidden])?;
        add("mlp.down_proj", &[hidden, inner])?;
    }
    Ok((config, weights))
}
