//! A request's body → what it asks the model for.

use opentelemetry::KeyValue;
use opentelemetry_semantic_conventions::attribute as semconv;

use super::strings;
use crate::json::{Members, Node, Scanner, Value};

/// Most stop sequences that are recorded. OpenAI allows four.
const MAX_STOP_SEQUENCES: usize = 16;

/// A wanted value: the attribute that it becomes, by type.
#[derive(Clone, Copy)]
enum Field {
    Text(&'static str),
    Int(&'static str),
    Double(&'static str),
    Flag(&'static str),
    /// One text, of an attribute that is a list.
    Texts(&'static str),
    /// One, or one of several.
    Stop,
}

static STOP: Node<Field> = Node::value(Field::Stop);

/// The names of the APIs, `n_predict` being llama.cpp's. Of several names for one thing the last
/// in the body counts; servers differ in which they prefer, and a client has no reason to send two.
const BODY: Members<Field> = &[
    (
        "model",
        Node::value(Field::Text(semconv::GEN_AI_REQUEST_MODEL)),
    ),
    (
        "stream",
        Node::value(Field::Flag(semconv::GEN_AI_REQUEST_STREAM)),
    ),
    ("max_tokens", Node::value(MAX_TOKENS)),
    ("max_completion_tokens", Node::value(MAX_TOKENS)),
    ("max_output_tokens", Node::value(MAX_TOKENS)),
    ("n_predict", Node::value(MAX_TOKENS)),
    (
        "temperature",
        Node::value(Field::Double(semconv::GEN_AI_REQUEST_TEMPERATURE)),
    ),
    (
        "top_p",
        Node::value(Field::Double(semconv::GEN_AI_REQUEST_TOP_P)),
    ),
    (
        "top_k",
        Node::value(Field::Double(semconv::GEN_AI_REQUEST_TOP_K)),
    ),
    (
        "seed",
        Node::value(Field::Int(semconv::GEN_AI_REQUEST_SEED)),
    ),
    (
        "n",
        Node::value(Field::Int(semconv::GEN_AI_REQUEST_CHOICE_COUNT)),
    ),
    (
        "dimensions",
        Node::value(Field::Int(semconv::GEN_AI_EMBEDDINGS_DIMENSION_COUNT)),
    ),
    (
        "encoding_format",
        Node::value(Field::Texts(semconv::GEN_AI_REQUEST_ENCODING_FORMATS)),
    ),
    (
        "frequency_penalty",
        Node::value(Field::Double(semconv::GEN_AI_REQUEST_FREQUENCY_PENALTY)),
    ),
    (
        "presence_penalty",
        Node::value(Field::Double(semconv::GEN_AI_REQUEST_PRESENCE_PENALTY)),
    ),
    (
        "stop",
        Node {
            field: Some(Field::Stop),
            members: &[],
            items: Some(&STOP),
        },
    ),
    ("stop_sequences", Node::array(&STOP)),
];

const MAX_TOKENS: Field = Field::Int(semconv::GEN_AI_REQUEST_MAX_TOKENS);

static ROOT: Node<Field> = Node::object(BODY);

/// What has passed of a request's body.
pub(super) struct Request {
    scanner: Scanner<Field>,
    asked: Asked,
}

#[derive(Default)]
struct Asked {
    attributes: Vec<KeyValue>,
    stop: Vec<String>,
}

impl Request {
    pub(super) fn new() -> Self {
        Self {
            scanner: Scanner::new(&ROOT),
            asked: Asked::default(),
        }
    }

    pub(super) fn body(&mut self, bytes: &[u8]) {
        let Self { scanner, asked } = self;
        scanner.push(bytes, &mut |field, value| asked.take(field, &value));
    }

    /// The model that is asked for.
    pub(super) fn model(&self) -> Option<String> {
        let mut asked = self.asked.attributes.iter();
        let model = asked.find(|known| known.key.as_str() == semconv::GEN_AI_REQUEST_MODEL)?;
        Some(model.value.to_string())
    }

    pub(super) fn attributes(&mut self, attributes: &mut Vec<KeyValue>) {
        attributes.append(&mut self.asked.attributes);
        if !self.asked.stop.is_empty() {
            let stop = strings(std::mem::take(&mut self.asked.stop));
            attributes.push(KeyValue::new(semconv::GEN_AI_REQUEST_STOP_SEQUENCES, stop));
        }
    }
}

impl Asked {
    /// A value of another type than the API's is no value: the server will say so.
    fn take(&mut self, field: Field, value: &Value<'_>) {
        let attribute = match (field, value) {
            (Field::Stop, Value::Text(text)) => {
                if self.stop.len() < MAX_STOP_SEQUENCES {
                    self.stop.push((*text).to_owned());
                }
                return;
            }
            (Field::Text(key), Value::Text(text)) => KeyValue::new(key, (*text).to_owned()),
            (Field::Texts(key), Value::Text(text)) => {
                KeyValue::new(key, strings(vec![(*text).to_owned()]))
            }
            (Field::Flag(key), Value::Bool(flag)) => KeyValue::new(key, *flag),
            (Field::Int(key), Value::Int(int)) => KeyValue::new(key, *int),
            (Field::Double(key), Value::Double(double)) => KeyValue::new(key, *double),
            (Field::Double(key), Value::Int(int)) => KeyValue::new(key, *int as f64),
            _ => return,
        };
        // A duplicate member replaces the first, as in every JSON library.
        self.attributes.retain(|known| known.key != attribute.key);
        self.attributes.push(attribute);
    }
}
