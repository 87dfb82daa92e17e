//! Instruments as the conventions name them: attributes with dots, and exemplars that carry the trace
//! of a request. Prometheus' spelling is made when it asks.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use opentelemetry::trace::SpanContext;
use prometheus_client::encoding::{EncodeLabelKey, LabelKeyEncoder};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// The attributes of one series.
pub(super) type Labels = Vec<(Key, Value)>;

/// An attribute's name, as the conventions have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(pub(super) &'static str);

/// An attribute's value.
pub(super) type Value = Cow<'static, str>;

impl EncodeLabelKey for Key {
    fn encode(&self, encoder: &mut LabelKeyEncoder<'_>) -> fmt::Result {
        encoder.write_str(&self.0.replace('.', "_"))
    }
}

/// The trace that an observation belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    trace_id: String,
    span_id: String,
}

impl Trace {
    /// `None` for a span that nobody will ever see.
    pub(crate) fn of(span: &SpanContext) -> Option<Self> {
        span.is_sampled().then(|| Self {
            trace_id: span.trace_id().to_string(),
            span_id: span.span_id().to_string(),
        })
    }

    fn labels(&self) -> ExemplarLabels {
        vec![
            ("trace_id", self.trace_id.clone()),
            ("span_id", self.span_id.clone()),
        ]
    }
}

type ExemplarLabels = Vec<(&'static str, String)>;

/// A histogram with the bounds that the conventions give it.
pub(super) struct Histogram(Family<Labels, HistogramWithExemplars<ExemplarLabels>, Bounds>);

#[derive(Clone, Copy)]
struct Bounds(&'static [f64]);

impl MetricConstructor<HistogramWithExemplars<ExemplarLabels>> for Bounds {
    fn new_metric(&self) -> HistogramWithExemplars<ExemplarLabels> {
        HistogramWithExemplars::new(self.0.iter().copied())
    }
}

impl Histogram {
    pub(super) fn new(
        registry: &mut Registry,
        (name, help): (&'static str, &'static str),
        unit: Option<Unit>,
        bounds: &'static [f64],
    ) -> Self {
        let family = Family::new_with_constructor(Bounds(bounds));
        let name = name.replace('.', "_");
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, family.clone()),
            None => registry.register(name, help, family.clone()),
        }
        Self(family)
    }

    pub(super) fn observe(&self, value: f64, labels: &Labels, trace: Option<&Trace>) {
        let exemplar = trace.map(Trace::labels);
        let at = std::time::SystemTime::now();
        self.0
            .get_or_create(labels)
            .observe(value, exemplar, Some(at));
    }
}

/// A number that goes up and down.
pub(super) struct UpDown(Family<Labels, Gauge>);

impl UpDown {
    pub(super) fn new(registry: &mut Registry, (name, help): (&str, &str)) -> Self {
        let family = Family::<Labels, Gauge>::default();
        registry.register(name.replace('.', "_"), help, family.clone());
        Self(family)
    }

    pub(super) fn add(&self, number: i64, labels: &Labels) {
        self.0.get_or_create(labels).inc_by(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("a string takes all");
        text
    }

    #[test]
    fn a_histogram_has_prometheus_names_and_the_trace_of_an_observation() {
        let mut registry = Registry::default();
        let names = ("http.server.request.duration", "Help");
        let histogram = Histogram::new(&mut registry, names, Some(Unit::Seconds), &[0.1, 1.0]);
        let labels = vec![(Key("http.request.method"), "GET".into())];
        let trace = Trace {
            trace_id: "4bf9".to_owned(),
            span_id: "00f0".to_owned(),
        };
        histogram.observe(0.5, &labels, Some(&trace));
        let text = encoded(&registry);
        let bucket = r#"http_server_request_duration_seconds_bucket{le="1.0",http_request_method="GET"} 1 # {trace_id="4bf9",span_id="00f0"} 0.5"#;
        assert!(text.contains(bucket), "{text}");
    }

    #[test]
    fn a_value_cannot_break_out_of_its_quotes() {
        let mut registry = Registry::default();
        let gauge = UpDown::new(&mut registry, ("a.b", "Help"));
        gauge.add(1, &vec![(Key("c"), "\"} 9\n# x\\".into())]);
        let text = encoded(&registry);
        assert!(text.contains(r#"a_b{c="\"} 9\n# x\\"} 1"#), "{text}");
    }
}
