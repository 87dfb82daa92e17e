//! What holds of the scheduler whatever comes: in the engine's two ways, each step collected before the next is
//! chosen, or one step late.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::ops::KV_BLOCK_TOKENS;
use crate::sampling_params::SamplingParams;

const MAX_MODEL_LEN: usize = 160;
const EOS: u32 = 2;
const TOKEN: u32 = 5;
const FIRST_TOKEN: u32 = 10;

/// What happens between two steps.
#[derive(Debug, Clone)]
enum Action {
    Submit {
        /// Of a few, so that many begin alike.
        first_token: u32,
        prompt_tokens: usize,
        max_tokens: usize,
        /// It ends by itself after so many tokens, if it gets there: the scheduler does not know before.
        ends_after: usize,
    },
    Cancel(usize),
    Step,
}

fn action() -> impl Strategy<Value = Action> {
    let submit = (0..8u32, 1..80usize, 1..120usize, 1..200usize);
    prop_oneof![
        3 => submit.prop_map(|(first_token, prompt_tokens, max_tokens, ends_after)| Action::Submit {
            first_token,
            prompt_tokens,
            max_tokens,
            ends_after,
        }),
        2 => (0..20usize).prop_map(Action::Cancel),
        30 => Just(Action::Step),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (2..12usize, 12..200usize, 0..4usize, any::<bool>()).prop_map(
        |(max_num_seqs, max_num_batched_tokens, spare, prefix_caching)| Limits {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len: MAX_MODEL_LEN,
            kv_blocks: MAX_MODEL_LEN.div_ceil(KV_BLOCK_TOKENS) + spare,
            prefix_caching,
        },
    )
}

/// How often what happened, over all cases.
#[derive(Debug, Default)]
struct Tally {
    submitted: Cell<u64>,
    cancelled: Cell<u64>,
    preempted: Cell<u64>,
    /// Cancelled between launch and collection.
    cancelled_in_flight: Cell<u64>,
    /// Preempted so, and given their token nevertheless.
    preempted_in_flight: Cell<u64>,
    /// Run beyond a token that was their last, which nobody knew.
    ended_in_flight: Cell<u64>,
}

impl Tally {
    /// What has happened least often.
    fn least(&self) -> u64 {
        let counts = [&self.submitted, &self.cancelled, &self.preempted];
        counts.map(Cell::get).into_iter().min().unwrap_or_default()
    }
}

fn add(to: &Cell<u64>, count: usize) {
    to.set(to.get() + count as u64);
}

/// The engine's thread as the scheduler sees it.
struct Engine<'a> {
    scheduler: Scheduler,
    /// Launched and not collected, where the host runs ahead.
    flight: Option<Step>,
    runs_ahead: bool,
    /// Neither finished nor cancelled, each with the tokens after which it ends by itself.
    alive: BTreeMap<SequenceId, usize>,
    next_id: u64,
    tally: &'a Tally,
}

