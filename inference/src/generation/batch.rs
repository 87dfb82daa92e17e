//! The prompts of one HTTP request, generated side by side.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::future::BoxFuture;

use super::exchange::Exchange;
use super::record::Record;
use super::sampling::Sampling;
use super::{GenerationError, Generator, Output, Prompt, beam, sampling};

/// Everything one HTTP request generates: a stream of outputs, each with the index of its prompt.
/// It ends after the first error. Dropping it cancels all of it.
pub struct Batch {
    prompts: Vec<Generation>,
    /// Where the next poll begins, so that no prompt starves another.
    next: usize,
    failed: bool,
    exchange: Arc<Exchange>,
}

/// One prompt.
enum Generation {
    /// Sequences whose text goes out as it comes.
    Sampling(Box<Sampling>),
    /// A result that is known only at its end.
    Collecting(BoxFuture<'static, Result<VecDeque<Output>, GenerationError>>),
    /// What is left of such a result.
    Collected(VecDeque<Output>),
}

impl Batch {
    /// Hands every prompt to the engine, or none: an error cancels those already handed over.
    pub fn start(
        generator: &Generator,
        prompts: Vec<(Prompt, Record)>,
        exchange: &Arc<Exchange>,
    ) -> Result<Self, GenerationError> {
        let started = prompts
            .into_iter()
            .map(|(prompt, record)| Generation::start(generator, prompt, record));
        let mut batch = Self {
            prompts: Vec::with_capacity(started.len()),
            next: 0,
            failed: false,
            exchange: Arc::clone(exchange),
        };
        for generation in started {
            // On an error `batch` is dropped and with it the prompts before: for this reason.
            let generation = generation.inspect_err(|error| {
                exchange.give_up(error.error_type(), error);
            })?;
            batch.prompts.push(generation);
        }
        Ok(batch)
    }
}

impl Stream for Batch {
    type Item = Result<(usize, Output), GenerationError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let count = self.prompts.len();
        let mut complete = 0;
        for offset in 0..count {
            let at = (self.next + offset) % count;
            match self.prompts[at].poll_output(cx) {
                Poll::Ready(Some(Ok(output))) => {
                    self.next = (at + 1) % count;
                    return Poll::Ready(Some(Ok((at, output))));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.failed = true;
                    self.exchange.give_up(error.error_type(), &error);
                    self.prompts.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => complete += 1,
                Poll::Pending => {}
            }
        }
        if complete < count {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }
}

impl Generation {
    fn start(
        generator: &Generator,
        prompt: Prompt,
        record: Record,
    ) -> Result<Self, GenerationError> {
        let generator = generator.clone();
        if let Some(params) = prompt.params.beam {
            let search = beam::search(generator, prompt, params, record);
            Ok(Self::Collecting(Box::pin(search)))
        } else if prompt.params.best_of > prompt.params.n {
            Ok(Self::Collecting(Box::pin(sampling::best_of(
                generator, prompt, record,
            ))))
        } else {
            Ok(Self::Sampling(Box::new(Sampling::start(
                &generator, &prompt, record,
            )?)))
        }
    }

    fn poll_output(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Output, GenerationError>>> {
        loop {
            match self {
                Self::Sampling(sampling) => return sampling.poll_output(cx),
                Self::Collected(outputs) => return Poll::Ready(outputs.pop_front().map(Ok)),
                Self::Collecting(search) => match search.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(Ok(outputs)) => *self = Self::Collected(outputs),
                },
            }
        }
    }
}
