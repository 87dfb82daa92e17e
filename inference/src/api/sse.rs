//! Server-sent events: a batch's outputs as `data:` lines, ended by `data: [DONE]`.

use std::convert::Infallible;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;

use crate::generation::{GenerationError, Output};

use super::error::ApiError;

/// How an endpoint words its chunks.
pub(super) trait Chunks: Send + 'static {
    /// The chunks that one output of a prompt becomes.
    fn output(&mut self, prompt: usize, output: Output) -> Vec<Event>;

    /// What follows the last output.
    fn end(&mut self) -> Vec<Event>;
}

/// One `data:` line.
pub(super) fn event(chunk: &impl Serialize) -> Event {
    Event::default()
        .json_data(chunk)
        .expect("chunks have string keys and finite numbers")
}

/// Streams a batch. Dropping the response drops the batch, which cancels what it has in the
/// engine.
pub(super) fn respond<B>(batch: B, chunks: impl Chunks) -> Response
where
    B: Stream<Item = Result<(usize, Output), GenerationError>> + Send + Unpin + 'static,
{
    let events = stream::unfold(Some((batch, chunks)), |state| async {
        let (mut batch, mut chunks) = state?;
        let (events, rest) = match batch.next().await {
            Some(Ok((prompt, output))) => (chunks.output(prompt, output), Some((batch, chunks))),
            Some(Err(error)) => (vec![event(&ApiError::from(error).body()), done()], None),
            None => {
                let mut last = chunks.end();
                last.push(done());
                (last, None)
            }
        };
        Some((stream::iter(events), rest))
    });
    Sse::new(events.flatten().map(Ok::<_, Infallible>)).into_response()
}

fn done() -> Event {
    Event::default().data("[DONE]")
}
