//! What the tests of engine and loader share.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use futures::StreamExt;
use futures::executor::block_on;
use lantern_inference::engine::request::{Event, FinishReason, Request, RequestStream};
use lantern_inference::models::CausalLm;
use lantern_inference::ops::{self, KV_BLOCK_TOKENS, KvPages, Ops, StepInputs};
use lantern_inference::sampling_params::SamplingParams;
use opentelemetry::trace::SpanContext;

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
        span: SpanContext::NONE,
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

/// A model with pages of its own, run without an engine.
pub(crate) struct Paged {
    model: Box<dyn CausalLm>,
    ops: Box<dyn Ops>,
    pages: KvPages,
    sequences: usize,
}

impl Paged {
    /// Room for so many sequences, of 256 tokens each.
    pub(crate) fn new(model: Box<dyn CausalLm>, sequences: usize) -> Self {
        let blocks = sequences * 256 / KV_BLOCK_TOKENS;
        Self {
            ops: ops::for_device(model.device()).unwrap(),
            pages: KvPages::new(&model.kv_shape(), blocks, model.device()).unwrap(),
            model,
            sequences,
        }
    }

    /// The same with the operations that any device has.
    pub(crate) fn plain(model: Box<dyn CausalLm>, sequences: usize) -> Self {
        let ops = ops::plain(model.device());
        Self {
            ops,
            ..Self::new(model, sequences)
        }
    }

    /// The blocks of one sequence: never neighbours, and not in their order.
    pub(crate) fn blocks(&self, sequence: usize) -> Vec<u32> {
        let places = (0..256 / KV_BLOCK_TOKENS).rev();
        places
            .map(|place| (place * self.sequences + sequence) as u32)
            .collect()
    }

    /// One step of these sequences' next tokens, each after so many others: all logits, (T, V).
    pub(crate) fn logits(&self, parts: &[(usize, &[u32], usize)]) -> Tensor {
        let mut step = StepInputs::default();
        for &(sequence, tokens, context) in parts {
            step.push(tokens, context, &self.blocks(sequence));
        }
        let (model, ops) = (&*self.model, &*self.ops);
        let mut logits = None;
        ops.launch(&step, &mut || {
            let hidden = model.forward(ops, &step, &self.pages)?;
            logits = Some(model.logits(ops, &hidden)?);
            Ok(ops::StepTensors {
                hidden,
                logits: None,
            })
        })
        .unwrap();
        ops.collect().unwrap();
        logits.expect("the pass was run")
    }
}
