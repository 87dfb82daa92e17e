//! The engine: one thread owns the device and never awaits; everything else talks to it here.
//!
//! # Layout
//! - [`request`]: the border, plain data and channels
//! - `sequence`: one request's tokens and state
//! - `scheduler`: which sequences run in a step; pure, no tensors, clock or I/O
//! - `runner`: a step's forward pass over a ragged batch
//! - `sampler`: logits to tokens
//! - `thread`: the loop `schedule` → `run` → `sample` → `postprocess`

pub mod request;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod thread;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::loader::LoadedModel;
use crate::tensor_error::TensorError;
use request::{QueueSlot, Request, RequestStream, Submission};
use scheduler::KV_BLOCK_TOKENS;

pub use thread::EngineThread;

/// What bounds the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Most sequences in one step; at least 1.
    pub max_num_seqs: usize,
    /// Most tokens in one step, prompts included; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Requests that may wait for their first step; one more is refused.
    pub max_waiting_requests: usize,
    /// Memory for keys and values; `None` takes what the device can spare (on a CPU at most
    /// [`DEFAULT_CPU_KV_CACHE_BYTES`]).
    pub kv_cache_bytes: Option<u64>,
    /// Share of a GPU's memory that weights and KV cache may take together, in (0, 1].
    pub gpu_memory_utilization: f64,
}

/// KV cache budget on a CPU when none is named: vLLM's own default there.
pub const DEFAULT_CPU_KV_CACHE_BYTES: u64 = 4 << 30;

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_waiting_requests: 1024,
            kv_cache_bytes: None,
            gpu_memory_utilization: 0.9,
        }
    }
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A bound that cannot hold.
    #[error("{setting} = {value} is not possible: {allowed}")]
    Config {
        /// The field of [`EngineConfig`].
        setting: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// The KV cache budget does not hold one sequence of the model's full length.
    #[error(
        "one sequence of {max_model_len} tokens needs {needed_bytes} bytes of KV cache, {budget_bytes} are there: \
         lower the model length or raise the budget"
    )]
    KvCacheTooSmall {
        /// Longest sequence the engine accepts.
        max_model_len: usize,
        /// What that sequence takes.
        needed_bytes: u64,
        /// What the budget is.
        budget_bytes: u64,
    },
    /// The device could not say how much memory it has.
    #[error("cannot read the device's free memory")]
    Device(#[from] TensorError),
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
    sender: Mutex<Option<SyncSender<Submission>>>,
    config: EngineConfig,
    max_model_len: usize,
}

/// What handles and thread both see.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Requests between `submit` and their first step.
    queued: Arc<AtomicUsize>,
    preempted: AtomicUsize,
    running: AtomicUsize,
    kv_blocks_used: AtomicUsize,
    kv_blocks_total: AtomicUsize,
    preemptions: AtomicU64,
    steps: AtomicU64,
    /// Why the thread ended other than by shutdown.
    failure: Mutex<Option<String>>,
}

impl Shared {
    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        // The value is a plain string: a panic elsewhere cannot have left it half written.
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts the thread that runs `model`.
    pub fn start(
        model: LoadedModel,
        config: EngineConfig,
    ) -> Result<(Engine, EngineThread), EngineError> {
        config.check()?;
        let kv_blocks = kv_blocks(&model, &config)?;
        let limits = scheduler::Limits {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_model_len: model.max_model_len,
            kv_blocks,
        };
        let (engine, submissions) = Engine::channel(config, model.max_model_len);
        let shared = Arc::clone(&engine.shared);
        shared.kv_blocks_total.store(kv_blocks, Ordering::Relaxed);
        let thread = thread::start(model, limits, submissions, shared)?;
        Ok((engine, thread))
    }

