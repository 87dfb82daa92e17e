//! The models against what transformers computed for the same weights (tests/goldens/README.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use lantern_inference::engine::{Engine, EngineConfig};
use lantern_inference::loader::{self, DTypeChoice, DeviceChoice, HubOptions, LoadedModel};
use lantern_inference::tokenizer::Tokenizer;
use serde::Deserialize;

use crate::support::{self, Paged, greedy, tokens};

/// What float32 rounding may differ by.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Expected<Case> {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Option<String>,
    prompt_tokens: Vec<u32>,
    /// By prompt position.
    logits: BTreeMap<String, Vec<f32>>,
    greedy: Vec<u32>,
}

fn cases(folder: &Path) -> Vec<Case> {
    support::json::<Expected<Case>>(&folder.join("expected.json")).cases
}

fn model_folders() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(support::goldens()).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders
        .filter(|path| path.join("config.json").exists())
        .collect();
    folders.sort();
    assert!(folders.len() >= 12, "all shapes are there: {folders:?}");
    folders
}

/// The model. The goldens generate past its end-of-sequence tokens: requests ignore them.
fn load(folder: &Path) -> LoadedModel {
    load_as(DTypeChoice::Float32, folder)
}

fn load_as(dtype: DTypeChoice, folder: &Path) -> LoadedModel {
    let path = folder.to_str().unwrap();
    let files = loader::resolve(path, &HubOptions::from_env()).unwrap();
    loader::load(&files, device(), dtype, None).unwrap()
}

/// The CPU, or the GPU with LANTERN_TEST_DEVICE=cuda and the feature of that name. There on one thread
/// (`--test-threads 1`): while a model records its graphs no other of the process may use the GPU.
fn device() -> DeviceChoice {
    match std::env::var("LANTERN_TEST_DEVICE").as_deref() {
        Ok("cuda") => DeviceChoice::Cuda,
        _ => DeviceChoice::Cpu,
    }
}

