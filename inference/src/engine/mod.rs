//! The engine: one thread owns the device and never awaits; everything else talks to it here.
//!
//! # Layout
//! - [`request`]: the border, plain data and channels
//! - `sequence`: one request's tokens and state
//! - `scheduler`: which sequences run in a step; pure, no tensors, clock or I/O
//! - `blocks`: who holds which blocks of KV cache, and what they remember; as pure
//! - `runner`: a step's forward pass over a ragged batch
//! - `sampler`: logits to tokens; `draw`: the random part of it
//! - `queue`: the places of those that wait; `config`: the bounds of it all
//! - [`observer`]: who hears of each step
//! - `active`: a request while it is worked on
//! - `thread`: the loop `schedule` → `run` → `sample` → `postprocess`

mod active;
mod blocks;
mod config;
mod draw;
pub mod observer;
mod queue;
pub mod request;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod thread;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use candle_core::Device;
use lantern_telemetry::ConfigError;
use lantern_telemetry::instruments::HistogramSeries;

use crate::loader::{LoadedModel, memory};
use crate::ops::{self, KV_BLOCK_TOKENS};
use crate::tensor_error::TensorError;
use observer::StepObserver;
use queue::{Places, Queue};
use request::{Request, RequestStream, Submission};
use runner::ModelRunner;
use scheduler::Scheduler;
use thread::{Vocabulary, Work};

pub use config::{DEFAULT_CPU_KV_CACHE_BYTES, EngineConfig, MAX_WAITING_REQUESTS};
#[cfg(all(test, feature = "cuda"))]
pub(crate) use sampler::token_logprobs;
pub use thread::EngineThread;

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A bound that cannot hold.
    #[error("the engine cannot keep to its bounds")]
    Config(#[from] ConfigError),
    /// The KV cache budget does not hold one sequence of the model's full length.
    #[error(
        "one sequence of {max_model_len} tokens needs {needed_bytes} bytes of KV cache, {budget_bytes} are there: \
         lower --max-model-len, or raise --kv-cache-memory-bytes (on a GPU --gpu-memory-utilization)"
    )]
    KvCacheTooSmall {
        /// Longest sequence the engine accepts.
        max_model_len: usize,
        /// What that sequence takes.
        needed_bytes: u64,
        /// What the budget is.
        budget_bytes: u64,
    },
    /// The memory of the machine, or of its container, does not hold the KV cache.
    #[error(
        "a KV cache of {bytes} bytes does not fit into the {available_bytes} bytes of memory that are left: \
         lower --kv-cache-memory-bytes, or --max-num-seqs"
    )]
    KvCacheTooLarge {
        /// What it takes.
        bytes: u64,
        /// What is there.
        available_bytes: u64,
    },
    /// The device could not be made ready, or not say how much memory it has.
    #[error("cannot prepare the device")]
    Device(#[from] TensorError),
    /// The device does not have the memory of the budget.
    #[error(
        "cannot allocate {bytes} bytes of KV cache: \
         lower --kv-cache-memory-bytes (on a GPU --gpu-memory-utilization), or --max-num-seqs"
    )]
    KvCacheAllocation {
        /// What was asked of it.
        bytes: u64,
        /// What it said.
        source: TensorError,
    },
    /// The device cannot run what every decode step will.
    #[error(
        "cannot record the decode steps of up to {max_num_seqs} sequences: if memory is short, \
         lower --max-num-seqs, or --gpu-memory-utilization"
    )]
    Recording {
        /// Sequences of the largest step.
        max_num_seqs: usize,
        /// What the device said.
        source: TensorError,
    },
    /// The operating system gave no thread.
    #[error("cannot start the engine's thread")]
    Thread(#[from] std::io::Error),
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many requests wait as may wait.
    #[error("{limit} requests are waiting already")]
    QueueFull {
        /// `max_waiting_requests`.
        limit: usize,
    },
    /// The prompt leaves no room for a single token.
    #[error("the prompt has {prompt_tokens} tokens, the model's context is {max_model_len}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The context, prompt and output together.
        max_model_len: usize,
    },
    /// The engine takes no more requests: it was shut down, or its device failed.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
}

/// What the engine is doing, as of its last step.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineStats {
    /// Sequences in the current batch.
    pub running: usize,
    /// Requests not in the batch: never scheduled yet, or preempted.
    pub waiting: usize,
    /// Part of the KV cache budget in use, 0 to 1.
    pub kv_cache_usage: f64,
    /// Sequences put back to the queue for lack of KV cache, since the start.
    pub preemptions: u64,
    /// Prompt tokens looked for in the prefix cache, since the start.
    pub prefix_cache_queries: u64,
    /// Those found.
    pub prefix_cache_hits: u64,
    /// Steps run since the start.
    pub steps: u64,
    /// False once the device has failed or the thread has died.
    pub healthy: bool,
}

/// A handle to the engine; cheap to clone. The engine goes on until [`Engine::shut_down`] or until
/// the last handle is gone.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    inlet: Arc<Inlet>,
}

