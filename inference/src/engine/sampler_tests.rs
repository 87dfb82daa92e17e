use super::*;
use crate::engine::sequence::SequenceId;

const EOS: u32 = 0;

fn sequence(params: SamplingParams) -> Sequence {
    Sequence::new(SequenceId(0), vec![1, 1], params)
}

/// Draws `count` tokens, each from the same logits.
fn draw(params: SamplingParams, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sequence = sequence(params);
    let mut sampler = Sampler::new(&sequence, &[EOS]);
    let mut tokens = Vec::new();
    for _ in 0..count {
        let token = sampler.choose(logits.to_vec(), &sequence).unwrap().token;
        sequence.push(token, &[], usize::MAX);
        tokens.push(token);
    }
    tokens
}

fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

fn seeded() -> SamplingParams {
    SamplingParams {
        seed: Some(7),
        ..SamplingParams::default()
    }
}

/// The set of tokens that ever come.
fn support(params: SamplingParams, logits: &[f32]) -> Vec<u32> {
    let mut tokens = draw(params, logits, 400);
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Logits of a distribution of five tokens.
fn logits() -> Vec<f32> {
    [0.05f32, 0.1, 0.2, 0.4, 0.25]
        .iter()
        .map(|probability| probability.ln())
        .collect()
}

#[test]
fn greedy_takes_the_best_token_and_the_lowest_of_equals() {
    assert_eq!(draw(greedy(), &logits(), 2), [3, 3]);
    assert_eq!(draw(greedy(), &[0.0, 1.5, 1.5, 1.5], 1), [1]);
    assert_eq!(draw(greedy(), &[f32::NEG_INFINITY; 3], 1), [0]);
}

#[test]
fn without_limits_every_token_can_come_about_as_often_as_it_is_likely() {
    let tokens = draw(seeded(), &logits(), 4000);
    for (token, logit) in logits().iter().enumerate() {
        let count = tokens
            .iter()
            .filter(|drawn| **drawn == token as u32)
            .count();
        let expected = logit.exp() * 4000.0;
        // Five standard deviations at most; the seed makes it the same every time.
        assert!(
            (count as f32 - expected).abs() < 5.0 * expected.sqrt(),
            "{token}: {count}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_tokens_and_another_seed_others() {
    let first = draw(seeded(), &logits(), 50);
    assert_eq!(draw(seeded(), &logits(), 50), first);
    let other = SamplingParams {
        seed: Some(8),
        ..seeded()
    };
    assert_ne!(draw(other, &logits(), 50), first);
}

#[test]
fn top_k_top_p_and_min_p_cut_off_the_unlikely() {
    let top_k = |k| SamplingParams {
        top_k: Some(k),
        ..seeded()
    };
    assert_eq!(support(top_k(1), &logits()), [3]);
    assert_eq!(support(top_k(2), &logits()), [3, 4]);
    assert_eq!(support(top_k(99), &logits()), [0, 1, 2, 3, 4]);
    let top_p = |top_p| SamplingParams { top_p, ..seeded() };
    assert_eq!(support(top_p(0.39), &logits()), [3]);
    assert_eq!(support(top_p(0.6), &logits()), [3, 4]);
    let min_p = |min_p| SamplingParams { min_p, ..seeded() };
    assert_eq!(support(min_p(0.49), &logits()), [2, 3, 4], "0.196 and more");
    assert_eq!(support(min_p(1.0), &logits()), [3]);
}

#[test]
fn min_p_counts_at_the_temperature() {
    // At temperature 2 the odds of 2 against 3 are sqrt(0.5) = 0.707.
    let hot = SamplingParams {
        temperature: 2.0,
        min_p: 0.7,
        ..seeded()
    };
    assert_eq!(support(hot, &logits()), [2, 3, 4]);
    assert_eq!(
        support(
            SamplingParams {
                min_p: 0.7,
                ..seeded()
            },
            &logits()
        ),
        [3]
    );
}

#[test]
fn top_p_is_of_what_top_k_leaves() {
    // Of 3 and 4 alone, 3 has 0.615 of the mass: enough. Of all tokens it has 0.4.
    let params = SamplingParams {
        top_k: Some(2),
        top_p: 0.6,
        ..seeded()
    };
    assert_eq!(support(params, &logits()), [3]);
}

#[test]
fn ends_are_not_sampled_before_min_tokens() {
    let params = SamplingParams {
        min_tokens: 2,
        stop_token_ids: vec![2],
        ..greedy()
    };
    assert_eq!(draw(params, &[9.0, 1.0, 8.0, 2.0], 4), [3, 3, 0, 0]);
}

#[test]
fn a_device_may_choose_but_for_grammars_and_many_log_probabilities() {
    let choice = |params: SamplingParams| {
        let sequence = sequence(params);
        Sampler::new(&sequence, &[]).choice(&sequence.params, 1)
    };
    assert_eq!(choice(greedy()), Choice::GREEDY);
    let params = SamplingParams {
        temperature: 0.5,
        top_k: Some(9),
        top_p: 0.75,
        min_p: 0.25,
        presence_penalty: 1.5,
        logprobs: Some(MAX_TOP_LOGPROBS),
        ..seeded()
    };
    let Choice::Device(sampling) = choice(params.clone()) else {
        panic!("not the host");
    };
    let draw = sampling.draw.expect("a draw");
    assert_eq!(
        (draw.temperature, draw.top_k, draw.top_p, draw.min_p),
        (0.5, 9, 0.75, 0.25)
    );
    assert_eq!(
        (sampling.penalties.presence, sampling.logprobs),
        (1.5, Some(20))
    );
    assert_eq!(choice(params), Choice::Device(sampling), "a seed decides");
    let many = SamplingParams {
        logprobs: Some(MAX_TOP_LOGPROBS + 1),
        ..greedy()
    };
    assert_eq!(choice(many), Choice::Host);
}

#[test]
fn a_device_is_told_what_has_occurred_and_what_must_not_come_yet() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        min_tokens: 2,
        stop_token_ids: vec![9],
        ..greedy()
    };
    let sequence = sequence(params);
    let mut sampler = Sampler::new(&sequence, &[EOS]);
    let occurred = |sampler: &Sampler| {
        let tokens = sampler.penalized().iter().map(|it| (it.token, it.times));
        tokens.collect::<Vec<_>>()
    };
    assert_eq!(
        (sequence.prompt(), occurred(&sampler)),
        (&[1, 1][..], vec![(1, 0)])
    );
    for token in [7, 7] {
        let logprobs = None;
        let row = RowResult::Token(ChosenToken { token, logprobs });
        sampler.sample(row, &sequence).unwrap();
    }
    assert_eq!(occurred(&sampler), [(1, 0), (7, 2)]);
    let banned = |output| sampler.banned(&sequence.params, output).to_vec();
    assert_eq!(
        [banned(0), banned(1), banned(2)],
        [vec![EOS, 9], vec![EOS, 9], vec![]]
    );
}

#[test]
fn penalties_count_output_tokens_and_repetition_the_prompt_too() {
    let even = [0.0, 1.0, 1.0, 1.0];
    let presence = SamplingParams {
        presence_penalty: 0.5,
        ..greedy()
    };
    assert_eq!(
        draw(presence, &even, 5),
        [1, 2, 3, 1, 1],
        "once a token, however often"
    );
    let frequency = SamplingParams {
        frequency_penalty: 0.4,
        ..greedy()
    };
    assert_eq!(draw(frequency, &even, 6), [1, 2, 3, 1, 2, 3], "each time");
    let repetition = SamplingParams {
        repetition_penalty: 2.0,
        ..greedy()
    };
    assert_eq!(
        draw(repetition.clone(), &even, 3),
        [2, 3, 1],
        "1 is in the prompt"
    );
    assert_eq!(
        draw(repetition, &[-4.0, -1.0, -1.5, -9.0], 2),
        [2, 1],
        "negative ones grow"
    );
}

#[test]
fn log_probabilities_are_of_the_raw_distribution() {
    let params = SamplingParams {
        logprobs: Some(2),
        presence_penalty: 2.0,
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let mut sequence = sequence(params);
    let mut sampler = Sampler::new(&sequence, &[EOS]);
    for (expected, rank) in [(3, 1), (4, 2)] {
        let sampled = sampler.choose(logits(), &sequence).unwrap();
        let logprobs = sampled.logprobs.expect("asked for");
        assert_eq!(
            (sampled.token, logprobs.token.0, logprobs.rank),
            (expected, expected, rank)
        );
        let close = |logprob: f32, probability: f32| (logprob.exp() - probability).abs() < 1e-6;
        assert!(close(
            logprobs.token.1,
            if expected == 3 { 0.4 } else { 0.25 }
        ));
        assert_eq!(
            logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            [3, 4]
        );
        assert!(close(logprobs.top[0].1, 0.4) && close(logprobs.top[1].1, 0.25));
        sequence.push(sampled.token, &[], usize::MAX);
    }
}

#[test]
fn as_many_log_probabilities_come_as_there_are_tokens_at_most() {
    assert_eq!(token_logprobs(&logits(), 0, 99).top.len(), 5);
    assert_eq!(token_logprobs(&logits(), 0, 0).top, []);
    assert_eq!(token_logprobs(&logits(), 0, 0).rank, 5);
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let sequence = sequence(greedy());
    let error = Sampler::new(&sequence, &[EOS]).choose(vec![0.0, f32::NAN], &sequence);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the model's logits are not numbers"
    );
}
