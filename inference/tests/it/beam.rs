//! Beam search, driven over HTTP against a language of four tokens.

use std::time::Duration;

use http::StatusCode;
use lantern_inference::engine::request::{
    Event, FinishReason, StepTimes, Submission, TokenLogprobs,
};
use serde_json::{Value, json};

use crate::harness::{EOS, Harness, MODEL, Options, attribute};

const A: u32 = b'a' as u32;
const B: u32 = b'b' as u32;
const C: u32 = b'c' as u32;

/// The language: `a` is the likelier beginning, `b` leads to the likelier texts. `c` often ends.
fn next(last: u32) -> [(u32, f32); 4] {
    let probabilities = match last {
        A => [(A, 0.31), (B, 0.29), (C, 0.3), (EOS, 0.1)],
        B => [(C, 0.9), (A, 0.06), (B, 0.03), (EOS, 0.01)],
        C => [(EOS, 0.7), (A, 0.2), (B, 0.07), (C, 0.03)],
        _ => [(A, 0.5), (B, 0.4), (C, 0.08), (EOS, 0.02)],
    };
    probabilities.map(|(token, probability)| (token, f32::ln(probability)))
}

fn speak(mut submission: Submission) {
    submission.leave_queue();
    let params = &submission.request.params;
    assert_eq!(params.max_tokens, 1, "one token at a time");
    let last = *submission.request.prompt_tokens.last().expect("a prompt");
    let mut top = next(last).to_vec();
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    let token = top[0];
    top.truncate(params.logprobs.expect("log probabilities are asked for"));
    let at = submission.queued;
    let logprobs = Some(TokenLogprobs {
        token,
        rank: 1,
        top,
    });
    // A search that has ended or failed may be gone.
    let _ = submission.events.send(Event::Scheduled {
        at,
        cached_tokens: 0,
    });
    if params.prompt_logprobs.is_some() {
        let known = |&id: &u32| TokenLogprobs {
            token: (id, -2.0),
            rank: 1,
            top: vec![],
        };
        let prompt = submission.request.prompt_tokens.iter();
        let prompt = prompt.map(|id| (*id != EOS).then(|| known(id)));
        let _ = submission
            .events
            .send(Event::PromptLogprobs(prompt.collect()));
    }
    let _ = submission.events.send(Event::Token {
        id: token.0,
        logprobs,
        at,
        times: StepTimes {
            scheduler: Duration::from_secs(1),
            ..StepTimes::default()
        },
    });
    let _ = submission.events.send(Event::Finished {
        reason: FinishReason::Length,
        at,
    });
}

fn choices(answer: &Value) -> Vec<(String, String)> {
    let choices = answer["choices"].as_array().expect("choices").iter();
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    choices
        .map(|choice| (text(&choice["text"]), text(&choice["finish_reason"])))
        .collect()
}

async fn search(harness: &Harness, more: Value) -> Vec<(String, String)> {
    let mut body = json!({"prompt": "?", "use_beam_search": true, "temperature": 0});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    choices(&harness.post("/v1/completions", &body).await.json())
}

/// Every text of at most `max_tokens` tokens with its score, by plain enumeration.
fn all_texts(max_tokens: usize, length_penalty: f64) -> Vec<(f64, String)> {
    let prompt_tokens = 2;
    let mut open = vec![(Vec::<u32>::new(), 0.0)];
    let mut scored = Vec::new();
    for step in 1..=max_tokens {
        let mut longer = Vec::new();
        for (tokens, logprob) in open {
            for (token, more) in next(tokens.last().copied().unwrap_or(b'?'.into())) {
                let total: f64 = logprob + f64::from(more);
                let mut grown: Vec<u32> = tokens.clone();
                if token != EOS {
                    grown.push(token);
                }
                if token == EOS || step == max_tokens {
                    let length = (prompt_tokens + grown.len()) as f64;
                    let text = grown.iter().map(|&id| char::from(id as u8)).collect();
                    scored.push((total / length.powf(length_penalty), text));
                } else {
                    longer.push((grown, total));
                }
            }
        }
        open = longer;
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored
}

#[tokio::test]
async fn vllms_dummy_client_gets_three_different_texts_best_first() {
    let harness = Harness::start(speak).await;
    let body = json!({
        "model": MODEL, "prompt": "San Francisco is a", "max_tokens": 10, "n": 3,
        "use_beam_search": "true", "temperature": 0.0,
    });
    let answer = harness.post("/v1/completions", &body).await.json();
    let texts: Vec<String> = choices(&answer).into_iter().map(|(text, _)| text).collect();
    assert_eq!(texts.len(), 3);
    assert!(
        texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2],
        "{texts:?}"
    );
    let spans = harness.request_spans(1).await;
    assert_eq!(spans.len(), 1, "one span for all beams");
    assert_eq!(
        attribute(&spans[0], "gen_ai.usage.num_sequences").as_deref(),
        Some("3")
    );
}

