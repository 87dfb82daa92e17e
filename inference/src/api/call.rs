//! A generation request from its arrival to its batch, and its span if it gets no further.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::HeaderMap;

use crate::generation::exchange::{Exchange, Operation};
use crate::generation::record::Record;
use crate::generation::{Batch, Prompt};

use super::error::ApiError;
use super::params::Sampling;
use super::prompt::TokenizedPrompt;
use super::response::Envelope;
use super::{App, unix_seconds};

/// Longest `X-Request-Id` that becomes part of the response's id.
const MAX_REQUEST_ID_BYTES: usize = 256;

/// One request to generate.
pub(super) struct Call {
    pub(super) app: Arc<App>,
    exchange: Arc<Exchange>,
    /// The first prompt's record. From the arrival on, so that a request that is refused, or whose
    /// client leaves, has its span too.
    record: Option<Record>,
    model: String,
    stream: bool,
}

impl Call {
    /// A request that arrives now.
    pub(super) fn open(app: &Arc<App>, headers: &HeaderMap, operation: Operation) -> Self {
        let observers = app.observers.clone();
        let parent = observers.spans.parent(headers);
        let id = format!("{}{}", operation.id_prefix(), request_id(headers));
        let exchange = Arc::new(Exchange::new(id, operation, parent, observers));
        let record = Record::open(&exchange);
        let model = app.model.names[0].clone();
        Self {
            app: Arc::clone(app),
            exchange,
            record: Some(record),
            model,
            stream: false,
        }
    }

    /// What the response begins with.
    pub(super) fn envelope(&self) -> Envelope {
        let id = self.exchange.id.clone();
        Envelope {
            id,
            created: unix_seconds(),
            model: self.model.clone(),
        }
    }

    /// Takes the request's model, which the span has even if there is no such model.
    pub(super) fn set_model(&mut self, name: Option<String>, stream: bool) -> Result<(), ApiError> {
        self.model = name.unwrap_or_else(|| self.app.model.names[0].clone());
        self.stream = stream;
        if let Some(record) = &mut self.record {
            record.set_model(&self.model, stream);
        }
        self.app.check_model(Some(&self.model))
    }

    /// Hands the prompts to the engine, or none.
    pub(super) fn start(
        &mut self,
        prompts: &[TokenizedPrompt],
        sampling: &Sampling,
        prompt_param: &'static str,
    ) -> Result<Batch, ApiError> {
        self.check_room(prompts.len(), sampling)?;
        let max_model_len = self.app.model.max_model_len;
        let params = prompts
            .iter()
            .map(|prompt| sampling.for_prompt(prompt.tokens.len(), prompt_param, max_model_len))
            .collect::<Result<Vec<_>, _>>()?;
        let prompts = prompts
            .iter()
            .zip(params)
            .map(|(prompt, params)| {
                let params = Arc::new(params);
                let mut record = self.next_record();
                record.set_prompt(prompt.tokens.len(), &params);
                record.capture_prompt(&prompt.text);
                (
                    Prompt {
                        tokens: prompt.tokens.clone(),
                        params,
                    },
                    record,
                )
            })
            .collect();
        Ok(Batch::start(&self.app.generator, prompts, &self.exchange)?)
    }

    /// Refuses what an idle engine could not take either: trying again would not help.
    fn check_room(&self, prompts: usize, sampling: &Sampling) -> Result<(), ApiError> {
        let (sequences, param) = sampling.sequences();
        let limit = self.app.generator.engine.max_waiting_requests();
        let total = prompts * sequences;
        if total <= limit {
            return Ok(());
        }
        let param = if sequences > limit || prompts == 1 {
            param
        } else {
            "prompt"
        };
        let message = format!(
            "{prompts} prompts with {sequences} sequences each are {total} sequences, at most \
             {limit} can wait in this server"
        );
        Err(ApiError::parameter(param, message))
    }

    fn next_record(&mut self) -> Record {
        let mut record = self
            .record
            .take()
            .unwrap_or_else(|| Record::open(&self.exchange));
        record.set_model(&self.model, self.stream);
        record
    }

    /// Answers with an error. What the engine already has tells its own.
    pub(super) fn refuse(mut self, error: ApiError) -> Response {
        if let Some(record) = &mut self.record {
            record.fail(error.error_type(), &error);
        }
        error.into_response()
    }
}

/// The caller's `X-Request-Id`, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    match given {
        Some(id) if !id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES => id.to_owned(),
        _ => uuid::Uuid::new_v4().simple().to_string(),
    }
}
