//! The engine on a device that is slower than the host and keeps its tokens to itself until they are collected.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor};
use futures::StreamExt;
use futures::executor::block_on;

use super::*;
use crate::engine::request::{FinishReason, Request, RequestStream};
use crate::engine::scheduler::Limits;
use crate::engine::{Engine, EngineConfig, EngineStats};
use crate::models::CausalLm;
use crate::ops::{
    Attention, ChosenToken, Embedding, Epilogue, KV_BLOCK_TOKENS, KvPages, KvShape, LayerPages,
    Linear, MAX_TOP_LOGPROBS, Norm, Ops, Pass, PositionTable, StepInputs, StepTensors,
};
use crate::sampling_params::SamplingParams;

const VOCAB_SIZE: u32 = 97;
const EOS: u32 = 0;
const MAX_MODEL_LEN: usize = 160;

/// What follows a token.
fn next(token: u32) -> u32 {
    (token + 1) % VOCAB_SIZE
}

/// Follows every token by the next one, and remembers what each slot of its pages has.
#[derive(Default)]
struct Ahead {
    pages: RefCell<HashMap<usize, u32>>,
    /// Tokens chosen by the step launched last.
    chosen: RefCell<Vec<u32>>,
    launched: RefCell<VecDeque<Vec<RowResult>>>,
    /// The most steps that were under way at once.
    depth: Arc<std::sync::atomic::AtomicUsize>,
    /// Rows of each step so far.
    rows: Arc<std::sync::Mutex<Vec<usize>>>,
    /// How long each step takes.
    takes: Duration,
    /// Its steps fail.
    broken: bool,
    /// Output tokens follow so many: all of them must be counted among those that have occurred.
    outputs_follow: Option<usize>,
}

impl Ahead {
    /// A span's tokens so far must be in its pages, in order.
    fn check(&self, step: &StepInputs) {
        let pages = self.pages.borrow();
        for span in &step.spans {
            let table = step.table(span);
            let token = |at: usize| {
                let block = table[at / KV_BLOCK_TOKENS] as usize;
                pages[&(block * KV_BLOCK_TOKENS + at % KV_BLOCK_TOKENS)]
            };
            for at in 1..span.context + span.len {
                assert_eq!(token(at), next(token(at - 1)), "at {at} of {span:?}");
            }
        }
    }
}

impl Ops for Ahead {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn recorded_batch_sizes(&self) -> &[usize] {
        &[1, 2, 4, 8]
    }

    fn launch(&self, step: &StepInputs, _: &mut dyn FnMut() -> Result<StepTensors>) -> Result<()> {
        if self.broken {
            candle_core::bail!("out of memory");
        }
        let mut tokens = step.tokens.clone();
        for carried in &step.carried {
            tokens[carried.row as usize] = self.chosen.borrow()[carried.from as usize];
        }
        let slots = step.slots.iter().map(|slot| *slot as usize);
        self.pages
            .borrow_mut()
            .extend(slots.zip(tokens.iter().copied()));
        self.check(step);
        self.rows.lock().unwrap().push(step.tokens.len());
        let mut rows = Vec::new();
        let mut chosen = Vec::new();
        for wanted in &step.wanted {
            if let Some(prompt) = self.outputs_follow {
                let penalized = &step.penalized[wanted.penalized.clone()];
                let known: u32 = penalized.iter().map(|it| it.times).sum();
                let carried = step.carried.iter().any(|it| it.row == wanted.row);
                let place = step.positions[wanted.row as usize] as usize;
                assert_eq!(prompt + known as usize + usize::from(carried), place + 1);
            }
            let token = next(tokens[wanted.row as usize]);
            chosen.push(token);
            rows.push(match wanted.choice {
                Choice::Device(_) => RowResult::Token(ChosenToken {
                    token,
                    logprobs: None,
                }),
                Choice::Host => {
                    let logits = (0..VOCAB_SIZE).map(|id| f32::from(id == token) * 99.0);
                    RowResult::Logits(logits.collect())
                }
            });
        }
        *self.chosen.borrow_mut() = chosen;
        let mut launched = self.launched.borrow_mut();
        launched.push_back(rows);
        self.depth.fetch_max(launched.len(), Ordering::Relaxed);
        Ok(())
    }