impl Engine<'_> {
    fn act(&mut self, action: &Action) -> Result<(), TestCaseError> {
        match *action {
            Action::Submit {
                first_token,
                prompt_tokens,
                max_tokens,
                ends_after,
            } => {
                let id = SequenceId(self.next_id);
                self.next_id += 1;
                let prompt = vec![FIRST_TOKEN + first_token; prompt_tokens];
                let params = SamplingParams {
                    max_tokens,
                    ..SamplingParams::default()
                };
                self.scheduler.add(Sequence::new(id, prompt, params));
                self.alive.insert(id, ends_after);
                add(&self.tally.submitted, 1);
            }
            Action::Cancel(index) => self.cancel(index),
            Action::Step => self.step()?,
        }
        Ok(())
    }

    fn cancel(&mut self, index: usize) {
        let Some(at) = index.checked_rem(self.alive.len()) else {
            return;
        };
        let id = *self.alive.keys().nth(at).expect("it is below the count");
        self.scheduler.remove(id);
        self.alive.remove(&id);
        add(&self.tally.cancelled, 1);
        add(&self.tally.cancelled_in_flight, usize::from(self.flies(id)));
    }

    fn flies(&self, id: SequenceId) -> bool {
        let step = self.flight.iter().flat_map(|step| &step.scheduled);
        step.into_iter().any(|part| part.id == id)
    }

    /// Chooses and launches a step; collects it, or else the one before it.
    fn step(&mut self) -> Result<(), TestCaseError> {
        let oldest_waiting = self.scheduler.waiting.front().map(|sequence| sequence.id);
        let step = self.scheduler.schedule();
        self.check(&step, oldest_waiting)?;
        let preempted = step.preempted.iter();
        let in_flight = preempted.filter(|id| self.flies(**id)).count();
        add(&self.tally.preempted, step.preempted.len());
        add(&self.tally.preempted_in_flight, in_flight);
        let mut row = 0;
        for part in &step.scheduled {
            let chosen = (self.runs_ahead && part.samples).then_some(row);
            self.scheduler.launched(*part, chosen);
            row += u32::from(part.samples);
        }
        self.check_blocks();
        let collected = if self.runs_ahead {
            let launched = Some(step).filter(|step| !step.scheduled.is_empty());
            std::mem::replace(&mut self.flight, launched)
        } else {
            Some(step)
        };
        collected.iter().for_each(|step| self.collect(step));
        self.check_blocks();
        Ok(())
    }

    /// What must hold of each step.
    fn check(&self, step: &Step, oldest_waiting: Option<SequenceId>) -> Result<(), TestCaseError> {
        let scheduler = &self.scheduler;
        let num_tokens: usize = step.scheduled.iter().map(|part| part.num_tokens).sum();
        prop_assert!(num_tokens <= scheduler.limits.max_num_batched_tokens);
        prop_assert!(
            num_tokens > 0 || scheduler.is_idle() || self.flight.is_some(),
            "a step makes progress, or the one under way does"
        );
        prop_assert!(scheduler.num_running() <= scheduler.limits.max_num_seqs);
        let id = |sequence: &Sequence| sequence.id;
        prop_assert!(scheduler.running.is_sorted_by_key(id), "oldest first");
        prop_assert!(
            scheduler
                .waiting
                .iter()
                .is_sorted_by_key(|waiting| waiting.id),
            "first come, first served"
        );
        if let (Some(first), Some(oldest)) = (step.admitted.first(), oldest_waiting) {
            prop_assert_eq!(first.id, oldest, "nobody overtakes");
        }
        for part in &step.scheduled {
            prop_assert!(part.num_tokens > 0);
            let sequence = scheduler.running(part.id).expect("what is scheduled runs");
            let tokens = sequence.computed_tokens + part.num_tokens;
            prop_assert_eq!(sequence.table.missing(tokens), 0, "its cache has room");
            let tokens = sequence.tokens_after(part.context, part.num_tokens);
            prop_assert_eq!(tokens.len(), part.num_tokens);
        }
        Ok(())
    }

    /// No block is lost, or held by who does not run.
    fn check_blocks(&self) {
        let scheduler = &self.scheduler;
        let mut waiting = scheduler.waiting.iter();
        assert!(waiting.all(|sequence| sequence.table.blocks().is_empty()));
        let preempted = scheduler.waiting.iter();
        let preempted = preempted.filter(|waiting| waiting.was_scheduled).count();
        assert_eq!(scheduler.num_preempted(), preempted);
        let tables = scheduler.running.iter().map(|running| &running.table);
        scheduler.pool.check(tables);
    }

    /// Gives what is still there its tokens.
    fn collect(&mut self, step: &Step) {
        for part in step.scheduled.iter().filter(|part| part.samples) {
            let Some(&ends_after) = self.alive.get(&part.id) else {
                continue;
            };
            let sequence = self.scheduler.sequence(part.id).expect("it is alive");
            let ends = sequence.output_tokens() + 1 >= ends_after;
            let token = if ends { EOS } else { TOKEN };
            if self.scheduler.postprocess(part.id, token, &[EOS]).is_some() {
                self.alive.remove(&part.id);
                add(
                    &self.tally.ended_in_flight,
                    usize::from(self.flies(part.id)),
                );
            }
        }
    }
}

#[test]
fn ten_thousand_submits_cancels_and_preemptions_leave_no_block_behind_and_keep_the_limits() {
    const MANY: u64 = 10_000;
    const MOST_ROUNDS: usize = 100;
    let tally = Tally::default();
    let mut rounds = 0;
    while tally.least() < MANY {
        rounds += 1;
        assert!(rounds <= MOST_ROUNDS, "{tally:?}");
        run_cases(&tally);
    }
    for rarer in [
        &tally.cancelled_in_flight,
        &tally.preempted_in_flight,
        &tally.ended_in_flight,
    ] {
        assert!(rarer.get() >= MANY / 100, "{tally:?}");
    }
}

fn run_cases(tally: &Tally) {
    let config = ProptestConfig {
        cases: 32,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    let actions = proptest::collection::vec(action(), 1..2000);
    let cases = (limits(), any::<bool>(), actions);
    let checked = TestRunner::new(config).run(&cases, |(limits, runs_ahead, actions)| {
        let mut engine = Engine {
            scheduler: Scheduler::new(limits),
            flight: None,
            runs_ahead,
            alive: BTreeMap::new(),
            next_id: 0,
            tally,
        };
        for action in &actions {
            engine.act(action)?;
        }
        // Every sequence ends: each step runs at least one token of the oldest.
        let mut steps = 0;
        while !engine.scheduler.is_idle() || engine.flight.is_some() {
            engine.step()?;
            steps += 1;
            prop_assert!(steps < 100_000, "still busy with {:?}", engine.alive);
        }
        prop_assert!(
            engine.alive.is_empty(),
            "never finished: {:?}",
            engine.alive
        );
        prop_assert_eq!(engine.scheduler.used_kv_blocks(), 0);
        Ok(())
    });
    checked.unwrap_or_else(|failed| panic!("{failed}"));
}
