//! Structured output of the whole server, by the model in models/tiny, which left free writes stories.

use std::net::SocketAddr;

use lantern_inference::config::Config;
use lantern_inference::server::{Server, ServerError};
use lantern_telemetry::Telemetry;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::refusals::{idle, message};
use crate::served::{config, model, post_to};

/// A server.
pub(crate) struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), ServerError>>,
}

impl Running {
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(&model());
        change(&mut config);
        let server = Server::bind(config, &Telemetry::disabled()).await.unwrap();
        let (address, shutdown) = (server.local_addr(), CancellationToken::new());
        let server = tokio::spawn(server.run(shutdown.clone()));
        Self {
            address,
            shutdown,
            server,
        }
    }

    async fn text(&self, path: &str, body: &Value) -> String {
        post_to(self.address, path, body).await
    }

    pub(crate) async fn answer(&self, path: &str, body: &Value) -> Value {
        let text = self.text(path, body).await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
    }

    /// The choices of a prompt at temperature 1.
    async fn choices(&self, fields: &Value) -> Vec<Value> {
        let mut body = json!({"prompt": "Once upon a time", "max_tokens": 200});
        let (body_fields, fields) = (body.as_object_mut().unwrap(), fields.as_object().unwrap());
        body_fields.extend(fields.clone());
        let answer = self.answer("/v1/completions", &body).await;
        let choices = answer["choices"].as_array();
        choices.unwrap_or_else(|| panic!("{answer}")).clone()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.server.await.unwrap().unwrap();
    }
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 3},
        },
        "required": ["name", "age", "pets"],
        "additionalProperties": false,
    })
}

fn assert_of_schema(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"));
    let fields = value.as_object().unwrap();
    assert_eq!(fields.len(), 3, "{text}");
    assert!(
        fields["name"].as_str().unwrap().chars().count() <= 12,
        "{text}"
    );
    assert!(fields["age"].as_u64().unwrap() <= 120, "{text}");
    let pets = fields["pets"].as_array().unwrap();
    assert!(
        pets.len() <= 3 && pets.iter().all(|pet| pet == "cat" || pet == "dog"),
        "{text}"
    );
}

fn is_plate(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 7
        && bytes[..3].iter().all(u8::is_ascii_uppercase)
        && bytes[3] == b'-'
        && bytes[4..].iter().all(u8::is_ascii_digit)
}

#[tokio::test]
async fn json_is_of_its_schema_however_it_is_asked_for() {
    let server = Running::start(|_| ()).await;
    let asked = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": schema()}}}),
        json!({"guided_json": schema()}),
        json!({"guided_json": schema().to_string()}),
        json!({"structured_outputs": {"json": schema()}}),
    ];
    for (seed, mut fields) in asked.into_iter().enumerate() {
        fields["seed"] = json!(seed);
        fields["n"] = json!(3);
        let choices = server.choices(&fields).await;
        assert_eq!(choices.len(), 3);
        for choice in &choices {
            assert_of_schema(choice["text"].as_str().unwrap());
            assert_eq!(choice["finish_reason"], "stop");
        }
        assert_eq!(
            server.choices(&fields).await,
            choices,
            "a seed repeats itself"
        );
    }
    let messages = json!([{"role": "user", "content": "Who are you?"}]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "p", "schema": schema()}});
    let chat = json!({"messages": messages, "response_format": format, "max_tokens": 200, "temperature": 0});
    let answer = server.answer("/v1/chat/completions", &chat).await;
    let content = answer["choices"][0]["message"]["content"].as_str();
    assert_of_schema(content.unwrap_or_else(|| panic!("{answer}")));
    server.stop().await;
}

