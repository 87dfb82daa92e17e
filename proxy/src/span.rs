//! The SERVER span of one request, by the stable HTTP conventions.
//! <https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span>
//!
//! [`RequestSpan`] is a guard: it lives in the request's context and ends its span when dropped,
//! so a request that is aborted or panics leaves one too. The attributes that a sampler may look
//! at are set at creation; the others when their time comes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::{HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, StatusCode, Version};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, Key, KeyValue, StringValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use opentelemetry_semantic_conventions::attribute as semconv;

use crate::bodies::Bodies;
use crate::error::Failure;
use crate::genai::{self, Exchange};
use crate::headers::text;
use crate::instrumentation::Instrumentation;
use crate::redact::redact_query;
use crate::route;

/// Seconds from the request's head to the first byte of the answer's head (double).
const TIME_TO_FIRST_BYTE: Key = Key::from_static_str("lantern.http.response.time_to_first_byte");

const OTHER_METHOD: &str = "_OTHER";

/// Room for the attributes of an ordinary request, so that the list grows once at most.
const ATTRIBUTES_AT_START: usize = 16;

/// A request's head and the two ends of its connection.
pub(crate) struct Arrival<'a> {
    pub(crate) head: &'a Parts,
    /// What the client speaks, `http` or `https`.
    pub(crate) scheme: &'static str,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) local: Option<SocketAddr>,
}

impl Arrival<'_> {
    /// The URL that excluded URLs are searched in: scheme, host and path.
    pub(crate) fn url(&self) -> String {
        let authority = self.authority().unwrap_or_default();
        format!("{}://{authority}{}", self.scheme, self.head.uri.path())
    }

    fn authority(&self) -> Option<&str> {
        match self.head.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => self
                .head
                .headers
                .get(HOST)
                .and_then(|host| host.to_str().ok()),
        }
        .filter(|authority| !authority.is_empty())
    }
}

/// What had passed through when the request ended.
#[derive(Clone, Copy, Default)]
pub(crate) struct Transferred {
    /// The status that the client was sent, if it came to that.
    pub(crate) status: Option<StatusCode>,
    pub(crate) request_body_bytes: usize,
    pub(crate) response_body_bytes: usize,
}

/// The span of a request in flight.
pub(crate) struct RequestSpan {
    span: Span,
    /// What the upstream is told: the incoming context with this span in its middle.
    context: Context,
    started: Instant,
    /// What a request that never comes to `finish` has shown of itself.
    seen: Transferred,
    /// `None` unless the span records: then nothing is read.
    bodies: Option<Bodies>,
    ended: bool,
}

impl RequestSpan {
    pub(crate) fn start(
        tracer: &SdkTracer,
        instrumentation: &Instrumentation,
        parent: &Context,
        arrival: &Arrival<'_>,
    ) -> Self {
        let route = route::find(arrival.head.uri.path());
        let method = arrival.head.method.as_str();
        let known_method = instrumentation.known_method(method);
        // The name has few distinct values: an unknown method is not in it.
        let name_method = if known_method.is_some() {
            method
        } else {
            "HTTP"
        };
        let name = match route {
            Some(route) => format!("{name_method} {route}"),
            None => name_method.to_owned(),
        };
        let mut attributes = Vec::with_capacity(ATTRIBUTES_AT_START);
        match known_method {
            Some(known) => attributes.push(KeyValue::new(semconv::HTTP_REQUEST_METHOD, known)),
            None => {
                attributes.push(KeyValue::new(semconv::HTTP_REQUEST_METHOD, OTHER_METHOD));
                let original = method.to_owned();
                attributes.push(KeyValue::new(
                    semconv::HTTP_REQUEST_METHOD_ORIGINAL,
                    original,
                ));
            }
        }
        if let Some(route) = route {
            attributes.push(KeyValue::new(semconv::HTTP_ROUTE, route));
        }
        let operation = genai::operation(&arrival.head.method, route);
        if let Some(operation) = operation {
            attributes.push(KeyValue::new(genai::OPERATION_NAME, operation));
        }
        url_attributes(arrival, &mut attributes);
        network_attributes(arrival, &mut attributes);
        if let Some(agent) = arrival.head.headers.get(USER_AGENT) {
            attributes.push(KeyValue::new(semconv::USER_AGENT_ORIGINAL, text(agent)));
        }
        instrumentation.capture_request(&arrival.head.headers, &mut attributes);

        let builder = tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        let span = tracer.build_with_context(builder, parent);
        let context = parent.with_remote_span_context(span.span_context().clone());
        let started = Instant::now();
        let bodies = span.is_recording().then(|| {
            let exchange = operation.map(|_| Exchange::new(started));
            Bodies::new(&arrival.head.headers, exchange)
        });
        Self {
            span,
            context,
            started,
            seen: Transferred::default(),
            bodies,
            ended: false,
        }
    }

    /// The context to hand to the upstream, sampled or not; `None` when tracing is off.
    pub(crate) fn context(&self) -> Option<&Context> {
        self.span.span_context().is_valid().then_some(&self.context)
    }

    /// The request goes to an upstream, its body from the start.
    pub(crate) fn attempt_started(&mut self) {
        if let Some(bodies) = &mut self.bodies {
            bodies.restart_request();
        }
    }

    /// A piece of the request's body passes by.
    pub(crate) fn request_body(&mut self, bytes: &[u8]) {
        if let Some(bodies) = &mut self.bodies {
            bodies.request(bytes);
        }
    }

