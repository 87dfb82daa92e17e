//! The engine from outside: what its streams say, what its bounds refuse, how it ends.
//!
//! Most tests run a scripted model whose every step waits for the test: no timing decides anything.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor};
use futures::StreamExt;
use futures::executor::block_on;
use lantern_inference::engine::request::{Event, FinishReason, Request, StepTimes};
use lantern_inference::engine::{Engine, EngineConfig, EngineError, EngineThread, SubmitError};
use lantern_inference::loader::{self, DTypeChoice, DeviceChoice, HubOptions, LoadedModel};
use lantern_inference::models::CausalLm;
use lantern_inference::ops::{KvPages, KvShape, Ops, StepInputs};
use lantern_inference::sampling_params::SamplingParams;
use opentelemetry::trace::SpanContext;

use crate::support::{self, events, greedy, token_ids, tokens};

const VOCAB_SIZE: u32 = 17;
const MAX_MODEL_LEN: usize = 64;
const EOS: u32 = 0;
/// After this token, which never follows another, the model's logits are no numbers.
const BROKEN: u32 = 16;

/// What the model does in its next step.
enum Next {
    Run,
    Fail,
    Panic,
}

/// Continues every token with the next higher one, 15 with 0. Reports each batch and waits to be told how to
/// go on; once the test has let go of it, it runs freely.
struct Scripted {
    batches: Sender<StepInputs>,
    next: Mutex<Receiver<Next>>,
}

impl CausalLm for Scripted {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn kv_shape(&self) -> KvShape {
        KvShape {
            layers: 0,
            heads: 1,
            head_dim: 1,
            dtype: DType::F32,
        }
    }

    fn forward(&self, _: &dyn Ops, batch: &StepInputs, _: &KvPages) -> Result<Tensor> {
        let _ = self.batches.send(batch.clone());
        match self.next.lock().unwrap().recv() {
            Ok(Next::Run) | Err(_) => {}
            Ok(Next::Fail) => candle_core::bail!("out of memory"),
            Ok(Next::Panic) => panic!("as scripted"),
        }
        let tokens: Vec<f32> = batch.tokens.iter().map(|token| *token as f32).collect();
        Tensor::from_vec(tokens, (batch.tokens.len(), 1), &Device::Cpu)
    }

    fn logits(&self, _: &dyn Ops, hidden: &Tensor) -> Result<Tensor> {
        let tokens = hidden.flatten_all()?.to_vec1::<f32>()?;
        let row = |token: &f32| {
            let broken = *token as u32 == BROKEN;
            let mut row = vec![if broken { f32::NAN } else { 0.0 }; VOCAB_SIZE as usize];
            row[(*token as usize + 1) % BROKEN as usize] += 9.0;
            row
        };
        Tensor::new(tokens.iter().map(row).collect::<Vec<_>>(), &Device::Cpu)
    }
}

struct Script {
    engine: Engine,
    thread: EngineThread,
    batches: Receiver<StepInputs>,
    next: Sender<Next>,
}

fn script(config: EngineConfig) -> Script {
    let (batch_sender, batches) = channel();
    let (next, next_receiver) = channel();
    let model = Scripted {
        batches: batch_sender,
        next: Mutex::new(next_receiver),
    };
    let model = LoadedModel::new(
        Box::new(model),
        VOCAB_SIZE as usize,
        MAX_MODEL_LEN,
        vec![EOS],
    );
    let (engine, thread) = Engine::start(model, config).unwrap();
    Script {
        engine,
        thread,
        batches,
        next,
    }
}

impl Script {
    /// Waits until the next step has begun; it goes on at [`Script::run`].
    fn step_begun(&self) -> StepInputs {
        self.batches.recv().expect("the engine runs")
    }

    fn run(&self) {
        self.next.send(Next::Run).expect("the engine runs");
    }

    /// Lets the model run freely from here.
    fn let_go(self) -> (Engine, EngineThread) {
        (self.engine, self.thread)
    }
}

#[test]
fn a_request_is_scheduled_then_gets_its_tokens_then_ends() {
    let (engine, thread) = script(EngineConfig::default()).let_go();
    let stream = engine.submit(greedy(&[3, 4], 3)).unwrap();
    let queued = stream.queued;
    let events = events(stream);
    let [Event::Scheduled { at, .. }, rest @ ..] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert!(*at >= queued);
    assert_eq!(token_ids(rest), [5, 6, 7]);
    let Some(Event::Finished { reason, .. }) = rest.last() else {
        panic!("{events:?}")
    };
    assert_eq!((*reason, rest.len()), (FinishReason::Length, 4));
    engine.shut_down();
    thread.join().unwrap();
}

