//! The HTTP client under the OTLP/HTTP exporter: hyper and rustls, so that no second HTTP stack is
//! linked, with a bounded response and a memory of why the last request failed.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_http::{HttpClient, HttpError, ResponseBodyTooLarge};

use super::last_failure::LastFailure;
use crate::chain;
use crate::config::{Connector, ExporterSettings};

/// An OTLP answer is a few bytes; a misconfigured endpoint may answer with a page. (The value is the
/// one that [`ResponseBodyTooLarge`] names.)
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// How much of an error page is worth a line of log.
const MAX_REASON_CHARS: usize = 200;
/// An idle connection is closed before a server or a NAT on the way forgets it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A client for one endpoint.
#[derive(Debug)]
pub(super) struct OtlpHttpClient {
    client: Client<Connector, Full<Bytes>>,
    headers: HeaderMap,
    /// The longest that one request may take, its response included.
    timeout: Duration,
    last_failure: LastFailure,
}

impl OtlpHttpClient {
    pub(super) fn new(settings: &ExporterSettings, last_failure: LastFailure) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(settings.connector());
        Self {
            client,
            headers: settings.request_headers(),
            timeout: settings.timeout,
            last_failure,
        }
    }

    /// The exporter merges the environment's headers into its own; the settings have already decided
    /// which apply, so only what describes the body is kept of them.
    fn own_headers(&self, given: &HeaderMap) -> HeaderMap {
        let mut headers = self.headers.clone();
        for name in [CONTENT_TYPE, CONTENT_ENCODING] {
            if let Some(value) = given.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        if let (Some(agent), false) = (given.get(USER_AGENT), headers.contains_key(USER_AGENT)) {
            headers.insert(USER_AGENT, agent.clone());
        }
        headers
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut parts, body) = request.into_parts();
        parts.headers = self.own_headers(&parts.headers);
        let response = self
            .client
            .request(Request::from_parts(parts, Full::new(body)))
            .await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES)
            .collect()
            .await
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    Box::new(ResponseBodyTooLarge::new())
                } else {
                    error
                }
            })?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }
}

#[async_trait::async_trait]
impl HttpClient for OtlpHttpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = match tokio::time::timeout(self.timeout, self.send(request)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {:?}", self.timeout).into()),
        };
        self.last_failure.set(match &result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(refusal(response)),
            Err(error) => Some(chain(error.as_ref())),
        });
        result
    }
}

/// An unsuccessful answer in words: its status and the readable beginning of its body.
fn refusal(response: &Response<Bytes>) -> String {
    let text = String::from_utf8_lossy(response.body());
    let words = text.split(|c: char| c.is_whitespace() || c.is_control() || c == '\u{fffd}');
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let shown: String = words.join(" ").chars().take(MAX_REASON_CHARS).collect();
    let colon = if shown.is_empty() { "" } else { ": " };
    format!("it answered {}{colon}{shown}", response.status())
}
