//! GGUF: a model in one file, with metadata in place of config.json and tokenizer.json.
//!
//! What the metadata says becomes the config.json that the same model has in a directory, and tensors go by
//! the names that they have there: families know of one spelling only.
//!
//! # Layout
//! - `header`: what is read at first; `config`: metadata to config.json; `names`: the tensors' names
//! - here: the file, its values and its tensors' bytes

mod config;
mod header;
mod names;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};

use super::inventory::Listed;
use names::Names;

/// The end of a GGUF's name.
pub(super) const EXTENSION: &str = "gguf";

/// Why a GGUF cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what its name says.
    #[error("{} is not understood: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The metadata lacks something.
    #[error("{}: the metadata has no {key} that is {kind}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Its name.
        key: String,
        /// What it should be.
        kind: &'static str,
    },
    /// The metadata asks for something this implementation lacks.
    #[error("{}: {key} = {value} is not supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Its name.
        key: String,
        /// Its value.
        value: String,
        /// What is.
        supported: String,
    },
}

/// A GGUF whose header has been read.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    /// `general.architecture`
    architecture: String,
    content: Content,
    names: Names,
}

/// A tensor as the file has it.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: GgmlDType,
    /// As in config.json's terms: (out, in) of a matrix.
    pub(crate) dims: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
    /// Which stored row is the n-th, where rows are in another order.
    pub(crate) order: RowOrder,
}

/// The order of a tensor's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As the model has them.
    Kept,
    /// Heads of `dim` rows whose rotated pairs, (i, i + dim / 2), are side by side: llama.cpp's order of
    /// Llama's queries and keys.
    Paired {
        /// D.
        dim: usize,
    },
}

impl RowOrder {
    /// Where the n-th row is stored.
    pub(crate) fn stored(self, row: usize) -> usize {
        match self {
            Self::Kept => row,
            Self::Paired { dim } => {
                let (head, within) = (row / dim, row % dim);
                head * dim + within % (dim / 2) * 2 + within / (dim / 2)
            }
        }
    }
}