/// What each token says of the steps until it.
fn step_times(events: &[Event]) -> Vec<StepTimes> {
    let times = |event: &Event| match event {
        Event::Token { times, .. } => Some(*times),
        _ => None,
    };
    events.iter().filter_map(times).collect()
}

#[test]
fn tokens_tell_the_time_of_all_steps_so_far_those_without_a_token_too() {
    let script = script(EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: 2,
        ..EngineConfig::default()
    });
    let stream = script.engine.submit(greedy(&[1, 2, 3], 3)).unwrap();
    assert_eq!(script.step_begun().tokens, [1, 2], "a step of prompt alone");
    let held = Instant::now();
    while held.elapsed() < Duration::from_millis(20) {}
    let held = held.elapsed();
    script.run();
    let (_engine, _thread) = script.let_go();
    let times = step_times(&events(stream));
    assert_eq!(times.len(), 3);
    assert!(times[0].model_forward >= held, "{times:?}");
    for times in &times {
        assert!(times.model_execute >= times.model_forward, "{times:?}");
    }
    for pair in times.windows(2) {
        assert!(pair[0].scheduler < pair[1].scheduler, "{pair:?}");
        assert!(pair[0].model_forward < pair[1].model_forward, "{pair:?}");
        assert!(pair[0].model_execute < pair[1].model_execute, "{pair:?}");
    }
}

#[test]
fn end_of_sequence_and_stop_tokens_are_sent_and_end_the_request() {
    let (engine, _thread) = script(EngineConfig::default()).let_go();
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: 40,
        ..SamplingParams::default()
    };
    let run = |prompt: u32, stop_token_ids: Vec<u32>| {
        let params = SamplingParams {
            stop_token_ids,
            ..params.clone()
        };
        let stream = engine
            .submit(Request {
                prompt_tokens: vec![prompt],
                params,
                span: SpanContext::NONE,
            })
            .unwrap();
        let events = events(stream);
        let Some(Event::Finished { reason, .. }) = events.last() else {
            panic!("{events:?}")
        };
        (token_ids(&events), *reason)
    };
    assert_eq!(run(14, vec![]), (vec![15, EOS], FinishReason::Eos));
    assert_eq!(run(5, vec![7]), (vec![6, 7], FinishReason::StopToken(7)));
}

#[test]
fn a_request_ends_where_the_context_does() {
    let (engine, _thread) = script(EngineConfig::default()).let_go();
    let stream = engine.submit(greedy(&[1; MAX_MODEL_LEN - 3], 40)).unwrap();
    assert_eq!(tokens(stream), [2, 3, 4]);
}

#[test]
fn a_new_request_joins_the_batch_while_others_decode() {
    let script = script(EngineConfig::default());
    let first = script.engine.submit(greedy(&[1, 2, 3], 3)).unwrap();
    assert_eq!(script.step_begun().tokens, [1, 2, 3]);
    let second = script.engine.submit(greedy(&[7, 8], 1)).unwrap();
    script.run();
    let batch = script.step_begun();
    assert_eq!(batch.tokens, [4, 7, 8]);
    assert_eq!(batch.positions, [3, 0, 1]);
    let (_engine, _thread) = script.let_go();
    assert_eq!(tokens(first), [4, 5, 6]);
    assert_eq!(tokens(second), [9]);
}

#[test]
fn dropping_a_stream_frees_its_place_in_the_batch() {
    let script = script(EngineConfig {
        max_num_seqs: 1,
        ..EngineConfig::default()
    });
    let first = script.engine.submit(greedy(&[1], 50)).unwrap();
    assert_eq!(script.step_begun().tokens, [1]);
    let second = script.engine.submit(greedy(&[7], 1)).unwrap();
    drop(first);
    script.run();
    assert_eq!(
        script.step_begun().tokens,
        [7],
        "the first one runs no further"
    );
    let (_engine, _thread) = script.let_go();
    assert_eq!(tokens(second), [8]);
}

