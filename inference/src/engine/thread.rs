//! The engine's thread: take in, `schedule`, `run`, sample, `postprocess`, again.
//!
//! It owns the device and never awaits. With nothing to do it blocks on the channel; with something to do it
//! looks at the channel, and for streams that were dropped, once per step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Instant;

use super::Shared;
use super::active::{Active, StepClock};
use super::observer::{Member, StepObserver, StepReport};
use super::request::{Event, StepTimes, Submission};
use super::runner::{ModelRunner, Part};
use super::sampler::{Sampled, Sampler};
use super::scheduler::{Scheduled, Scheduler, Step};
use super::sequence::{Sequence, SequenceId};
use crate::ops::{RowResult, StepResult};
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
    work: Work,
    submissions: Receiver<Submission>,
    shared: Arc<Shared>,
) -> std::io::Result<EngineThread> {
    let engine = EngineLoop {
        work,
        active: BTreeMap::new(),
        next_id: 0,
        submissions,
        shared: Arc::clone(&shared),
    };
    let builder = std::thread::Builder::new().name("engine".to_owned());
    let handle = builder.spawn(move || engine.run())?;
    Ok(EngineThread { handle, shared })
}

/// What the engine knows of the model's tokens.
pub(super) struct Vocabulary {
    /// Token ids are below this.
    pub(super) size: usize,
    /// Tokens that end a sequence.
    pub(super) eos_token_ids: Vec<u32>,
}

/// What the thread works with.
pub(super) struct Work {
    pub(super) runner: ModelRunner,
    pub(super) scheduler: Scheduler,
    pub(super) vocabulary: Vocabulary,
    pub(super) observer: Option<Box<dyn StepObserver>>,
}

struct EngineLoop {
    work: Work,
    /// Every request that is neither finished nor cancelled.
    active: BTreeMap<SequenceId, Active>,
    next_id: u64,
    submissions: Receiver<Submission>,
    shared: Arc<Shared>,
}

