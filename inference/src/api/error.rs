//! Every way in which a request can fail, and the one mapping of each to an HTTP answer (OpenAI's
//! error body, with vLLM's values) and to the span's `error.type`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::chat_template::ChatTemplateError;
use crate::generation::GenerationError;
use crate::tokenizer::TokenizerError;

/// Seconds after which a client may try an overloaded server again.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Why a request is not answered with a result.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The body is no JSON.
    #[error("the body is not valid JSON: {0}")]
    MalformedJson(#[from] serde_json::Error),
    /// The body says that it is something else.
    #[error("content type '{0}' is not supported: send application/json")]
    ContentType(String),
    /// The body is over the bound.
    #[error("the body is longer than {limit_bytes} bytes")]
    BodyTooLarge {
        /// The bound.
        limit_bytes: usize,
    },
    /// The body did not come in time.
    #[error("the body did not arrive within {limit_seconds} s")]
    BodyTimeout {
        /// The time it had.
        limit_seconds: u64,
    },
    /// The body broke off.
    #[error("the body cannot be read: {0}")]
    BodyRead(String),
    /// A field is missing or has a value that it cannot have.
    #[error("{message}")]
    Parameter {
        /// The field.
        param: &'static str,
        /// What is wrong with it, with the value.
        message: String,
    },
    /// The model is not served here.
    #[error("The model `{0}` does not exist.")]
    ModelNotFound(String),
    /// Prompt and output together do not fit.
    #[error("{message}")]
    ContextLength {
        /// The field that asks for too much.
        param: &'static str,
        /// The lengths.
        message: String,
    },
    /// The chat cannot be turned into a prompt.
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
    /// The prompt cannot be turned into tokens, or tokens into text.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A grammar could not be compiled, and not because of what it says.
    #[error("the grammar's compiler failed: {0}")]
    Grammar(String),
    /// There is nothing at this path.
    #[error("no such path: {0}")]
    RouteNotFound(String),
    /// There is, but not for this method.
    #[error("{0} is not allowed here")]
    MethodNotAllowed(http::Method),
    /// The engine would not or could not.
    #[error(transparent)]
    Generation(#[from] GenerationError),
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> Self {
        Self::Tokenizer(error.to_string())
    }
}

impl ApiError {
    /// A field that is wrong.
    pub(super) fn parameter(param: &'static str, message: impl Into<String>) -> Self {
        Self::Parameter {
            param,
            message: message.into(),
        }
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::MalformedJson(_)
            | Self::BodyRead(_)
            | Self::Parameter { .. }
            | Self::ContextLength { .. }
            | Self::ChatTemplate(_)
            | Self::Generation(GenerationError::PromptTooLong { .. }) => StatusCode::BAD_REQUEST,
            Self::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::ModelNotFound(_) | Self::RouteNotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Generation(GenerationError::QueueFull { .. } | GenerationError::Stopped(_)) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Tokenizer(_)
            | Self::Grammar(_)
            | Self::Generation(GenerationError::Failed(_) | GenerationError::Tokenizer(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// `error.type` of the span: few values, none with data in it.
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::MalformedJson(_) => "malformed_json",
            Self::ContentType(_) => "unsupported_content_type",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyTimeout { .. } => "body_timeout",
            Self::BodyRead(_) => "body_incomplete",
            Self::Parameter { .. } => "invalid_parameter",
            Self::ModelNotFound(_) => "model_not_found",
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::ChatTemplate(_) => "chat_template_failed",
            Self::Tokenizer(_) => "tokenizer_failed",
            Self::Grammar(_) => "grammar_failed",
            Self::RouteNotFound(_) => "route_not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::Generation(error) => error.error_type(),
        }
    }

    /// The body of the response; also what a stream ends with that fails half-way.
    pub(super) fn body(&self) -> Value {
        let status = self.status();
        // vLLM's names: the reason phrase without spaces.
        let kind = match status {
            StatusCode::INTERNAL_SERVER_ERROR => "InternalServerError".to_owned(),
            status => {
                let phrase = status.canonical_reason().unwrap_or("Unknown");
                format!("{}Error", phrase.replace(' ', ""))
            }
        };
        json!({"error": {
            "message": self.to_string(),
            "type": kind,
            "param": self.param(),
            "code": status.as_u16(),
        }})
    }

    fn param(&self) -> Option<&'static str> {
        match self {
            Self::Parameter { param, .. } | Self::ContextLength { param, .. } => Some(param),
            Self::ModelNotFound(_) => Some("model"),
            Self::ChatTemplate(_) => Some("messages"),
            Self::Generation(GenerationError::PromptTooLong { .. }) => Some("prompt"),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            let seconds = HeaderValue::from(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}
