//! What bounds the engine, and the one place where the bounds are checked.

use lantern_telemetry::ConfigError;

/// KV cache budget on a CPU when none is named: vLLM's own default there. Where memory is short, half of what is
/// left.
pub const DEFAULT_CPU_KV_CACHE_BYTES: u64 = 4 << 30;
/// Most that [`EngineConfig::max_waiting_requests`] may be: more could only wait for memory.
pub const MAX_WAITING_REQUESTS: usize = 1 << 20;

/// What bounds the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Most sequences in one step; at least 1.
    pub max_num_seqs: usize,
    /// Most tokens in one step, prompts included; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Requests that may wait for their first step; one more is refused. 1 to
    /// [`MAX_WAITING_REQUESTS`].
    pub max_waiting_requests: usize,
    /// Whether prompts that begin alike share what was computed of them.
    pub enable_prefix_caching: bool,
    /// Memory for keys and values; `None` takes what the device can spare (on a CPU at most
    /// [`DEFAULT_CPU_KV_CACHE_BYTES`]).
    pub kv_cache_bytes: Option<u64>,
    /// Share of a GPU's memory that weights and KV cache may take together, in (0, 1].
    pub gpu_memory_utilization: f64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_waiting_requests: 1024,
            enable_prefix_caching: true,
            kv_cache_bytes: None,
            gpu_memory_utilization: 0.9,
        }
    }
}

impl EngineConfig {
    /// The same, if these bounds can hold; if not, an error that names the flag.
    pub fn checked(self) -> Result<Self, ConfigError> {
        let refuse = |flag, value: &dyn ToString, allowed: String| {
            Err(ConfigError::new(flag, value.to_string(), allowed))
        };
        if self.max_num_seqs == 0 {
            return refuse("--max-num-seqs", &0, "at least 1".to_owned());
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            // Otherwise the newest sequences of a full batch would never get their token.
            let allowed = format!("at least --max-num-seqs, {}", self.max_num_seqs);
            let tokens = self.max_num_batched_tokens;
            return refuse("--max-num-batched-tokens", &tokens, allowed);
        }
        if !(1..=MAX_WAITING_REQUESTS).contains(&self.max_waiting_requests) {
            let allowed = format!("1 to {MAX_WAITING_REQUESTS}");
            return refuse(
                "--max-waiting-requests",
                &self.max_waiting_requests,
                allowed,
            );
        }
        let share = self.gpu_memory_utilization;
        if !(share > 0.0 && share <= 1.0) {
            let allowed = "a number above 0 and up to 1".to_owned();
            return refuse("--gpu-memory-utilization", &share, allowed);
        }
        Ok(self)
    }
}