impl EngineLoop {
    fn run(mut self) {
        let _note = PanicNote(Arc::clone(&self.shared));
        loop {
            if self.work.scheduler.is_idle() {
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
            if self.work.scheduler.is_idle() {
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
        let sampler = Sampler::new(&sequence, &self.work.vocabulary.eos_token_ids);
        self.active.insert(
            id,
            Active {
                events,
                span: request.span,
                slot,
                sampler,
                prompt_logprobs,
                times: StepTimes::default(),
            },
        );
        self.work.scheduler.add(sequence);
    }

    /// What the model cannot embed would be a device error, and take every other request with it.
    fn refusal(&self, prompt: &[u32]) -> Option<String> {
        if prompt.is_empty() {
            return Some("the prompt is empty".to_owned());
        }
        let unknown = prompt
            .iter()
            .find(|&&token| token as usize >= self.work.vocabulary.size)?;
        Some(format!(
            "token id {unknown} is not below the vocabulary size, {}",
            self.work.vocabulary.size
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
            self.work.scheduler.remove(id);
            self.active.remove(&id);
        }
    }

    /// One step of all sequences that the scheduler chooses.
    fn step(&mut self) -> candle_core::Result<()> {
        let begun = Instant::now();
        let step = self.work.scheduler.schedule();
        let scheduler = begun.elapsed();
        self.note_moves(&step);
        let parts = step.scheduled.iter().map(|scheduled| self.part(*scheduled));
        let parts: Vec<_> = parts.collect();
        let execute = Instant::now();
        let mut result = self.work.runner.run(&parts)?;
        let computed = Instant::now();
        let clock = StepClock {
            scheduler,
            model_forward: computed - execute,
            execute,
        };
        let observed = self.work.observer.is_some();
        let report = observed.then(|| self.report(&step, &result, (begun, execute, computed)));
        // Before anybody hears of the step: who then asks finds it counted.
        self.shared.steps.fetch_add(1, Ordering::Relaxed);
        let tokens = step.scheduled.iter().map(|scheduled| scheduled.num_tokens);
        self.shared.step_tokens.note(tokens.sum());
        let rows = std::mem::take(&mut result.rows);
        self.postprocess(&step, &result, (rows, &clock))?;
        if let (Some(observer), Some(mut report)) = (&self.work.observer, report) {
            report.ended = Instant::now();
            observer.step(&report);
        }
        Ok(())
    }

    /// What a step has computed goes to its sequences.
    fn postprocess(
        &mut self,
        step: &Step,
        result: &StepResult,
        (rows, clock): (Vec<RowResult>, &StepClock),
    ) -> candle_core::Result<()> {
        let mut row = 0;
        for scheduled in &step.scheduled {
            let id = scheduled.id;
            let active = self.active.get_mut(&id).expect("what runs is active");
            let sequence = sequence(&self.work.scheduler, id);
            let rows = (row, scheduled.num_tokens);
            active.extend_prompt_logprobs(&self.work.runner, result, sequence, rows)?;
            row += scheduled.num_tokens;
        }
        step.scheduled
            .iter()
            .for_each(|scheduled| self.work.scheduler.computed(*scheduled));
        let sampling = step.scheduled.iter().filter(|scheduled| scheduled.samples);
        for (scheduled, row) in sampling.zip(rows) {
            self.sample(scheduled.id, row, clock);
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

    /// A step as far as it is known once it is computed.
    fn report(
        &self,
        step: &Step,
        result: &StepResult,
        (begun, execute, computed): (Instant, Instant, Instant),
    ) -> StepReport {
        let scheduler = &self.work.scheduler;
        let member = |scheduled: &Scheduled| Member {
            span: self.active[&scheduled.id].span.clone(),
            tokens: scheduled.num_tokens,
        };
        let tokens: usize = step.scheduled.iter().map(|part| part.num_tokens).sum();
        let decodes = |part: &&Scheduled| sequence(scheduler, part.id).decodes(part.num_tokens);
        let decode_tokens = step.scheduled.iter().filter(decodes).count();
        let cached = step.admitted.iter().map(|admitted| admitted.cached_tokens);
        StepReport {
            index: self.shared.steps.load(Ordering::Relaxed),
            begun,
            execute,
            computed,
            ended: computed,
            device_time: result.device_time,
            pass: result.pass,
            prefill_tokens: tokens - decode_tokens,
            decode_tokens,
            cached_tokens: cached.sum(),
            preempted: step.preempted.len(),
            kv_blocks_used: scheduler.used_kv_blocks(),
            kv_blocks_free: scheduler.free_kv_blocks(),
            waiting: self.shared.queue.waiting(),
            members: step.scheduled.iter().map(member).collect(),
        }
    }

    fn part(&self, scheduled: Scheduled) -> Part<'_> {
        let sequence = sequence(&self.work.scheduler, scheduled.id);
        let sampler = &self.active[&scheduled.id].sampler;
        let context = sequence.computed_tokens;
        Part {
            tokens: &sequence.tokens()[context..context + scheduled.num_tokens],
            context,
            blocks: sequence.table.blocks(),
            choice: scheduled.samples.then(|| sampler.choice(sequence)),
        }
    }

    /// Tells those who enter the batch and those who leave it.
    fn note_moves(&mut self, step: &Step) {
        let at = Instant::now();
        for id in &step.preempted {
            if let Some(active) = self.active.get_mut(id) {
                if let Some(logprobs) = &mut active.prompt_logprobs {
                    logprobs.truncate(1); // the prompt is run anew
                }
                active.send(Event::Preempted { at });
            }
        }
        for admitted in &step.admitted {
            let Some(active) = self.active.get_mut(&admitted.id) else {
                continue;
            };
            active.slot = None;
            let cached_tokens = admitted.cached_tokens;
            active.send(if admitted.again {
                Event::Resumed { at, cached_tokens }
            } else {
                Event::Scheduled { at, cached_tokens }
            });
        }
    }

    fn sample(&mut self, id: SequenceId, row: RowResult, clock: &StepClock) {
        let active = self.active.get_mut(&id).expect("what runs is active");
        let sampled = active
            .sampler
            .sample(row, sequence(&self.work.scheduler, id));
        let at = Instant::now();
        let ended = match sampled {
            Ok(Sampled { token, logprobs }) => {
                active.send(Event::Token {
                    id: token,
                    logprobs,
                    at,
                    times: active.times.and(clock.times(at)),
                });
                let reason =
                    self.work
                        .scheduler
                        .postprocess(id, token, &self.work.vocabulary.eos_token_ids);
                reason.map(|reason| Event::Finished { reason, at })
            }
            Err(error) => {
                self.work.scheduler.remove(id);
                Some(Event::Failed {
                    message: error.to_string(),
                })
            }
        };
        if let Some(event) = ended {
            active.send(event);
            self.active.remove(&id);
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
        let (shared, scheduler) = (&self.shared, &self.work.scheduler);
        let counts = scheduler.counts();
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
            .store(counts.preemptions, Ordering::Relaxed);
        shared
            .prefix_cache_queries
            .store(counts.cache_queries, Ordering::Relaxed);
        shared
            .prefix_cache_hits
            .store(counts.cache_hits, Ordering::Relaxed);
    }
}

fn sequence(scheduler: &Scheduler, id: SequenceId) -> &Sequence {
    scheduler.running(id).expect("what is scheduled runs")
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
