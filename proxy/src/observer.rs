//! What all requests' spans have in common: the tracer, how spans are written and whose word is
//! taken. It begins the observation of a request, whether pingora hands it over or not.

use http::HeaderMap;
use lantern_telemetry::{Recorded, Telemetry};
use opentelemetry_sdk::trace::SdkTracer;

use crate::attempt::Destination;
use crate::config::Config;
use crate::identity::Identity;
use crate::instrumentation::Instrumentation;
use crate::keep::Keep;
use crate::metrics::Metrics;
use crate::origin::{Arrival, Origin, TrustedProxies};
use crate::propagation::TraceHeaders;
use crate::route::Routes;
use crate::span::{Instruments, RequestSpan};

pub(crate) struct Observer {
    tracer: SdkTracer,
    recorded: Recorded,
    pub(crate) trace_headers: TraceHeaders,
    pub(crate) instrumentation: Instrumentation,
    trusted_proxies: TrustedProxies,
    routes: Routes,
    metrics: Option<Metrics>,
    keep: Keep,
}

/// A request that is observed.
pub(crate) struct Observed {
    /// `None` for a URL that is excluded.
    pub(crate) span: Option<RequestSpan>,
    pub(crate) identity: Identity,
    /// The scheme that the client used, as far as that is known.
    pub(crate) scheme: &'static str,
}

impl Observer {
    pub(crate) fn new(config: &Config, telemetry: &Telemetry, metrics: Option<Metrics>) -> Self {
        Self {
            tracer: telemetry.tracer(env!("CARGO_PKG_NAME")),
            recorded: telemetry.recorded(),
            trace_headers: TraceHeaders::new(telemetry.propagator()),
            instrumentation: config.instrumentation.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            routes: config.routes.clone(),
            metrics,
            keep: config.keep,
        }
    }

    /// A request has come.
    pub(crate) fn begin(&self, arrival: &Arrival<'_>) -> Observed {
        let origin = Origin::of(arrival, &self.trusted_proxies);
        let scheme = origin.scheme;
        let headers = &arrival.head.headers;
        let excluded = self.instrumentation.has_excluded_urls()
            && self
                .instrumentation
                .is_excluded(&origin.url(arrival.head.uri.path()));
        let mut span = (!excluded).then(|| self.start_span(headers, arrival, origin));
        let identity = Identity::new(headers, span.as_ref().map(RequestSpan::span_context));
        if let Some(span) = &mut span {
            span.identify(&identity);
        }
        Observed {
            span,
            identity,
            scheme,
        }
    }

    fn start_span(
        &self,
        headers: &HeaderMap,
        arrival: &Arrival<'_>,
        origin: Origin,
    ) -> RequestSpan {
        let parent = self.trace_headers.extract(headers);
        let instruments = Instruments {
            tracer: &self.tracer,
            recorded: self.recorded,
            instrumentation: &self.instrumentation,
            routes: &self.routes,
            metrics: self.metrics.as_ref(),
            keep: self.keep,
        };
        RequestSpan::start(&instruments, &parent, arrival, origin)
    }

    /// The route of a path, if it is known.
    pub(crate) fn route(&self, path: &str) -> Option<&'static str> {
        self.routes.find(path)
    }

    /// The request goes to an upstream.
    pub(crate) fn start_attempt(
        &self,
        span: &mut RequestSpan,
        head: &http::request::Parts,
        destination: &Destination,
    ) {
        span.start_attempt(&self.tracer, &self.instrumentation, head, destination);
    }
}
