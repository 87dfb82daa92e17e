//! Which of a model's files are used, in a directory or on the hub alike.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{LoadError, gguf};

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// config.json
    pub config_json: PathBuf,
    /// The weights, complete.
    pub weights: WeightFiles,
    /// What the tokenizer is made from; some repositories have none.
    pub tokenizer: Option<TokenizerFiles>,
    /// tokenizer_config.json: special tokens, chat template.
    pub tokenizer_config: Option<PathBuf>,
    /// special_tokens_map.json
    pub special_tokens_map: Option<PathBuf>,
    /// added_tokens.json
    pub added_tokens: Option<PathBuf>,
    /// generation_config.json
    pub generation_config: Option<PathBuf>,
    /// chat_template.jinja, or the older chat_template.json.
    pub chat_template: Option<PathBuf>,
}

/// The weights' files, in one of two formats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// One file or several.
    Safetensors(Vec<PathBuf>),
    /// One file or several, zipped pickles.
    PyTorch(Vec<PathBuf>),
}

impl WeightFiles {
    /// All of them.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Safetensors(paths) | Self::PyTorch(paths) => paths,
        }
    }
}

/// A tokenizer's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// tokenizer.json: all in one.
    Json(PathBuf),
    /// GPT-2's byte-level BPE.
    VocabAndMerges {
        /// vocab.json
        vocab: PathBuf,
        /// merges.txt
        merges: PathBuf,
    },
}

/// Safetensors first: smaller to parse, and no program inside.
const WEIGHTS: [(&str, Layout); 4] = [
    (
        "model.safetensors",
        Layout {
            format: WeightFiles::Safetensors,
            sharded: false,
        },
    ),
    (
        "model.safetensors.index.json",
        Layout {
            format: WeightFiles::Safetensors,
            sharded: true,
        },
    ),
    (
        "pytorch_model.bin",
        Layout {
            format: WeightFiles::PyTorch,
            sharded: false,
        },
    ),
    (
        "pytorch_model.bin.index.json",
        Layout {
            format: WeightFiles::PyTorch,
            sharded: true,
        },
    ),
];

#[derive(Clone, Copy)]
struct Layout {
    format: fn(Vec<PathBuf>) -> WeightFiles,
    sharded: bool,
}

/// The files of a directory.
pub(super) fn in_directory(directory: &Path) -> Result<ModelFiles, LoadError> {
    let entries = std::fs::read_dir(directory).map_err(LoadError::io(directory))?;
    let names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<BTreeSet<_>, _>>()
        .map_err(LoadError::io(directory))?;
    collect(&directory.display().to_string(), &names, |name| {
        Ok(directory.join(name))
    })
}

/// The one GGUF of a directory that has no config.json.
pub(super) fn only_gguf(directory: &Path) -> Result<Option<PathBuf>, LoadError> {
    if directory.join("config.json").exists() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(LoadError::io(directory))? {
        let path = entry.map_err(LoadError::io(directory))?.path();
        if is_gguf(&path) {
            found.push(path);
        }
    }
    found.sort();
    if found.len() > 1 {
        let names = found.iter().filter_map(|path| path.file_name());
        return Err(LoadError::SeveralModels {
            path: directory.to_owned(),
            names: names
                .map(|name| name.to_string_lossy().into_owned())
                .collect(),
        });
    }
    Ok(found.pop())
}

/// Told by its name.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case(gguf::EXTENSION))
}

/// Chooses among the `names` that `place` has, and fetches each one chosen.
pub(super) fn collect(
    place: &str,
    names: &BTreeSet<String>,
    mut fetch: impl FnMut(&str) -> Result<PathBuf, LoadError>,
) -> Result<ModelFiles, LoadError> {
    let missing = |what| LoadError::MissingFile {
        place: place.to_owned(),
        what,
    };
    let mut optional = |name: &str| names.contains(name).then(|| fetch(name)).transpose();
    let config_json = optional("config.json")?.ok_or_else(|| missing("config.json"))?;
    let tokenizer = match optional("tokenizer.json")? {
        Some(path) => Some(TokenizerFiles::Json(path)),
        None => match (optional("vocab.json")?, optional("merges.txt")?) {
            (Some(vocab), Some(merges)) => Some(TokenizerFiles::VocabAndMerges { vocab, merges }),
            _ => None,
        },
    };
    let tokenizer_config = optional("tokenizer_config.json")?;
    let special_tokens_map = optional("special_tokens_map.json")?;
    let added_tokens = optional("added_tokens.json")?;
    let generation_config = optional("generation_config.json")?;
    let chat_template = match optional("chat_template.jinja")? {
        Some(path) => Some(path),
        None => optional("chat_template.json")?,
    };
    let (name, layout) = WEIGHTS
        .into_iter()
        .find(|(name, _)| names.contains(*name))
        .ok_or_else(|| missing("weights (model.safetensors or pytorch_model.bin)"))?;
    let first = fetch(name)?;
    let weights = if layout.sharded {
        shards(&first, fetch)?
    } else {
        vec![first]
    };
    Ok(ModelFiles {
        config_json,
        weights: (layout.format)(weights),
        tokenizer,
        tokenizer_config,
        special_tokens_map,
        added_tokens,
        generation_config,
        chat_template,
    })
}

/// The files that a shard index names.
fn shards(
    index: &Path,
    fetch: impl FnMut(&str) -> Result<PathBuf, LoadError>,
) -> Result<Vec<PathBuf>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(LoadError::io(index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(LoadError::json(index))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|name| !is_plain_file_name(name)) {
        return Err(LoadError::ShardName {
            path: index.to_owned(),
            name: name.clone(),
        });
    }
    names.iter().map(String::as_str).map(fetch).collect()
}

/// An index may come from anywhere: it is not to name files outside its own folder.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(_)), None)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<ModelFiles, LoadError> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        collect("here", &names, |name| Ok(PathBuf::from(name)))
    }

    #[test]
    fn safetensors_and_tokenizer_json_are_preferred() {
        let both = [
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let files = chosen(&both).unwrap();
        assert_eq!(
            files.weights,
            WeightFiles::Safetensors(vec!["model.safetensors".into()])
        );
        assert_eq!(
            files.tokenizer,
            Some(TokenizerFiles::Json("tokenizer.json".into()))
        );

        let files = chosen(&[
            "config.json",
            "merges.txt",
            "pytorch_model.bin",
            "vocab.json",
        ])
        .unwrap();
        assert_eq!(
            files.weights,
            WeightFiles::PyTorch(vec!["pytorch_model.bin".into()])
        );
        let (vocab, merges) = ("vocab.json".into(), "merges.txt".into());
        assert_eq!(
            files.tokenizer,
            Some(TokenizerFiles::VocabAndMerges { vocab, merges })
        );
    }

    #[test]
    fn what_is_missing_is_named_with_the_place() {
        let message = |names: &[&str]| chosen(names).expect_err("incomplete").to_string();
        assert_eq!(message(&["model.safetensors"]), "here has no config.json");
        assert_eq!(
            message(&["config.json"]),
            "here has no weights (model.safetensors or pytorch_model.bin)"
        );
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        for name in [
            "../model.safetensors",
            "/etc/passwd",
            "a/b.safetensors",
            "",
            "..",
        ] {
            assert!(!is_plain_file_name(name), "{name}");
        }
        assert!(is_plain_file_name("model-00001-of-00003.safetensors"));
    }
}
