//! Trace context on its way through: in with the request, out to the upstream with this proxy's
//! span as the parent.

use http::HeaderMap;
use lantern_telemetry::Propagator;
use opentelemetry::Context;
use pingora::http::RequestHeader;

pub(crate) struct TraceHeaders(Propagator);

impl TraceHeaders {
    pub(crate) fn new(propagator: Propagator) -> Self {
        Self(propagator)
    }

    pub(crate) fn extract(&self, headers: &HeaderMap) -> Context {
        self.0.extract(headers)
    }

    /// Puts `context` into `request` in place of all trace headers that came in. A `tracestate` goes
    /// with its trace; baggage is the caller's and passes as it is.
    pub(crate) fn replace(
        &self,
        context: &Context,
        request: &mut RequestHeader,
    ) -> pingora::Result<()> {
        for name in self.0.span_fields() {
            request.remove_header(name);
        }
        let mut result = Ok(());
        self.0.inject_span(context, |name, value| {
            // pingora keeps the case of names beside the map, so the map cannot be written to directly.
            if let Err(error) = request.insert_header(name, value) {
                result = Err(error);
            }
        });
        result
    }
}