#[test]
fn a_full_queue_refuses_until_a_place_is_free() {
    let config = EngineConfig {
        max_num_seqs: 1,
        max_waiting_requests: 2,
        ..EngineConfig::default()
    };
    let script = script(config);
    let submit = || script.engine.submit(greedy(&[1], 50));
    let running = submit().unwrap();
    script.step_begun();
    let (waiting, cancelled) = (submit().unwrap(), submit().unwrap());
    assert_eq!(script.engine.stats().waiting, 2);
    assert_eq!(submit().unwrap_err(), SubmitError::QueueFull { limit: 2 });
    drop(cancelled);
    script.run();
    script.step_begun();
    let waiting_too = submit().expect("the cancelled one has left the queue");
    assert_eq!(submit().unwrap_err(), SubmitError::QueueFull { limit: 2 });
    let (engine, _thread) = script.let_go();
    for stream in [running, waiting, waiting_too] {
        assert_eq!(tokens(stream).len(), 50);
    }
    assert_eq!(engine.stats().waiting, 0);
}

#[test]
fn places_taken_together_stay_while_others_find_the_queue_full() {
    let config = EngineConfig {
        max_waiting_requests: 3,
        ..EngineConfig::default()
    };
    let (engine, _thread) = script(config).let_go();
    let full = SubmitError::QueueFull { limit: 3 };
    assert_eq!(engine.reserve(4).unwrap_err(), full);
    let places = engine.reserve(2).unwrap();
    let held = engine.reserve(1).unwrap();
    assert_eq!(engine.stats().waiting, 0, "places are no requests");
    for _ in 0..3 {
        assert_eq!(engine.submit(greedy(&[1], 1)).unwrap_err(), full);
        let streams = [1, 2].map(|token| places.submit(greedy(&[token], 1)).unwrap());
        assert_eq!(streams.map(tokens), [[2], [3]]);
    }
    drop(held);
    assert_eq!(tokens(engine.submit(greedy(&[1], 1)).unwrap()), [2]);
}

#[test]
fn places_hold_no_more_requests_than_they_are() {
    let script = script(EngineConfig {
        max_num_seqs: 1,
        ..EngineConfig::default()
    });
    let running = script.engine.submit(greedy(&[1], 2)).unwrap();
    script.step_begun();
    let places = script.engine.reserve(1).unwrap();
    let waiting = places.submit(greedy(&[5], 1)).unwrap();
    assert!(places.submit(greedy(&[5], 1)).is_err());
    let (_engine, _thread) = script.let_go();
    assert_eq!(tokens(running), [2, 3]);
    assert_eq!(tokens(waiting), [6]);
}

#[test]
fn shutdown_refuses_new_requests_and_finishes_those_accepted() {
    let script = script(EngineConfig {
        max_num_seqs: 1,
        ..EngineConfig::default()
    });
    let running = script.engine.submit(greedy(&[1], 5)).unwrap();
    script.step_begun();
    let waiting = script.engine.submit(greedy(&[2], 5)).unwrap();
    script.engine.shut_down();
    let refused = script.engine.submit(greedy(&[3], 5)).unwrap_err();
    assert_eq!(refused, SubmitError::Stopped("it was shut down".to_owned()));
    let (engine, thread) = script.let_go();
    thread.join().unwrap();
    assert_eq!((tokens(running).len(), tokens(waiting).len()), (5, 5));
    assert!(engine.stats().healthy, "an orderly end");
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let (engine, thread) = script(EngineConfig::default()).let_go();
    let other = engine.clone();
    drop(engine);
    assert_eq!(tokens(other.submit(greedy(&[1], 1)).unwrap()), [2]);
    drop(other);
    thread.join().unwrap();
}

#[test]
fn a_prompt_without_room_for_a_token_is_refused() {
    let (engine, _thread) = script(EngineConfig::default()).let_go();
    let prompt_tokens = MAX_MODEL_LEN;
    let refused = engine
        .submit(greedy(&vec![1; prompt_tokens], 1))
        .unwrap_err();
    let max_model_len = MAX_MODEL_LEN;
    assert_eq!(
        refused,
        SubmitError::PromptTooLong {
            prompt_tokens,
            max_model_len
        }
    );
    assert!(
        engine
            .submit(greedy(&vec![1; prompt_tokens - 1], 1))
            .is_ok()
    );
}