    /// The head of the final answer is on its way to the client.
    pub(crate) fn response_started(
        &mut self,
        instrumentation: &Instrumentation,
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        let Some(bodies) = &mut self.bodies else {
            return;
        };
        bodies.response_head(headers);
        self.seen.status = Some(status);
        let seconds = self.started.elapsed().as_secs_f64();
        self.span
            .set_attribute(KeyValue::new(TIME_TO_FIRST_BYTE, seconds));
        let mut captured = Vec::new();
        instrumentation.capture_response(headers, &mut captured);
        self.span.set_attributes(captured);
    }

    /// A piece of the answer's body passes by.
    pub(crate) fn response_body(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.seen.response_body_bytes += bytes.len();
        if let Some(bodies) = &mut self.bodies {
            bodies.response(bytes);
        }
    }

    /// Ends the span; only the first call counts.
    pub(crate) fn finish(&mut self, failure: Option<Failure>, transferred: Transferred) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(mut bodies) = self.bodies.take() {
            let mut attributes = Vec::new();
            bodies.attributes(failure.is_some(), &mut attributes);
            self.span.set_attributes(attributes);
            self.set_transferred(transferred);
            self.set_outcome(failure, transferred.status);
        }
        self.span.end();
    }

    fn set_transferred(&mut self, transferred: Transferred) {
        let Transferred {
            status,
            request_body_bytes,
            response_body_bytes,
        } = transferred;
        if request_body_bytes > 0 {
            let size = int(request_body_bytes);
            self.span
                .set_attribute(KeyValue::new(semconv::HTTP_REQUEST_BODY_SIZE, size));
        }
        if let Some(status) = status {
            let code = i64::from(status.as_u16());
            self.span
                .set_attribute(KeyValue::new(semconv::HTTP_RESPONSE_STATUS_CODE, code));
            let size = int(response_body_bytes);
            self.span
                .set_attribute(KeyValue::new(semconv::HTTP_RESPONSE_BODY_SIZE, size));
        }
    }

    /// A failure or a 5xx is an error; a 4xx is the client's, and leaves the status unset. A SERVER
    /// span's error has no description: `error.type` says it all.
    fn set_outcome(&mut self, failure: Option<Failure>, status: Option<StatusCode>) {
        let error_type = match (failure, status) {
            (Some(failure), _) => StringValue::from(failure.as_str()),
            (None, Some(status)) if status.is_server_error() => status.as_str().to_owned().into(),
            (None, _) => return,
        };
        self.span
            .set_attribute(KeyValue::new(semconv::ERROR_TYPE, error_type));
        self.span.set_status(Status::error(""));
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        self.finish(Some(Failure::Aborted), self.seen);
    }
}

fn url_attributes(arrival: &Arrival<'_>, attributes: &mut Vec<KeyValue>) {
    let head = arrival.head;
    attributes.push(KeyValue::new(semconv::URL_SCHEME, arrival.scheme));
    attributes.push(KeyValue::new(semconv::URL_PATH, head.uri.path().to_owned()));
    if let Some(query) = head.uri.query() {
        attributes.push(KeyValue::new(
            semconv::URL_QUERY,
            redact_query(query).into_owned(),
        ));
    }
}

fn network_attributes(arrival: &Arrival<'_>, attributes: &mut Vec<KeyValue>) {
    let version = match arrival.head.version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    };
    attributes.push(KeyValue::new(semconv::NETWORK_PROTOCOL_VERSION, version));
    if let Some(peer) = arrival.peer {
        let address: Arc<str> = peer.ip().to_canonical().to_string().into();
        // Nobody's Forwarded header is trusted, so the client is the peer.
        attributes.push(KeyValue::new(semconv::CLIENT_ADDRESS, Arc::clone(&address)));
        attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, address));
        attributes.push(KeyValue::new(
            semconv::NETWORK_PEER_PORT,
            i64::from(peer.port()),
        ));
    }
    server_attributes(arrival, attributes);
}

/// The server that the client meant; without a Host, the address it reached.
fn server_attributes(arrival: &Arrival<'_>, attributes: &mut Vec<KeyValue>) {
    let (address, port) = match (arrival.authority(), arrival.local) {
        (Some(authority), _) => {
            let (host, port) = split_authority(authority);
            (host.to_owned(), port)
        }
        (None, Some(local)) => (local.ip().to_canonical().to_string(), Some(local.port())),
        (None, None) => return,
    };
    attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, address));
    if let Some(port) = port {
        attributes.push(KeyValue::new(semconv::SERVER_PORT, i64::from(port)));
    }
}

/// Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_authority(authority: &str) -> (&str, Option<u16>) {
    if let Some((host, rest)) = authority
        .strip_prefix('[')
        .and_then(|v6| v6.split_once(']'))
    {
        return (
            host,
            rest.strip_prefix(':').and_then(|port| port.parse().ok()),
        );
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (authority, None),
    }
}

fn int(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_splits_into_host_and_port() {
        for (authority, expected) in [
            ("localhost", ("localhost", None)),
            ("localhost:8000", ("localhost", Some(8000))),
            ("[::1]", ("::1", None)),
            ("[::1]:8000", ("::1", Some(8000))),
            ("a:b", ("a", None)),
        ] {
            assert_eq!(split_authority(authority), expected, "{authority}");
        }
    }
}