    /// A handle without an engine: whoever holds the receiver answers the submissions. For tests.
    pub fn channel(config: EngineConfig, max_model_len: usize) -> (Engine, Receiver<Submission>) {
        // `queued` bounds the queue; the channel is as long, so that a slot always has its place.
        let (sender, receiver) = std::sync::mpsc::sync_channel(config.max_waiting_requests);
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
        let max_model_len = self.inlet.max_model_len;
        let prompt_tokens = request.prompt_tokens.len();
        if prompt_tokens >= max_model_len {
            return Err(SubmitError::PromptTooLong {
                prompt_tokens,
                max_model_len,
            });
        }
        let guard = self
            .inlet
            .sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = guard.as_ref() else {
            return Err(self.stopped());
        };
        let limit = self.inlet.config.max_waiting_requests;
        let slot =
            QueueSlot::take(&self.shared.queued, limit).ok_or(SubmitError::QueueFull { limit })?;
        let (mut submission, stream) = Submission::new(request);
        submission.slot = Some(slot);
        match sender.try_send(submission) {
            Ok(()) => Ok(stream),
            Err(TrySendError::Full(_)) => Err(SubmitError::QueueFull { limit }),
            Err(TrySendError::Disconnected(_)) => Err(self.stopped()),
        }
    }

    /// What the engine is doing.
    pub fn stats(&self) -> EngineStats {
        let shared = &self.shared;
        let used = shared.kv_blocks_used.load(Ordering::Relaxed);
        let total = shared.kv_blocks_total.load(Ordering::Relaxed);
        let queued = shared.queued.load(Ordering::Relaxed);
        EngineStats {
            running: shared.running.load(Ordering::Relaxed),
            waiting: queued + shared.preempted.load(Ordering::Relaxed),
            kv_cache_usage: if total == 0 {
                0.0
            } else {
                used as f64 / total as f64
            },
            preemptions: shared.preemptions.load(Ordering::Relaxed),
            steps: shared.steps.load(Ordering::Relaxed),
            healthy: shared.failure().is_none(),
        }
    }

    /// Longest sequence, prompt and output together.
    pub fn max_model_len(&self) -> usize {
        self.inlet.max_model_len
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

impl EngineConfig {
    fn check(&self) -> Result<(), EngineError> {
        let refuse = |setting, value: String, allowed: &str| {
            Err(EngineError::Config {
                setting,
                value,
                allowed: allowed.to_owned(),
            })
        };
        if self.max_num_seqs == 0 {
            return refuse("max_num_seqs", "0".into(), "use at least 1");
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            // Otherwise the newest sequences of a full batch would never get their token.
            return Err(EngineError::Config {
                setting: "max_num_batched_tokens",
                value: self.max_num_batched_tokens.to_string(),
                allowed: format!("use at least max_num_seqs, {}", self.max_num_seqs),
            });
        }
        let share = self.gpu_memory_utilization;
        if !(share > 0.0 && share <= 1.0) {
            return refuse(
                "gpu_memory_utilization",
                share.to_string(),
                "use a number in (0, 1]",
            );
        }
        Ok(())
    }
}

/// The KV cache budget in blocks. One sequence of full length must fit: so the oldest sequence can
/// always go on once the others are preempted, and no request waits forever.
fn kv_blocks(model: &LoadedModel, config: &EngineConfig) -> Result<usize, EngineError> {
    let budget_bytes = match config.kv_cache_bytes {
        Some(bytes) => bytes,
        None => crate::loader::device::spare_bytes(model.device(), config.gpu_memory_utilization)?
            .unwrap_or(DEFAULT_CPU_KV_CACHE_BYTES),
    };
    let block_bytes = model.kv_bytes_per_token() * KV_BLOCK_TOKENS as u64;
    let needed_bytes = model.max_model_len.div_ceil(KV_BLOCK_TOKENS) as u64 * block_bytes;
    if budget_bytes < needed_bytes {
        let max_model_len = model.max_model_len;
        return Err(EngineError::KvCacheTooSmall {
            max_model_len,
            needed_bytes,
            budget_bytes,
        });
    }
    // A model without a cache (a test's) has blocks of no size.
    Ok((budget_bytes / block_bytes.max(1)).min(u32::MAX.into()) as usize)
}