#[test]
fn what_only_one_request_did_wrong_fails_that_one_alone() {
    let script = script(EngineConfig::default());
    let good = script.engine.submit(greedy(&[1], 5)).unwrap();
    script.step_begun();
    let submit = |prompt: &[u32]| script.engine.submit(greedy(prompt, 5)).unwrap();
    let bad = [submit(&[VOCAB_SIZE]), submit(&[]), submit(&[BROKEN])];
    let (engine, _thread) = script.let_go();
    let messages = bad.map(|stream| match events(stream).pop() {
        Some(Event::Failed { message }) => message,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        messages,
        [
            "token id 17 is not below the vocabulary size, 17",
            "the prompt is empty",
            "the model's logits are not numbers"
        ]
    );
    assert_eq!(tokens(good).len(), 5);
    assert!(engine.stats().healthy);
}

#[test]
fn a_device_error_fails_everyone_and_stops_the_engine() {
    let script = script(EngineConfig {
        max_num_seqs: 1,
        ..EngineConfig::default()
    });
    let running = script.engine.submit(greedy(&[1], 5)).unwrap();
    script.step_begun();
    let waiting = script.engine.submit(greedy(&[2], 5)).unwrap();
    script.next.send(Next::Fail).unwrap();
    let (engine, thread) = script.let_go();
    let failure = thread.join().unwrap_err().to_string();
    assert_eq!(
        failure,
        "the engine failed: the device failed: out of memory"
    );
    for stream in [running, waiting] {
        let message = "the device failed: out of memory".to_owned();
        assert_eq!(events(stream).pop(), Some(Event::Failed { message }));
    }
    assert!(!engine.stats().healthy);
    let refused = engine.submit(greedy(&[1], 1)).unwrap_err();
    assert_eq!(
        refused,
        SubmitError::Stopped("the device failed: out of memory".to_owned())
    );
}

/// Clients that go away: before their request is scheduled, in its prompt, or among its tokens.
#[test]
fn ten_thousand_disconnects_leave_no_block_behind() {
    const DISCONNECTS: usize = 10_000;
    let config = EngineConfig {
        max_num_seqs: 16,
        max_num_batched_tokens: 64,
        max_waiting_requests: DISCONNECTS,
        ..EngineConfig::default()
    };
    let (engine, thread) = script(config).let_go();
    for index in 0..DISCONNECTS {
        let prompt = vec![1 + index as u32 % 9; 1 + index * 7 % 50];
        let mut stream = engine.submit(greedy(&prompt, 60)).unwrap();
        for _ in 0..index % 4 {
            block_on(stream.next());
        }
    }
    let last = greedy(&[1; 40], 10);
    assert_eq!(tokens(engine.submit(last).unwrap()).len(), 10);
    engine.shut_down();
    thread.join().unwrap();
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting), (0, 0));
    assert_eq!(stats.kv_cache_usage, 0.0);
}

#[test]
fn a_panic_ends_every_stream_too() {
    let script = script(EngineConfig::default());
    let running = script.engine.submit(greedy(&[1], 5)).unwrap();
    script.step_begun();
    script.run();
    script.step_begun();
    assert_eq!(script.engine.stats().running, 1);
    script.next.send(Next::Panic).unwrap();
    let (engine, thread) = script.let_go();
    assert!(thread.join().is_err());
    let message = "the engine ended".to_owned();
    assert_eq!(events(running).pop(), Some(Event::Failed { message }));
    let stats = engine.stats();
    assert!(!stats.healthy);
    assert_eq!((stats.running, stats.waiting), (0, 0));
    assert_eq!(stats.kv_cache_usage, 0.0);
    let refused = engine.submit(greedy(&[1], 1)).unwrap_err();
    assert_eq!(
        refused,
        SubmitError::Stopped("its thread panicked".to_owned())
    );
}

#[test]
fn bounds_that_cannot_hold_are_refused() {
    let refusal = |config: EngineConfig| {
        let path = support::goldens().join("opt-pre-ln");
        Engine::start(golden_model(&path), config).expect_err("refused")
    };
    let default = EngineConfig::default;
    let bound = |config: EngineConfig| match refusal(config) {
        EngineError::Config(error) => error.to_string(),
        other => panic!("{other}"),
    };
    assert_eq!(
        bound(EngineConfig {
            max_num_seqs: 0,
            ..default()
        }),
        "--max-num-seqs='0' is not supported: use at least 1"
    );
    assert_eq!(
        bound(EngineConfig {
            max_num_batched_tokens: 255,
            ..default()
        }),
        "--max-num-batched-tokens='255' is not supported: use at least --max-num-seqs, 256"
    );
    let small = refusal(EngineConfig {
        kv_cache_bytes: Some(1000),
        ..default()
    });
    // 128 tokens of 3 layers, keys and values of 48 numbers.
    assert_eq!(
        small.to_string(),
        "one sequence of 128 tokens needs 147456 bytes of KV cache, 1000 are there: \
         lower --max-model-len, or raise --kv-cache-memory-bytes (on a GPU --gpu-memory-utilization)"
    );
    let mut endless = golden_model(&support::goldens().join("opt-pre-ln"));
    endless.max_model_len = usize::MAX;
    let endless = Engine::start(endless, default()).expect_err("refused");
    assert!(
        matches!(endless, EngineError::KvCacheTooSmall { .. }),
        "{endless}"
    );
}