/// Compares rows from `start` with every position there is.
fn assert_close(logits: &Tensor, start: usize, case: &Case, what: &str) {
    for (position, expected) in &case.logits {
        let position: usize = position.parse().unwrap();
        let row = logits
            .get(start + position)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_eq!(row.len(), expected.len(), "{what}");
        let apart = row
            .iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(
            apart <= TOLERANCE,
            "{what}, position {position}: {apart} apart"
        );
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for folder in model_folders() {
        let model = Paged::new(load(&folder).into_model(), 1);
        for case in cases(&folder) {
            let logits = model.logits(&[(0, &case.prompt_tokens, 0)]);
            assert_close(&logits, 0, &case, &folder.display().to_string());
        }
    }
}

#[test]
fn prompts_of_different_lengths_in_one_batch_have_the_same_logits() {
    for folder in model_folders() {
        let cases = cases(&folder);
        let model = Paged::new(load(&folder).into_model(), cases.len());
        let part = |(sequence, case)| {
            let case: &Case = case;
            (sequence, case.prompt_tokens.as_slice(), 0)
        };
        let parts: Vec<_> = cases.iter().enumerate().map(part).collect();
        let logits = model.logits(&parts);
        let mut start = 0;
        for case in &cases {
            assert_close(&logits, start, case, &folder.display().to_string());
            start += case.prompt_tokens.len();
        }
    }
}

#[test]
fn a_prompt_run_in_chunks_has_the_same_logits() {
    for folder in model_folders() {
        let model = Paged::new(load(&folder).into_model(), 1);
        for case in cases(&folder) {
            let chunks = case.prompt_tokens.chunks(5).enumerate();
            let rows: Vec<_> = chunks
                .map(|(index, chunk)| model.logits(&[(0, chunk, 5 * index)]))
                .collect();
            let logits = Tensor::cat(&rows, 0).unwrap();
            assert_close(&logits, 0, &case, &folder.display().to_string());
        }
    }
}

#[test]
fn logits_are_the_same_by_the_operations_that_any_device_has() {
    for folder in model_folders() {
        let model = Paged::plain(load(&folder).into_model(), 2);
        for case in cases(&folder) {
            let (chunk, rest) = case.prompt_tokens.split_at(case.prompt_tokens.len() / 2);
            let parts: &[(usize, &[u32], usize)] = match chunk {
                [] => &[(0, rest, 0)],
                _ => &[(0, chunk, 0), (1, chunk, 0)],
            };
            let mut rows = vec![model.logits(parts)];
            if !chunk.is_empty() {
                rows[0] = rows[0].narrow(0, chunk.len(), chunk.len()).unwrap();
                rows.push(model.logits(&[(1, rest, chunk.len())]));
            }
            let logits = Tensor::cat(&rows, 0).unwrap();
            assert_close(&logits, 0, &case, &folder.display().to_string());
        }
    }
}

#[test]
fn half_precision_stays_near() {
    // 11 and 8 significant bits, with room for what the layers add up to.
    for (dtype, share) in [(DTypeChoice::Float16, 0.02), (DTypeChoice::BFloat16, 0.08)] {
        for folder in model_folders() {
            let model = Paged::new(load_as(dtype, &folder).into_model(), 1);
            let case = cases(&folder).pop().expect("there are cases");
            let logits = model.logits(&[(0, &case.prompt_tokens, 0)]);
            let logits = logits.to_dtype(DType::F32).unwrap();
            let apart = furthest(&logits, &case);
            assert!(apart <= share, "{dtype:?}, {}: {apart}", folder.display());
        }
    }
}

/// How far the logits of a prompt are from those expected, as a share of the largest.
fn furthest(logits: &Tensor, case: &Case) -> f32 {
    let mut apart = 0f32;
    let mut largest = 0f32;
    for (position, expected) in &case.logits {
        let row = logits.get(position.parse().unwrap()).unwrap();
        for (a, b) in row.to_vec1::<f32>().unwrap().iter().zip(expected) {
            apart = apart.max((a - b).abs());
            largest = largest.max(b.abs());
        }
    }
    apart / largest
}

/// Greedy tokens of all cases, submitted at once.
fn generate(folder: &Path, cases: &[Case], config: EngineConfig) -> (Vec<Vec<u32>>, Engine) {
    let (engine, thread) = Engine::start(load(folder), config).unwrap();
    let streams: Vec<_> = cases
        .iter()
        .map(|case| {
            engine
                .submit(greedy(&case.prompt_tokens, case.greedy.len()))
                .unwrap()
        })
        .collect();
    let generated = streams.into_iter().map(tokens).collect();
    engine.shut_down();
    thread.join().unwrap();
    (generated, engine)
}

#[test]
fn greedy_tokens_are_those_of_transformers_one_by_one_and_batched() {
    for folder in model_folders() {
        let cases = cases(&folder);
        let expected: Vec<_> = cases.iter().map(|case| case.greedy.clone()).collect();
        assert!(expected.iter().all(|greedy| greedy.len() == 64));
        for max_num_seqs in [1, 3, 256] {
            let config = EngineConfig {
                max_num_seqs,
                ..EngineConfig::default()
            };
            let (generated, _) = generate(&folder, &cases, config);
            assert_eq!(
                generated,
                expected,
                "{}, {max_num_seqs} at a time",
                folder.display()
            );
        }
    }
}

#[test]
fn greedy_tokens_are_the_same_in_a_batch_of_many() {
    for name in ["llama3", "opt-pre-ln"] {
        let folder = support::goldens().join(name);
        let cases: Vec<_> = (0..20).flat_map(|_| cases(&folder)).collect();
        assert!(cases.len() >= 80);
        let (generated, _) = generate(&folder, &cases, EngineConfig::default());
        for (case, generated) in cases.iter().zip(generated) {
            assert_eq!(generated, case.greedy, "{name}");
        }
    }
}

#[test]
fn greedy_tokens_do_not_depend_on_the_size_of_a_step() {
    for folder in model_folders() {
        let cases = cases(&folder);
        let expected: Vec<_> = cases.iter().map(|case| case.greedy.clone()).collect();
        let config = EngineConfig {
            max_num_seqs: 4,
            max_num_batched_tokens: 7,
            ..EngineConfig::default()
        };
        let (generated, _) = generate(&folder, &cases, config);
        assert_eq!(generated, expected, "{}", folder.display());
    }
}

#[test]
fn preempted_sequences_resume_with_the_same_tokens() {
    for folder in model_folders() {
        let cases = cases(&folder);
        let expected: Vec<_> = cases.iter().map(|case| case.greedy.clone()).collect();
        // 128 tokens: what the longest case takes alone.
        let bytes = load(&folder).kv_bytes_per_token() * 128;
        let config = EngineConfig {
            kv_cache_bytes: Some(bytes),
            ..EngineConfig::default()
        };
        let (generated, engine) = generate(&folder, &cases, config);
        assert_eq!(generated, expected, "{}", folder.display());
        let stats = engine.stats();
        assert!(
            stats.preemptions > 0,
            "{}: the cache was never short",
            folder.display()
        );
        assert_eq!(
            (stats.kv_cache_usage, stats.running, stats.waiting),
            (0.0, 0, 0)
        );
    }
}

#[test]
fn greedy_tokens_after_a_shared_prefix_are_those_of_transformers() {
    for folder in model_folders() {
        let cases = cases(&folder);
        let (engine, thread) = Engine::start(load(&folder), EngineConfig::default()).unwrap();
        for case in &cases {
            // The second time all full blocks of prompt and output are there.
            for output in [0, 40] {
                let (known, rest) = case.greedy.split_at(output);
                let prompt = [&case.prompt_tokens, known].concat();
                let stream = engine.submit(greedy(&prompt, rest.len())).unwrap();
                assert_eq!(tokens(stream), rest, "{}", folder.display());
            }
        }
        engine.shut_down();
        thread.join().unwrap();
        let stats = engine.stats();
        assert!(stats.prefix_cache_hits > 32, "{stats:?}");
        assert!(stats.prefix_cache_hits < stats.prefix_cache_queries);
        assert_eq!(stats.kv_cache_usage, 0.0, "all is given back");
    }
}

/// The model that comes with Lantern.
fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny")
}