/// The way in. Apart from [`Shared`], so that the thread, which holds that, does not keep itself alive.
#[derive(Debug)]
struct Inlet {
    sender: Mutex<Option<Sender<Submission>>>,
    config: EngineConfig,
    max_model_len: usize,
}

/// What handles and thread both see.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Requests between `submit` and their first step.
    queue: Arc<Queue>,
    /// Streams dropped since the start.
    dropped: Arc<AtomicUsize>,
    preempted: AtomicUsize,
    running: AtomicUsize,
    kv_blocks_used: AtomicUsize,
    kv_blocks_total: AtomicUsize,
    preemptions: AtomicU64,
    prefix_cache_queries: AtomicU64,
    prefix_cache_hits: AtomicU64,
    steps: AtomicU64,
    /// Tokens per step, where somebody counts them.
    step_tokens: OnceLock<HistogramSeries>,
    /// Why the thread ended other than by shutdown.
    failure: Mutex<Option<String>>,
}

impl Shared {
    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        // The value is a plain string: a panic elsewhere cannot have left it half written.
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> EngineStats {
        let used = self.kv_blocks_used.load(Ordering::Relaxed);
        let total = self.kv_blocks_total.load(Ordering::Relaxed);
        EngineStats {
            running: self.running.load(Ordering::Relaxed),
            waiting: self.queue.waiting() + self.preempted.load(Ordering::Relaxed),
            kv_cache_usage: if total == 0 {
                0.0
            } else {
                used as f64 / total as f64
            },
            preemptions: self.preemptions.load(Ordering::Relaxed),
            prefix_cache_queries: self.prefix_cache_queries.load(Ordering::Relaxed),
            prefix_cache_hits: self.prefix_cache_hits.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            healthy: self.failure().is_none(),
        }
    }

    /// A step of so many tokens was run.
    fn note_step(&self, tokens: usize) {
        if let Some(histogram) = self.step_tokens.get() {
            histogram.observe(tokens as f64, None, SystemTime::now());
        }
    }

    /// The thread has ended otherwise than by shutdown: for this reason, and nothing runs or waits any more.
    fn fail(&self, reason: String) {
        *self.failure() = Some(reason);
        for gauge in [&self.running, &self.preempted, &self.kv_blocks_used] {
            gauge.store(0, Ordering::Relaxed);
        }
    }
}

impl Engine {
    /// Starts the thread that runs `model`.
    pub fn start(
        model: LoadedModel,
        config: EngineConfig,
    ) -> Result<(Engine, EngineThread), EngineError> {
        Self::start_observed(model, config, None)
    }

    /// The same, with somebody who hears of every step.
    pub fn start_observed(
        model: LoadedModel,
        config: EngineConfig,
        observer: Option<Box<dyn StepObserver>>,
    ) -> Result<(Engine, EngineThread), EngineError> {
        let config = config.checked()?;
        let kv_blocks = kv_blocks(&model, &config)?;
        let limits = scheduler::Limits {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_model_len: model.max_model_len,
            kv_blocks,
            prefix_caching: config.enable_prefix_caching,
        };
        let (engine, submissions) = Engine::channel(config, model.max_model_len);
        let shared = Arc::clone(&engine.shared);
        shared.kv_blocks_total.store(kv_blocks, Ordering::Relaxed);
        let vocabulary = Vocabulary {
            size: model.vocab_size,
            eos_token_ids: model.eos_token_ids.clone(),
        };
        let bytes = kv_blocks as u64 * block_bytes(&model);
        let ops =
            ops::for_device(model.device()).map_err(|error| EngineError::Device(error.into()))?;
        let runner = ModelRunner::new(model.into_model(), ops, kv_blocks).map_err(|error| {
            EngineError::KvCacheAllocation {
                bytes,
                source: error.into(),
            }
        })?;
        let work = Work {
            runner: recorded(runner, limits.max_num_seqs)?,
            scheduler: Scheduler::new(limits),
            vocabulary,
            observer,
        };
        let thread = thread::start(work, submissions, shared)?;
        Ok((engine, thread))
    }

    /// A handle without an engine: whoever holds the receiver answers the submissions. For tests.
    pub fn channel(config: EngineConfig, max_model_len: usize) -> (Engine, Receiver<Submission>) {
        // Bounded by the places in `queue`: nothing is sent without one.
        let (sender, receiver) = std::sync::mpsc::channel();
        let inlet = Inlet {
            sender: Mutex::new(Some(sender)),
            config,
            max_model_len,
        };
        let engine = Engine {
            shared: Arc::default(),
            inlet: Arc::new(inlet),
        };
        (engine, receiver)
    }

    /// Hands a request over; its events arrive on the stream. Never blocks.
    pub fn submit(&self, request: Request) -> Result<RequestStream, SubmitError> {
        self.reserve(1)?.submit(request)
    }

    /// Takes places in the queue for requests that follow each other, so many of them at once.
    pub fn reserve(&self, places: usize) -> Result<Reservation, SubmitError> {
        // Rather what will not change than what may.
        drop(self.sender()?);
        let limit = self.max_waiting_requests();
        let places = self.shared.queue.take(places, limit);
        Ok(Reservation {
            places: places.ok_or(SubmitError::QueueFull { limit })?,
            engine: self.clone(),
        })
    }

