//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use crate::tokenizer::Tokenizer;

use super::error::ApiError;
use super::fields::wrong;
use super::{App, body, prompt};

/// The tokens of a prompt or of a chat.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let mut fields = body::read(request, app.max_body_bytes).await?;
    app.check_model(fields.text("model")?.as_deref())?;
    let add_special_tokens = fields.boolean("add_special_tokens")?;
    let with_texts = fields.boolean("return_token_strs")?.unwrap_or(false);
    let (text, add_special_tokens) = match fields.text("prompt")? {
        Some(text) => (text, add_special_tokens.unwrap_or(true)),
        // The template has put them in already.
        None => {
            let tools = fields.take("tools");
            let text = app.chat_prompt(&mut fields, tools).await?;
            (text, add_special_tokens.unwrap_or(false))
        }
    };
    let bytes = text.len();
    let encode = move |tokenizer: &Tokenizer| {
        let tokens = tokenizer.encode(&text, add_special_tokens)?;
        let texts = with_texts.then(|| {
            let texts = tokens.iter().map(|&id| tokenizer.token_text(id));
            texts.collect::<Vec<_>>()
        });
        Ok((tokens, texts))
    };
    let (tokens, texts) = app.with_tokenizer(bytes, encode).await?;
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": app.model.max_model_len,
        "tokens": tokens,
        "token_strs": texts,
    })))
}

/// The text of tokens.
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let mut fields = body::read(request, app.max_body_bytes).await?;
    app.check_model(fields.text("model")?.as_deref())?;
    let tokens = match fields.take("tokens") {
        Some(Value::Array(ids)) => prompt::token_ids(&ids, "tokens", app.model.vocab_size)?,
        Some(other) => return Err(wrong("tokens", "a list of token ids", &other)),
        None => return Err(ApiError::parameter("tokens", "tokens is required")),
    };
    let bytes = prompt::decode_bytes(&tokens);
    let decode = move |tokenizer: &Tokenizer| Ok(tokenizer.decode(&tokens, false)?);
    let text = app.with_tokenizer(bytes, decode).await?;
    Ok(Json(json!({"prompt": text})))
}
