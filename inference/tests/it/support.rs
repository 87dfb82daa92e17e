//! What the tests of engine and loader share.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use futures::executor::block_on;
use lantern_inference::engine::request::{Event, FinishReason, Request, RequestStream};
use lantern_inference::sampling_params::SamplingParams;

/// Models and tokenizers with what transformers makes of them.
pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// The JSON file at `path`.
pub(crate) fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// A request for the best `max_tokens` tokens, end of sequence or not.
pub(crate) fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    let params = SamplingParams {
        temperature: 0.0,
        ignore_eos: true,
        max_tokens,
        ..SamplingParams::default()
    };
    Request {
        prompt_tokens: prompt.to_vec(),
        params,
    }
}

/// All events of a request, waited for.
pub(crate) fn events(stream: RequestStream) -> Vec<Event> {
    block_on(stream.collect())
}

/// The tokens of a request that must end by its length.
pub(crate) fn tokens(stream: RequestStream) -> Vec<u32> {
    let events = events(stream);
    let last = events.last().expect("a stream has a last event");
    let length = matches!(
        last,
        Event::Finished {
            reason: FinishReason::Length,
            ..
        }
    );
    assert!(length, "ended by its length: {last:?}");
    token_ids(&events)
}

/// The tokens among some events.
pub(crate) fn token_ids(events: &[Event]) -> Vec<u32> {
    let token = |event: &Event| match event {
        Event::Token { id, .. } => Some(*id),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}
