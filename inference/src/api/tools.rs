//! A chat's tools: what the request offers, what the template makes of it, and the grammar where a call is demanded.

use serde_json::{Map, Value, json};

use crate::chat_template::ToolFormat;
use crate::grammar::{Grammar, bounded};

use super::error::ApiError;
use super::fields::{Fields, wrong};
use super::structured::Structure;
use super::tool_calls::{CLOSE, OPEN, ToolParser};

/// Most tools of a chat: OpenAI's bound.
const MAX_TOOLS: usize = 128;

/// Tools that the model may call.
pub(super) struct Tools {
    /// As the request has them: the template's.
    offered: Value,
    format: ToolFormat,
    choice: ToolChoice,
    /// More calls than one.
    parallel: bool,
}

/// What the model has to do with them.
enum ToolChoice {
    /// What it likes.
    Auto,
    /// Call one of them, or the one that is named.
    Call(Option<String>),
}

impl Tools {
    /// Reads the fields; none where nothing is to be called. `format` is how the template has calls written.
    pub(super) fn parse(
        fields: &mut Fields,
        format: Option<ToolFormat>,
    ) -> Result<Option<Self>, ApiError> {
        let choice = fields.take("tool_choice");
        let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let offered = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) => tools,
            Some(other) => return Err(wrong("tools", "a list of tools", &other)),
        };
        let names = names(&offered)?;
        let choice = match choice {
            None => ToolChoice::Auto,
            Some(value) => match ToolChoice::parse(&value, &names)? {
                None => return Ok(None),
                Some(choice) => choice,
            },
        };
        if offered.is_empty() {
            return match choice {
                ToolChoice::Auto => Ok(None),
                ToolChoice::Call(_) => Err(ApiError::parameter(
                    "tool_choice",
                    "tool_choice cannot demand a call without tools",
                )),
            };
        }
        let Some(format) = format else {
            let message = "tools cannot be used: this model's chat template has none, or has \
                           calls written in a way that is not understood here";
            return Err(ApiError::parameter("tools", message));
        };
        Ok(Some(Self {
            offered: offered.into(),
            format,
            choice,
            parallel,
        }))
    }

    /// For the template.
    pub(super) fn offered(&self) -> Value {
        self.offered.clone()
    }

    /// What reads an answer.
    pub(super) fn parser(&self) -> ToolParser {
        ToolParser::new(self.format, self.parallel)
    }

    /// What the answer must be, where a call is demanded.
    pub(super) fn structure(&self) -> Option<Structure> {
        let ToolChoice::Call(name) = &self.choice else {
            return None;
        };
        let wanted = |tool: &&Value| {
            let function = &tool["function"];
            name.as_ref().is_none_or(|name| function["name"] == **name)
        };
        let offered = self.offered.as_array().map_or(&[][..], Vec::as_slice);
        let calls = offered.iter().filter(wanted);
        let calls: Vec<_> = calls.map(|tool| call_schema(tool, self.format)).collect();
        let mut schema = Map::new();
        schema.insert("anyOf".to_owned(), calls.into());
        let grammar = match self.format {
            ToolFormat::Llama => Grammar::JsonSchema(schema),
            ToolFormat::Hermes => {
                let many = self.parallel && name.is_none();
                let more = if many { " (\"\\n\" call)*" } else { "" };
                let schema = bounded(schema);
                Grammar::Rules(format!(
                    "start: call{more}\n\
                     call: \"{OPEN}\\n\" body \"\\n{CLOSE}\"\n\
                     body: %json {schema}\n"
                ))
            }
        };
        Some(Structure::new("tool_choice", grammar))
    }
}

impl ToolChoice {
    /// `None`: nothing is to be called.
    fn parse(value: &Value, names: &[&str]) -> Result<Option<Self>, ApiError> {
        match value {
            Value::String(choice) => match choice.as_str() {
                "none" => return Ok(None),
                "auto" => return Ok(Some(Self::Auto)),
                "required" => return Ok(Some(Self::Call(None))),
                _ => {}
            },
            Value::Object(choice) => {
                if let Some(name) = choice.get("function").and_then(|it| it["name"].as_str()) {
                    if names.contains(&name) {
                        return Ok(Some(Self::Call(Some(name.to_owned()))));
                    }
                    let message = format!("tool_choice names '{name}', which is not in tools");
                    return Err(ApiError::parameter("tool_choice", message));
                }
            }
            _ => {}
        }
        let expected = "'none', 'auto', 'required' or a function by name";
        Err(wrong("tool_choice", expected, value))
    }
}

/// The functions' names, which each tool must have.
fn names(tools: &[Value]) -> Result<Vec<&str>, ApiError> {
    if tools.len() > MAX_TOOLS {
        let message = format!("tools has {}, at most {MAX_TOOLS} are allowed", tools.len());
        return Err(ApiError::parameter("tools", message));
    }
    let name = |(at, tool): (usize, &'_ Value)| -> Result<(), ApiError> {
        let function = &tool["function"];
        let parameters = function.get("parameters");
        let sound = tool["type"] == "function"
            && function["name"].as_str().is_some_and(|it| !it.is_empty())
            && parameters.is_none_or(|it| it.is_object() || it.is_null());
        if sound {
            return Ok(());
        }
        let message = format!(
            "tools[{at}] must have type 'function' and a function with a name and, if it has \
             any, parameters as a JSON schema"
        );
        Err(ApiError::parameter("tools", message))
    };
    tools.iter().enumerate().try_for_each(name)?;
    let names = tools.iter().map(|tool| tool["function"]["name"].as_str());
    Ok(names.flatten().collect())
}

/// The JSON of one tool's call.
fn call_schema(tool: &Value, format: ToolFormat) -> Value {
    let function = &tool["function"];
    let any = json!({"type": "object"});
    let parameters = function.get("parameters").filter(|it| it.is_object());
    let arguments = format.arguments_key();
    let mut properties = Map::new();
    properties.insert("name".to_owned(), json!({"const": function["name"]}));
    properties.insert(arguments.to_owned(), parameters.unwrap_or(&any).clone());
    json!({
        "type": "object",
        "properties": properties,
        "required": ["name", arguments],
        "additionalProperties": false,
    })
}
