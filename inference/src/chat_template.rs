//! Chats to prompts through the model's own Jinja template, as transformers renders it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value as JinjaValue, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::loader::{Gguf, ModelFiles, ModelSource};

/// The template's name in its environment.
const NAME: &str = "chat";
/// Deepest recursion of a template's macros.
const RECURSION_LIMIT: usize = 64;
/// Steps of one rendering, of which one pays for 64 bytes of text as well.
const FUEL: u64 = 4_000_000;

/// Why a chat is not turned into a prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// The model is none for chats.
    #[error(
        "this model has no chat template: use /v1/completions, or start the server with \
         --chat-template"
    )]
    Missing,
    /// The messages are not what a chat is made of.
    #[error("{0}")]
    Messages(String),
    /// The template refuses them, or fails.
    #[error("the chat template cannot render these messages: {0}")]
    Render(String),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{} is not understood", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The template itself is wrong.
    #[error("the chat template is not understood: {0}")]
    Syntax(String),
}

/// A compiled template with the model's special tokens.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    tool_format: Option<ToolFormat>,
}

/// How a template has calls of tools written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes's, Qwen's and others'.
    Hermes,
    /// `{"name": …, "parameters": …}` as the whole answer: Llama 3's.
    Llama,
}

impl ToolFormat {
    /// By what the template says to the model; none where it knows no tools.
    fn of(template: &str) -> Option<Self> {
        let says = |text| template.contains(text);
        if !says("tools") {
            None
        } else if says("<tool_call>") {
            Some(Self::Hermes)
        } else {
            says("\"parameters\"").then_some(Self::Llama)
        }
    }

    /// Where a call has its arguments.
    pub fn arguments_key(self) -> &'static str {
        match self {
            Self::Hermes => "arguments",
            Self::Llama => "parameters",
        }
    }
}

/// One chat.
#[derive(Debug)]
pub struct ChatRequest {
    /// The messages, as the request has them.
    pub messages: Value,
    /// What the model may call, as the request has it.
    pub tools: Option<Value>,
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Go on with the last message in place of answering it.
    pub continue_final_message: bool,
    /// More variables for the template, an object.
    pub kwargs: Option<Value>,
}

impl ChatTemplate {
    /// The template of a model: the file that `chosen` names, or the one that came with it.
    pub fn load(
        source: &ModelSource,
        chosen: Option<&Path>,
    ) -> Result<Option<Self>, ChatTemplateError> {
        let found = match source {
            ModelSource::Files(files) => Found::in_files(files, chosen.is_none())?,
            ModelSource::Gguf(gguf) => Found::in_gguf(gguf),
        };
        let template = match chosen {
            Some(path) => Some(read(path)?),
            None => found.template,
        };
        template
            .map(|template| Self::new(template, found.bos_token, found.eos_token))
            .transpose()
    }

    /// Compiles a template.
    pub fn new(
        source: String,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        let tool_format = ToolFormat::of(&source);
        let syntax = |error: Error| ChatTemplateError::Syntax(error.to_string());
        environment
            .add_template_owned(NAME, source)
            .map_err(syntax)?;
        Ok(Self {
            environment,
            bos_token,
            eos_token,
            tool_format,
        })
    }

    /// How calls of tools are written; none where the template knows no tools.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }
}