#[test]
fn the_bundled_model_reads_and_writes_as_transformers_has_it() {
    let path = bundled();
    let files = loader::resolve(path.to_str().unwrap(), &HubOptions::from_env()).unwrap();
    let tokenizer = Tokenizer::load(&files).unwrap();
    let cases = cases(&support::goldens().join("tiny"));
    let model = Paged::new(load(&path).into_model(), 1);
    for case in &cases {
        let prompt = case.prompt.as_deref().expect("these cases have their text");
        assert_eq!(
            tokenizer.encode(prompt, true).unwrap(),
            case.prompt_tokens,
            "{prompt}"
        );
        let logits = model.logits(&[(0, &case.prompt_tokens, 0)]);
        assert_close(&logits, 0, case, prompt);
    }
    let (generated, _) = generate(&path, &cases, EngineConfig::default());
    for (case, generated) in cases.iter().zip(generated) {
        assert_eq!(generated, case.greedy, "{:?}", case.prompt);
    }
}

/// What transformers makes of texts and tokens.
#[derive(Deserialize)]
pub(crate) struct TokenizerExpected {
    cases: Vec<EncodeCase>,
    decode_cases: Vec<DecodeCase>,
}

#[derive(Deserialize)]
struct EncodeCase {
    text: String,
    ids: Vec<u32>,
    ids_without_special_tokens: Vec<u32>,
    decoded: String,
    decoded_with_special_tokens: String,
}

#[derive(Deserialize)]
struct DecodeCase {
    ids: Vec<u32>,
    decoded: String,
    decoded_with_special_tokens: String,
}

fn tokenizer(folder: &str) -> Tokenizer {
    // The tokenizer's folder beside some model's weights, as a repository has them.
    let together = tempfile::tempdir().unwrap();
    let sources = [
        support::goldens().join(folder),
        support::goldens().join("opt-pre-ln"),
    ];
    for entry in sources
        .iter()
        .flat_map(|source| std::fs::read_dir(source).unwrap())
    {
        let path = entry.unwrap().path();
        std::fs::copy(&path, together.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = together.path().to_str().unwrap();
    Tokenizer::load(&loader::resolve(path, &HubOptions::from_env()).unwrap()).unwrap()
}

/// Encodes and decodes all that a folder's expected.json has.
pub(crate) fn assert_reads(tokenizer: &Tokenizer, expected: &TokenizerExpected, what: &str) {
    for case in &expected.cases {
        let (text, what) = (&case.text, format!("{what}: {:?}", case.text));
        assert_eq!(tokenizer.encode(text, true).unwrap(), case.ids, "{what}");
        let without = tokenizer.encode(text, false).unwrap();
        assert_eq!(without, case.ids_without_special_tokens, "{what}");
        let decoded = tokenizer.decode(&case.ids, true).unwrap();
        assert_eq!(decoded, case.decoded, "{what}");
        let with = tokenizer.decode(&case.ids, false).unwrap();
        assert_eq!(with, case.decoded_with_special_tokens, "{what}");
    }
    for case in &expected.decode_cases {
        let what = format!("{what}: {:?}", case.ids);
        let decoded = tokenizer.decode(&case.ids, true).unwrap();
        assert_eq!(decoded, case.decoded, "{what}");
        let with = tokenizer.decode(&case.ids, false).unwrap();
        assert_eq!(with, case.decoded_with_special_tokens, "{what}");
    }
}

#[test]
fn both_layouts_of_a_tokenizer_read_as_transformers_reads_them() {
    let expected = support::json(&support::goldens().join("tokenizer/expected.json"));
    for layout in ["vocab-merges", "tokenizer-json"] {
        let tokenizer = tokenizer(&format!("tokenizer/{layout}"));
        assert_reads(&tokenizer, &expected, layout);
        assert!(
            tokenizer.is_special(2) && !tokenizer.is_special(0),
            "{layout}: only </s> and <pad>"
        );
        assert_eq!(tokenizer.token_text(2).as_deref(), Some("</s>"));
        assert_eq!(tokenizer.token_text(u32::MAX), None);
    }
}

#[test]
fn llamas_kind_of_tokenizer_reads_as_transformers_reads_it() {
    let folder = support::goldens().join("tokenizer-llama");
    let expected: TokenizerExpected = support::json(&folder.join("expected.json"));
    let tokenizer = tokenizer("tokenizer-llama");
    assert_reads(&tokenizer, &expected, "llama");
    // Decoders of this kind drop the first space of a text; a token's own text has it.
    let ids = tokenizer.encode("The cat", false).unwrap();
    let texts: String = ids
        .iter()
        .map(|id| tokenizer.token_text(*id).expect("a token"))
        .collect();
    assert_eq!(texts, " The cat");
    assert_eq!(tokenizer.token_text(2).as_deref(), Some("</s>"));
}
