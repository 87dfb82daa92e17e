//! What the config.json files of all families have in common: how they are refused, and their words.

use std::fmt::Display;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ops::Activation;

/// Why a config.json cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field of another type than it has.
    #[error("config.json is not understood")]
    Json(#[from] serde_json::Error),
    /// A model family that is not here.
    #[error("architecture {name} is not supported: {supported} are")]
    Architecture {
        /// As config.json has it.
        name: String,
        /// Those that are here.
        supported: String,
    },
    /// A field asks for something this implementation lacks.
    #[error("config.json: {field} = {value} is not supported: {supported}")]
    Unsupported {
        /// Name in config.json.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is.
        supported: String,
    },
}

/// A field whose value is not done here; `supported` says what is.
pub(super) fn unsupported(
    field: &'static str,
    value: &dyn Display,
    supported: impl Into<String>,
) -> ConfigError {
    ConfigError::Unsupported {
        field,
        value: value.to_string(),
        supported: supported.into(),
    }
}

/// A family's fields of a config.json.
pub(super) fn fields<T: DeserializeOwned>(json: &Value) -> Result<T, ConfigError> {
    Ok(T::deserialize(json)?)
}

/// One token id or several: both spellings are in use.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenIds {
    /// `2`
    One(u32),
    /// `[128001, 128009]`
    Many(Vec<u32>),
}

impl TokenIds {
    pub(crate) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// Refuses the first size that is 0.
pub(super) fn check_sizes(sizes: &[(&'static str, usize)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((field, _)) => Err(unsupported(field, &0, "at least 1 is")),
        None => Ok(()),
    }
}

/// Refuses a `field` that does not divide `whole`, the value of the field `of`.
pub(super) fn check_divisor(
    field: &'static str,
    value: usize,
    (of, whole): (&str, usize),
) -> Result<(), ConfigError> {
    if whole.is_multiple_of(value) {
        return Ok(());
    }
    let supported = format!("a divisor of {of}, {whole}, is");
    Err(unsupported(field, &value, supported))
}

/// An activation by its name in transformers.
pub(super) fn activation(field: &'static str, name: &str) -> Result<Activation, ConfigError> {
    match name {
        "relu" => Ok(Activation::Relu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "silu" | "swish" => Ok(Activation::Silu),
        _ => {
            let supported = "relu, gelu, gelu_new, gelu_pytorch_tanh and silu are";
            Err(unsupported(field, &name, supported))
        }
    }
}
