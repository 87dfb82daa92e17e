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
use super::active::{Active, Flight, StepClock, draw, prepare_grammars, step_report};
use super::observer::{StepObserver, StepReport};
use super::request::{Event, StepTimes, Submission};
use super::runner::{ModelRunner, Part};
use super::sampler::{SampleError, Sampled, Sampler};
use super::scheduler::{Scheduled, Scheduler, Step};
use super::sequence::{Sequence, SequenceId};
use crate::cpu_threads;
use crate::ops::{Choice, RowResult, StepResult};
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
        flight: None,
        computed: None,
        preempted: 0,
        dropped: 0,
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
    /// Launched and not collected.
    flight: Option<Flight>,
    /// When the last step was computed.
    computed: Option<Instant>,
    /// Sequences preempted that no report has told of: a step that only preempts is none to hear of.
    preempted: usize,
    /// Dropped streams that it has looked for.
    dropped: usize,
    submissions: Receiver<Submission>,
    shared: Arc<Shared>,
}

impl EngineLoop {
    fn run(mut self) {
        let _note = PanicNote(Arc::clone(&self.shared));
        // Without one of its own the work goes to the process's pool: slower, and as right.
        let _pool = cpu_threads::join_pool()
            .inspect_err(|reason| tracing::warn!(%reason, "the engine has no threads of its own"));
        loop {
            if self.is_idle() {
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
            if self.is_idle() {
                continue;
            }
            if let Err(error) = self.step() {
                self.fail(&error.into());
                return;
            }
            self.publish();
        }
    }

    fn is_idle(&self) -> bool {
        self.flight.is_none() && self.work.scheduler.is_idle()
    }

    fn accept(&mut self, submission: Submission) {
        let Submission {
            request,
            events,
            slot,
            ..
        } = submission;
        if events.is_closed() {
            // Its stream may be one that was looked for already.
            return;
        }
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
        let dropped = self.shared.dropped.load(Ordering::Acquire);
        if std::mem::replace(&mut self.dropped, dropped) == dropped {
            return;
        }
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

    /// Launches the next step and takes what the one before it has computed; and what this one has, where the host
    /// cannot be ahead of the device. Sequences for which the host chooses are in every other step, so that the device
    /// goes on with the others meanwhile.
    fn step(&mut self) -> candle_core::Result<()> {
        let runs_ahead = self.work.runner.runs_ahead();
        let launched = self.launch()?;
        if let Some(before) = std::mem::replace(&mut self.flight, launched) {
            self.collect(before)?;
        }
        let ahead = |flight: &mut Flight| runs_ahead && flight.can_wait;
        match self.flight.take_if(|flight| !ahead(flight)) {
            Some(flight) => self.collect(flight),
            None => Ok(()),
        }
    }

    /// Starts a step of all sequences that the scheduler chooses.
    fn launch(&mut self) -> candle_core::Result<Option<Flight>> {
        let begun = Instant::now();
        let step = self.work.scheduler.schedule();
        let scheduler = begun.elapsed();
        self.note_moves(&step);
        self.preempted += step.preempted.len();
        if step.scheduled.is_empty() {
            return Ok(None);
        }
        let parts = step.scheduled.iter().map(|scheduled| self.part(*scheduled));
        let parts: Vec<_> = parts.collect();
        let launched = Instant::now();
        self.work.runner.launch(&parts)?;
        let choices: Vec<_> = parts.iter().map(|part| part.choice).collect();
        prepare_grammars(&mut self.active, &step);
        let whole = |scheduled: &Scheduled| self.active[&scheduled.id].prompt_logprobs.is_none();
        let can_wait = step.scheduled.iter().all(whole);
        let observed = self.work.observer.is_some();
        let report = observed.then(|| {
            let waiting = self.shared.queue.waiting();
            let report = step_report(&step, &self.work.scheduler, &self.active, (begun, launched));
            let preempted = std::mem::take(&mut self.preempted);
            StepReport {
                waiting,
                preempted,
                ..report
            }
        });
        let runs_ahead = self.work.runner.runs_ahead();
        let mut wanted = 0;
        for (scheduled, choice) in step.scheduled.iter().zip(choices) {
            let is_chosen = choice.is_some_and(|choice| choice != Choice::Host);
            let chosen = (runs_ahead && is_chosen).then_some(wanted);
            self.work.scheduler.launched(*scheduled, chosen);
            wanted += u32::from(choice.is_some());
        }
        Ok(Some(Flight {
            step,
            scheduler,
            launched,
            can_wait,
            report,
        }))
    }

    /// Waits for a step; what it has computed goes to its sequences.
    fn collect(&mut self, flight: Flight) -> candle_core::Result<()> {
        let mut result = self.work.runner.collect()?;
        let computed = Instant::now();
        // A step that was launched early had to wait for the one before it.
        let before = self.computed.replace(computed);
        let execute = before.map_or(flight.launched, |before| before.max(flight.launched));
        let clock = StepClock {
            scheduler: flight.scheduler,
            model_forward: computed - execute,
            execute,
        };
        let step = &flight.step;
        // Before anybody hears of the step: who then asks finds it counted.
        let index = self.shared.steps.fetch_add(1, Ordering::Relaxed);
        let tokens = step.scheduled.iter().map(|scheduled| scheduled.num_tokens);
        self.shared.note_step(tokens.sum());
        let rows = std::mem::take(&mut result.rows);
        self.postprocess(step, &result, (rows, &clock))?;
        if let (Some(observer), Some(mut report)) = (&self.work.observer, flight.report) {
            report.index = index;
            report.execute = execute;
            report.computed = computed;
            report.ended = Instant::now();
            report.device_time = result.device_time;
            report.pass = result.pass;
            observer.step(&report);
        }
        Ok(())
    }

    fn postprocess(
        &mut self,
        step: &Step,
        result: &StepResult,
        (rows, clock): (Vec<RowResult>, &StepClock),
    ) -> candle_core::Result<()> {
        let mut row = 0;
        for part in &step.scheduled {
            let sequence = self.work.scheduler.running(part.id);
            let active = self.active.get_mut(&part.id);
            if let (Some(sequence), Some(active)) = (sequence, active) {
                let runner = &self.work.runner;
                active.extend_prompt_logprobs(runner, result, sequence, (row, part))?;
            }
            row += part.num_tokens;
        }
        let sampled = draw(&mut self.active, &self.work.scheduler, (step, rows));
        for (id, sampled) in sampled {
            self.push(id, sampled, clock);
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

    fn part(&self, scheduled: Scheduled) -> Part<'_> {
        let sequence = sequence(&self.work.scheduler, scheduled.id);
        let (sampler, params) = (&self.active[&scheduled.id].sampler, &sequence.params);
        let place = scheduled.context + scheduled.num_tokens;
        let output_tokens = place.saturating_sub(sequence.prompt().len());
        Part {
            tokens: sequence.tokens_after(scheduled.context, scheduled.num_tokens),
            context: scheduled.context,
            blocks: sequence.table.blocks(),
            carried: sequence.carried,
            choice: scheduled.samples.then(|| sampler.choice(params, place)),
            penalized: sampler.penalized(),
            banned: sampler.banned(params, output_tokens),
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

    /// A sequence goes on with what was drawn for it, or ends.
    fn push(&mut self, id: SequenceId, sampled: Result<Sampled, SampleError>, clock: &StepClock) {
        let active = self.active.get_mut(&id).expect("what was drawn is active");
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
        self.shared.fail(message.clone());
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
            self.0.fail("its thread panicked".to_owned());
        }
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
