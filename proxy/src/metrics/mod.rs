//! What the proxy measures of all requests, by the names and buckets of the conventions:
//! <https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#http-server> and
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>.
//!
//! Sampling does not touch them: a request counts whether or not anybody keeps its span.

mod endpoint;
mod model;
mod series;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;
use http::StatusCode;
use opentelemetry_semantic_conventions::{attribute as semconv, metric};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

pub(crate) use endpoint::Endpoint;
pub(crate) use lantern_telemetry::instruments::Trace;
use lantern_telemetry::instruments::{
    Histogram, HistogramSeries, Instruments, Key, Labels, Meter, UpDown, UpDownSeries,
};
use model::ModelMetrics;
use series::Found;

use crate::genai::Facts;

/// `http.server.request.duration`, s.
const HTTP_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// Body sizes, which the conventions give no bounds.
const BODY_BYTES: &[f64] = &[
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];
/// Most names of models that have series of their own; clients choose them.
const MAX_MODELS: usize = 128;
/// The name of every further one.
const OTHER_MODEL: &str = "_OTHER";

/// All instruments. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    http: HttpMetrics,
    model: ModelMetrics,
    models: Mutex<HashSet<String, RandomState>>,
}

struct HttpMetrics {
    duration: Histogram,
    active: UpDown,
    request_body: Histogram,
    response_body: Histogram,
    found_active: Found<Active, UpDownSeries>,
    found: Found<Ended, HttpSeries>,
}

/// What tells requests in flight apart.
#[derive(PartialEq, Eq, Hash)]
struct Active {
    method: Cow<'static, str>,
    scheme: &'static str,
}

/// What tells requests apart that are over.
#[derive(PartialEq, Eq, Hash)]
struct Ended {
    request: Request,
    status: Option<StatusCode>,
    error_type: Option<Cow<'static, str>>,
}

/// What is observed of such requests.
struct HttpSeries {
    duration: HistogramSeries,
    request_body: HistogramSeries,
    response_body: HistogramSeries,
}

/// A request's fixed attributes.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) method: Cow<'static, str>,
    pub(crate) scheme: &'static str,
    pub(crate) route: Option<&'static str>,
    pub(crate) version: Option<&'static str>,
}

/// How a request ended.
pub(crate) struct Outcome {
    pub(crate) duration: Duration,
    pub(crate) status: Option<StatusCode>,
    pub(crate) error_type: Option<Cow<'static, str>>,
    pub(crate) request_body_bytes: usize,
    pub(crate) response_body_bytes: usize,
    pub(crate) trace: Option<Trace>,
    /// Of a request to a model.
    pub(crate) facts: Option<Facts>,
}

/// A request that is counted as active until it is [`InFlight::finish`]ed.
pub(crate) struct InFlight {
    metrics: Metrics,
    active: Arc<UpDownSeries>,
    request: Request,
}

impl Metrics {
    /// They also go out through `meter`, if there is one.
    pub(crate) fn new(meter: Option<&Meter>) -> Self {
        let mut registry = Registry::default();
        let mut instruments = Instruments {
            registry: &mut registry,
            meter,
        };
        Self(Arc::new(Inner {
            http: HttpMetrics::new(&mut instruments),
            model: ModelMetrics::new(&mut instruments),
            models: Mutex::default(),
            registry,
        }))
    }

    /// A request has begun.
    pub(crate) fn begin(&self, request: Request) -> InFlight {
        let active = self.0.http.active(&request);
        active.add(1);
        InFlight {
            metrics: self.clone(),
            active,
            request,
        }
    }

    /// All series as OpenMetrics text.
    fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("writing to a string cannot fail");
        text
    }

    /// `model`, or the name of all those that are too many.
    fn bounded(&self, model: String) -> String {
        let mut known = self.0.models.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&model) {
            if known.len() >= MAX_MODELS {
                return OTHER_MODEL.to_owned();
            }
            known.insert(model.clone());
        }
        model
    }
}

impl InFlight {
    pub(crate) fn finish(self, outcome: Outcome) {
        self.active.add(-1);
        let series = self.metrics.0.http.ended(Ended {
            request: self.request,
            status: outcome.status,
            error_type: outcome.error_type.clone(),
        });
        let (trace, now) = (outcome.trace, SystemTime::now());
        let seconds = outcome.duration.as_secs_f64();
        series.duration.observe(seconds, trace, now);
        let bytes = outcome.request_body_bytes as f64;
        series.request_body.observe(bytes, trace, now);
        let bytes = outcome.response_body_bytes as f64;
        series.response_body.observe(bytes, trace, now);
        if let Some(facts) = outcome.facts {
            let bounded = |model| self.metrics.bounded(model);
            // To who asks a model, a refusal is an error too.
            let refused = outcome.status.filter(StatusCode::is_client_error);
            let refused = refused.map(|status| status.as_str().to_owned().into());
            let error_type = outcome.error_type.or(refused);
            let model = &self.metrics.0.model;
            model.record(facts.bounded(bounded), outcome.duration, error_type, trace);
        }
    }
}

