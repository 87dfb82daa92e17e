use proptest::prelude::*;
use serde_json::{Map, Value as Json};

use super::*;

type Members = super::Members<&'static str>;

const LEAVES: Members = &[
    ("text", Node::value("item.text")),
    ("n", Node::value("item.n")),
];
static ITEM: Node<&str> = Node {
    field: Some("item"),
    members: LEAVES,
    items: None,
};
static STOP: Node<&str> = Node::value("stop.item");
/// Keys that are members on several levels, a scalar that may be an array, an array of objects.
const ROOT: Members = &[
    ("text", Node::value("text")),
    ("n", Node::value("n")),
    ("é\"\n", Node::value("escaped")),
    (
        "stop",
        Node {
            field: Some("stop"),
            members: &[],
            items: Some(&STOP),
        },
    ),
    ("items", Node::array(&ITEM)),
    ("object", Node::object(LEAVES)),
];
static TREE: Node<&str> = Node::object(ROOT);

/// What is found in `document` when it comes in pieces of `size` bytes, and whether it is complete.
fn scan(document: &[u8], size: usize) -> (Vec<String>, bool) {
    let mut scanner = Scanner::new(&TREE);
    let mut found = Vec::new();
    for piece in document.chunks(size) {
        scanner.push(piece, &mut |field, value| {
            found.push(format!("{field} {value:?}"));
        });
    }
    (found, scanner.is_complete())
}

/// The same, from serde's reading of the whole.
fn walk(node: &Node<&'static str>, json: &Json, found: &mut Vec<String>) {
    let mut report = |value: Value<'_>| {
        if let Some(field) = node.field {
            found.push(format!("{field} {value:?}"));
        }
    };
    match json {
        Json::Null => report(Value::Null),
        Json::Bool(flag) => report(Value::Bool(*flag)),
        Json::String(text) => report(Value::Text(text)),
        Json::Number(number) => report(match number.as_i64() {
            Some(int) => Value::Int(int),
            None => Value::Double(number.as_f64().expect("no arbitrary precision")),
        }),
        Json::Object(members) if !node.members.is_empty() => {
            for (key, value) in members {
                if let Some((_, wanted)) = node.members.iter().find(|(name, _)| name == key) {
                    walk(wanted, value, found);
                }
            }
            if let Some(field) = node.field {
                found.push(format!("{field} {:?}", Value::End));
            }
        }
        Json::Array(items) => {
            if let Some(wanted) = node.items {
                items.iter().for_each(|item| walk(wanted, item, found));
                if let Some(field) = node.field {
                    found.push(format!("{field} {:?}", Value::End));
                }
            }
        }
        Json::Object(_) => {}
    }
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec!["text", "n", "stop", "items", "object", "é\"\n"])
            .prop_map(str::to_owned),
        "(?s).{0,6}",
    ]
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        // Exact in both readings: serde_json's fast one may be off in the last place.
        any::<i32>().prop_map(|number| Json::from(f64::from(number) / 64.0)),
        "(?s).{0,12}".prop_map(Json::from),
        r#"[\\"\[\]{},:]{0,8}"#.prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            object(inner),
        ]
    })
}

fn object(value: impl Strategy<Value = Json>) -> impl Strategy<Value = Json> {
    prop::collection::vec((key(), value), 0..6)
        .prop_map(|members| Json::Object(members.into_iter().collect::<Map<_, _>>()))
}

