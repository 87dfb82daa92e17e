//! The engine's thread: take in, `schedule`, `run`, sample, `postprocess`, again.
//!
//! It owns the device and never awaits. With nothing to do it blocks on the channel; with something to do it
//! looks at the channel, and for streams that were dropped, once per step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::Shared;
use super::queue::QueueSlot;
use super::request::{Event, StepTimes, Submission, TokenLogprobs};
use super::runner::{ModelRunner, Output, Part};
use super::sampler::{Sampled, Sampler, token_logprobs};
use super::scheduler::{Limits, Scheduled, Scheduler, Step};
use super::sequence::{Sequence, SequenceId};
use crate::loader::LoadedModel;
use crate::tensor_error::TensorError;

/// The engine's thread, to be waited for after [`super::Engine::shut_down`].
#[derive(Debug)]
pub struct EngineThread {
    handle: JoinHandle<()>,
    shared: Arc<Shared>,
}

/// Why an engine ended other than by shutdown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the engine failed: {0}")]
pub struct EngineFailed(String);

impl EngineThread {
    /// Waits until the thread has ended.
    pub fn join(self) -> Result<(), EngineFailed> {
        // A panic has left its note in `shared`, as any other failure does.
        let _ = self.handle.join();
        self.shared
            .failure()
            .clone()
            .map_or(Ok(()), |reason| Err(EngineFailed(reason)))
    }
}

/// Starts the thread.
pub(super) fn start(
    model: LoadedModel,
    limits: Limits,
    submissions: Receiver<Submission>,
    shared: Arc<Shared>,
) -> std::io::Result<EngineThread> {
    let engine = EngineLoop {
        vocab_size: model.vocab_size,
        eos_token_ids: model.eos_token_ids.clone(),
        runner: ModelRunner::new(model.into_model()),
        scheduler: Scheduler::new(limits),
        active: BTreeMap::new(),
        next_id: 0,
        submissions,
        shared: Arc::clone(&shared),
    };
    let builder = std::thread::Builder::new().name("engine".to_owned());
    let handle = builder.spawn(move || engine.run())?;
    Ok(EngineThread { handle, shared })
}

struct EngineLoop {
    runner: ModelRunner,
    scheduler: Scheduler,
    /// Every request that is neither finished nor cancelled.
    active: BTreeMap<SequenceId, Active>,
    next_id: u64,
    vocab_size: usize,
    eos_token_ids: Vec<u32>,
    submissions: Receiver<Submission>,
    shared: Arc<Shared>,
}

/// A request beside its sequence.
struct Active {
    events: UnboundedSender<Event>,
    /// Held until it is scheduled.
    slot: Option<QueueSlot>,
    sampler: Sampler,
    /// While they are being computed: one entry per prompt token so far.
    prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// Its steps so far.
    times: StepTimes,
}

/// A step under way.
#[derive(Debug, Clone, Copy)]
struct StepClock {
    scheduler: Duration,
    model_forward: Duration,
    /// When the forward pass began.
    execute: Instant,
}

impl StepClock {
    /// The step until then.
    fn times(&self, until: Instant) -> StepTimes {
        StepTimes {
            scheduler: self.scheduler,
            model_forward: self.model_forward,
            model_execute: until.saturating_duration_since(self.execute),
        }
    }
}

impl Active {
    /// A send fails when the stream was dropped; the next step finds that out.
    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

impl EngineLoop {
    fn run(mut self) {
        let _note = PanicNote(Arc::clone(&self.shared));
        loop {
            if self.scheduler.is_idle() {
                self.publish();
                match self.submissions.recv() {
                    Ok(submission) => self.accept(submission),
                    Err(_) => return, // shut down, and nothing left to do
                }
            }
            // Ends: the queue is bounded, and a place in it is given back by a step at the earliest.
            while let Ok(submission) = self.submissions.try_recv() {
                self.accept(submission);
            }
            self.drop_cancelled();
            if self.scheduler.is_idle() {
                continue;
            }
            if let Err(error) = self.step() {
                self.fail(&error.into());
                return;
            }
            self.publish();
        }
    }