impl HttpMetrics {
    fn new(instruments: &mut Instruments<'_>) -> Self {
        let mut bytes = |name, help| instruments.histogram(name, help, "By", BODY_BYTES);
        Self {
            request_body: bytes(
                metric::HTTP_SERVER_REQUEST_BODY_SIZE,
                "Size of request bodies",
            ),
            response_body: bytes(
                metric::HTTP_SERVER_RESPONSE_BODY_SIZE,
                "Size of response bodies",
            ),
            duration: instruments.histogram(
                metric::HTTP_SERVER_REQUEST_DURATION,
                "Duration of requests, to their last byte",
                "s",
                HTTP_SECONDS,
            ),
            active: instruments.up_down(
                metric::HTTP_SERVER_ACTIVE_REQUESTS,
                "Requests in flight",
                "{request}",
            ),
            found_active: Found::default(),
            found: Found::default(),
        }
    }

    fn active(&self, request: &Request) -> Arc<UpDownSeries> {
        let key = Active {
            method: request.method.clone(),
            scheme: request.scheme,
        };
        let find = |active: &Active| self.active.series(&active.labels());
        self.found_active.get(key, find)
    }

    fn ended(&self, ended: Ended) -> Arc<HttpSeries> {
        self.found.get(ended, |ended| {
            let labels = ended.labels();
            HttpSeries {
                duration: self.duration.series(&labels),
                request_body: self.request_body.series(&labels),
                response_body: self.response_body.series(&labels),
            }
        })
    }
}

impl Active {
    fn labels(&self) -> Labels {
        vec![
            (Key(semconv::HTTP_REQUEST_METHOD), self.method.clone()),
            (Key(semconv::URL_SCHEME), self.scheme.into()),
        ]
    }
}

impl Ended {
    fn labels(&self) -> Labels {
        let request = &self.request;
        let active = Active {
            method: request.method.clone(),
            scheme: request.scheme,
        };
        let status = self.status.map(|status| status.as_str().to_owned());
        let further = [
            (semconv::HTTP_ROUTE, request.route.map(Cow::from)),
            (
                semconv::NETWORK_PROTOCOL_VERSION,
                request.version.map(Cow::from),
            ),
            (semconv::HTTP_RESPONSE_STATUS_CODE, status.map(Cow::from)),
            (semconv::ERROR_TYPE, self.error_type.clone()),
        ];
        let mut labels = active.labels();
        labels.extend(known(further));
        labels
    }
}

/// Those labels that have a value.
fn known<const N: usize>(
    labels: [(&'static str, Option<Cow<'static, str>>); N],
) -> impl Iterator<Item = (Key, Cow<'static, str>)> {
    let known = |(key, value): (_, Option<_>)| value.map(|value| (Key(key), value));
    labels.into_iter().filter_map(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_conventions() {
        use lantern_telemetry::instruments::{
            FIRST_TOKEN_SECONDS, OPERATION_SECONDS, TOKEN_SECONDS,
        };

        let doubling: Vec<_> = (0..14).map(|power| 0.01 * f64::from(1 << power)).collect();
        assert_eq!(OPERATION_SECONDS, doubling);
        let by_four: Vec<_> = (0..14).map(|power| 4_f64.powi(power)).collect();
        assert_eq!(model::TOKENS, by_four);
        for (bounds, expect) in [
            (
                HTTP_SECONDS,
                ".005 .01 .025 .05 .075 .1 .25 .5 .75 1 2.5 5 7.5 10",
            ),
            (
                FIRST_TOKEN_SECONDS,
                ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10",
            ),
            (
                TOKEN_SECONDS,
                ".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5",
            ),
        ] {
            let expect = expect.split(' ').map(|bound| bound.parse::<f64>());
            let expect: Vec<_> = expect.map(|bound| bound.expect("a number")).collect();
            assert_eq!(bounds, expect);
        }
    }

    #[test]
    fn models_beyond_the_bound_share_one_name() {
        let metrics = Metrics::new(None);
        for number in 0..MAX_MODELS {
            let name = format!("m{number}");
            assert_eq!(metrics.bounded(name.clone()), name);
        }
        assert_eq!(metrics.bounded("one more".to_owned()), OTHER_MODEL);
        assert_eq!(metrics.bounded("m0".to_owned()), "m0");
    }
}