#[tokio::test]
async fn any_object_of_json_begins_as_one() {
    let server = Running::start(|_| ()).await;
    for fields in [
        json!({"response_format": {"type": "json_object"}, "seed": 1, "n": 4}),
        json!({"structured_outputs": {"json_object": true}, "seed": 1, "n": 4}),
    ] {
        for choice in server.choices(&fields).await {
            let text = choice["text"].as_str().unwrap();
            assert!(text.starts_with('{'), "{text}");
            if choice["finish_reason"] == "stop" {
                assert!(
                    serde_json::from_str::<Value>(text).unwrap().is_object(),
                    "{text}"
                );
            }
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn choices_regular_expressions_and_grammars_are_kept_to() {
    let server = Running::start(|_| ()).await;
    let texts = async |fields: Value| -> Vec<String> {
        let choices = server.choices(&fields).await;
        assert_eq!(choices.len(), 4);
        let text = |choice: &Value| {
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            choice["text"].as_str().unwrap().to_owned()
        };
        choices.iter().map(text).collect()
    };
    for fields in [
        json!({"guided_choice": ["red", "green", "blue as the sea"], "n": 4, "seed": 3}),
        json!({"structured_outputs": {"choice": ["red", "green", "blue as the sea"]}, "n": 4, "top_p": 0.9}),
    ] {
        for text in texts(fields).await {
            assert!(
                ["red", "green", "blue as the sea"].contains(&&*text),
                "{text}"
            );
        }
    }
    for fields in [
        json!({"guided_regex": "[A-Z]{3}-[0-9]{3}", "n": 4, "seed": 3}),
        json!({"structured_outputs": {"regex": "[A-Z]{3}-[0-9]{3}"}, "n": 4, "repetition_penalty": 1.2}),
    ] {
        for text in texts(fields).await {
            assert!(is_plate(&text), "{text}");
        }
    }
    let grammar = "start: \"go \" (\"left\" | \"right\") \" \" /[1-9]/";
    for fields in [
        json!({"guided_grammar": grammar, "n": 4, "top_k": 5}),
        json!({"structured_outputs": {"grammar": grammar}, "n": 4, "min_p": 0.1}),
    ] {
        for text in texts(fields).await {
            let words: Vec<_> = text.split(' ').collect();
            assert!(
                words[0] == "go" && ["left", "right"].contains(&words[1]),
                "{text}"
            );
            assert!(matches!(words[2].as_bytes(), [b'1'..=b'9']), "{text}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn streamed_pieces_are_together_what_comes_whole() {
    let server = Running::start(|_| ()).await;
    let fields = json!({"guided_json": schema(), "seed": 5, "n": 2});
    let whole = server.choices(&fields).await;
    let body = json!({
        "prompt": "Once upon a time", "max_tokens": 200, "guided_json": schema(), "seed": 5, "n": 2,
        "stream": true,
    });
    let stream = server.text("/v1/completions", &body).await;
    let mut texts = [String::new(), String::new()];
    let data = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    for chunk in data.filter(|data| *data != "[DONE]") {
        let chunk: Value = serde_json::from_str(chunk).unwrap();
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    for (text, choice) in texts.iter().zip(&whole) {
        assert_of_schema(text);
        assert_eq!(choice["text"], *text);
    }
    server.stop().await;
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_model_left_free() {
    let server = Running::start(|_| ()).await;
    let free = json!({"temperature": 0, "max_tokens": 1, "logprobs": 5});
    let free = server.choices(&free).await;
    let bound = json!({"temperature": 0, "logprobs": 5, "guided_choice": ["zebra"]});
    let bound = server.choices(&bound).await;
    assert_eq!(bound[0]["text"], "zebra");
    let top = |choice: &Value| {
        choice["logprobs"]["top_logprobs"][0]
            .as_object()
            .unwrap()
            .clone()
    };
    let (free, all) = (top(&free[0]), top(&bound[0]));
    for (token, logprob) in &free {
        assert_eq!(all.get(token), Some(logprob), "{token}");
    }
    let logprobs = bound[0]["logprobs"]["token_logprobs"].as_array().unwrap();
    let best = free
        .values()
        .filter_map(Value::as_f64)
        .fold(f64::MIN, f64::max);
    assert!(
        logprobs[0].as_f64().unwrap() < best,
        "it is not what the model would have said"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_preempted_sequence_goes_on_where_its_grammar_was() {
    let bytes_per_token = 4 * 2 * 192 * 4;
    let server = Running::start(|config| {
        config.max_model_len = Some(128);
        config.engine.kv_cache_bytes = Some(160 * bytes_per_token);
        config.engine.enable_prefix_caching = false;
    })
    .await;
    let regex = "([a-z] ){60}!";
    let fields =
        json!({"guided_regex": regex, "n": 4, "seed": 9, "max_tokens": 122, "prompt": "a"});
    for choice in server.choices(&fields).await {
        let text = choice["text"].as_str().unwrap();
        assert_eq!(choice["finish_reason"], "stop", "{text}");
        let words: Vec<_> = text.split(' ').collect();
        assert_eq!((words.len(), words[60]), (61, "!"), "{text}");
        let letter = |word: &&str| matches!(word.as_bytes(), [b'a'..=b'z']);
        assert!(words[..60].iter().all(letter), "{text}");
    }
    let metrics = crate::served::get(server.address, "/metrics").await;
    let preempted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("vllm:num_preemptions_total{model_name=\"small\"} "));
    assert!(
        preempted.unwrap().parse::<u64>().unwrap() > 0,
        "it was tried"
    );
    server.stop().await;
}

#[tokio::test]
async fn structures_that_cannot_be_kept_to_are_400_by_name() {
    let harness = idle().await;
    let check = async |body: Value, param: &str, start: &str| {
        let answer = harness.post("/v1/completions", &body).await;
        let message = message(&answer, 400, Some(param));
        assert!(message.starts_with(start), "{message}");
    };
    let with = |field: &str, value: Value| {
        let mut body = json!({"prompt": "hi"});
        body[field] = value;
        body
    };
    for (field, value, start) in [
        (
            "guided_json",
            json!({"type": "colour"}),
            "guided_json cannot be used: ",
        ),
        (
            "guided_json",
            json!("{"),
            "guided_json must be a JSON schema, got ",
        ),
        ("guided_regex", json!("a("), "guided_regex cannot be used: "),
        (
            "guided_regex",
            json!(""),
            "guided_regex must be a string that is not empty",
        ),
        (
            "guided_choice",
            json!([]),
            "guided_choice must be a list of strings, none empty",
        ),
        (
            "guided_choice",
            json!(["a", 1]),
            "guided_choice must be a list of strings, none empty",
        ),
        (
            "guided_grammar",
            json!("root ::= a"),
            "guided_grammar cannot be used: ",
        ),
        (
            "structured_outputs",
            json!({"regex": "["}),
            "structured_outputs cannot be used: ",
        ),
        (
            "structured_outputs",
            json!({"regex": "a", "choice": ["a"]}),
            "structured_outputs must have one kind of structure, got more",
        ),
        (
            "structured_outputs",
            json!({"structural_tag": "{}"}),
            "structured_outputs.structural_tag is not currently supported",
        ),
        (
            "response_format",
            json!({"type": "json_schema"}),
            "response_format.json_schema.schema is required",
        ),
        (
            "response_format",
            json!({"type": "yaml"}),
            "response_format of type 'yaml' is not currently supported",
        ),
    ] {
        check(with(field, value), field, start).await;
    }
}

#[tokio::test]
async fn structures_that_are_not_known_are_400_by_name() {
    let harness = idle().await;
    for (field, value, expected) in [
        (
            "structured_outputs",
            json!({"json_schema": {}, "regex": "a"}),
            "structured_outputs.json_schema is not known: use one of json, json_object, regex, choice, grammar",
        ),
        (
            "structured_outputs",
            json!({"regex": null, "structural_tag": false}),
            "structured_outputs must have one of json, json_object, regex, choice, grammar",
        ),
        (
            "guided_whitespace_pattern",
            json!("[ ]?"),
            "guided_whitespace_pattern is not currently supported",
        ),
    ] {
        let mut body = json!({"prompt": "hi"});
        body[field] = value;
        let answer = harness.post("/v1/completions", &body).await;
        assert_eq!(message(&answer, 400, Some(field)), expected);
    }
}

#[tokio::test]
async fn fields_that_clash_with_a_structure_are_400_by_name() {
    let harness = idle().await;
    let check = async |field: &str, value: Value, param: &str, expected: &str| {
        let mut body = json!({"prompt": "hi", "guided_regex": "a+"});
        body[field] = value;
        let answer = harness.post("/v1/completions", &body).await;
        assert_eq!(message(&answer, 400, Some(param)), expected);
    };
    for (field, value) in [
        ("use_beam_search", json!(true)),
        ("min_tokens", json!(1)),
        ("ignore_eos", json!(true)),
    ] {
        let expected = format!("{field} cannot be used with guided_regex");
        check(field, value, field, &expected).await;
    }
    let expected = "guided_regex cannot be given together with response_format";
    let format = json!({"type": "json_object"});
    check("response_format", format, "guided_regex", expected).await;
}
