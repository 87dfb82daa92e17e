//! The CLIENT spans of a request, one for each attempt at an upstream, by the stable HTTP
//! conventions. <https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-client-span>
//!
//! An attempt's span is the parent of whatever the upstream traces. It lasts until the upstream has
//! sent its last byte, which may be before the client has read it. It is handed to the exporter with
//! the request's own: how the request ends decides whether an unsampled one is kept.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use opentelemetry_semantic_conventions::attribute as semconv;

use crate::error::Failure;
use crate::headers::text;
use crate::instrumentation::{Instrumentation, OTHER_METHOD_NAME, method_attributes};
use crate::ip;
use crate::redact::redact_query;
use crate::span::protocol_version;

/// The id that the upstream gave the request (string).
const UPSTREAM_REQUEST_ID: Key = Key::from_static_str("lantern.upstream.request.id");

/// Room for the attributes of an ordinary attempt, so that the list does not grow.
const ATTRIBUTES: usize = 12;

/// Where an attempt goes.
pub(crate) struct Destination {
    /// The upstream as it was configured, which is `server.address`.
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
    /// What its URLs begin with.
    pub(crate) origin: Arc<str>,
    /// Where it was found.
    pub(crate) address: SocketAddr,
}

/// What the span of an attempt says from its start.
pub(crate) struct Description {
    name: Cow<'static, str>,
    attributes: Vec<KeyValue>,
}

/// Of an attempt to send the request with `head` to `destination`, after `resends` others.
pub(crate) fn described(
    instrumentation: &Instrumentation,
    head: &Parts,
    destination: &Destination,
    resends: usize,
) -> Description {
    let mut attributes = Vec::with_capacity(ATTRIBUTES);
    // Without `url.template`, which no client of a proxy tells it, the method alone is the name.
    let method = method_attributes(instrumentation, head.method.as_str(), &mut attributes);
    attributes.push(KeyValue::new(semconv::URL_FULL, url(head, destination)));
    let host = Arc::clone(&destination.host);
    attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, host));
    let port = i64::from(destination.port);
    attributes.push(KeyValue::new(semconv::SERVER_PORT, port));
    let peer = ip::text(destination.address.ip());
    attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, peer));
    let peer_port = i64::from(destination.address.port());
    attributes.push(KeyValue::new(semconv::NETWORK_PEER_PORT, peer_port));
    if resends > 0 {
        let resends = i64::try_from(resends).unwrap_or(i64::MAX);
        attributes.push(KeyValue::new(semconv::HTTP_REQUEST_RESEND_COUNT, resends));
    }
    Description {
        name: method.unwrap_or(OTHER_METHOD_NAME.into()),
        attributes,
    }
}

/// One attempt at an upstream.
pub(crate) struct Attempt {
    span: Span,
    /// What the upstream is told: the request's context with this span in its middle.
    context: Context,
    version: Option<&'static str>,
    status: Option<StatusCode>,
    response_body_bytes: usize,
    /// When it was over, and how.
    ended: Option<(SystemTime, Option<Failure>)>,
}

impl Attempt {
    /// `request`: the request's context, its span the parent. Without a description it is not recorded.
    pub(crate) fn start(
        tracer: &SdkTracer,
        request: &Context,
        description: Option<Description>,
    ) -> Self {
        let mut builder = SpanBuilder::default().with_kind(SpanKind::Client);
        if let Some(Description { name, attributes }) = description {
            builder = builder.with_attributes(attributes);
            builder.name = name;
        }
        let span = tracer.build_with_context(builder, request);
        let context = request.with_remote_span_context(span.span_context().clone());
        Self {
            span,
            context,
            version: None,
            status: None,
            response_body_bytes: 0,
            ended: None,
        }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// The request's head, as it is sent.
    pub(crate) fn request_head(&mut self, instrumentation: &Instrumentation, headers: &HeaderMap) {
        let mut captured = Vec::new();
        instrumentation
            .client_request
            .capture(headers, &mut captured);
        self.span.set_attributes(captured);
    }

    /// The upstream has answered, be it with a 1xx, by this version of HTTP.
    pub(crate) fn answered_by(&mut self, version: Version) {
        self.version = Some(protocol_version(version));
    }

    /// The head of the final answer has come.
    pub(crate) fn response_head(
        &mut self,
        instrumentation: &Instrumentation,
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        self.status = Some(status);
        let mut captured = Vec::new();
        instrumentation
            .client_response
            .capture(headers, &mut captured);
        self.span.set_attributes(captured);
    }

    /// What the upstream calls the request, where that is another name than ours.
    pub(crate) fn upstream_request_id(&mut self, id: &HeaderValue) {
        self.span
            .set_attribute(KeyValue::new(UPSTREAM_REQUEST_ID, text(id)));
    }

    /// A piece of the answer's body has come.
    pub(crate) fn response_body(&mut self, bytes: usize) {
        self.response_body_bytes += bytes;
    }

    /// The attempt is over; only the first call counts.
    pub(crate) fn end(&mut self, failure: Option<Failure>) {
        self.ended
            .get_or_insert_with(|| (SystemTime::now(), failure));
    }

    /// Hands the span over, with what says that it is kept. An attempt that is not over ends now, with
    /// the request's own `failure`.
    pub(crate) fn finish(mut self, failure: Option<Failure>, kept: Option<KeyValue>) {
        self.end(failure);
        let Some((at, failure)) = self.ended else {
            return;
        };
        if self.span.is_recording() {
            self.span.set_attributes(kept);
            self.set_outcome(failure);
        }
        self.span.end_with_timestamp(at);
    }

    /// To a client, a 4xx is an error too. The code says why; a failure needs words.
    fn set_outcome(&mut self, failure: Option<Failure>) {
        if let Some(version) = self.version {
            let version = KeyValue::new(semconv::NETWORK_PROTOCOL_VERSION, version);
            self.span.set_attribute(version);
        }
        if let Some(status) = self.status {
            let code = i64::from(status.as_u16());
            self.span
                .set_attribute(KeyValue::new(semconv::HTTP_RESPONSE_STATUS_CODE, code));
            let size = i64::try_from(self.response_body_bytes).unwrap_or(i64::MAX);
            self.span
                .set_attribute(KeyValue::new(semconv::HTTP_RESPONSE_BODY_SIZE, size));
        }
        let refused = |status: &StatusCode| status.is_client_error() || status.is_server_error();
        if let Some(failure) = failure {
            self.span
                .set_attribute(KeyValue::new(semconv::ERROR_TYPE, failure.as_str()));
            self.span.set_status(Status::error(failure.message()));
        } else if let Some(status) = self.status.filter(refused) {
            let code = status.as_str().to_owned();
            self.span
                .set_attribute(KeyValue::new(semconv::ERROR_TYPE, code));
            self.span.set_status(Status::error(""));
        }
    }
}

/// `url.full`, with credentials redacted.
fn url(head: &Parts, destination: &Destination) -> String {
    // OPTIONS of the server itself has none.
    let path = Some(head.uri.path()).filter(|path| path.starts_with('/'));
    let mut url = [&*destination.origin, path.unwrap_or_default()].concat();
    if let Some(query) = head.uri.query() {
        url.push('?');
        url.push_str(&redact_query(query));
    }
    url
}