/// The document with every character outside ASCII escaped: in JSON they stand in strings only.
fn escaped(document: &str) -> String {
    let mut text = String::new();
    for character in document.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

proptest! {
    #[test]
    fn any_document_cut_anywhere_is_read_as_serde_reads_the_whole(document in object(json())) {
        let mut expected = Vec::new();
        walk(&TREE, &document, &mut expected);
        let compact = document.to_string();
        let pretty = format!("{document:#}\n");
        for text in [&compact, &pretty, &escaped(&compact)] {
            let whole = scan(text.as_bytes(), text.len());
            prop_assert_eq!(&whole, &(expected.clone(), true), "{}", text);
            for size in 1..text.len() {
                prop_assert_eq!(&scan(text.as_bytes(), size), &whole, "{} by {}", text, size);
            }
        }
    }

    #[test]
    fn nothing_that_comes_makes_it_fail(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        for size in [1, 7, bytes.len()] {
            scan(&bytes, size);
        }
    }

    #[test]
    fn what_looks_like_json_and_is_none_is_read_alike_however_it_is_cut(
        text in r#"[{\[]([\[\]{},: 1ea\\"]|"text"|"n":|"stop":|"items":|null){0,40}"#,
    ) {
        let whole = scan(text.as_bytes(), text.len());
        for size in 1..text.len() {
            prop_assert_eq!(&scan(text.as_bytes(), size), &whole, "{} by {}", text, size);
        }
    }
}

#[test]
fn what_is_wanted_is_found_and_nothing_else() {
    for (document, found) in [
        (r#"{"text":"a"}"#, &[r#"text Text("a")"#][..]),
        (
            r#" { "text" : "a" , "n" : 1 } "#,
            &[r#"text Text("a")"#, "n Int(1)"],
        ),
        (
            r#"{"n":-1.5e3,"text":"\u00e9\n"}"#,
            &["n Double(-1500.0)", r#"text Text("é\n")"#],
        ),
        (
            r#"{"n":9223372036854775807}"#,
            &["n Int(9223372036854775807)"],
        ),
        (
            r#"{"n":18446744073709551615}"#,
            &["n Double(1.8446744073709552e19)"],
        ),
        (r#"{"n":1e999}"#, &[]),
        (r#"{"n":nan,"text":true}"#, &["text Bool(true)"]),
        (r#"{"te\u0078t":null}"#, &["text Null"]),
        (r#"{"stop":"a"}"#, &[r#"stop Text("a")"#]),
        (
            r#"{"stop":["a",["b"],{"c":1},2]}"#,
            &[r#"stop.item Text("a")"#, "stop.item Int(2)", "stop End"],
        ),
        (
            r#"{"items":[{"n":1,"x":{"n":2}},{}],"x":{"text":"no","items":[{"n":3}]}}"#,
            &["item.n Int(1)", "item End", "item End"],
        ),
        (r#"{"text":{"text":"no"},"n":[1],"object":"no"}"#, &[]),
        (r#"{"object":{"n":1,"object":{"n":2}}}"#, &["item.n Int(1)"]),
        (r#"{"x":"\\\"}],[{","n":1}"#, &["n Int(1)"]),
        (r#"{"x":[[[["]"]]],{}],"n":1}"#, &["n Int(1)"]),
        (
            r#"{"text":"a","text":"b"}"#,
            &[r#"text Text("a")"#, r#"text Text("b")"#],
        ),
    ] {
        for size in 1..=document.len() {
            let (seen, complete) = scan(document.as_bytes(), size);
            assert_eq!(seen, found, "{document} by {size}");
            assert!(complete, "{document} by {size}");
        }
    }
}

#[test]
fn what_came_before_broken_json_stands() {
    for (document, found) in [
        ("", &[][..]),
        ("{no json}", &[]),
        ("<html>", &[]),
        (r#"[{"text":"a"}"#, &[]),
        (r#"{"text":"a""#, &[r#"text Text("a")"#]),
        (r#"{"text":"a" "n":1}"#, &[r#"text Text("a")"#]),
        (r#"{"text":"a"]"#, &[r#"text Text("a")"#]),
        (r#"{"text":"never closed"#, &[]),
        (r#"{"text":"a",n:1}"#, &[r#"text Text("a")"#]),
        (r#"{"n":12"#, &[]),
    ] {
        for size in 1..=document.len() {
            let (seen, complete) = scan(document.as_bytes(), size);
            assert_eq!(seen, found, "{document} by {size}");
            assert!(!complete, "{document} by {size}");
        }
    }
}

#[test]
fn what_follows_the_document_is_not_looked_at() {
    let (found, complete) = scan(br#"{"n":1}{"n":2}"#, 3);
    assert_eq!(found, ["n Int(1)"]);
    assert!(complete);
}

#[test]
fn a_long_value_is_cut_between_characters_and_a_long_key_is_nobodys() {
    let long = "ä".repeat(MAX_TEXT_BYTES);
    let cut = "ä".repeat((MAX_TEXT_BYTES - 1) / 2);
    let document = format!(r#"{{"{long}":1,"text":"x{long}","n":{}}}"#, "1".repeat(300));
    for size in [1, 10, document.len()] {
        let (found, complete) = scan(document.as_bytes(), size);
        assert_eq!(found, [format!("text Text(\"x{cut}\")")]);
        assert!(complete);
    }
}

#[test]
fn a_value_of_broken_bytes_is_no_longer_than_any_other() {
    let document = [&br#"{"text":""#[..], &[0xff; MAX_TEXT_BYTES], br#""}"#].concat();
    let (found, _) = scan(&document, document.len());
    let cut = "\u{fffd}".repeat(MAX_TEXT_BYTES / 3);
    assert_eq!(found, [format!("text Text({cut:?})")]);
}

#[test]
fn memory_does_not_grow_with_what_passes() {
    let mut scanner = Scanner::new(&TREE);
    let mut report = |_, _: Value<'_>| panic!("nothing is wanted of this");
    scanner.push(br#"{"prompt":"#, &mut report);
    for _ in 0..10_000 {
        scanner.push(br#"[{"n":"\"n\":1","#, &mut report);
        scanner.push(br#""text":"#, &mut report);
    }
    assert_eq!(scanner.open.len(), 1);

    scanner.restart();
    scanner.push(br#"{"text":""#, &mut report);
    for _ in 0..10_000 {
        scanner.push(b"never an end", &mut report);
    }
    assert!(scanner.text.capacity() < 2 * MAX_TEXT_BYTES);
}
