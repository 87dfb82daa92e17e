//! Models from directories: what is read, what is refused and how it is said.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lantern_inference::loader::{
    self, DTypeChoice, DeviceChoice, HubOptions, LoadError, LoadedModel, WeightsError,
};
use tempfile::TempDir;

use crate::support::{Paged, goldens};

fn load(folder: &Path) -> Result<LoadedModel, LoadError> {
    load_with(folder, DTypeChoice::Auto, None)
}

fn load_with(
    folder: &Path,
    dtype: DTypeChoice,
    max_model_len: Option<usize>,
) -> Result<LoadedModel, LoadError> {
    let files = loader::resolve(folder.to_str().unwrap(), &HubOptions::from_env())?;
    loader::load(&files, DeviceChoice::Cpu, dtype, max_model_len)
}

/// A copy of a golden model, to be changed.
fn copy(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(goldens().join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().to_owned();
    (folder, path)
}

/// Sets one field of a JSON file.
fn set(path: &Path, field: &str, value: serde_json::Value) {
    let mut json: serde_json::Value = crate::support::json(path);
    json[field] = value;
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_model_knows_its_limits() {
    let model = load(&goldens().join("opt-pre-ln")).unwrap();
    assert_eq!((model.max_model_len, model.vocab_size), (128, 320));
    assert_eq!(model.eos_token_ids, [2]);
    let short = load_with(&goldens().join("opt-pre-ln"), DTypeChoice::Auto, Some(50)).unwrap();
    assert_eq!(short.max_model_len, 50);
}

#[test]
fn more_context_than_the_model_has_is_refused() {
    for asked in [0, 129] {
        let folder = goldens().join("opt-pre-ln");
        let error = load_with(&folder, DTypeChoice::Auto, Some(asked)).unwrap_err();
        let expected =
            format!("max-model-len = {asked} is not possible: use 1 to 128, the model's context");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn every_number_type_loads() {
    for (dtype, bytes) in [
        (DTypeChoice::Float32, 4),
        (DTypeChoice::Float16, 2),
        (DTypeChoice::BFloat16, 2),
    ] {
        let model = load_with(&goldens().join("opt-pre-ln"), dtype, None).unwrap();
        // 3 layers of 48 numbers, keys and values.
        assert_eq!(model.kv_bytes_per_token(), 2 * 3 * 48 * bytes, "{dtype:?}");
    }
}

#[test]
fn end_of_sequence_tokens_of_both_configs_count() {
    let (_guard, folder) = copy("opt-pre-ln");
    set(
        &folder.join("generation_config.json"),
        "eos_token_id",
        serde_json::json!([2, 50]),
    );
    assert_eq!(load(&folder).unwrap().eos_token_ids, [2, 50]);
}

#[test]
fn another_architecture_is_refused_by_name() {
    let (_guard, folder) = copy("opt-pre-ln");
    set(&folder.join("config.json"), "model_type", "mamba".into());
    let error = load(&folder).unwrap_err();
    assert_eq!(
        error.to_string(),
        "architecture mamba is not supported: gemma3, gemma3_text, gpt2, llama, opt, qwen2 and qwen3 are"
    );
}

#[test]
fn grouped_queries_need_a_cache_for_their_heads_of_keys_only() {
    // 2 layers, 2 heads of keys for 6 of queries, 16 numbers each, keys and values.
    let model = load_with(&goldens().join("llama3"), DTypeChoice::Float32, None).unwrap();
    assert_eq!(model.kv_bytes_per_token(), 2 * 2 * 2 * 16 * 4);
}

#[test]
fn names_with_and_without_the_models_prefix_are_the_same_tensors() {
    // Stored are GPT-2 without its prefix and Qwen 2 with it: each is made the other.
    for (model, prefix, other) in [("gpt2", "", "transformer."), ("qwen2", "model.", "")] {
        let rename = |name: &str| {
            let rest = name.strip_prefix(prefix).expect("all names have it");
            format!("{other}{rest}")
        };
        let (_guard, folder) = copy(model);
        let weights = folder.join("model.safetensors");
        let stored = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        let renamed: HashMap<_, _> = stored
            .into_iter()
            .map(|(name, tensor)| (rename(&name), tensor))
            .collect();
        candle_core::safetensors::save(&renamed, &weights).unwrap();
        assert_eq!(
            first_logits(&folder),
            first_logits(&goldens().join(model)),
            "{model}"
        );
    }
}

#[test]
fn of_a_gemma_that_sees_images_the_text_half_is_served() {
    let text_config: serde_json::Value =
        crate::support::json(&goldens().join("gemma3/config.json"));
    let whole = serde_json::json!({"model_type": "gemma3", "text_config": text_config});
    for (prefix, images) in [
        ("language_model.model.", "vision_tower."),
        ("model.language_model.", "model.vision_tower."),
    ] {
        let (_guard, folder) = copy("gemma3");
        fs::write(folder.join("config.json"), whole.to_string()).unwrap();
        let weights = folder.join("model.safetensors");
        let stored = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        let renamed = stored.into_iter().map(|(name, tensor)| {
            let rest = name.strip_prefix("model.").expect("all names have it");
            (format!("{prefix}{rest}"), tensor)
        });
        let mut renamed: HashMap<_, _> = renamed.collect();
        let patches = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
        renamed.insert(format!("{images}embeddings.weight"), patches);
        candle_core::safetensors::save(&renamed, &weights).unwrap();
        assert_eq!(
            first_logits(&folder),
            first_logits(&goldens().join("gemma3")),
            "{prefix}"
        );
    }
}

/// Logits after a prompt of one token.
fn first_logits(folder: &Path) -> Vec<f32> {
    let model = load(folder).unwrap().into_model();
    let logits = Paged::new(model, 1).logits(&[(0, &[7], 0)]);
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_tensor_that_is_missing_or_misshapen_is_named() {
    let (_guard, folder) = copy("opt-pre-ln");
    set(&folder.join("config.json"), "num_hidden_layers", 4.into());
    let missing = load(&folder).unwrap_err().to_string();
    assert!(
        missing.starts_with("the weights have no tensor model.decoder.layers.3."),
        "{missing}"
    );
    set(&folder.join("config.json"), "num_hidden_layers", 3.into());
    set(&folder.join("config.json"), "vocab_size", 321.into());
    assert_eq!(
        load(&folder).unwrap_err().to_string(),
        "tensor model.decoder.embed_tokens.weight has shape [320, 48], config.json makes it [321, 48]"
    );
}

#[test]
fn tensors_that_config_json_has_no_place_for_are_refused_by_name() {
    for (model, field, example) in [
        (
            "llama-linear-bias",
            "attention_bias",
            "model.layers.0.self_attn.k_proj.bias",
        ),
        (
            "llama-linear-bias",
            "mlp_bias",
            "model.layers.0.mlp.down_proj.bias",
        ),
        (
            "opt-pre-ln",
            "enable_bias",
            "model.decoder.layers.0.fc1.bias",
        ),
    ] {
        let (_guard, folder) = copy(model);
        set(&folder.join("config.json"), field, false.into());
        let error = load(&folder).unwrap_err().to_string();
        assert!(error.contains(&format!("such as {example}: ")), "{error}");
    }
    // Qwen 3's norms of heads make another model of a Llama.
    let (_guard, folder) = copy("qwen3");
    set(&folder.join("config.json"), "model_type", "llama".into());
    let error = load(&folder).unwrap_err().to_string();
    assert!(
        error.contains("such as model.layers.0.self_attn.k_norm.weight: "),
        "{error}"
    );
}

#[test]
fn weights_that_the_memory_does_not_hold_are_refused_before_any_is_read() {
    // A file of 2 TiB that takes no place on the disk.
    let (_guard, folder) = copy("opt-pre-ln");
    let header = serde_json::json!({"huge": {
        "dtype": "F32", "shape": [1_u64 << 32, 128], "data_offsets": [0, 1_u64 << 41],
    }});
    let header = header.to_string();
    let mut start = (header.len() as u64).to_le_bytes().to_vec();
    start.extend(header.bytes());
    let path = folder.join("model.safetensors");
    fs::write(&path, &start).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(start.len() as u64 + (1 << 41)).unwrap();
    for (dtype, bytes, advice) in [
        (
            DTypeChoice::Float32,
            1_u64 << 41,
            "--dtype bfloat16, by which they take 1099511627776, or a smaller or quantised model",
        ),
        (
            DTypeChoice::BFloat16,
            1 << 40,
            "a smaller or quantised model",
        ),
    ] {
        let error = load_with(&folder, dtype, None).unwrap_err();
        let LoadError::Weights(WeightsError::TooLarge {
            available_bytes, ..
        }) = error
        else {
            panic!("{error}");
        };
        let expected = format!(
            "the weights take {bytes} bytes of memory, {available_bytes} are there: use {advice}"
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn what_checkpoints_carry_beside_the_model_changes_nothing() {
    for (model, name, shape) in [
        ("gpt2", "h.0.attn.bias", vec![1, 1, 8, 8]),
        ("qwen3", "lm_head.weight", vec![320, 48]),
        (
            "llama2",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            vec![8],
        ),
    ] {
        let (_guard, folder) = copy(model);
        let weights = folder.join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        let extra = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        tensors.insert(name.to_owned(), extra);
        candle_core::safetensors::save(&tensors, &weights).unwrap();
        assert_eq!(
            first_logits(&folder),
            first_logits(&goldens().join(model)),
            "{name}"
        );
    }
}

#[test]
fn files_that_are_not_what_they_say_are_named() {
    for (model, file) in [
        ("opt-pre-ln", "model.safetensors"),
        ("opt-half", "pytorch_model.bin"),
    ] {
        let (_guard, folder) = copy(model);
        let path = folder.join(file);
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"<html>not found</html>", b""] {
            fs::write(&path, damaged).unwrap();
            let error = load(&folder).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
    }
}

#[test]
fn sharded_pickles_load_too() {
    let (_guard, folder) = copy("opt-half");
    let shard = "pytorch_model-00001-of-00001.bin";
    fs::rename(folder.join("pytorch_model.bin"), folder.join(shard)).unwrap();
    let index = serde_json::json!({ "weight_map": { "lm_head.weight": shard } });
    fs::write(
        folder.join("pytorch_model.bin.index.json"),
        index.to_string(),
    )
    .unwrap();
    load(&folder).unwrap();
    fs::remove_file(folder.join(shard)).unwrap();
    assert!(load(&folder).unwrap_err().to_string().contains(shard));
}

#[test]
fn a_missing_shard_is_named() {
    let (_guard, folder) = copy("opt-untied");
    fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    let error = load(&folder).unwrap_err().to_string();
    assert!(
        error.contains("model-00002-of-00003.safetensors"),
        "{error}"
    );
}

#[test]
fn what_is_no_model_is_said_to_be_none() {
    let options = HubOptions::from_env();
    let error = |model: &str| loader::resolve(model, &options).unwrap_err().to_string();
    assert_eq!(
        error("/no/such/folder"),
        "model '/no/such/folder' is not a directory or a .gguf file, and not a hub id such as facebook/opt-125m either"
    );
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    assert_eq!(error(path), format!("{path} has no config.json"));
}
