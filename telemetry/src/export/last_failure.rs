//! Why the last attempt at an export failed. The OTLP exporter tries again until its timeout and says
//! why only then; who stops earlier asks here.

use std::sync::{Arc, Mutex, PoisonError};

/// The memory of one exporter, shared by the client that fails and whoever asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastFailure(Arc<Mutex<Option<String>>>);

impl LastFailure {
    /// `None` when the last attempt succeeded, or none has ended yet.
    pub(crate) fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set(&self, failure: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}
