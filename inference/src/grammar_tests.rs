use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use serde_json::json;

use super::*;
use crate::loader::{self, HubOptions};

/// The bundled model's.
const VOCAB_SIZE: usize = 2048;

fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let path = path.to_str().expect("the path is text");
    let source = loader::resolve(path, &HubOptions::from_env()).expect("the model is there");
    Tokenizer::load(&source).expect("its tokenizer is whole")
}

fn end(tokenizer: &Tokenizer) -> u32 {
    tokenizer.encode("", true).expect("it is text")[0]
}

fn compiler() -> GrammarCompiler {
    let tokenizer = tokenizer();
    let end = end(&tokenizer);
    GrammarCompiler::new(tokenizer, VOCAB_SIZE, &[end])
}

/// What a model that likes all tokens equally writes; `None` where it comes to no end.
fn write(constraint: &Constraint, seed: u64) -> Option<String> {
    let tokenizer = tokenizer();
    let end = end(&tokenizer);
    let mut state = constraint.begin();
    let mut random = StdRng::seed_from_u64(seed);
    let mut tokens = Vec::new();
    for _ in 0..200 {
        let mut logits = vec![0.0; VOCAB_SIZE];
        state.mask(&mut logits).expect("some token can follow");
        let allowed = (0..VOCAB_SIZE as u32).filter(|&token| logits[token as usize] == 0.0);
        let token = allowed.choose(&mut random).expect("one of them at least");
        state.advance(token).expect("what the mask lets through");
        if token == end {
            return Some(tokenizer.decode(&tokens, false).expect("tokens are known"));
        }
        tokens.push(token);
    }
    None
}

fn json_schema(schema: Value) -> Grammar {
    match schema {
        Value::Object(fields) => Grammar::JsonSchema(fields),
        other => panic!("not an object: {other}"),
    }
}

async fn refusal(grammar: Grammar) -> String {
    match compiler().compile(grammar).await {
        Err(GrammarError::Invalid(problem)) => problem,
        other => panic!("it should have been refused: {other:?}"),
    }
}

