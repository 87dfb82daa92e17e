use super::*;
use crate::ops::KV_BLOCK_TOKENS;
use crate::sampling_params::SamplingParams;

const ROOMY: Limits = Limits {
    max_num_seqs: 8,
    max_num_batched_tokens: 100,
    max_model_len: 1000,
    kv_blocks: 100,
    prefix_caching: true,
};

/// Never sampled here, so that sequences end by their length alone.
const EOS: u32 = 2;
const TOKEN: u32 = 5;
const FIRST_TOKEN: u32 = 10;

fn sequence(id: u64, prompt_tokens: usize, max_tokens: usize) -> Sequence {
    let params = SamplingParams {
        max_tokens,
        ..SamplingParams::default()
    };
    // No two begin alike.
    let prompt = vec![FIRST_TOKEN + id as u32; prompt_tokens];
    Sequence::new(SequenceId(id), prompt, params)
}

fn scheduler(limits: Limits, sequences: &[(usize, usize)]) -> Scheduler {
    let mut scheduler = Scheduler::new(limits);
    for (id, &(prompt_tokens, max_tokens)) in sequences.iter().enumerate() {
        scheduler.add(sequence(id as u64, prompt_tokens, max_tokens));
    }
    scheduler
}

/// Does what the engine does with a step; returns those that finished.
fn run(scheduler: &mut Scheduler, step: &Step) -> Vec<u64> {
    let mut finished = Vec::new();
    for &scheduled in &step.scheduled {
        scheduler.launched(scheduled, None);
        if scheduled.samples && scheduler.postprocess(scheduled.id, TOKEN, &[EOS]).is_some() {
            finished.push(scheduled.id.0);
        }
    }
    finished
}

/// (sequence, tokens, samples) of each part.
fn parts(step: &Step) -> Vec<(u64, usize, bool)> {
    step.scheduled
        .iter()
        .map(|part| (part.id.0, part.num_tokens, part.samples))
        .collect()
}

/// (sequence, tokens that were cached, was there before) of each that entered the batch.
fn admitted(step: &Step) -> Vec<(u64, usize, bool)> {
    step.admitted
        .iter()
        .map(|admitted| (admitted.id.0, admitted.cached_tokens, admitted.again))
        .collect()
}

#[test]
fn a_new_sequence_prefills_while_others_decode() {
    let mut scheduler = scheduler(ROOMY, &[(10, 5)]);
    let step = scheduler.schedule();
    assert_eq!(parts(&step), [(0, 10, true)]);
    assert_eq!(admitted(&step), [(0, 0, false)]);
    run(&mut scheduler, &step);
    scheduler.add(sequence(1, 20, 5));
    let step = scheduler.schedule();
    assert_eq!(parts(&step), [(0, 1, true), (1, 20, true)]);
    assert_eq!(admitted(&step), [(1, 0, false)]);
}

#[test]
fn a_long_prompt_is_run_in_chunks_beside_the_others() {
    let mut scheduler = scheduler(ROOMY, &[(10, 5), (150, 5), (30, 5)]);
    let step = scheduler.schedule();
    assert_eq!(parts(&step), [(0, 10, true), (1, 90, false)]);
    run(&mut scheduler, &step);
    let step = scheduler.schedule();
    assert_eq!(parts(&step), [(0, 1, true), (1, 60, true), (2, 30, true)]);
}

#[test]
fn no_more_sequences_run_than_may() {
    let limits = Limits {
        max_num_seqs: 2,
        ..ROOMY
    };
    let mut scheduler = scheduler(limits, &[(1, 1), (1, 9), (1, 9)]);
    let step = scheduler.schedule();
    assert_eq!(parts(&step), [(0, 1, true), (1, 1, true)]);
    assert_eq!(run(&mut scheduler, &step), [0]);
    assert_eq!(parts(&scheduler.schedule()), [(1, 1, true), (2, 1, true)]);
}

#[test]
fn the_newest_gives_its_cache_to_the_oldest_and_comes_back_whole() {
    // Two blocks each at first; the first decode of sequence 0 needs a third one.
    let limits = Limits {
        max_num_batched_tokens: 1000,
        kv_blocks: 4,
        ..ROOMY
    };
    let two_blocks = 2 * KV_BLOCK_TOKENS;
    let mut scheduler = scheduler(limits, &[(two_blocks, 3), (two_blocks, 3), (1, 1)]);
    let step = scheduler.schedule();
    assert_eq!(
        parts(&step),
        [(0, two_blocks, true), (1, two_blocks, true)],
        "2 has no block left"
    );
    run(&mut scheduler, &step);
    let step = scheduler.schedule();
    assert_eq!(
        parts(&step),
        [(0, 1, true)],
        "nothing is admitted in the step that preempts"
    );
    assert_eq!(step.preempted, [SequenceId(1)]);
    assert_eq!(scheduler.num_preempted(), 1);
    assert_eq!(scheduler.counts().preemptions, 1);
    run(&mut scheduler, &step);
    let step = scheduler.schedule();
    assert_eq!(
        parts(&step),
        [(0, 1, true)],
        "1 still has no room, and 2 may not overtake it"
    );
    assert_eq!(run(&mut scheduler, &step), [0]);
    let step = scheduler.schedule();
    assert_eq!(
        parts(&step),
        [(1, two_blocks + 1 - KV_BLOCK_TOKENS, true), (2, 1, true)],
        "with its output token, without the block that nobody took meanwhile"
    );
    assert_eq!(admitted(&step), [(1, KV_BLOCK_TOKENS, true), (2, 0, false)]);
}