#[tokio::test]
async fn wide_search_finds_what_enumeration_finds() {
    let harness = Harness::start(speak).await;
    // So wide that no beam is ever pruned, the result is exact. Penalties that favour short and
    // long texts, and the bound that ends the search early, all go through here.
    for length_penalty in [-1.0, 0.0, 1.0, 2.5] {
        let more = json!({"n": 27, "max_tokens": 4, "length_penalty": length_penalty});
        let found = search(&harness, more).await;
        let expect = all_texts(4, length_penalty);
        for ((text, _), (_, expected)) in found.iter().zip(&expect).take(3) {
            assert_eq!(text, expected, "length_penalty {length_penalty}");
        }
    }
}

#[tokio::test]
async fn likelier_text_with_the_less_likely_beginning_wins() {
    let harness = Harness::start(speak).await;
    let ended = |text: &str| (text.to_owned(), "stop".to_owned());
    assert_eq!(
        search(&harness, json!({"n": 2, "max_tokens": 4})).await[0],
        ended("bc")
    );
    let full = search(&harness, json!({"n": 2, "max_tokens": 2})).await;
    assert_eq!(full[0], ("bc".to_owned(), "length".to_owned()));
}

#[tokio::test]
async fn end_of_sequence_is_a_token_like_others_when_ignored() {
    let harness = Harness::start(speak).await;
    let found = search(
        &harness,
        json!({"n": 1, "max_tokens": 4, "ignore_eos": true}),
    )
    .await;
    assert_eq!(found[0].1, "length");
    let span = harness.request_spans(1).await.remove(0);
    let scheduler = attribute(&span, "gen_ai.latency.time_in_scheduler");
    assert_eq!(scheduler.as_deref(), Some("4"), "a second for each token");
}

#[tokio::test]
async fn search_under_way_does_not_fail_because_others_came() {
    let options = Options {
        max_waiting_requests: 2,
        ..Options::default()
    };
    let (harness, submissions) = Harness::held(options).await;
    let body = json!({"prompt": "?", "use_beam_search": true, "n": 2, "max_tokens": 3});
    let search = harness.post("/v1/completions", &body);
    let others = async {
        let begun = tokio::task::spawn_blocking(move || (submissions.recv(), submissions));
        let (first, submissions) = begun.await.expect("it does not panic");
        let other = harness
            .post("/v1/completions", &json!({"prompt": "?"}))
            .await;
        assert_eq!(other.status, StatusCode::SERVICE_UNAVAILABLE);
        speak(first.expect("the search has begun"));
        std::thread::spawn(move || submissions.iter().for_each(speak));
    };
    let (found, ()) = tokio::join!(search, others);
    assert_eq!(found.status, StatusCode::OK);
    assert_eq!(choices(&found.json()).len(), 2);
}

#[tokio::test]
async fn echo_with_logprobs_begins_with_the_prompts_for_beams_too() {
    let harness = Harness::start(speak).await;
    let body = json!({
        "prompt": "?", "use_beam_search": true, "n": 2, "max_tokens": 2, "temperature": 0,
        "echo": true, "logprobs": 1,
    });
    let answer = harness.post("/v1/completions", &body).await.json();
    assert_eq!(choices(&answer)[0].0, "?bc");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["</s>", "?", "b", "c"]));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2]));
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["token_logprobs"][1], -2.0);
}

#[tokio::test]
async fn search_is_streamed_at_its_end() {
    let harness = Harness::start(speak).await;
    let body =
        json!({"prompt": "?", "use_beam_search": true, "n": 2, "max_tokens": 3, "temperature": 0});
    let whole = choices(&harness.post("/v1/completions", &body).await.json());
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let chunks = harness.post("/v1/completions", &streamed).await.chunks();
    let streamed: Vec<_> = chunks.iter().flat_map(choices).collect();
    assert_eq!(streamed, whole);
}