    fn collect(&self) -> Result<StepResult> {
        std::thread::sleep(self.takes);
        Ok(StepResult {
            rows: self.launched.borrow_mut().pop_front().expect("launched"),
            hidden: Tensor::zeros((1, 1), DType::F32, &Device::Cpu)?,
            device_time: None,
            pass: Pass::Graph,
        })
    }

    fn embed(&self, _: &StepInputs, _: &Embedding) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }

    fn embed_positions(&self, _: &StepInputs, _: &PositionTable) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }

    fn project(&self, _: &Tensor, _: Option<&Norm>, _: &Linear, _: Epilogue) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }

    fn project_add(&self, _: &Tensor, _: &Linear, _: &Tensor) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }

    fn norm(&self, _: &Tensor, _: &Norm, _: Option<&Tensor>) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }

    fn attend(&self, _: &Tensor, _: &Attention, _: &StepInputs, _: &LayerPages) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }

    fn wanted(&self, _: &Tensor, _: &StepInputs) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }
}

struct NoModel;

impl CausalLm for NoModel {
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

    fn forward(&self, _: &dyn Ops, _: &StepInputs, _: &KvPages) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }

    fn logits(&self, _: &dyn Ops, _: &Tensor) -> Result<Tensor> {
        unreachable!("no forward pass is run")
    }
}

/// Sequences of the first token to run.
fn request(first: u32, prompt: usize, max_tokens: usize, host: bool) -> Request {
    let prompt_tokens = std::iter::successors(Some(first), |token| Some(next(*token)));
    Request {
        prompt_tokens: prompt_tokens.take(prompt).collect(),
        params: SamplingParams {
            temperature: 0.0,
            max_tokens,
            // More than a device gives.
            logprobs: host.then_some(MAX_TOP_LOGPROBS + 1),
            ..SamplingParams::default()
        },
        span: opentelemetry::trace::SpanContext::NONE,
    }
}

/// A device of so many blocks.
fn work(device: Ahead, kv_blocks: usize) -> Work {
    let limits = Limits {
        max_num_seqs: 6,
        max_num_batched_tokens: 48,
        max_model_len: MAX_MODEL_LEN,
        kv_blocks,
        prefix_caching: true,
    };
    Work {
        runner: ModelRunner::new(Box::new(NoModel), Box::new(device), kv_blocks).unwrap(),
        scheduler: Scheduler::new(limits),
        vocabulary: Vocabulary {
            size: VOCAB_SIZE as usize,
            eos_token_ids: vec![EOS],
        },
        observer: None,
    }
}

/// Runs requests on a device of so many blocks; each is cut off after so many tokens, if it is.
fn run(kv_blocks: usize, requests: Vec<(Request, Option<usize>)>) -> (EngineStats, usize) {
    run_on(Ahead::default(), kv_blocks, requests)
}

fn run_on(
    device: Ahead,
    kv_blocks: usize,
    requests: Vec<(Request, Option<usize>)>,
) -> (EngineStats, usize) {
    let config = EngineConfig::default();
    let (engine, submissions) = Engine::channel(config, MAX_MODEL_LEN);
    let depth = Arc::clone(&device.depth);
    let streams: Vec<_> = requests
        .into_iter()
        .map(|(request, cut)| (engine.submit(request.clone()).unwrap(), request, cut))
        .collect();
    let shared = Arc::clone(&engine.shared);
    let thread = start(work(device, kv_blocks), submissions, shared).unwrap();
    for (stream, request, cut) in streams {
        match cut {
            Some(tokens) => drop(block_on(stream.take(1 + tokens).collect::<Vec<_>>())),
            None => check(stream, &request),
        }
    }
    engine.shut_down();
    thread.join().unwrap();
    (engine.stats(), depth.load(Ordering::Relaxed))
}

