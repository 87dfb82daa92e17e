//! From a model's name to a model on a device.
//!
//! # Layout
//! - [`files`]: which files are used; [`hub`]: how they get here; [`gguf`]: all of it in one file
//! - [`weights`]: named tensors out of them; [`device`]: where those go; `memory`: what is left there
//! - `inventory`: what they take, and which of them nobody asked for; `progress`: what is shown meanwhile

pub mod device;
pub mod files;
pub mod gguf;
pub mod hub;
mod inventory;
pub(crate) mod memory;
mod progress;
pub mod weights;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde::Deserialize;

use crate::models::CausalLm;
use crate::models::config::{ConfigError, TokenIds};
use crate::models::families::ModelConfig;

pub use device::{DTypeChoice, DeviceChoice, DeviceError};
pub use files::{ModelFiles, TokenizerFiles, WeightFiles};
pub use gguf::{Gguf, GgufError};
pub use hub::{HubError, HubOptions};
pub use weights::{Weights, WeightsError};

/// Why a model could not be found or loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither a directory or a GGUF nor something the hub could have.
    #[error(
        "model '{0}' is not a directory or a .gguf file, and not a hub id such as \
         facebook/opt-125m either"
    )]
    NoSuchModel(String),
    /// The hub, or its cache, did not give it.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A directory or repository lacks something.
    #[error("{place} has no {what}")]
    MissingFile {
        /// The directory, or the model's id.
        place: String,
        /// What is not there.
        what: &'static str,
    },
    /// A directory has several models.
    #[error("{} has several models: name one of {}", path.display(), names.join(", "))]
    SeveralModels {
        /// The directory.
        path: PathBuf,
        /// The GGUFs in it.
        names: Vec<String>,
    },
    /// A GGUF cannot be run.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{} is not understood", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A shard index names a file outside its folder.
    #[error("{} names '{name}', which is no file name", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// What it names.
        name: String,
    },
    /// The model is of a kind we cannot run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are not what the config says.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// More context than the model has.
    #[error("max-model-len = {asked} is not possible: use 1 to {most}, the model's context")]
    MaxModelLen {
        /// What was asked for.
        asked: usize,
        /// What the model has.
        most: usize,
    },
}

impl LoadError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    fn json(path: &Path) -> impl Fn(serde_json::Error) -> Self {
        move |source| Self::Json {
            path: path.to_owned(),
            source,
        }
    }
}

/// A model ready to run.
pub struct LoadedModel {
    /// Longest sequence, prompt and output together.
    pub max_model_len: usize,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Token ids are below this.
    pub vocab_size: usize,
    model: Box<dyn CausalLm>,
}

impl LoadedModel {
    /// A model that was made elsewhere, such as a test's.
    pub fn new(
        model: Box<dyn CausalLm>,
        vocab_size: usize,
        max_model_len: usize,
        eos_token_ids: Vec<u32>,
    ) -> Self {
        Self {
            max_model_len,
            eos_token_ids,
            vocab_size,
            model,
        }
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        self.model.device()
    }

    /// KV cache that one token takes.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.model.kv_shape().bytes_per_token()
    }

    /// The model itself.
    pub fn into_model(self) -> Box<dyn CausalLm> {
        self.model
    }
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel")
            .field("max_model_len", &self.max_model_len)
            .field("eos_token_ids", &self.eos_token_ids)
            .field("vocab_size", &self.vocab_size)
            .field("device", self.device())
            .finish_non_exhaustive()
    }
}

/// Where a model comes from.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one in a program, for as long as it starts"
)]
pub enum ModelSource {
    /// Files as Hugging Face lays them out.
    Files(ModelFiles),
    /// All in one file.
    Gguf(Arc<Gguf>),
}

/// Finds a model: a directory or a GGUF is taken as it is, anything else is asked of the hub. Blocks.
pub fn resolve(model: &str, options: &HubOptions) -> Result<ModelSource, LoadError> {
    let path = Path::new(model);
    if path.is_dir() {
        return match files::only_gguf(path)? {
            Some(path) => open_gguf(&path),
            None => files::in_directory(path).map(ModelSource::Files),
        };
    }
    if path.is_file() && files::is_gguf(path) {
        return open_gguf(path);
    }
    if !hub::is_model_id(model) {
        return Err(LoadError::NoSuchModel(model.to_owned()));
    }
    hub::fetch(model, options).map(ModelSource::Files)
}

fn open_gguf(path: &Path) -> Result<ModelSource, LoadError> {
    Ok(ModelSource::Gguf(Arc::new(Gguf::open(path)?)))
}

/// Loads a model. Blocks.
pub fn load(
    source: &ModelSource,
    device: DeviceChoice,
    dtype: DTypeChoice,
    max_model_len: Option<usize>,
) -> Result<LoadedModel, LoadError> {
    let config = match source {
        ModelSource::Files(files) => ModelConfig::from_json(&read(&files.config_json)?)?,
        ModelSource::Gguf(gguf) => ModelConfig::from_value(&gguf.config()?)?,
    };
    let most = config.context_tokens();
    let max_model_len = max_model_len.unwrap_or(most);
    if max_model_len == 0 || max_model_len > most {
        return Err(LoadError::MaxModelLen {
            asked: max_model_len,
            most,
        });
    }
    let mut eos_token_ids = config.eos_token_ids.clone();
    if let ModelSource::Files(files) = source {
        for id in generation_eos(files)? {
            if !eos_token_ids.contains(&id) {
                eos_token_ids.push(id);
            }
        }
    }
    let device = device::open(device)?;
    let dtype = device::dtype(dtype, &device, config.stored_dtype.as_deref());
    let weights = match source {
        ModelSource::Files(files) => Weights::open(&files.weights, device, dtype)?,
        ModelSource::Gguf(gguf) => Weights::of_gguf(Arc::clone(gguf), device, dtype)?,
    };
    weights.check_memory()?;
    let model = config.load(&weights)?;
    weights.finish()?;
    Ok(LoadedModel::new(
        model,
        config.vocab_size(),
        max_model_len,
        eos_token_ids,
    ))
}

/// End-of-sequence tokens that generation_config.json adds.
fn generation_eos(files: &ModelFiles) -> Result<Vec<u32>, LoadError> {
    #[derive(Deserialize)]
    struct GenerationConfig {
        eos_token_id: Option<TokenIds>,
    }
    let Some(path) = &files.generation_config else {
        return Ok(Vec::new());
    };
    let config: GenerationConfig =
        serde_json::from_str(&read(path)?).map_err(LoadError::json(path))?;
    Ok(config
        .eos_token_id
        .map(TokenIds::into_vec)
        .unwrap_or_default())
}

fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(LoadError::io(path))
}