#[test]
fn a_removed_sequence_gives_back_its_place_and_its_cache() {
    let limits = Limits {
        max_num_seqs: 1,
        ..ROOMY
    };
    let mut scheduler = scheduler(limits, &[(10, 5), (10, 5), (10, 5)]);
    let step = scheduler.schedule();
    run(&mut scheduler, &step);
    assert_eq!(scheduler.used_kv_blocks(), 1);
    scheduler.remove(SequenceId(0)); // runs
    scheduler.remove(SequenceId(1)); // waits
    assert_eq!(scheduler.used_kv_blocks(), 0);
    assert_eq!(parts(&scheduler.schedule()), [(2, 10, true)]);
}

#[test]
fn a_sequence_that_begins_like_another_runs_only_the_rest() {
    let mut scheduler = scheduler(ROOMY, &[(40, 5)]);
    let step = scheduler.schedule();
    run(&mut scheduler, &step);
    let again = |id, length| {
        let sequence = sequence(id, length, 5);
        let prompt = vec![FIRST_TOKEN; length];
        Sequence::new(sequence.id, prompt, sequence.params)
    };
    scheduler.add(again(1, 60));
    let mut with_logprobs = again(2, 20);
    with_logprobs.params.prompt_logprobs = Some(0);
    scheduler.add(with_logprobs);
    let step = scheduler.schedule();
    assert_eq!(parts(&step), [(0, 1, true), (1, 28, true), (2, 20, true)]);
    assert_eq!(admitted(&step), [(1, 32, false), (2, 0, false)]);
    let counts = scheduler.counts();
    assert_eq!((counts.cache_queries, counts.cache_hits), (100, 32));
    assert_eq!(scheduler.used_kv_blocks(), 3 + 2 + 2, "two are shared");
    scheduler.remove(SequenceId(0));
    assert_eq!(
        scheduler.used_kv_blocks(),
        4 + 2,
        "and stay with those who share them"
    );
}

/// What one sequence saw of a simulation, in steps since its start.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    arrived: u64,
    admitted: Option<u64>,
    last_token: Option<u64>,
    /// The longest time between two of its tokens.
    stalled: u64,
}

#[test]
fn under_overload_everyone_is_served_in_turn_and_waits_as_long_as_the_arithmetic_says() {
    const ARRIVALS: u64 = 400;
    const ARRIVALS_PER_STEP: u64 = 5;
    let limits = Limits {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: 64,
        kv_blocks: 8 * 4,
        prefix_caching: false,
    };
    // 48 tokens and 15 more are run for each, over 16 steps at least: of 8 places that is one every two
    // steps, and ten times as many arrive.
    let steps_each = 2;
    let mut scheduler = Scheduler::new(limits);
    let mut seen = vec![Seen::default(); ARRIVALS as usize];
    let (mut arrived, mut clock) = (0, 0);
    while arrived < ARRIVALS || !scheduler.is_idle() {
        for _ in 0..ARRIVALS_PER_STEP.min(ARRIVALS - arrived) {
            scheduler.add(sequence(arrived, 48, 16));
            seen[arrived as usize].arrived = clock;
            arrived += 1;
        }
        let step = scheduler.schedule();
        for admitted in &step.admitted {
            seen[admitted.id.0 as usize].admitted.get_or_insert(clock);
        }
        for part in step.scheduled.iter().filter(|part| part.samples) {
            let seen = &mut seen[part.id.0 as usize];
            if let Some(last) = seen.last_token.replace(clock) {
                seen.stalled = seen.stalled.max(clock - last);
            }
        }
        run(&mut scheduler, &step);
        clock += 1;
    }
    let admissions: Vec<_> = seen.iter().filter_map(|seen| seen.admitted).collect();
    assert_eq!(admissions.len(), seen.len(), "nobody is forgotten");
    assert!(admissions.is_sorted(), "first come, first served");
    for (place, seen) in seen.iter().enumerate() {
        let waited = admissions[place] - seen.arrived;
        let due = (place as u64 * steps_each).saturating_sub(seen.arrived);
        assert!(
            waited <= due + due / 4 + 16,
            "{place} waited {waited}, not {due}"
        );
        assert!(
            seen.stalled <= 1,
            "{place} had no token for {} steps",
            seen.stalled
        );
    }
    assert_eq!(scheduler.counts().preemptions, 0);
}
