//! The SERVER span of one request, by the stable HTTP conventions.
//! <https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span>
//!
//! [`RequestSpan`] is a guard: it lives in the request's context and ends its span when dropped,
//! so a request that is aborted or panics leaves one too. The attributes that a sampler may look
//! at are set at creation; the others when their time comes.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Version};
use lantern_telemetry::{KEPT, Recorded};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use opentelemetry_semantic_conventions::attribute as semconv;

use crate::attempt::{self, Attempt, Destination};
use crate::bodies::Bodies;
use crate::error::Failure;
use crate::genai::{self, Exchange};
use crate::headers::text;
use crate::identity::{Identity, X_REQUEST_ID};
use crate::instrumentation::{Instrumentation, OTHER_METHOD, OTHER_METHOD_NAME, method_attributes};
use crate::ip;
use crate::keep::{Keep, is_worth_keeping};
use crate::metrics::{self, InFlight, Metrics, Trace};
use crate::origin::{Arrival, Origin};
use crate::redact::redact_query;
use crate::route::Routes;

/// The name of the API key that let the request in (string).
const API_KEY_NAME: Key = Key::from_static_str("lantern.api_key.name");

/// Seconds from the request's head to the first byte of the answer's head (double).
const TIME_TO_FIRST_BYTE: Key = Key::from_static_str("lantern.http.response.time_to_first_byte");
/// The request's id, where it is not the trace's (string).
const REQUEST_ID: Key = Key::from_static_str("lantern.request.id");

/// Room for the attributes of an ordinary request, so that the list does not grow: of one to a model, and
/// of any other.
const MODEL_ATTRIBUTES: usize = 32;
const ATTRIBUTES: usize = 18;

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
    /// `None` unless the span records or the request is measured: then nothing is read. Boxed, as a
    /// request's context is moved some times and this is most of it.
    bodies: Option<Box<Bodies>>,
    in_flight: Option<InFlight>,
    keep: Keep,
    ended: bool,
}

/// What a request is observed with.
pub(crate) struct Instruments<'a> {
    pub(crate) tracer: &'a SdkTracer,
    pub(crate) recorded: Recorded,
    pub(crate) instrumentation: &'a Instrumentation,
    pub(crate) routes: &'a Routes,
    pub(crate) metrics: Option<&'a Metrics>,
    pub(crate) keep: Keep,
}

