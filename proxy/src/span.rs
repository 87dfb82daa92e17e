//! The SERVER span of one request, by the stable HTTP conventions.
//! <https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span>
//!
//! [`RequestSpan`] is a guard: it lives in the request's context and ends its span when dropped,
//! so a request that is aborted or panics leaves one too. The attributes that a sampler may look
//! at are set at creation; the others when their time comes.

use std::time::Instant;

use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Version};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer as _,
};
use opentelemetry::{Context, Key, KeyValue, StringValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use opentelemetry_semantic_conventions::attribute as semconv;

use crate::attempt::{Attempt, Destination};
use crate::bodies::Bodies;
use crate::error::Failure;
use crate::genai::{self, Exchange};
use crate::headers::text;
use crate::identity::{Identity, X_REQUEST_ID};
use crate::instrumentation::{Instrumentation, method_attributes};
use crate::origin::{Arrival, Origin};
use crate::redact::redact_query;
use crate::route;

/// Seconds from the request's head to the first byte of the answer's head (double).
const TIME_TO_FIRST_BYTE: Key = Key::from_static_str("lantern.http.response.time_to_first_byte");
/// The request's id, where it is not the trace's (string).
const REQUEST_ID: Key = Key::from_static_str("lantern.request.id");

/// Room for the attributes of an ordinary request, so that the list grows once at most.
const ATTRIBUTES_AT_START: usize = 16;

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
    /// The incoming context with this span in its middle.
    context: Context,
    attempts: Vec<Attempt>,
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
        origin: Origin,
    ) -> Self {
        let head = arrival.head;
        let path = path(head);
        let route = path.and_then(route::find);
        let mut attributes = Vec::with_capacity(ATTRIBUTES_AT_START);
        let method = method_attributes(instrumentation, head.method.as_str(), &mut attributes);
        let name = match route {
            Some(route) => format!("{method} {route}"),
            None => method.to_owned(),
        };
        if let Some(route) = route {
            attributes.push(KeyValue::new(semconv::HTTP_ROUTE, route));
        }
        let operation = genai::operation(&head.method, route);
        if let Some(operation) = operation {
            attributes.push(KeyValue::new(genai::OPERATION_NAME, operation));
        }
        url_attributes(path, head.uri.query(), &mut attributes);
        attributes.push(version_attribute(head.version));
        peer_attributes(arrival, &mut attributes);
        origin_attributes(origin, &mut attributes);
        if let Some(agent) = head.headers.get(USER_AGENT) {
            attributes.push(KeyValue::new(semconv::USER_AGENT_ORIGINAL, text(agent)));
        }
        instrumentation
            .server_request
            .capture(&head.headers, &mut attributes);

        let builder = tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        let span = tracer.build_with_context(builder, parent);
        let context = parent.with_remote_span_context(span.span_context().clone());
        let started = Instant::now();
        let bodies = span.is_recording().then(|| {
            let exchange = operation.map(|_| Exchange::new(started));
            Bodies::new(&head.headers, exchange)
        });
        Self {
            span,
            context,
            attempts: Vec::new(),
            started,
            seen: Transferred::default(),
            bodies,
            ended: false,
        }
    }

    pub(crate) fn span_context(&self) -> &SpanContext {
        self.span.span_context()
    }

    /// What the request is called, for whoever looks for its span.
    pub(crate) fn identify(&mut self, identity: &Identity) {
        if identity.from_client {
            let id = text(&identity.request_id);
            self.span.set_attribute(KeyValue::new(REQUEST_ID, id));
        }
    }

    /// The request goes to an upstream, its body from the start.
    pub(crate) fn start_attempt(
        &mut self,
        tracer: &SdkTracer,
        instrumentation: &Instrumentation,
        head: &Parts,
        destination: &Destination,
    ) {
        if let Some(bodies) = &mut self.bodies {
            bodies.restart_request();
        }
        let (request, resends) = ((&self.context, head), self.attempts.len());
        let attempt = Attempt::start(tracer, instrumentation, request, destination, resends);
        self.attempts.push(attempt);
    }

    /// The attempt that is under way.
    pub(crate) fn attempt(&mut self) -> Option<&mut Attempt> {
        self.attempts.last_mut()
    }

    /// The context to hand to the upstream, sampled or not; `None` when tracing is off.
    pub(crate) fn attempt_context(&self) -> Option<&Context> {
        let context = self.attempts.last()?.context();
        context.span().span_context().is_valid().then_some(context)
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
        identity: &Identity,
        (status, headers): (StatusCode, &HeaderMap),
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
        instrumentation
            .server_response
            .capture(headers, &mut captured);
        self.span.set_attributes(captured);
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.response_head(instrumentation, status, headers);
            // The client gets ours; whoever asks the upstream's operator needs theirs.
            let theirs = headers.get(X_REQUEST_ID);
            if let Some(id) = theirs.filter(|id| *id != identity.request_id) {
                attempt.upstream_request_id(id);
            }
        }
    }

    /// A piece of the answer's body passes by.
    pub(crate) fn response_body(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.seen.response_body_bytes += bytes.len();
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.response_body(bytes.len());
        }
        if let Some(bodies) = &mut self.bodies {
            bodies.response(bytes);
        }
    }

    /// Ends the span; only the first call counts.
    pub(crate) fn finish(&mut self, failure: Option<Failure>, transferred: Transferred) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        for attempt in self.attempts.drain(..) {
            attempt.finish(failure);
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
        if !status.is_some_and(|status| status.is_client_error()) {
            self.span.set_status(Status::error(""));
        }
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        self.finish(Some(Failure::Aborted), self.seen);
    }
}

/// The path of a request that has one: not to the server itself (`*`), not CONNECT, nor one whose
/// target could not be read.
fn path(head: &Parts) -> Option<&str> {
    let path = head.uri.path();
    (path.starts_with('/') && head.method != Method::CONNECT).then_some(path)
}

fn url_attributes(path: Option<&str>, query: Option<&str>, attributes: &mut Vec<KeyValue>) {
    if let Some(path) = path {
        attributes.push(KeyValue::new(semconv::URL_PATH, path.to_owned()));
    }
    if let Some(query) = query {
        let query = redact_query(query).into_owned();
        attributes.push(KeyValue::new(semconv::URL_QUERY, query));
    }
}

fn version_attribute(version: Version) -> KeyValue {
    let version = match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    };
    KeyValue::new(semconv::NETWORK_PROTOCOL_VERSION, version)
}

fn peer_attributes(arrival: &Arrival<'_>, attributes: &mut Vec<KeyValue>) {
    let Some(peer) = arrival.peer else { return };
    let address = peer.ip().to_canonical().to_string();
    attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, address));
    let port = i64::from(peer.port());
    attributes.push(KeyValue::new(semconv::NETWORK_PEER_PORT, port));
}

fn origin_attributes(origin: Origin, attributes: &mut Vec<KeyValue>) {
    attributes.push(KeyValue::new(semconv::URL_SCHEME, origin.scheme));
    if let Some(client) = origin.client {
        attributes.push(KeyValue::new(semconv::CLIENT_ADDRESS, client));
    }
    let Some((address, port)) = origin.server else {
        return;
    };
    attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, address));
    if let Some(port) = port {
        attributes.push(KeyValue::new(semconv::SERVER_PORT, i64::from(port)));
    }
}

fn int(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
