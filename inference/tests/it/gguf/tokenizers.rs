//! Tokenizers out of metadata.

use candle_core::quantized::gguf_file::Value;
use lantern_inference::tokenizer::{Tokenizer, TokenizerError};
use serde_json::Value as Json;

use super::write::{File, texts};
use super::{resolve, write};
use crate::goldens::{TokenizerExpected, assert_reads};
use crate::support::{self, goldens};

fn tokenizer(file: &File) -> Result<Tokenizer, TokenizerError> {
    let (_folder, path) = write(file);
    Tokenizer::load(&resolve(&path).unwrap())
}

/// A file with this tokenizer; the model in it is of no interest.
fn file(model: &str, tokens: &[&str], kinds: &[i32]) -> File {
    let mut file = File::of_golden("llama2");
    file.set("tokenizer.ggml.model", Value::String(model.to_owned()));
    file.set("tokenizer.ggml.tokens", texts(tokens.iter().copied()));
    let kinds = kinds.iter().map(|kind| Value::I32(*kind)).collect();
    file.set("tokenizer.ggml.token_type", Value::Array(kinds));
    file
}

/// The tokens of a tokenizer.json, by id.
fn vocabulary(json: &Json) -> Vec<String> {
    let ids = json["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<_> = ids.iter().map(|(token, id)| (id.as_u64(), token)).collect();
    tokens.sort();
    tokens.into_iter().map(|(_, token)| token.clone()).collect()
}

#[test]
fn byte_level_bpe_reads_as_transformers_reads_it() {
    let folder = goldens().join("tokenizer");
    let json: Json = support::json(&folder.join("tokenizer-json/tokenizer.json"));
    let tokens = vocabulary(&json);
    let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
    let special = |token: &&str| ["<pad>", "</s>"].contains(token);
    let kinds: Vec<_> = tokens
        .iter()
        .map(|it| if special(it) { 3 } else { 1 })
        .collect();
    let merges = json["model"]["merges"].as_array().unwrap();
    let merge = |pair: &Json| Value::String(format!("{} {}", text(&pair[0]), text(&pair[1])));
    let mut file = file("gpt2", &tokens, &kinds);
    file.set(
        "tokenizer.ggml.merges",
        Value::Array(merges.iter().map(merge).collect()),
    );
    file.set("tokenizer.ggml.pre", Value::String("gpt-2".to_owned()));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(2));
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let expected: TokenizerExpected = support::json(&folder.join("expected.json"));
    assert_reads(&tokenizer(&file).unwrap(), &expected, "GGUF");
}

fn text(json: &Json) -> &str {
    json.as_str().unwrap()
}

#[test]
fn sentence_piece_reads_as_transformers_reads_it() {
    let folder = goldens().join("tokenizer-llama");
    let json: Json = support::json(&folder.join("tokenizer.json"));
    let tokens = vocabulary(&json);
    let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
    let kind = |id| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    };
    let kinds: Vec<_> = (0..tokens.len()).map(kind).collect();
    let mut file = file("llama", &tokens, &kinds);
    // As SentencePiece has them: the sooner a token was made in training, the better.
    let scores = (0..tokens.len())
        .map(|id| Value::F32(-(id as f32)))
        .collect();
    file.set("tokenizer.ggml.scores", Value::Array(scores));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    file.set("tokenizer.ggml.unknown_token_id", Value::U32(0));
    let expected: TokenizerExpected = support::json(&folder.join("expected.json"));
    assert_reads(&tokenizer(&file).unwrap(), &expected, "GGUF");
}

#[test]
fn the_best_score_is_joined_first_and_what_is_user_defined_is_never_cut() {
    let tokens = [
        "<unk>", "a", "b", "c", "ab", "bc", "abc", "\u{2581}", "<x>", "<0xC3>", "<0xA4>",
    ];
    let mut file = file("llama", &tokens, &[2, 1, 1, 1, 1, 1, 1, 1, 4, 6, 6]);
    let scores = |ab: f32, bc: f32| {
        let scores = [0.0, -9.0, -9.0, -9.0, ab, bc, -20.0, -9.0, -9.0, 0.0, 0.0];
        Value::Array(scores.map(Value::F32).to_vec())
    };
    file.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    file.set("tokenizer.ggml.unknown_token_id", Value::U32(0));
    file.set("tokenizer.ggml.scores", scores(-1.0, -2.0));
    let read = |file: &File, text: &str| tokenizer(file).unwrap().encode(text, true).unwrap();
    assert_eq!(read(&file, "cab bcc"), [3, 4, 7, 5, 3]);
    assert_eq!(read(&file, "abc"), [6], "ab and then abc");
    assert_eq!(
        read(&file, "a<x>\u{e4}"),
        [1, 8, 9, 10],
        "bytes for what has no token"
    );
    assert_eq!(
        tokenizer(&file)
            .unwrap()
            .decode(&[6, 7, 9, 10], true)
            .unwrap(),
        "abc \u{e4}"
    );
}

#[test]
fn words_are_cut_as_the_files_pre_tokenizer_says() {
    let tokens = ["1", "2", "3", "4", "12", "123", "1234"];
    let mut file = file("gpt2", &tokens, &[1; 7]);
    file.set("tokenizer.ggml.merges", texts(["1 2", "12 3", "123 4"]));
    for (name, expected) in [
        ("gpt-2", &[6][..]),
        ("llama-bpe", &[5, 3]),
        ("qwen2", &[0, 1, 2, 3]),
        ("smollm", &[0, 1, 2, 3]),
    ] {
        file.set("tokenizer.ggml.pre", Value::String(name.to_owned()));
        let read = tokenizer(&file).unwrap();
        assert_eq!(read.encode("1234", false).unwrap(), expected, "{name}");
    }
}

#[test]
fn tokenizers_that_are_lacking_are_refused_by_name() {
    let mut other = file("gpt2", &["a"], &[1]);
    other.set("tokenizer.ggml.merges", texts(["a a"]));
    other.set("tokenizer.ggml.pre", Value::String("tekken".to_owned()));
    let refused = tokenizer(&other).unwrap_err().to_string();
    let expected =
        "tokenizer.ggml.pre = tekken is not supported: gpt-2, llama-bpe, qwen2 and smollm are";
    assert!(refused.ends_with(expected), "{refused}");

    let refused = tokenizer(&file("t5", &["a"], &[1]))
        .unwrap_err()
        .to_string();
    let expected = "tokenizer.ggml.model = t5 is not supported: llama and gpt2 are";
    assert!(refused.ends_with(expected), "{refused}");

    let short = tokenizer(&file("llama", &["a", "b"], &[1]))
        .unwrap_err()
        .to_string();
    assert!(
        short.contains("tokenizer.ggml.token_type = 1 kinds"),
        "{short}"
    );
}