    fn sender(&self) -> Result<Sender<Submission>, SubmitError> {
        let sender = self.inlet.sender.lock();
        let sender = sender.unwrap_or_else(PoisonError::into_inner).clone();
        sender.ok_or_else(|| self.stopped())
    }

    /// What the engine is doing.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats()
    }

    /// Longest sequence, prompt and output together.
    pub fn max_model_len(&self) -> usize {
        self.inlet.max_model_len
    }

    /// Requests that may wait for their first step; one more is refused.
    pub fn max_waiting_requests(&self) -> usize {
        self.inlet.config.max_waiting_requests
    }

    /// [`Engine::stats`] for those who outlive the engine: it does not keep it going.
    pub fn stats_reader(&self) -> impl Fn() -> EngineStats + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.stats()
    }

    /// Notes the tokens of each step from now on. The first to ask has them.
    pub fn count_step_tokens(&self, histogram: HistogramSeries) {
        let _ = self.shared.step_tokens.set(histogram);
    }

    /// Takes no new requests. Accepted ones finish (dropping their streams ends them sooner), then
    /// the thread ends.
    pub fn shut_down(&self) {
        let sender = self
            .inlet
            .sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(sender);
    }

    fn stopped(&self) -> SubmitError {
        let failure = self.shared.failure().clone();
        SubmitError::Stopped(failure.unwrap_or_else(|| "it was shut down".to_owned()))
    }
}

/// Places in the engine's queue that stay with their owner.
#[derive(Debug)]
pub struct Reservation {
    engine: Engine,
    places: Arc<Places>,
}

impl Reservation {
    /// Hands a request over; its events arrive on the stream. Never blocks, and finds the queue full
    /// only when as many requests as there are places here wait already.
    pub fn submit(&self, request: Request) -> Result<RequestStream, SubmitError> {
        let engine = &self.engine;
        let max_model_len = engine.max_model_len();
        let prompt_tokens = request.prompt_tokens.len();
        if prompt_tokens >= max_model_len {
            return Err(SubmitError::PromptTooLong {
                prompt_tokens,
                max_model_len,
            });
        }
        let sender = engine.sender()?;
        let limit = engine.max_waiting_requests();
        let slot = self.places.enter();
        let slot = slot.ok_or(SubmitError::QueueFull { limit })?;
        let (mut submission, mut stream) = Submission::new(request);
        submission.slot = Some(slot);
        stream.dropped = Arc::clone(&engine.shared.dropped);
        match sender.send(submission) {
            Ok(()) => Ok(stream),
            Err(_) => Err(engine.stopped()),
        }
    }
}

/// The runner, ready for steps of so many sequences.
fn recorded(runner: ModelRunner, max_num_seqs: usize) -> Result<ModelRunner, EngineError> {
    match runner.record(max_num_seqs) {
        Ok(()) => Ok(runner),
        Err(error) => Err(EngineError::Recording {
            max_num_seqs,
            source: error.into(),
        }),
    }
}

/// Places of tokens in the pages are counted in 32 bits.
const MAX_KV_BLOCKS: usize = u32::MAX as usize / KV_BLOCK_TOKENS;

/// The KV cache budget in blocks. One sequence of full length must fit: so the oldest sequence can
/// always go on once the others are preempted, and no request waits forever.
fn kv_blocks(model: &LoadedModel, config: &EngineConfig) -> Result<usize, EngineError> {
    let budget_bytes = match config.kv_cache_bytes {
        Some(bytes) => bytes,
        None => crate::loader::device::spare_bytes(model.device(), config.gpu_memory_utilization)?
            .unwrap_or_else(|| {
                let left = memory::available_bytes();
                left.map_or(u64::MAX, |left| left / 2)
                    .min(DEFAULT_CPU_KV_CACHE_BYTES)
            }),
    };
    let block_bytes = block_bytes(model);
    let each = model.max_model_len.div_ceil(KV_BLOCK_TOKENS);
    let needed_bytes = (each as u64).saturating_mul(block_bytes);
    if budget_bytes < needed_bytes {
        let max_model_len = model.max_model_len;
        return Err(EngineError::KvCacheTooSmall {
            max_model_len,
            needed_bytes,
            budget_bytes,
        });
    }
    // More could not be used, and a model without a cache (a test's) has blocks of no size.
    let most = config.max_num_seqs.saturating_mul(each).min(MAX_KV_BLOCKS);
    let blocks = (budget_bytes / block_bytes.max(1)).min(most as u64);
    // The CPU's memory is given out before it is there: what is too much would be killed later.
    let available_bytes = match model.device() {
        Device::Cpu => memory::available_bytes().unwrap_or(u64::MAX),
        _ => u64::MAX,
    };
    let bytes = blocks * block_bytes;
    if bytes > available_bytes {
        return Err(EngineError::KvCacheTooLarge {
            bytes,
            available_bytes,
        });
    }
    Ok(blocks as usize)
}

fn block_bytes(model: &LoadedModel) -> u64 {
    model.kv_bytes_per_token() * KV_BLOCK_TOKENS as u64
}