/// The tokens must follow the prompt, up to the end of sequence or the length.
fn check(stream: RequestStream, request: &Request) {
    let events: Vec<_> = block_on(stream.collect());
    let mut last = *request.prompt_tokens.last().expect("a prompt");
    let (mut tokens, mut finished) = (0, None);
    for event in &events {
        match event {
            Event::Token { id, .. } => {
                assert_eq!(*id, next(last), "{events:?}");
                assert_ne!(last, EOS, "nothing follows the end");
                last = *id;
                tokens += 1;
            }
            Event::Finished { reason, .. } => finished = Some(*reason),
            _ => {}
        }
    }
    let room = MAX_MODEL_LEN - request.prompt_tokens.len();
    let length = request.params.max_tokens.min(room);
    match finished.expect("it ends") {
        FinishReason::Eos => assert_eq!(last, EOS),
        FinishReason::Length => assert_eq!(tokens, length),
        other => panic!("{other:?}"),
    }
}

fn all_given_back(stats: &EngineStats) {
    assert_eq!((stats.running, stats.waiting), (0, 0));
    assert_eq!(stats.kv_cache_usage, 0.0);
}

/// The same, its tokens drawn.
fn drawn(mut request: Request) -> Request {
    request.params.temperature = 1.0;
    request
}

#[test]
fn the_host_is_one_step_ahead_and_the_tokens_are_the_same() {
    let requests = vec![
        (drawn(request(9, 7, 25, false)), None),
        (request(1, 5, 20, false), None),
        (request(80, 40, 30, false), None), // to the end of sequence
        (request(1, 70, 1, false), None),
        (request(3, 100, 500, false), None), // to the end of the context
    ];
    let (stats, depth) = run(64, requests);
    assert_eq!(depth, 2);
    all_given_back(&stats);
}

#[test]
fn a_sequence_whose_tokens_the_host_chooses_waits_for_them() {
    for request in [request(1, 5, 20, true), drawn(request(1, 5, 20, true))] {
        let (stats, depth) = run(64, vec![(request, None)]);
        assert_eq!(depth, 1);
        all_given_back(&stats);
    }
}

#[test]
fn sequences_whose_tokens_the_host_chooses_hold_no_others_up() {
    let mixed = (0..6).map(|index| (request(7 * index + 1, 9, 25, index % 2 == 0), None));
    let (stats, depth) = run(64, mixed.collect());
    assert_eq!(depth, 2);
    all_given_back(&stats);
}

#[test]
fn a_device_hears_of_all_tokens_that_have_come_but_the_one_it_carries() {
    let penalized = |first| {
        let mut request = request(first, 40, 50, false);
        request.params.presence_penalty = 0.5;
        (request, None)
    };
    let device = Ahead {
        outputs_follow: Some(40),
        ..Ahead::default()
    };
    // Of so few blocks that some are preempted.
    let (stats, depth) = run_on(device, 14, (1..7).map(penalized).collect());
    assert_eq!(depth, 2);
    assert!(stats.preemptions > 0, "{stats:?}");
    all_given_back(&stats);
}

#[test]
fn preempted_and_cancelled_sequences_lose_nothing_of_what_was_under_way() {
    let requests = (0..60u32).map(|index| {
        let cut = (index % 5 == 3).then_some(index as usize % 7);
        let length = 1 + index as usize * 13 % 50;
        (request(1 + index % 3, length, 90, index % 11 == 0), cut)
    });
    let (stats, depth) = run(16, requests.collect());
    assert_eq!(depth, 2);
    assert!(stats.preemptions > 0, "{stats:?}");
    assert!(stats.prefix_cache_hits > 0, "{stats:?}");
    all_given_back(&stats);
}