#[tokio::test]
async fn any_walk_through_a_schema_is_json_of_that_schema() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
            "kind": {"enum": ["cat", "dog"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": false,
    });
    let constraint = compiler().compile(json_schema(schema)).await.unwrap();
    for seed in 0..20 {
        let text = write(&constraint, seed).expect("the schema has an end");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        let fields = value.as_object().unwrap();
        assert_eq!(fields.len(), 3, "{text}");
        assert!(
            fields["name"].as_str().unwrap().chars().count() <= 8,
            "{text}"
        );
        assert!(
            (1..=99).contains(&fields["age"].as_i64().unwrap()),
            "{text}"
        );
        assert!(
            ["cat", "dog"].contains(&fields["kind"].as_str().unwrap()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn every_choice_comes_and_nothing_else() {
    let choices = ["a", "ab", "say \"no\"\n", "ca\u{f1}\u{f3}n"];
    let grammar = Grammar::Choice(choices.map(str::to_owned).to_vec());
    let constraint = compiler().compile(grammar).await.unwrap();
    let mut seen: Vec<_> = (0..60)
        .filter_map(|seed| write(&constraint, seed))
        .collect();
    assert_eq!(seen.len(), 60, "each walk ends");
    seen.sort_unstable();
    seen.dedup();
    let mut expected = choices.map(str::to_owned);
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn grammars_in_larks_syntax_are_followed() {
    let sum = "start: term (\"+\" term)*\nterm: /[0-9]{1,3}/ | \"(\" start \")\"\n";
    let constraint = compiler()
        .compile(Grammar::Rules(sum.to_owned()))
        .await
        .unwrap();
    let written: Vec<_> = (0..20)
        .filter_map(|seed| write(&constraint, seed))
        .collect();
    assert!(!written.is_empty());
    for text in written {
        let count = |letter| text.chars().filter(|&other| other == letter).count();
        assert_eq!(count('('), count(')'), "{text}");
        let sound = |letter: char| letter.is_ascii_digit() || "+()".contains(letter);
        assert!(text.chars().all(sound) && !text.contains("()"), "{text}");
    }
}

#[tokio::test]
async fn special_tokens_are_no_text() {
    let grammar = Grammar::Regex("(.|\\n)*".to_owned());
    let constraint = compiler().compile(grammar).await.unwrap();
    let tokenizer = tokenizer();
    let mut logits = vec![0.0; VOCAB_SIZE];
    constraint.begin().mask(&mut logits).unwrap();
    let end = end(&tokenizer);
    let mut texts = 0;
    for token in 0..VOCAB_SIZE as u32 {
        let allowed = logits[token as usize] == 0.0;
        let text = tokenizer.token_text(token);
        if text.is_none() || tokenizer.is_special(token) {
            assert_eq!(allowed, token == end, "{token}");
        } else if text.is_some_and(|text| !text.contains(char::REPLACEMENT_CHARACTER)) {
            assert!(allowed, "{token}");
            texts += 1;
        }
    }
    assert!(texts > 1500, "most tokens are whole characters: {texts}");
}

#[tokio::test]
async fn wrong_grammars_are_refused_in_words() {
    let check = async |grammar, expected: &str| {
        let problem = refusal(grammar).await;
        assert!(problem.contains(expected), "{problem}");
        assert!(problem.len() <= SHOWN_BYTES + '…'.len_utf8(), "{problem}");
    };
    check(Grammar::Regex("a(b".to_owned()), "unclosed group").await;
    check(Grammar::Rules("start: missing".to_owned()), "missing").await;
    check(json_schema(json!({"type": "colour"})), "colour").await;
    let unknown = json!({"type": "array", "uniqueItems": true});
    check(json_schema(unknown), "uniqueItems").await;
    let long = "a".repeat(MAX_GRAMMAR_BYTES + 1);
    check(Grammar::Regex(long), "it has 65537 bytes, at most 65536").await;
}

#[tokio::test]
async fn grammars_that_cost_too_much_are_refused() {
    // 10 to the power of 12 combinations.
    let property = |at: usize| json!({"properties": {format!("p{at}"): {"type": "string"}}});
    let any = |at: usize| {
        let options: Vec<_> = (0..10).map(|option| property(10 * at + option)).collect();
        json!({"anyOf": options})
    };
    let all: Vec<_> = (0..12).map(any).collect();
    refusal(json_schema(json!({"allOf": all}))).await;
}

#[tokio::test]
async fn the_longest_chains_of_rules_do_not_exhaust_the_stack() {
    let fits = |text: &String| text.len() <= MAX_GRAMMAR_BYTES;
    let chain = |length: usize| {
        let rules = (0..length).map(|at| format!("r{at}: r{}\n", at + 1));
        let rules: String = rules.collect();
        format!("start: r0\n{rules}r{length}: \"a\"\n")
    };
    let chain = (1..)
        .map(|count| chain(500 * count))
        .take_while(fits)
        .last()
        .unwrap();
    let constraint = compiler().compile(Grammar::Rules(chain)).await.unwrap();
    assert_eq!(write(&constraint, 0).as_deref(), Some("a"));
    let nested = "(".repeat(MAX_GRAMMAR_BYTES / 2) + &")".repeat(MAX_GRAMMAR_BYTES / 2);
    refusal(Grammar::Regex(nested.clone())).await;
    refusal(Grammar::Rules(format!("start: {}", &nested[8..]))).await;
}

#[tokio::test]
async fn a_model_without_an_end_of_sequence_has_no_structured_output() {
    let compiler = GrammarCompiler::new(tokenizer(), VOCAB_SIZE, &[]);
    let error = compiler.compile(Grammar::Regex("a".to_owned())).await;
    assert_eq!(
        error.err().map(|error| error.to_string()).as_deref(),
        Some("the model has no end of sequence")
    );
}

#[tokio::test]
async fn a_grammar_has_its_place_in_memory_until_nobody_needs_it_and_others_wait() {
    let compiler = compiler();
    let choice = || Grammar::Choice(vec!["a".to_owned()]);
    let constraint = compiler.compile(choice()).await.unwrap();
    let again = constraint.clone();
    drop(constraint);
    assert_eq!(compiler.places.available_permits(), MAX_GRAMMARS - 1);
    drop(again);
    assert_eq!(compiler.places.available_permits(), MAX_GRAMMARS);

    let all = compiler.places.acquire_many(MAX_GRAMMARS as u32).await;
    let mut waiting = std::pin::pin!(compiler.compile(choice()));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    let free = compiler.compilations.available_permits();
    assert_eq!(free, MAX_COMPILATIONS, "it is not begun");
    drop(all);
    assert!(waiting.await.is_ok());
}

/// Grammars as llama.cpp and vLLM document them.
const SQL: &str = r#"
root ::= select_statement

select_statement ::= "SELECT " column " from " table " where " condition

column ::= "col_1 " | "col_2 "

table ::= "table_1 " | "table_2 "

condition ::= column "= " number

number ::= "1 " | "2 "
"#;
const ARITHMETIC: &str = r#"
root  ::= (expr "=" ws num "\n"){1,2}
expr  ::= term ([-+*/] term)*   # operators
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]{0,5} ws
num   ::= [0-9]{1,4} ws
ws    ::= [ \t\n]{0,2}
"#;

#[tokio::test]
async fn grammars_in_llama_cpps_notation_are_kept_to() {
    let constraint = compiler().compile(Grammar::Rules(SQL.to_owned())).await;
    let constraint = constraint.expect("it is understood");
    for seed in 0..20 {
        let text = write(&constraint, seed).expect("it is finite");
        let words: Vec<_> = text.split_whitespace().collect();
        let [
            select,
            column,
            from,
            table,
            where_,
            condition,
            equals,
            number,
        ] = words[..]
        else {
            panic!("{text}");
        };
        assert_eq!(
            (select, from, where_, equals),
            ("SELECT", "from", "where", "=")
        );
        assert!(["col_1", "col_2"].contains(&column) && ["col_1", "col_2"].contains(&condition));
        assert!(["table_1", "table_2"].contains(&table) && ["1", "2"].contains(&number));
    }
    let constraint = compiler()
        .compile(Grammar::Rules(ARITHMETIC.to_owned()))
        .await;
    let constraint = constraint.expect("it is understood");
    let mut ended = 0;
    for seed in 0..20 {
        // Left to chance, some expressions find no end.
        let Some(text) = write(&constraint, seed) else {
            continue;
        };
        ended += 1;
        let known =
            |letter: char| letter.is_ascii_alphanumeric() || "-+*/()= \t\n_".contains(letter);
        assert!(text.ends_with('\n') && text.chars().all(known), "{text:?}");
        assert_eq!(
            text.matches('(').count(),
            text.matches(')').count(),
            "{text:?}"
        );
        assert!((1..=2).contains(&text.matches('=').count()), "{text:?}");
    }
    assert!(ended > 0);
}

#[tokio::test]
async fn what_is_wrong_in_llama_cpps_notation_is_named_with_its_line() {
    let grammar = Grammar::Rules("root ::= a\na ::= b".to_owned());
    assert_eq!(refusal(grammar).await, "line 2: there is no rule 'b'");
}
