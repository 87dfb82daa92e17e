//! Templates as models have them, shortened.

use super::*;

/// The template of Llama 2, shortened: methods, exceptions, block trimming.
const LLAMA: &str = "\
{% if messages[0]['role'] == 'system' %}
    {% set system = '<<SYS>>' + messages[0]['content'].strip() + '<</SYS>>' %}
    {% set messages = messages[1:] %}
{% else %}
    {% set system = '' %}
{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate') }}
    {% endif %}
    {{- bos_token ~ '[' ~ message.role ~ ']' ~ (system if loop.first else '') ~ message['content'] -}}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}";

fn render(source: &str, request: ChatRequest) -> Result<String, ChatTemplateError> {
    let template = ChatTemplate::new(source.to_owned(), Some("<s>".into()), None)?;
    request.render(Some(&template))
}

fn chat(messages: Value) -> ChatRequest {
    ChatRequest {
        messages,
        tools: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: None,
    }
}

#[test]
fn template_sees_messages_tokens_and_python_methods() {
    let messages = json!([
        {"role": "system", "content": " be brief "},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]);
    let prompt = render(LLAMA, chat(messages)).unwrap();
    assert_eq!(
        prompt,
        "<s>[user]<<SYS>>be brief<</SYS>>one\ntwo[assistant]"
    );
}

#[test]
fn what_a_template_raises_reaches_the_client() {
    let error = render(LLAMA, chat(json!([{"role": "assistant", "content": "hi"}])));
    let message = error.unwrap_err().to_string();
    assert!(
        message.ends_with("Conversation roles must alternate"),
        "{message}"
    );
}

#[test]
fn continued_message_ends_where_its_content_ends() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}";
    let messages =
        json!([{"role": "user", "content": "go"}, {"role": "assistant", "content": "Once "}]);
    let request = ChatRequest {
        add_generation_prompt: false,
        continue_final_message: true,
        ..chat(messages)
    };
    assert_eq!(
        render(source, request).unwrap(),
        "<user>go<end>\n<assistant>Once"
    );
}

#[test]
fn tojson_writes_what_python_writes() {
    let source = "{{ messages[0].meta | tojson }}";
    let messages = json!([{"role": "user", "content": "", "meta": {"a": [1, "<b>'"], "c": null}}]);
    assert_eq!(
        render(source, chat(messages)).unwrap(),
        r#"{"a": [1, "<b>'"], "c": null}"#
    );
}

#[test]
fn strftime_now_gives_a_date_and_refuses_nonsense() {
    let user = || chat(json!([{"role": "user", "content": "x"}]));
    let year = render("{{ strftime_now('%Y') }}", user()).unwrap();
    assert!(year.parse::<u32>().is_ok_and(|year| year > 2000), "{year}");
    assert!(render("{{ strftime_now('%!') }}", user()).is_err());
}

#[test]
fn templates_that_go_on_forever_or_swell_are_stopped() {
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let swelling = "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}";
    let calls = "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}";
    for (source, expected) in [
        (nested, "it takes more than 4000000 steps"),
        (swelling, "it takes more than 4000000 steps"),
        (calls, "recursion limit exceeded"),
    ] {
        let error = render(source, chat(json!([{"role": "user", "content": "x"}]))).unwrap_err();
        assert!(error.to_string().contains(expected), "{source}: {error}");
    }
    let messages = vec![json!({"role": "user", "content": "x".repeat(1000)}); 10_000];
    let source = "{% for m in messages %}{{ m.role ~ m.content | trim }}{% endfor %}";
    let prompt = render(source, chat(messages.into())).expect("a long chat is none of these");
    assert_eq!(prompt.len(), 10_000 * 1004);
}

#[test]
fn parts_that_are_no_text_are_refused_by_place() {
    let messages = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
    let error = render("", chat(messages)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "messages[0].content may only have parts of type text"
    );
}

#[test]
fn default_of_several_named_templates_is_taken() {
    let named =
        json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    assert_eq!(named_default(&named).as_deref(), Some("d"));
    assert_eq!(
        special_token(&json!({"content": "</s>"})).as_deref(),
        Some("</s>")
    );
}
