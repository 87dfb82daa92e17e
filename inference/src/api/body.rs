//! Request bodies: bounded in size and time, and JSON.

use std::time::Duration;

use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;
use super::fields::Fields;

/// How long a client may take to send its body.
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a body of at most `limit_bytes` and parses it.
pub(super) async fn read(request: Request, limit_bytes: usize) -> Result<Fields, ApiError> {
    check_content_type(request.headers())?;
    let body = Limited::new(request.into_body(), limit_bytes).collect();
    let collected = tokio::time::timeout(BODY_READ_TIMEOUT, body)
        .await
        .map_err(|_| ApiError::BodyTimeout {
            limit_seconds: BODY_READ_TIMEOUT.as_secs(),
        })?;
    let bytes: Bytes = match collected {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(ApiError::BodyTooLarge { limit_bytes });
        }
        Err(error) => return Err(ApiError::BodyRead(error.to_string())),
    };
    Fields::parse(&bytes)
}

/// Refuses what says that it is not JSON; a body that says nothing is taken for JSON.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::ContentType(essence.to_owned()))
}