impl Gguf {
    /// Reads the header.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let mut opened = Self {
            path: path.to_owned(),
            architecture: String::new(),
            content: header::read(path)?,
            names: Names::default(),
        };
        opened.architecture = opened.text("general.architecture")?.to_owned();
        opened.names = Names::new(&opened)?;
        Ok(opened)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A value of the metadata.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A text that must be there.
    pub(crate) fn text(&self, key: &str) -> Result<&str, GgufError> {
        self.optional_text(key)
            .ok_or_else(|| self.missing(key, "a text"))
    }

    /// A text.
    pub(crate) fn optional_text(&self, key: &str) -> Option<&str> {
        self.value(key)?.to_string().ok().map(String::as_str)
    }

    /// A list that must be there.
    pub(crate) fn list(&self, key: &str) -> Result<&[Value], GgufError> {
        let list = self.value(key).and_then(|value| value.to_vec().ok());
        list.map(Vec::as_slice)
            .ok_or_else(|| self.missing(key, "a list"))
    }

    /// A whole number.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::I32(number) => u64::try_from(*number).ok(),
            Value::I64(number) => u64::try_from(*number).ok(),
            value => value.to_u64().ok(),
        }
    }

    /// A yes or no.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.value(key)?.to_bool().ok()
    }

    /// A value that is not done here.
    pub(crate) fn unsupported(
        &self,
        key: &str,
        value: &dyn Display,
        supported: impl Into<String>,
    ) -> GgufError {
        GgufError::Unsupported {
            path: self.path.clone(),
            key: key.to_owned(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }

    /// A value that should be there.
    pub(crate) fn missing(&self, key: &str, kind: &'static str) -> GgufError {
        GgufError::Missing {
            path: self.path.clone(),
            key: key.to_owned(),
            kind,
        }
    }

    /// True if a tensor goes by this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.names.stored(name).is_some()
    }

    /// All tensors, by the names they go by, or by those in the file where they go by none.
    pub(super) fn listed(&self) -> impl Iterator<Item = Listed> {
        self.names.all().map(|(name, stored)| {
            let info = &self.content.tensor_infos[stored];
            Listed {
                name: name.to_owned(),
                shape: info.shape.dims().to_vec(),
                quantised: Some(info.ggml_dtype),
            }
        })
    }

    /// How the tensor that goes by this name is stored.
    pub(crate) fn dtype(&self, name: &str) -> Option<GgmlDType> {
        let (stored, _) = self.names.stored(name)?;
        Some(self.content.tensor_infos[stored].ggml_dtype)
    }

    /// Rows of the tensor that goes by this name.
    fn rows(&self, name: &str) -> Option<usize> {
        let (stored, _) = self.names.stored(name)?;
        self.content.tensor_infos[stored]
            .shape
            .dims()
            .first()
            .copied()
    }

    /// The tensor that goes by this name.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Stored>, GgufError> {
        let stored = self.names.stored(name);
        stored
            .map(|(stored, order)| self.read_stored(stored, order))
            .transpose()
    }

    /// A tensor that is in the file, by its name there.
    fn read_stored(&self, name: &str, order: RowOrder) -> Result<Stored, GgufError> {
        let info = &self.content.tensor_infos[name];
        let (dtype, dims) = (info.ggml_dtype, info.shape.dims().to_vec());
        let count = dims
            .iter()
            .try_fold(1usize, |count, dim| count.checked_mul(*dim));
        let count = count.filter(|count| count.is_multiple_of(dtype.block_size()));
        let size = count.and_then(|it| (it / dtype.block_size()).checked_mul(dtype.type_size()));
        let size = size.ok_or_else(|| {
            let problem = format!("tensor {name} of shape {dims:?} cannot be made of {dtype:?}");
            not_understood(&self.path, &problem)
        })?;
        let start = self.content.tensor_data_offset.saturating_add(info.offset);
        Ok(Stored {
            dtype,
            dims,
            bytes: self.read_bytes((start, size), name)?,
            order,
        })
    }

    /// Bytes from `start` on.
    fn read_bytes(&self, (start, size): (u64, usize), tensor: &str) -> Result<Vec<u8>, GgufError> {
        let error = io_error(&self.path);
        let mut file = File::open(&self.path).map_err(&error)?;
        let file_bytes = file.metadata().map_err(&error)?.len();
        if start.saturating_add(size as u64) > file_bytes {
            let problem =
                format!("tensor {tensor} takes {size} bytes from byte {start} on, of {file_bytes}");
            return Err(not_understood(&self.path, &problem));
        }
        let mut bytes = vec![0; size];
        file.seek(SeekFrom::Start(start)).map_err(&error)?;
        file.read_exact(&mut bytes).map_err(&error)?;
        Ok(bytes)
    }
}

/// What a number is in JSON; `None` for lists.
fn scalar(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::F32(number) => widened(*number).into(),
        Value::F64(number) => (*number).into(),
        Value::Bool(value) => (*value).into(),
        Value::I32(number) => (*number).into(),
        Value::I64(number) => (*number).into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(_) => return None,
        value => value.to_u64().ok()?.into(),
    })
}

/// The decimal that was meant: 1e-6 in 32 bits is 9.999999974752427e-7 in 64.
fn widened(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> GgufError {
    move |source| GgufError::Io {
        path: path.to_owned(),
        source,
    }
}

fn not_understood(path: &Path, problem: &dyn Display) -> GgufError {
    GgufError::Format {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_rows_are_halves_of_a_head_again() {
        // Two heads of 4 rows: stored are rows 0, 2, 1, 3 of each.
        let order = RowOrder::Paired { dim: 4 };
        let stored: Vec<_> = (0..8).map(|row| order.stored(row)).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