/// What a model brings along.
struct Found {
    template: Option<String>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl Found {
    /// The template only if it is `wanted`.
    fn in_files(files: &ModelFiles, wanted: bool) -> Result<Self, ChatTemplateError> {
        let config = match &files.tokenizer_config {
            Some(path) => read_json(path)?,
            None => Value::Null,
        };
        let template = match &files.chat_template {
            _ if !wanted => None,
            Some(path) if path.extension().is_some_and(|it| it == "json") => {
                named_default(&read_json(path)?["chat_template"])
            }
            Some(path) => Some(read(path)?),
            None => named_default(&config["chat_template"]),
        };
        Ok(Self {
            template,
            bos_token: special_token(&config["bos_token"]),
            eos_token: special_token(&config["eos_token"]),
        })
    }

    fn in_gguf(gguf: &Gguf) -> Self {
        let token = |role: &str| {
            let id = gguf.number(&format!("tokenizer.ggml.{role}_token_id"))?;
            let token = gguf.list("tokenizer.ggml.tokens").ok()?;
            token.get(id as usize)?.to_string().ok().cloned()
        };
        let template = gguf.optional_text("tokenizer.chat_template");
        Self {
            template: template.map(str::to_owned),
            bos_token: token("bos"),
            eos_token: token("eos"),
        }
    }
}

impl ChatRequest {
    /// The prompt.
    pub fn render(self, template: Option<&ChatTemplate>) -> Result<String, ChatTemplateError> {
        let template = template.ok_or(ChatTemplateError::Missing)?;
        if self.add_generation_prompt && self.continue_final_message {
            let message = "continue_final_message needs add_generation_prompt = false";
            return Err(ChatTemplateError::Messages(message.to_owned()));
        }
        let messages = messages(self.messages)?;
        let last = messages
            .last()
            .and_then(|message| message["content"].as_str());
        let last = last.unwrap_or_default().trim().to_owned();
        let given = context! {
            messages => JinjaValue::from(Serde(&messages)),
            tools => self.tools.map(|tools| JinjaValue::from(Serde(tools))),
            add_generation_prompt => self.add_generation_prompt,
            bos_token => template.bos_token.as_deref().unwrap_or_default(),
            eos_token => template.eos_token.as_deref().unwrap_or_default(),
        };
        let kwargs = match self.kwargs {
            None => JinjaValue::from(Serde(Map::new())),
            Some(Value::Object(kwargs)) => JinjaValue::from(Serde(kwargs)),
            Some(_) => {
                let message = "chat_template_kwargs must be an object";
                return Err(ChatTemplateError::Messages(message.to_owned()));
            }
        };
        let compiled = template
            .environment
            .get_template(NAME)
            .expect("it was added under NAME");
        let rendered = compiled
            .render(context! { ..given, ..kwargs })
            .map_err(|error| render_error(&error))?;
        if self.continue_final_message {
            up_to(rendered, &last)
        } else {
            Ok(rendered)
        }
    }
}

/// The prompt without what the template puts after the last message.
fn up_to(mut rendered: String, last: &str) -> Result<String, ChatTemplateError> {
    let at = rendered.rfind(last).ok_or_else(|| {
        let message = "continue_final_message: the template changes the last message";
        ChatTemplateError::Messages(message.to_owned())
    })?;
    rendered.truncate(at + last.len());
    Ok(rendered)
}

/// Messages with plain strings as their content.
fn messages(value: Value) -> Result<Vec<Value>, ChatTemplateError> {
    let Value::Array(messages) = value else {
        return Err(ChatTemplateError::Messages(
            "messages must be a list".to_owned(),
        ));
    };
    if messages.is_empty() {
        return Err(ChatTemplateError::Messages(
            "messages must not be empty".to_owned(),
        ));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| normalized(at, message))
        .collect()
}

fn normalized(at: usize, message: Value) -> Result<Value, ChatTemplateError> {
    let wrong = |what: &str| ChatTemplateError::Messages(format!("messages[{at}]{what}"));
    let Value::Object(mut message) = message else {
        return Err(wrong(" must be an object"));
    };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(wrong(".role must be a string"));
    }
    let content = match message.remove("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts: Option<Vec<&str>> = parts.iter().map(part_text).collect();
            texts
                .ok_or_else(|| wrong(".content may only have parts of type text"))?
                .join("\n")
        }
        Some(_) => return Err(wrong(".content must be a string or a list of text parts")),
    };
    message.insert("content".to_owned(), json!(content));
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        calls.iter_mut().for_each(read_arguments);
    }
    Ok(Value::Object(message))
}

/// Templates write arguments as JSON themselves; the API has them as its text.
fn read_arguments(call: &mut Value) {
    let arguments = call.pointer_mut("/function/arguments");
    if let Some(arguments) = arguments
        && let Some(parsed) = arguments
            .as_str()
            .and_then(|it| serde_json::from_str(it).ok())
    {
        *arguments = parsed;
    }
}

/// The text of one part; of any other kind there is none.
fn part_text(part: &Value) -> Option<&str> {
    match part {
        Value::String(text) => Some(text),
        Value::Object(part) if part.get("type").is_none_or(|kind| kind == "text") => {
            part.get("text")?.as_str()
        }
        _ => None,
    }
}

/// `chat_template`: a string, or a list of named ones of which `default` is meant.
fn named_default(value: &Value) -> Option<String> {
    match value {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// A special token: a string, or an object with its `content`.
fn special_token(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

fn read(path: &Path) -> Result<String, ChatTemplateError> {
    std::fs::read_to_string(path).map_err(|source| ChatTemplateError::Io {
        path: path.to_owned(),
        source,
    })
}

fn read_json(path: &Path) -> Result<Value, ChatTemplateError> {
    serde_json::from_str(&read(path)?).map_err(|source| ChatTemplateError::Json {
        path: path.to_owned(),
        source,
    })
}

/// What a template said itself through `raise_exception` stands alone.
fn render_error(error: &Error) -> ChatTemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        let message = format!("it takes more than {FUEL} steps");
        return ChatTemplateError::Render(message);
    }
    let raised = error.kind() == ErrorKind::InvalidOperation;
    let detail = error.detail().filter(|_| raised).map(str::to_owned);
    ChatTemplateError::Render(detail.unwrap_or_else(|| error.to_string()))
}

fn raise_exception(message: &str) -> Result<JinjaValue, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    // `write!` and not `to_string`, which panics on a format that chrono does not know.
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        let message = format!("strftime_now does not know the format '{format}'");
        Error::new(ErrorKind::InvalidOperation, message)
    })?;
    Ok(text)
}

/// Python's `json.dumps`, as templates expect it: minijinja's own filter escapes for HTML.
#[allow(
    clippy::needless_pass_by_value,
    reason = "minijinja hands keyword arguments over"
)]
fn tojson(value: &JinjaValue, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    kwargs.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(RECURSION_LIMIT));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, pretty,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, Spaced,
        )),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(String::from_utf8(bytes).expect("serde_json writes UTF-8"))
}

/// JSON on one line with a space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