impl RequestSpan {
    pub(crate) fn start(
        instruments: &Instruments<'_>,
        parent: &Context,
        arrival: &Arrival<'_>,
        origin: Origin,
    ) -> Self {
        let instrumentation = instruments.instrumentation;
        let head = arrival.head;
        let route = path(head).and_then(|path| instruments.routes.find(path));
        let operation = genai::operation(&head.method, route);
        let in_flight = instruments.metrics.map(|metrics| {
            let method = instrumentation.known_method(head.method.as_str());
            metrics.begin(metrics::Request {
                method: method.unwrap_or(OTHER_METHOD.into()),
                scheme: origin.scheme,
                route,
                version: arrival.version.map(protocol_version),
            })
        });
        let mut builder = SpanBuilder::default().with_kind(SpanKind::Server);
        if instruments.recorded.may_record(parent) {
            let (name, attributes) = described(instrumentation, arrival, origin, route);
            builder = builder.with_attributes(attributes);
            builder.name = name;
        }
        let span = instruments.tracer.build_with_context(builder, parent);
        let context = parent.with_remote_span_context(span.span_context().clone());
        let started = Instant::now();
        let bodies = (span.is_recording() || in_flight.is_some()).then(|| {
            let exchange = operation.map(|operation| {
                Exchange::new(operation, started, instrumentation.content_bytes())
            });
            Box::new(Bodies::new(&head.headers, exchange))
        });
        Self {
            span,
            context,
            attempts: Vec::new(),
            started,
            seen: Transferred::default(),
            bodies,
            in_flight,
            keep: instruments.keep,
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

    /// Whose API key the request shows.
    pub(crate) fn set_api_key(&mut self, name: &Arc<str>) {
        self.span
            .set_attribute(KeyValue::new(API_KEY_NAME, Arc::clone(name)));
    }

    /// The request goes to an upstream, its body from the start.
    pub(crate) fn start_attempt(
        &mut self,
        tracer: &SdkTracer,
        instrumentation: &Instrumentation,
        head: &Parts,
        destination: &Destination,
    ) {
        self.seen.request_body_bytes = 0;
        if let Some(bodies) = &mut self.bodies {
            bodies.restart_request();
        }
        // The sampler follows the request's span, or decides by the trace as it did for that.
        let description = self
            .span
            .is_recording()
            .then(|| attempt::described(instrumentation, head, destination, self.attempts.len()));
        let attempt = Attempt::start(tracer, &self.context, description);
        // Most requests have one, and room for the usual four of a list would be a few kilobytes.
        self.attempts.reserve_exact(1);
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
        self.seen.request_body_bytes += bytes.len();
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

    /// The tokens that the request has taken so far; `None` unless its bodies are read.
    pub(crate) fn tokens(&self) -> Option<u64> {
        self.bodies.as_deref().map(Bodies::tokens)
    }

    /// Ends the span; only the first call counts.
    pub(crate) fn finish(&mut self, failure: Option<Failure>, transferred: Transferred) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let bodies = self.bodies.take();
        let status = transferred.status;
        // A client leaves when it is told of the error, so that comes first. A status says what it says.
        let model_error = bodies
            .as_ref()
            .filter(|_| status.is_some_and(|status| status.is_success()))
            .and_then(|bodies| bodies.error_type());
        let has_failed = model_error.is_some() || is_worth_keeping(failure, status);
        let error_type = model_error.or_else(|| error_type(failure, status));
        let kept = self.kept(has_failed);
        for attempt in self.attempts.drain(..) {
            attempt.finish(failure, kept.clone());
        }
        if let Some(in_flight) = self.in_flight.take() {
            let context = self.span.span_context();
            let is_exported = context.is_sampled() || kept.is_some();
            let trace = is_exported.then(|| Trace::of(context));
            in_flight.finish(metrics::Outcome {
                duration: self.started.elapsed(),
                status: transferred.status,
                error_type: error_type.clone(),
                request_body_bytes: transferred.request_body_bytes,
                response_body_bytes: transferred.response_body_bytes,
                trace,
                facts: bodies.as_ref().and_then(|bodies| bodies.facts()),
            });
        }
        if self.span.is_recording()
            && let Some(mut bodies) = bodies
        {
            let mut attributes = Vec::with_capacity(ATTRIBUTES);
            attributes.extend(kept);
            bodies.attributes(failure.is_some(), &mut attributes);
            self.span.set_attributes(attributes);
            self.set_transferred(transferred);
            self.set_outcome(error_type, transferred.status);
        }
        self.span.end();
    }

    /// What says that this span is kept, if it is not sampled.
    fn kept(&self, failed: bool) -> Option<KeyValue> {
        if self.span.span_context().is_sampled() {
            return None;
        }
        let reason = self.keep.reason(failed, self.started.elapsed())?;
        Some(KeyValue::new(KEPT, reason))
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

    /// A 4xx is the client's, and leaves the status unset. A SERVER span's error has no description:
    /// `error.type` says it all.
    fn set_outcome(&mut self, error_type: Option<Cow<'static, str>>, status: Option<StatusCode>) {
        let Some(error_type) = error_type else { return };
        self.span
            .set_attribute(KeyValue::new(semconv::ERROR_TYPE, error_type));
        if !status.is_some_and(|status| status.is_client_error()) {
            self.span.set_status(Status::error(""));
        }
    }
}

/// A failure or a 5xx is an error.
fn error_type(failure: Option<Failure>, status: Option<StatusCode>) -> Option<Cow<'static, str>> {
    match failure {
        Some(failure) => Some(failure.as_str().into()),
        None => status
            .filter(StatusCode::is_server_error)
            .map(|status| status.as_str().to_owned().into()),
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        self.finish(Some(Failure::Aborted), self.seen);
    }
}

/// The name of a request's span, and the attributes that a sampler may look at.
fn described(
    instrumentation: &Instrumentation,
    arrival: &Arrival<'_>,
    origin: Origin,
    route: Option<&'static str>,
) -> (Cow<'static, str>, Vec<KeyValue>) {
    let head = arrival.head;
    let operation = genai::operation(&head.method, route);
    let room = operation.map_or(ATTRIBUTES, |_| MODEL_ATTRIBUTES);
    let mut attributes = Vec::with_capacity(room);
    let method = method_attributes(instrumentation, head.method.as_str(), &mut attributes);
    let method = method.unwrap_or(OTHER_METHOD_NAME.into());
    let name = match route {
        Some(route) => [&*method, " ", route].concat().into(),
        None => method,
    };
    if let Some(route) = route {
        attributes.push(KeyValue::new(semconv::HTTP_ROUTE, route));
    }
    if let Some(operation) = operation {
        attributes.push(KeyValue::new(genai::OPERATION_NAME, operation));
    }
    url_attributes(path(head), head.uri.query(), &mut attributes);
    if let Some(version) = arrival.version.map(protocol_version) {
        attributes.push(KeyValue::new(semconv::NETWORK_PROTOCOL_VERSION, version));
    }
    peer_attributes(arrival, &mut attributes);
    origin_attributes(origin, &mut attributes);
    if let Some(agent) = head.headers.get(USER_AGENT) {
        attributes.push(KeyValue::new(semconv::USER_AGENT_ORIGINAL, text(agent)));
    }
    instrumentation
        .server_request
        .capture(&head.headers, &mut attributes);
    (name, attributes)
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

/// The value of `network.protocol.version`.
pub(crate) fn protocol_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

fn peer_attributes(arrival: &Arrival<'_>, attributes: &mut Vec<KeyValue>) {
    let Some(peer) = arrival.peer else { return };
    let address = ip::text(peer.ip());
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