#[test]
fn a_cache_that_the_machine_cannot_hold_is_refused_at_start_with_the_flags_that_lower_it() {
    const MANY: usize = 1 << 26;
    let config = EngineConfig {
        max_num_seqs: MANY,
        max_num_batched_tokens: MANY,
        kv_cache_bytes: Some(u64::MAX),
        ..EngineConfig::default()
    };
    let model = golden_model(&support::goldens().join("opt-pre-ln"));
    let refused = Engine::start(model, config).expect_err("refused");
    let EngineError::KvCacheTooLarge {
        available_bytes, ..
    } = refused
    else {
        panic!("{refused}");
    };
    // As many blocks of 16 tokens as can be counted, of 1152 bytes a token.
    let bytes = u64::from(u32::MAX / 16) * 16 * 1152;
    assert_eq!(
        refused.to_string(),
        format!(
            "a KV cache of {bytes} bytes does not fit into the {available_bytes} bytes of memory that are left: \
             lower --kv-cache-memory-bytes, or --max-num-seqs"
        )
    );
}

fn golden_model(path: &std::path::Path) -> LoadedModel {
    let files = loader::resolve(path.to_str().unwrap(), &HubOptions::from_env()).unwrap();
    loader::load(&files, DeviceChoice::Cpu, DTypeChoice::Float32, None).unwrap()
}

#[test]
fn a_seed_gives_the_same_tokens_alone_and_in_company() {
    let seeded = |seed: u64| {
        let mut request = greedy(&[2, 17, seed as u32 + 3], 40);
        request.params.temperature = 1.0;
        request.params.top_p = 0.9;
        request.params.seed = Some(seed);
        request
    };
    let path = support::goldens().join("opt-pre-ln");
    let (engine, _thread) = Engine::start(golden_model(&path), EngineConfig::default()).unwrap();
    let alone: Vec<_> = (0..6)
        .map(|seed| tokens(engine.submit(seeded(seed)).unwrap()))
        .collect();
    let streams: Vec<_> = (0..6)
        .map(|seed| engine.submit(seeded(seed)).unwrap())
        .collect();
    let together: Vec<_> = streams.into_iter().map(tokens).collect();
    assert_eq!(together, alone);
    let unseeded = SamplingParams {
        seed: None,
        ..seeded(0).params
    };
    let request = Request {
        prompt_tokens: seeded(0).prompt_tokens,
        params: unseeded,
        span: SpanContext::NONE,
    };
    assert_ne!(
        tokens(engine.submit(request).unwrap()),
        alone[0],
        "drawn anew"
    );
}

#[test]
fn prompt_log_probabilities_come_first_and_whole() {
    let path = support::goldens().join("opt-pre-ln");
    let prompt: Vec<u32> = (3..40).collect();
    let run = |max_num_batched_tokens: usize| {
        let config = EngineConfig {
            max_num_seqs: 2,
            max_num_batched_tokens,
            ..EngineConfig::default()
        };
        let (engine, _thread) = Engine::start(golden_model(&path), config).unwrap();
        let mut request = greedy(&prompt, 2);
        request.params.prompt_logprobs = Some(3);
        block_on(engine.submit(request).unwrap().collect::<Vec<_>>())
    };
    let whole = run(2048);
    let [
        Event::Scheduled { .. },
        Event::PromptLogprobs(logprobs),
        Event::Token { .. },
        ..,
    ] = whole.as_slice()
    else {
        panic!("{whole:?}")
    };
    assert_eq!(logprobs.len(), prompt.len());
    assert_eq!(logprobs[0], None, "nothing comes before the first");
    for (entry, token) in logprobs.iter().zip(&prompt).skip(1) {
        let entry = entry.as_ref().expect("all others have one");
        assert_eq!((entry.token.0, entry.top.len()), (*token, 3));
        assert!(entry.token.1 <= entry.top[0].1 && entry.top[0].1 < 0.0);
        assert_eq!(entry.rank == 1, entry.top[0].0 == *token);
    }
    let chunked = run(10);
    let Event::PromptLogprobs(chunked) = &chunked[1] else {
        panic!("{chunked:?}")
    };
    for (a, b) in logprobs.iter().flatten().zip(chunked.iter().flatten()) {
        assert!((a.token.1 - b.token.1).abs() < 1e-4, "{a:?} {b:?}");
    }
    assert_eq!(chunked.len(), prompt.len());
}
