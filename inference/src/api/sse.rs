//! A batch's outputs as the answer: whole, or as server-sent events, `data:` lines ended by
//! `data: [DONE]`.

use std::convert::Infallible;
use std::pin::Pin;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;

use crate::generation::{Batch, GenerationError, Output};

use super::error::ApiError;
use super::params::Sampling;
use super::response::{PromptResult, StreamOptions, gather};

/// How an endpoint words its answer.
pub(super) trait Shape: Send + 'static {
    /// How it words a stream.
    type Chunks: Chunks;

    /// Prompts in the request.
    fn prompts(&self) -> usize;

    /// The response that is not streamed.
    fn whole(self, results: Vec<PromptResult>) -> Response;

    /// The one that is, with `n` choices for each prompt.
    fn chunks(self, options: StreamOptions, n: usize) -> Self::Chunks;
}

/// Answers with a batch, whole or streamed.
pub(super) async fn answer(
    batch: Batch,
    shape: impl Shape,
    sampling: &Sampling,
    options: StreamOptions,
) -> Result<Response, ApiError> {
    if !options.stream {
        let results = gather(batch, shape.prompts(), sampling.n()).await?;
        return Ok(shape.whole(results));
    }
    let mut batch = batch.peekable();
    if sampling.is_collected() {
        // Nothing goes out before the end anyway: an error can still be a proper response.
        let mut batch = Pin::new(&mut batch);
        if let Some(Err(error)) = batch.as_mut().next_if(Result::is_err).await {
            return Err(error.into());
        }
    }
    Ok(respond(batch, shape.chunks(options, sampling.n())))
}

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
fn respond<B>(batch: B, chunks: impl Chunks) -> Response
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
