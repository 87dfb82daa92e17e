//! OTLP in: [`grpc`] on one port, [`http`] on the other.
//!
//! Both read a bounded body ([`body`]), hand its bytes to [`crate::intake`] and answer, a refusal
//! in the words of [`status`]. JSON, which only HTTP carries, becomes protobuf in [`json`].

pub(crate) mod body;
pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod status;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::intake::{Intake, Refusal};

/// Requests read at once, over both ports. Each may hold a request's bound in memory.
const MAX_CONCURRENT_REQUESTS: usize = 64;

/// What the receivers share.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    pub(crate) intake: Arc<Intake>,
    reading: Arc<Semaphore>,
}

impl Receiver {
    pub(crate) fn new(intake: Intake) -> Receiver {
        let reading = Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS));
        Receiver {
            intake: Arc::new(intake),
            reading,
        }
    }

    /// Waits for one of the places to read a request in, no longer than a body may take.
    async fn place(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Refusal> {
        let place = Arc::clone(&self.reading).acquire_owned();
        match tokio::time::timeout(body::READ_LIMIT, place).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                let reason = format!("{MAX_CONCURRENT_REQUESTS} requests are being read");
                Err(Refusal::unavailable(reason))
            }
        }
    }
}
