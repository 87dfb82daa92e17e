//! A stream is the whole text in pieces: for any bytes, any stop strings, any number of sequences.

use lantern_inference::engine::request::FinishReason;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::harness::{Harness, tell};

const MAX_TOKENS: usize = 50;

/// What both ways of asking must agree on, by choice.
#[derive(Debug, Default, Clone, PartialEq)]
struct Outcome {
    text: String,
    finish_reason: Value,
    stop_reason: Value,
}

fn gather(chunks: &[Value], choices: usize) -> Vec<Outcome> {
    let mut outcomes = vec![Outcome::default(); choices];
    for choice in chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
    {
        let outcome = &mut outcomes[choice["index"].as_u64().unwrap() as usize];
        assert!(
            outcome.finish_reason.is_null(),
            "nothing comes after the end of a choice"
        );
        outcome.text.push_str(choice["text"].as_str().unwrap());
        outcome.finish_reason = choice["finish_reason"].clone();
        outcome.stop_reason = choice["stop_reason"].clone();
    }
    outcomes
}

/// Bytes that are often parts of characters, or of the stop strings.
fn output() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "[abc]{1,3}".prop_map(String::into_bytes),
        "\\PC".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 1..3),
    ];
    prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

#[test]
fn stream_concatenates_to_the_text_that_is_not_streamed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // The scripted engine says the prompt's own tokens, so the property chooses the output. All but
    // the last, a full stop: what the prompt ends with must not complete what the output begins.
    let harness = runtime.block_on(Harness::start(|submission| {
        let (_, tokens) = submission
            .request
            .prompt_tokens
            .split_last()
            .expect("a prompt");
        let tokens = &tokens[..tokens.len().min(MAX_TOKENS)];
        tell(&submission, tokens, FinishReason::Length);
    }));
    let stops = prop::collection::vec("[abc]{1,3}", 0..3);
    let mut runner = TestRunner::new(Config {
        cases: 128,
        ..Config::default()
    });
    let checked = runner.run(&(output(), stops, 1..3usize), |(bytes, stops, n)| {
        let prompt = [bytes.as_slice(), b"."].concat();
        let mut body = json!({
            "prompt": prompt, "stop": stops, "n": n,
            "max_tokens": MAX_TOKENS,
        });
        let whole = runtime
            .block_on(harness.post("/v1/completions", &body))
            .json();
        body["stream"] = json!(true);
        let streamed = runtime
            .block_on(harness.post("/v1/completions", &body))
            .chunks();
        let streamed = gather(&streamed, n);
        prop_assert_eq!(&streamed, &gather(&[whole], n));
        for outcome in &streamed {
            prop_assert!(stops.iter().all(|stop| !outcome.text.contains(stop)));
            let all = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TOKENS)]).into_owned();
            prop_assert!(all.starts_with(&outcome.text), "{:?} {:?}", all, outcome);
            if outcome.stop_reason.is_null() {
                let missing = all[outcome.text.len()..].chars();
                let incomplete = missing.clone().all(|c| c == char::REPLACEMENT_CHARACTER);
                prop_assert!(incomplete && missing.count() <= 3);
            }
        }
        Ok(())
    });
    checked.unwrap();
}
