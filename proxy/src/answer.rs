//! The proxy's own answers, to requests that failed: one mapping to a head and OpenAI's error body, whether
//! pingora writes them or they are written past it.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;

use crate::error::Failure;
use crate::identity::Identity;

/// An answer that tells of a failure. After it the connection of HTTP/1 ends.
pub(crate) struct Answer {
    head: ResponseHeader,
    body: Bytes,
}

impl Answer {
    /// `None` where nobody is there to be answered. `retry_after`, in seconds, goes before the failure's
    /// own. The answer to HEAD has no body.
    pub(crate) fn to(
        failure: Failure,
        retry_after: Option<u64>,
        identity: &Identity,
        is_head: bool,
    ) -> Option<Self> {
        let status = failure.status()?;
        let body = failure.openai_body(identity.trace_id());
        let head = head((failure, status), retry_after, identity, body.len());
        Some(Self {
            head: head.expect("a status, and names and values of headers"),
            body: if is_head { Bytes::new() } else { body },
        })
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.head.status
    }

    pub(crate) fn body_bytes(&self) -> usize {
        self.body.len()
    }

    pub(crate) async fn write(self, session: &mut ServerSession) -> Result<()> {
        session.write_error_response(self.head, self.body).await
    }

    /// As HTTP/1.1 has it.
    pub(crate) fn to_http1(&self) -> Bytes {
        let status = self.head.status;
        let mut answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\n").into_bytes();
        for (name, value) in &self.head.headers {
            answer.extend_from_slice(name.as_str().as_bytes());
            answer.extend_from_slice(b": ");
            answer.extend_from_slice(value.as_bytes());
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(&self.body);
        answer.into()
    }
}

fn head(
    (failure, status): (Failure, StatusCode),
    retry_after: Option<u64>,
    identity: &Identity,
    body_bytes: usize,
) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(status, Some(7))?;
    if let Some(seconds) = retry_after.or(failure.retry_after()) {
        head.insert_header(RETRY_AFTER, seconds)?;
    }
    if status == StatusCode::UNAUTHORIZED {
        head.insert_header(WWW_AUTHENTICATE, "Bearer")?;
    }
    head.insert_header(CONTENT_TYPE, HeaderValue::from_static("application/json"))?;
    head.insert_header(CONTENT_LENGTH, body_bytes)?;
    head.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    identity.sign(&mut head)?;
    Ok(head)
}
