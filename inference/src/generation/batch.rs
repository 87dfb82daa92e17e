//! The prompts of one HTTP request, generated side by side.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::future::BoxFuture;

use super::exchange::Exchange;
use super::record::Record;
use super::round_robin::RoundRobin;
use super::sampling::Sampling;
use super::{Collected, GenerationError, Generator, Output, Prompt, beam, sampling};

/// Everything one HTTP request generates: a stream of outputs, each with the index of its prompt.
/// It ends after the first error. Dropping it cancels all of it.
pub struct Batch {
    prompts: Vec<Generation>,
    turns: RoundRobin,
    failed: bool,
    exchange: Arc<Exchange>,
}

/// One prompt.
enum Generation {
    /// Sequences whose text goes out as it comes.
    Sampling(Box<Sampling>),
    /// A result that is known only at its end.
    Collecting(BoxFuture<'static, Collected>),
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
            turns: RoundRobin::default(),
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
        let this = &mut *self;
        let count = this.prompts.len();
        let output = this
            .turns
            .poll(count, |at| this.prompts[at].poll_output(cx));
        match ready!(output) {
            None => Poll::Ready(None),
            Some((at, Ok(output))) => Poll::Ready(Some(Ok((at, output)))),
            Some((_, Err(error))) => {
                this.failed = true;
                this.exchange.give_up(error.error_type(), &error);
                this.prompts.clear();
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

impl Generation {
    fn start(
        generator: &Generator,
        prompt: Prompt,
        record: Record,
    ) -> Result<Self, GenerationError> {
        if let Some(params) = prompt.params.beam {
            let search = beam::search(generator, prompt, params, record)?;
            Ok(Self::Collecting(Box::pin(search)))
        } else if prompt.params.best_of > prompt.params.n {
            let ranking = sampling::best_of(generator, prompt, record)?;
            Ok(Self::Collecting(Box::pin(ranking)))
        } else {
            let sampling = Sampling::start(generator, &prompt, record)?;
            Ok(Self::Sampling(Box::new(sampling)))
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