    fn accept(&mut self, submission: Submission) {
        let Submission {
            request,
            events,
            slot,
            ..
        } = submission;
        if let Some(message) = self.refusal(&request.prompt_tokens) {
            let _ = events.send(Event::Failed { message });
            return;
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let prompt_logprobs = request.params.prompt_logprobs.map(|_| vec![None]);
        let sequence = Sequence::new(id, request.prompt_tokens, request.params);
        let sampler = Sampler::new(&sequence, &self.eos_token_ids);
        self.active.insert(
            id,
            Active {
                events,
                slot,
                sampler,
                prompt_logprobs,
                times: StepTimes::default(),
            },
        );
        self.scheduler.add(sequence);
    }

    /// What the model cannot embed would be a device error, and take every other request with it.
    fn refusal(&self, prompt: &[u32]) -> Option<String> {
        if prompt.is_empty() {
            return Some("the prompt is empty".to_owned());
        }
        let unknown = prompt
            .iter()
            .find(|&&token| token as usize >= self.vocab_size)?;
        Some(format!(
            "token id {unknown} is not below the vocabulary size, {}",
            self.vocab_size
        ))
    }

    fn drop_cancelled(&mut self) {
        let cancelled: Vec<_> = self
            .active
            .iter()
            .filter(|(_, active)| active.events.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for id in cancelled {
            self.scheduler.remove(id);
            self.forget(id);
        }
    }

    fn forget(&mut self, id: SequenceId) {
        self.runner.free(id);
        self.active.remove(&id);
    }

    /// One step of all sequences that the scheduler chooses.
    fn step(&mut self) -> candle_core::Result<()> {
        let begun = Instant::now();
        let step = self.scheduler.schedule();
        let scheduler = begun.elapsed();
        self.note_moves(&step);
        let parts: Vec<_> = step
            .scheduled
            .iter()
            .map(|scheduled| part(&self.scheduler, *scheduled))
            .collect();
        let execute = Instant::now();
        let mut output = self.runner.run(&parts)?;
        let clock = StepClock {
            scheduler,
            model_forward: execute.elapsed(),
            execute,
        };
        // Before anybody hears of the step: who then asks finds it counted.
        self.shared.steps.fetch_add(1, Ordering::Relaxed);
        let tokens = step.scheduled.iter().map(|scheduled| scheduled.num_tokens);
        self.shared.step_tokens.note(tokens.sum());
        let mut row = 0;
        for part in &parts {
            let active = self.active.get_mut(&part.id).expect("what runs is active");
            let sequence = sequence(&self.scheduler, part.id);
            let rows = (row, part.tokens.len());
            active.extend_prompt_logprobs(&self.runner, &output, sequence, rows)?;
            row += part.tokens.len();
        }
        let logits = std::mem::take(&mut output.logits);
        step.scheduled
            .iter()
            .for_each(|scheduled| self.scheduler.computed(*scheduled));
        let sampling = step.scheduled.iter().filter(|scheduled| scheduled.samples);
        for (scheduled, logits) in sampling.zip(logits) {
            self.sample(scheduled.id, logits, &clock);
        }
        let times = clock.times(Instant::now());
        for scheduled in &step.scheduled {
            // Those that have ended had theirs with their last token.
            if let Some(active) = self.active.get_mut(&scheduled.id) {
                active.times = active.times.and(times);
            }
        }
        Ok(())
    }

    /// Tells those newly scheduled, and frees those preempted.
    fn note_moves(&mut self, step: &Step) {
        for &id in &step.preempted {
            self.runner.free(id);
            if let Some(logprobs) = self
                .active
                .get_mut(&id)
                .and_then(|active| active.prompt_logprobs.as_mut())
            {
                logprobs.truncate(1); // the prompt is run anew
            }
        }
        let at = Instant::now();
        for id in &step.admitted {
            if let Some(active) = self.active.get_mut(id) {
                active.slot = None;
                active.send(Event::Scheduled { at });
            }
        }
    }

    fn sample(&mut self, id: SequenceId, logits: Vec<f32>, clock: &StepClock) {
        let active = self.active.get_mut(&id).expect("what runs is active");
        let sampled = active.sampler.sample(logits, sequence(&self.scheduler, id));
        let at = Instant::now();
        let ended = match sampled {
            Ok(Sampled { token, logprobs }) => {
                active.send(Event::Token {
                    id: token,
                    logprobs,
                    at,
                    times: active.times.and(clock.times(at)),
                });
                let reason = self.scheduler.postprocess(id, token, &self.eos_token_ids);
                reason.map(|reason| Event::Finished { reason, at })
            }
            Err(error) => {
                self.scheduler.remove(id);
                Some(Event::Failed {
                    message: error.to_string(),
                })
            }
        };
        if let Some(event) = ended {
            active.send(event);
            self.forget(id);
        }
    }

    /// The device is not to be trusted any more: everyone is told, and the thread ends.
    fn fail(&mut self, error: &TensorError) {
        let message = format!("the device failed: {error}");
        tracing::error!("{message}");
        *self.shared.failure() = Some(message.clone());
        for active in std::mem::take(&mut self.active).into_values() {
            active.send(Event::Failed {
                message: message.clone(),
            });
        }
        while let Ok(submission) = self.submissions.try_recv() {
            let _ = submission.events.send(Event::Failed {
                message: message.clone(),
            });
        }
        self.shared.running.store(0, Ordering::Relaxed);
        self.shared.preempted.store(0, Ordering::Relaxed);
        self.shared.kv_blocks_used.store(0, Ordering::Relaxed);
    }

    fn publish(&self) {
        let (shared, scheduler) = (&self.shared, &self.scheduler);
        shared
            .running
            .store(scheduler.num_running(), Ordering::Relaxed);
        shared
            .preempted
            .store(scheduler.num_preempted(), Ordering::Relaxed);
        shared
            .kv_blocks_used
            .store(scheduler.used_kv_blocks(), Ordering::Relaxed);
        shared
            .preemptions
            .store(scheduler.preemptions(), Ordering::Relaxed);
    }
}

impl Active {
    /// Adds what this step says of the prompt; sends all of it once complete. The sequence's
    /// `num_tokens` rows start at `row`.
    fn extend_prompt_logprobs(
        &mut self,
        runner: &ModelRunner,
        output: &Output,
        sequence: &Sequence,
        (row, num_tokens): (usize, usize),
    ) -> candle_core::Result<()> {
        let (Some(logprobs), Some(top)) =
            (&mut self.prompt_logprobs, sequence.params.prompt_logprobs)
        else {
            return Ok(());
        };
        let prompt = sequence.prompt();
        // The row of a token speaks of the next one; what follows the last is the output's.
        let rows = num_tokens.min(prompt.len() - 1 - sequence.computed_tokens);
        runner.for_each_row(output, (row, row + rows), |logits| {
            let token = prompt[logprobs.len()];
            logprobs.push(Some(token_logprobs(logits, token, top)));
        })?;
        if logprobs.len() == prompt.len() {
            let logprobs = std::mem::take(logprobs);
            self.prompt_logprobs = None;
            self.send(Event::PromptLogprobs(logprobs));
        }
        Ok(())
    }
}

fn sequence(scheduler: &Scheduler, id: SequenceId) -> &Sequence {
    scheduler.running(id).expect("what is scheduled runs")
}

fn part(scheduler: &Scheduler, scheduled: Scheduled) -> Part<'_> {
    let sequence = sequence(scheduler, scheduled.id);
    let context = sequence.computed_tokens;
    let tokens = &sequence.tokens()[context..context + scheduled.num_tokens];
    Part {
        id: scheduled.id,
        tokens,
        context,
        samples: scheduled.samples,
    }
}

/// Leaves a note if the thread panics: its streams end by themselves, new requests are refused.
struct PanicNote(Arc<Shared>);

impl Drop for PanicNote {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.failure() = Some("its thread panicked".to_owned());
        }
    }
}
