//! A model of OPT-125m's shapes with random weights, and prompts for it.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use lantern_inference::engine::{Engine, EngineConfig, EngineThread};
use lantern_inference::loader::{self, DTypeChoice, DeviceChoice, HubOptions};
use tempfile::TempDir;

use crate::Options;

const VOCAB_SIZE: usize = 50272;
const HIDDEN: usize = 768;
const INNER: usize = 3072;
const LAYERS: usize = 12;
const CONTEXT: usize = 2048;

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
        write_model(folder.path())?;
        Ok(Self {
            folder,
            device: options.device,
            dtype: options.dtype,
        })
    }

    pub(crate) fn start(&self, config: EngineConfig) -> anyhow::Result<Started> {
        let source = self.folder.path().to_string_lossy();
        let source = loader::resolve(&source, &HubOptions::from_env())?;
        let loaded = loader::load(&source, self.device, self.dtype, None)?;
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

/// A model as a folder: config.json and model.safetensors.
fn write_model(folder: &Path) -> anyhow::Result<()> {
    let config = serde_json::json!({
        "model_type": "opt", "vocab_size": VOCAB_SIZE, "hidden_size": HIDDEN, "ffn_dim": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 12, "word_embed_proj_dim": HIDDEN,
        "max_position_embeddings": CONTEXT, "torch_dtype": "float16",
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| -> anyhow::Result<()> {
        let random = Tensor::rand(-0.05_f32, 0.05, shape, &Device::Cpu)?.to_dtype(DType::F16)?;
        tensors.insert(format!("model.decoder.{name}"), random);
        Ok(())
    };
    add("embed_tokens.weight".into(), &[VOCAB_SIZE, HIDDEN])?;
    add("embed_positions.weight".into(), &[CONTEXT + 2, HIDDEN])?;
    for layer in 0..LAYERS {
        let mut linear = |name: &str, from: usize, to: usize| {
            add(format!("layers.{layer}.{name}.weight"), &[to, from])?;
            add(format!("layers.{layer}.{name}.bias"), &[to])
        };
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            linear(&format!("self_attn.{name}"), HIDDEN, HIDDEN)?;
        }
        linear("fc1", HIDDEN, INNER)?;
        linear("fc2", INNER, HIDDEN)?;
        for name in ["self_attn_layer_norm", "final_layer_norm"] {
            add(format!("layers.{layer}.{name}.weight"), &[HIDDEN])?;
            add(format!("layers.{layer}.{name}.bias"), &[HIDDEN])?;
        }
    }
    add("final_layer_norm.weight".into(), &[HIDDEN])?;
    add("final_layer_norm.bias".into(), &[HIDDEN])?;
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    Ok(())
}
