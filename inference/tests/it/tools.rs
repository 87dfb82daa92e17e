//! Calls of tools in chats: what the template sees, what the client gets, and what is refused.

use std::io::Write as _;

use lantern_inference::engine::request::Submission;
use serde_json::{Value, json};

use crate::harness::{Harness, Options, say};
use crate::structured::Running;

/// Says what a call looks like, as the templates of Hermes and Qwen do, in few tokens.
const TEMPLATE: &str = "{# <tool_call> #}\
    {% for tool in tools or [] %}{{ tool.function.name }},{% endfor %}\
    {% for m in messages %}{{ m.role[0] }}:{{ m.content }}\
    {% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %};{% endfor %}";

const CALL: &str =
    "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";

fn tools() -> Value {
    let function = |name: &str| {
        let parameters = json!({
            "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"], "additionalProperties": false,
        });
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    json!([function("now"), function("far")])
}

/// A model that says the same always, once it has seen this prompt.
async fn saying(answer: &'static str, prompt: &'static str) -> Harness {
    let options = Options {
        chat_template: Some(TEMPLATE),
        ..Options::default()
    };
    let script = move |submission: Submission| {
        let seen: Vec<u32> = prompt.bytes().map(u32::from).collect();
        assert_eq!(submission.request.prompt_tokens, seen);
        say(&submission, answer.as_bytes());
    };
    Harness::with(options, script).await
}

fn chat() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "tools": tools()})
}

#[tokio::test]
async fn a_call_is_an_answer_of_its_own_streamed_and_not() {
    let harness = saying(CALL, "now,far,u:hi;").await;
    let mut body = chat();
    let answer = harness.post("/v1/chat/completions", &body).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0];
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(call["type"], "function");
    let function = json!({"name": "now", "arguments": "{\"city\":\"Rome\"}"});
    assert_eq!(call["function"], function);

    body["stream"] = json!(true);
    let chunks = harness.post("/v1/chat/completions", &body).await.chunks();
    let choices: Vec<_> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
    assert_eq!(choices.len(), 3, "the role, the call, the end: {chunks:?}");
    let call = &choices[1]["delta"]["tool_calls"][0];
    assert_eq!(call["index"], 0);
    assert_eq!(call["function"], function);
    assert_eq!(choices[2]["delta"], json!({}));
    assert_eq!(choices[2]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn text_is_text_with_tools_too() {
    let harness = saying("a <b", "now,far,u:hi;").await;
    let mut body = chat();
    let answer = harness.post("/v1/chat/completions", &body).await.json();
    let message = json!({"role": "assistant", "content": "a <b"});
    assert_eq!(answer["choices"][0]["message"], message);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    body["stream"] = json!(true);
    let chunks = harness.post("/v1/chat/completions", &body).await.chunks();
    let texts = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["content"]);
    let text: String = texts.filter_map(Value::as_str).collect();
    assert_eq!(text, "a <b");
}

#[tokio::test]
async fn no_call_is_looked_for_where_none_is_wanted() {
    let harness = saying(CALL, "u:hi;").await;
    let mut body = chat();
    body["tool_choice"] = json!("none");
    let answer = harness.post("/v1/chat/completions", &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], CALL);
}

#[tokio::test]
async fn the_template_sees_earlier_calls_with_their_arguments() {
    let harness = saying("ok", "u:hi;a:Oslo;t:cold;").await;
    let call = json!({"id": "1", "type": "function", "function": {"name": "now", "arguments": "{\"city\": \"Oslo\"}"}});
    let body = json!({"messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "cold"},
    ]});
    let answer = harness.post("/v1/chat/completions", &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "ok", "{answer}");
}

#[tokio::test]
async fn tools_that_cannot_be_called_are_400_by_name() {
    let harness = saying("ok", "now,far,u:hi;").await;
    let check = async |field: &str, value: Value, param: &str, start: &str| {
        let mut body = chat();
        body[field] = value;
        let answer = harness.post("/v1/chat/completions", &body).await;
        let (status, body) = (answer.status.as_u16(), answer.json());
        assert_eq!(
            (status, &body["error"]["param"]),
            (400, &json!(param)),
            "{body}"
        );
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(start), "{message}");
    };
    check("tools", json!({}), "tools", "tools must be a list of tools").await;
    check(
        "tools",
        json!([{"type": "function"}]),
        "tools",
        "tools[0] must have type 'function'",
    )
    .await;
    let named = json!({"type": "function", "function": {"name": "fly"}});
    check(
        "tool_choice",
        named,
        "tool_choice",
        "tool_choice names 'fly'",
    )
    .await;
    check(
        "tool_choice",
        json!("maybe"),
        "tool_choice",
        "tool_choice must be 'none', 'auto'",
    )
    .await;
    let strange =
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "colour"}}}]);
    let mut body = chat();
    body["tools"] = strange;
    body["tool_choice"] = json!("required");
    let answer = harness.post("/v1/chat/completions", &body).await.json();
    assert_eq!(answer["error"]["param"], "tool_choice", "{answer}");
    let mut body = chat();
    body["tools"] = json!([]);
    body["tool_choice"] = json!("required");
    let answer = harness.post("/v1/chat/completions", &body).await.json();
    let message = "tool_choice cannot demand a call without tools";
    assert_eq!(answer["error"]["message"], message);

    let options = Options {
        chat_template: Some("{{ messages[0].content }}"),
        ..Options::default()
    };
    let without = Harness::with(options, |_| panic!("nothing to generate")).await;
    let answer = without.post("/v1/chat/completions", &chat()).await.json();
    assert_eq!(answer["error"]["param"], "tools", "{answer}");
}

#[tokio::test]
async fn a_call_that_is_demanded_comes_from_a_model_that_knows_none() {
    let llama = TEMPLATE.replace("<tool_call>", "\"parameters\"");
    for template in [TEMPLATE, &llama] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(template.as_bytes()).unwrap();
        let path = file.path().to_owned();
        let server = Running::start(|config| config.chat_template = Some(path)).await;
        for (seed, (choice, names)) in [
            (json!("required"), &["now", "far"][..]),
            (
                json!({"type": "function", "function": {"name": "far"}}),
                &["far"],
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let mut body = chat();
            body["tool_choice"] = choice;
            body["parallel_tool_calls"] = json!(false);
            body["seed"] = json!(seed);
            let answer = server.answer("/v1/chat/completions", &body).await;
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
            let function = &choice["message"]["tool_calls"][0]["function"];
            assert!(
                names.contains(&function["name"].as_str().unwrap()),
                "{answer}"
            );
            let arguments = function["arguments"].as_str().unwrap();
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            assert!(
                arguments["city"] == "Rome" || arguments["city"] == "Oslo",
                "{answer}"
            );
        }
        server.stop().await;
    }
}
