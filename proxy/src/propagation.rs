//! Trace context on its way through: in with the request, out to the upstream with this proxy's
//! span as the parent.

use http::{HeaderMap, HeaderName};
use lantern_telemetry::Propagator;
use opentelemetry::Context;
use pingora::http::RequestHeader;

const BAGGAGE: &str = "baggage";

pub(crate) struct TraceHeaders {
    propagator: Propagator,
    /// What the propagator writes, and so what a client's request must not bring along.
    replaced: Vec<HeaderName>,
}

impl TraceHeaders {
    pub(crate) fn new(propagator: Propagator) -> Self {
        let replaced = propagator
            .fields()
            .into_iter()
            .filter(|&field| field != BAGGAGE)
            .filter_map(|field| HeaderName::try_from(field).ok())
            .collect();
        Self {
            propagator,
            replaced,
        }
    }

    pub(crate) fn extract(&self, headers: &HeaderMap) -> Context {
        self.propagator.extract(headers)
    }

    /// Puts `context` into `request` in place of all trace headers that came in. A `tracestate` goes
    /// with its trace; baggage is the caller's and passes as it is.
    pub(crate) fn replace(
        &self,
        context: &Context,
        request: &mut RequestHeader,
    ) -> pingora::Result<()> {
        // pingora keeps the case of names beside the map, so the map cannot be written to directly.
        let mut injected = HeaderMap::with_capacity(self.replaced.len());
        self.propagator.inject(context, &mut injected);
        for name in &self.replaced {
            request.remove_header(name);
        }
        for (name, value) in &injected {
            if name.as_str() != BAGGAGE {
                request.insert_header(name.clone(), value.clone())?;
            }
        }
        Ok(())
    }
}
