//! Structured output's fields: OpenAI's `response_format`, vLLM's `structured_outputs` and the older `guided_*`.

use serde_json::{Map, Value};

use crate::grammar::{Constraint, Grammar, GrammarCompiler, GrammarError};

use super::error::ApiError;
use super::fields::{Fields, wrong};

const STRUCTURED_OUTPUTS: &str = "structured_outputs";
const RESPONSE_FORMAT: &str = "response_format";
/// It would change the result as well, and was a field of its own among the older ones.
const WHITESPACE: &str = "guided_whitespace_pattern";

/// The older fields, by the key that each has in `structured_outputs`.
const GUIDED: [(&str, &str); 5] = [
    ("json", "guided_json"),
    ("json_object", "guided_json_object"),
    ("regex", "guided_regex"),
    ("choice", "guided_choice"),
    ("grammar", "guided_grammar"),
];

/// What would change the result and is not there, in `structured_outputs`.
const UNSUPPORTED: [&str; 4] = [
    "structural_tag",
    "whitespace_pattern",
    "disable_any_whitespace",
    "disable_additional_properties",
];

/// What the output must be, and the field that says so.
#[derive(Debug)]
pub(super) struct Structure {
    field: &'static str,
    grammar: Grammar,
}

impl Structure {
    /// Reads the fields, of which one may be given.
    pub(super) fn parse(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let mut found: Vec<Self> = Vec::new();
        found.extend(response_format(fields)?);
        for (key, field) in GUIDED {
            if let Some(value) = fields.take(field) {
                found.extend(Self::read(key, field, value)?);
            }
        }
        if fields.take(WHITESPACE).is_some() {
            let message = format!("{WHITESPACE} is not currently supported");
            return Err(ApiError::parameter(WHITESPACE, message));
        }
        if let Some(inner) = fields.object(STRUCTURED_OUTPUTS)? {
            found.extend(Self::structured_outputs(inner)?);
        }
        if let [first, second, ..] = &found[..] {
            let message = if first.field == second.field {
                format!("{} must have one kind of structure, got more", first.field)
            } else {
                format!(
                    "{} cannot be given together with {}",
                    second.field, first.field
                )
            };
            return Err(ApiError::parameter(second.field, message));
        }
        Ok(found.pop())
    }

    /// What is in `structured_outputs`, which has to have a kind and nothing that is not known: whoever
    /// misspells one would get free text.
    fn structured_outputs(mut inner: Fields) -> Result<Vec<Self>, ApiError> {
        let field = STRUCTURED_OUTPUTS;
        let refused = |message| Err(ApiError::parameter(field, message));
        for name in UNSUPPORTED {
            let given = inner.take(name);
            if given.is_some_and(|value| value != Value::Bool(false)) {
                return refused(format!("{field}.{name} is not currently supported"));
            }
        }
        let given = GUIDED.map(|(key, _)| (key, inner.take(key)));
        let kinds = || GUIDED.map(|(key, _)| key).join(", ");
        if let Some(name) = inner.left_over() {
            return refused(format!(
                "{field}.{name} is not known: use one of {}",
                kinds()
            ));
        }
        if given.iter().all(|(_, value)| value.is_none()) {
            return refused(format!("{field} must have one of {}", kinds()));
        }
        let mut found = Vec::new();
        for (key, value) in given {
            if let Some(value) = value {
                found.extend(Self::read(key, field, value)?);
            }
        }
        Ok(found)
    }

    /// One value by what it says; none for a flag that is off.
    fn read(key: &str, field: &'static str, value: Value) -> Result<Option<Self>, ApiError> {
        let grammar = match key {
            "json" => Grammar::JsonSchema(schema(field, &value)?),
            "json_object" => match value {
                Value::Bool(true) => any_object(),
                Value::Bool(false) => return Ok(None),
                other => return Err(wrong(field, "a boolean", &other)),
            },
            "choice" => Grammar::Choice(choice(field, &value)?),
            "regex" => Grammar::Regex(text(field, value)?),
            _ => Grammar::Rules(text(field, value)?),
        };
        Ok(Some(Self { field, grammar }))
    }

    /// What a field asks for in its own way.
    pub(super) fn new(field: &'static str, grammar: Grammar) -> Self {
        Self { field, grammar }
    }

    /// The field that asks for it.
    pub(super) fn field(&self) -> &'static str {
        self.field
    }

    /// Compiles it; what is wrong with it is wrong with its field.
    pub(super) async fn compile(self, compiler: &GrammarCompiler) -> Result<Constraint, ApiError> {
        let Self { field, grammar } = self;
        compiler
            .compile(grammar)
            .await
            .map_err(|error| match error {
                GrammarError::Compiler(problem) => ApiError::Grammar(problem),
                refused => ApiError::parameter(field, format!("{field} cannot be used: {refused}")),
            })
    }
}

fn response_format(fields: &mut Fields) -> Result<Option<Structure>, ApiError> {
    let field = RESPONSE_FORMAT;
    let Some(mut format) = fields.object(field)? else {
        return Ok(None);
    };
    let grammar = match format.text("type")?.as_deref() {
        None | Some("text") => return Ok(None),
        Some("json_object") => any_object(),
        Some("json_schema") => {
            let inner = format.object("json_schema")?;
            let Some(given) = inner.and_then(|mut inner| inner.take("schema")) else {
                let message = "response_format.json_schema.schema is required";
                return Err(ApiError::parameter(field, message));
            };
            Grammar::JsonSchema(schema(field, &given)?)
        }
        Some(kind) => {
            let message = format!("response_format of type '{kind}' is not currently supported");
            return Err(ApiError::parameter(field, message));
        }
    };
    Ok(Some(Structure { field, grammar }))
}

fn any_object() -> Grammar {
    Grammar::JsonSchema(Map::from_iter([("type".to_owned(), "object".into())]))
}

/// A schema, which may also come as the text of one.
fn schema(field: &'static str, value: &Value) -> Result<Map<String, Value>, ApiError> {
    let parsed = match value {
        Value::String(text) => serde_json::from_str(text).ok(),
        other => Some(other.clone()),
    };
    match parsed {
        Some(Value::Object(schema)) => Ok(schema),
        _ => Err(wrong(field, "a JSON schema", value)),
    }
}

fn text(field: &'static str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(wrong(field, "a string that is not empty", &other)),
    }
}

fn choice(field: &'static str, value: &Value) -> Result<Vec<String>, ApiError> {
    let texts = match value {
        Value::Array(values) if !values.is_empty() => {
            let texts = values.iter().map(|value| {
                let text = value.as_str().filter(|text| !text.is_empty());
                text.map(str::to_owned)
            });
            texts.collect()
        }
        _ => None,
    };
    texts.ok_or_else(|| wrong(field, "a list of strings, none empty", value))
}
