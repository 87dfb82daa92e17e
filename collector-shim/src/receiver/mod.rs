//! OTLP in: [`grpc`] on one port, [`http`] on the other.
//!
//! Both read a bounded body ([`body`]), hand its bytes to [`crate::intake`] and answer, a refusal
//! in the words of [`status`]. JSON, which only HTTP carries, becomes protobuf in [`json`].

pub(crate) mod body;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod room;
pub(crate) mod status;
pub(crate) mod tokens;

use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use bytes::Bytes;

use crate::coding::Coding;
use crate::config::{Door, Pace};
use crate::counts::Transport;
use crate::exporter::Accepted;
use crate::intake::{INLINE_BYTES, Incoming, Intake, Refusal, Sink, beside_if_large};
use crate::signal::Signal;
use room::Room;
use status::Encoding;

/// Room for the requests being read over both ports, in largest requests. One may need two: as it
/// came, and decompressed.
const ROOM_REQUESTS: usize = 4;
/// Large requests decoded at once: more would take memory and be no faster.
const WORKERS: usize = 4;
/// How long a request waits for its turn to be one of them.
const WORKER_WAIT: Duration = Duration::from_secs(10);

/// What the receivers share.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    pub(crate) intake: Arc<Intake>,
    reading_bytes: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    pub(crate) door: Door,
    pace: Pace,
}

impl Receiver {
    pub(crate) fn new(intake: Intake, door: Door, pace: Pace) -> Receiver {
        let room_bytes = intake.max_request_bytes.saturating_mul(ROOM_REQUESTS);
        Receiver {
            intake: Arc::new(intake),
            reading_bytes: Arc::new(Semaphore::new(room_bytes.min(Semaphore::MAX_PERMITS))),
            workers: Arc::new(Semaphore::new(WORKERS)),
            door,
            pace,
        }
    }

    /// Whether a request with these headers may come in: known before its body is read.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match &self.door.tokens {
            Some(tokens) if !tokens.admit(headers) => Err(Refusal::Unauthorized),
            Some(_) | None => Ok(()),
        }
    }

    /// Takes the body of one export request, read whole.
    async fn accept(&self, body: Body, mut room: Room) -> Result<Accepted, Refusal> {
        let max_bytes = self.intake.max_request_bytes;
        let mut plain = body.bytes;
        let mut compressed = None;
        if body.coding != Coding::Identity {
            let came = body::decompress(body.coding, plain, max_bytes, room).await?;
            plain = came.bytes;
            compressed = came.compressed.map(|bytes| (body.coding, bytes));
            room = came.room;
        }
        if body.encoding == Encoding::Json {
            let _turn = self.worker(plain.len()).await?;
            plain = json_to_protobuf(body.signal, plain, max_bytes).await?;
            compressed = None;
        }
        // What is only passed on takes no turn: it may wait for a disk or a backend.
        let _turn = match self.intake.sink {
            Sink::Store(_) => self.worker(plain.len()).await?,
            Sink::Queue(_) | Sink::Direct(_) => None,
        };
        let incoming = Incoming {
            transport: body.transport,
            signal: body.signal,
            plain,
            compressed,
        };
        let accepted = self.intake.accept(incoming).await;
        drop(room);
        accepted
    }

    /// For one request; it takes what it needs as it comes.
    fn room(&self) -> Room {
        Room::none_yet(&self.reading_bytes)
    }

    /// Waits for a turn to decode a large request; a small one needs none.
    async fn worker(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        if bytes <= INLINE_BYTES {
            return Ok(None);
        }
        let turn = Arc::clone(&self.workers).acquire_owned();
        match tokio::time::timeout(WORKER_WAIT, turn).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => {
                let reason = format!("{WORKERS} large requests are being decoded");
                Err(Refusal::unavailable(reason))
            }
        }
    }
}

/// What a request carries.
struct Body {
    transport: Transport,
    signal: Signal,
    encoding: Encoding,
    coding: Coding,
    bytes: Bytes,
}

async fn json_to_protobuf(signal: Signal, json: Bytes, max_bytes: usize) -> Result<Bytes, Refusal> {
    let bytes = beside_if_large(json.len(), move || {
        json::to_protobuf(signal, &json).map_err(Refusal::from)
    })
    .await?;
    // A number of one digit may take eight bytes.
    if bytes.len() > max_bytes {
        return Err(Refusal::TooLarge { max_bytes });
    }
    Ok(bytes)
}