/// Counts what was preempted, by what is told of the steps.
struct Told(Arc<std::sync::atomic::AtomicUsize>);

impl StepObserver for Told {
    fn step(&self, report: &StepReport) {
        self.0.fetch_add(report.preempted, Ordering::Relaxed);
    }
}

#[test]
fn a_preemption_without_a_step_is_told_with_the_next_one() {
    let (engine, submissions) = Engine::channel(EngineConfig::default(), MAX_MODEL_LEN);
    // The second one's first token finds no block, while the first one's only token is still under way.
    let only = engine
        .submit(request(1, KV_BLOCK_TOKENS + 1, 1, false))
        .unwrap();
    let preempted = engine
        .submit(request(3, KV_BLOCK_TOKENS, 5, false))
        .unwrap();
    let told = Arc::default();
    let mut work = work(Ahead::default(), 3);
    work.observer = Some(Box::new(Told(Arc::clone(&told))));
    let thread = start(work, submissions, Arc::clone(&engine.shared)).unwrap();
    let events = [only, preempted].map(|stream| block_on(stream.collect::<Vec<_>>()));
    let was_preempted = |event: &Event| matches!(event, Event::Preempted { .. });
    assert_eq!(
        events.map(|events| events.iter().filter(|event| was_preempted(event)).count()),
        [0, 1]
    );
    engine.shut_down();
    thread.join().unwrap();
    assert_eq!(engine.stats().preemptions, 1);
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[test]
fn steps_of_every_batch_size_that_can_come_are_recorded_before_there_are_requests() {
    let recorded = |max_num_seqs| {
        let device = Ahead::default();
        let rows = Arc::clone(&device.rows);
        let runner = ModelRunner::new(Box::new(NoModel), Box::new(device), 1).unwrap();
        runner.record(max_num_seqs).unwrap();
        let rows = rows.lock().unwrap();
        rows.clone()
    };
    assert_eq!(recorded(1), [1]);
    assert_eq!(recorded(3), [1, 2, 4], "three run as four");
    assert_eq!(recorded(100), [1, 2, 4, 8]);
}

#[test]
fn what_cannot_be_recorded_is_not_said_to_be_the_cache() {
    let device = Ahead {
        broken: true,
        ..Ahead::default()
    };
    let runner = ModelRunner::new(Box::new(NoModel), Box::new(device), 1).unwrap();
    let refused = crate::engine::recorded(runner, 4).err().expect("refused");
    assert_eq!(
        refused.to_string(),
        "cannot record the decode steps of up to 4 sequences: if memory is short, \
         lower --max-num-seqs, or --gpu-memory-utilization"
    );
    let source = std::error::Error::source(&refused).expect("what the device said");
    assert_eq!(source.to_string(), "out of memory");
}

#[test]
fn waiting_for_the_device_is_no_part_of_scheduling() {
    let takes = Duration::from_millis(5);
    let device = Ahead {
        takes,
        ..Ahead::default()
    };
    let (engine, submissions) = Engine::channel(EngineConfig::default(), MAX_MODEL_LEN);
    // The host chooses the tokens: no step is scheduled while another one is under way.
    let stream = engine.submit(request(1, 5, 8, true)).unwrap();
    let begun = Instant::now();
    let thread = start(work(device, 64), submissions, Arc::clone(&engine.shared)).unwrap();
    let events: Vec<_> = block_on(stream.collect());
    let elapsed = begun.elapsed();
    let times = events.iter().rev().find_map(|event| match event {
        Event::Token { times, .. } => Some(*times),
        _ => None,
    });
    let times = times.expect("tokens came");
    assert!(times.model_forward >= 8 * takes, "{times:?}");
    let counted = times.scheduler + times.model_forward;
    assert!(counted <= elapsed, "nothing counts twice: {times:?}");
    engine.shut_down();
    thread.join().unwrap();
}
