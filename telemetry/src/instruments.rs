//! Instruments as the conventions name them: attributes with dots, and exemplars that carry the trace
//! of a request. Prometheus' spelling is made when it asks.
//!
//! The SDK has no text format and Prometheus' library no OTLP, so each has its own series. A name with a colon is
//! Prometheus' own, and goes out by OTLP as Prometheus has it: what a Collector that scrapes makes of it.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::metrics;
use opentelemetry::trace::{SpanContext, SpanId, TraceId};
use opentelemetry_semantic_conventions::attribute::HTTP_RESPONSE_STATUS_CODE;
use prometheus_client::encoding::{
    EncodeLabelKey, EncodeLabelSet, LabelKeyEncoder, LabelSetEncoder,
};
use prometheus_client::metrics::counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::exemplars::{Exemplars, OfHistogram, OfSeries};

mod names;
mod observed;

pub(crate) use names::as_named;
pub use observed::Source;

use names::{COLON, legal, total};

/// The GenAI conventions' bounds of whole operations, in seconds:
/// <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>.
pub const OPERATION_SECONDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
/// The same of the time to a first token.
pub const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// The same of the time for each token after it.
pub const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// The attributes of one series.
pub type Labels = Vec<(Key, Value)>;

/// An attribute's name, as the conventions have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub &'static str);

/// An attribute's value.
pub type Value = Cow<'static, str>;

impl EncodeLabelKey for Key {
    fn encode(&self, encoder: &mut LabelKeyEncoder<'_>) -> fmt::Result {
        encoder.write_str(&self.0.replace('.', "_"))
    }
}

/// The span that an observation belongs to: the labels of an exemplar, spelled out when it is read.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
}

impl Trace {
    /// Of a span that is exported: another is to be found nowhere.
    pub fn of(span: &SpanContext) -> Self {
        Self {
            trace_id: span.trace_id(),
            span_id: span.span_id(),
        }
    }
}

impl EncodeLabelSet for Trace {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let labels = [
            ("trace_id", self.trace_id.to_string()),
            ("span_id", self.span_id.to_string()),
        ];
        labels.encode(encoder)
    }
}

/// The SDK's meter, and a place for the exemplars that the SDK does not keep.
#[derive(Clone, Debug)]
pub struct Meter {
    meter: metrics::Meter,
    exemplars: Exemplars,
}

impl Meter {
    pub(crate) fn new(meter: metrics::Meter, exemplars: Exemplars) -> Self {
        Self { meter, exemplars }
    }
}

impl Deref for Meter {
    type Target = metrics::Meter;

    fn deref(&self) -> &metrics::Meter {
        &self.meter
    }
}

/// Where instruments are made.
pub struct Instruments<'a> {
    /// Prometheus'.
    pub registry: &'a mut Registry,
    /// OTLP's, if metrics go out by it.
    pub meter: Option<&'a Meter>,
}

impl Instruments<'_> {
    /// A histogram of no series yet. `name` is the conventions', with dots, `help` one line and `unit` in
    /// UCUM; `bounds` are the upper ones, ascending, but for infinity.
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: &'static str,
        bounds: &'static [f64],
    ) -> Histogram {
        let scraped = Family::new_with_constructor(Bounds(bounds));
        let scraped_name = name.replace('.', "_");
        let scraped_unit = match unit {
            _ if name.contains(COLON) => None, // it is in the name
            "s" => Some(Unit::Seconds),
            "By" => Some(Unit::Bytes),
            _ => None,
        };
        let (registry, family) = (&mut self.registry, scraped.clone());
        match scraped_unit {
            Some(unit) => registry.register_with_unit(scraped_name, help, unit, family),
            None => registry.register(scraped_name, help, family),
        }
        let pushed = self.meter.map(|meter| {
            let builder = meter.f64_histogram(legal(name)).with_description(help);
            let builder = builder.with_unit(unit).with_boundaries(bounds.to_vec());
            PushedHistogram {
                histogram: builder.build(),
                exemplars: meter.exemplars.histogram(name, bounds),
            }
        });
        Histogram { scraped, pushed }
    }

    /// A number that only grows, of no series yet, described likewise.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: &'static str,
    ) -> Counter {
        let scraped = Family::<Labels, counter::Counter>::default();
        self.registry
            .register(name.replace('.', "_"), help, scraped.clone());
        let pushed = self.meter.map(|meter| {
            let builder = meter.u64_counter(total(name)).with_description(help);
            builder.with_unit(unit).build()
        });
        Counter { scraped, pushed }
    }

    /// A number that goes up and down, of no series yet, described likewise.
    pub fn up_down(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: &'static str,
    ) -> UpDown {
        let scraped = Family::<Labels, Gauge>::default();
        self.registry
            .register(name.replace('.', "_"), help, scraped.clone());
        let pushed = self.meter.map(|meter| {
            let builder = meter.i64_up_down_counter(name).with_description(help);
            builder.with_unit(unit).build()
        });
        UpDown { scraped, pushed }
    }
}

/// A histogram with the bounds that the conventions give it.
#[derive(Debug)]
pub struct Histogram {
    scraped: Family<Labels, HistogramWithExemplars<Trace>, Bounds>,
    pushed: Option<PushedHistogram>,
}

#[derive(Debug)]
struct PushedHistogram {
    histogram: metrics::Histogram<f64>,
    exemplars: Arc<OfHistogram>,
}

#[derive(Clone, Copy, Debug)]
struct Bounds(&'static [f64]);

impl MetricConstructor<HistogramWithExemplars<Trace>> for Bounds {
    fn new_metric(&self) -> HistogramWithExemplars<Trace> {
        HistogramWithExemplars::new(self.0.iter().copied())
    }
}

impl Histogram {
    /// The series of `labels`. To find it costs more than to observe: who observes often keeps it.
    pub fn series(&self, labels: &Labels) -> HistogramSeries {
        let pushed = self.pushed.as_ref().map(|pushed| PushedSeries {
            histogram: pushed.histogram.bind(&attributes(labels)),
            exemplars: pushed.exemplars.series(labels),
        });
        HistogramSeries {
            scraped: self.scraped.get_or_create_owned(labels),
            pushed,
        }
    }

    /// Notes `value` in the series of `labels`, with the trace that it belongs to where that is exported.
    pub fn observe(&self, value: f64, labels: &Labels, trace: Option<Trace>) {
        self.series(labels).observe(value, trace, SystemTime::now());
    }
}

/// One series of a histogram.
#[derive(Debug)]
pub struct HistogramSeries {
    scraped: HistogramWithExemplars<Trace>,
    pushed: Option<PushedSeries>,
}

#[derive(Debug)]
struct PushedSeries {
    histogram: metrics::BoundHistogram<f64>,
    exemplars: Arc<OfSeries>,
}

impl HistogramSeries {
    /// Notes a `value` of now, with the trace that it belongs to where that is exported.
    pub fn observe(&self, value: f64, trace: Option<Trace>, now: SystemTime) {
        self.scraped.observe(value, trace, Some(now));
        if let Some(pushed) = &self.pushed {
            pushed.histogram.record(value);
            if let Some(trace) = trace {
                pushed.exemplars.note(value, trace, now);
            }
        }
    }
}

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    scraped: Family<Labels, counter::Counter>,
    pushed: Option<metrics::Counter<u64>>,
}

impl Counter {
    /// The series of `labels`, to be kept as that of a histogram.
    pub fn series(&self, labels: &Labels) -> CounterSeries {
        let pushed = self.pushed.as_ref();
        CounterSeries {
            scraped: self.scraped.get_or_create_owned(labels),
            pushed: pushed.map(|counter| counter.bind(&attributes(labels))),
        }
    }
}

/// One series of a counter.
#[derive(Debug)]
pub struct CounterSeries {
    scraped: counter::Counter,
    pushed: Option<metrics::BoundCounter<u64>>,
}

impl CounterSeries {
    /// Adds `number`.
    pub fn add(&self, number: u64) {
        self.scraped.inc_by(number);
        if let Some(pushed) = &self.pushed {
            pushed.add(number);
        }
    }
}

/// A number that goes up and down.
#[derive(Debug)]
pub struct UpDown {
    scraped: Family<Labels, Gauge>,
    pushed: Option<metrics::UpDownCounter<i64>>,
}

impl UpDown {
    /// The series of `labels`, to be kept as that of a histogram.
    pub fn series(&self, labels: &Labels) -> UpDownSeries {
        let pushed = self.pushed.as_ref();
        UpDownSeries {
            scraped: self.scraped.get_or_create_owned(labels),
            pushed: pushed.map(|counter| counter.bind(&attributes(labels))),
        }
    }
}

/// One series of a number that goes up and down.
#[derive(Debug)]
pub struct UpDownSeries {
    scraped: Gauge,
    pushed: Option<metrics::BoundUpDownCounter<i64>>,
}

impl UpDownSeries {
    /// Adds `number`, which may be negative.
    pub fn add(&self, number: i64) {
        self.scraped.inc_by(number);
        if let Some(pushed) = &self.pushed {
            pushed.add(number);
        }
    }
}

/// Labels as OTLP has them, with their dots and types.
fn attributes(labels: &Labels) -> Vec<KeyValue> {
    let attribute = |(key, value): &(Key, Value)| match value.parse::<i64>() {
        Ok(code) if key.0 == HTTP_RESPONSE_STATUS_CODE => KeyValue::new(key.0, code),
        _ => KeyValue::new(key.0, value.clone()),
    };
    labels.iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpushed(registry: &mut Registry) -> Instruments<'_> {
        Instruments {
            registry,
            meter: None,
        }
    }

    fn encoded(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("a string takes all");
        text
    }

    #[test]
    fn a_histogram_has_prometheus_names_and_the_trace_of_an_observation() {
        let mut registry = Registry::default();
        let mut instruments = unpushed(&mut registry);
        let name = "http.server.request.duration";
        let histogram = instruments.histogram(name, "Help", "s", &[0.1, 1.0]);
        let labels = vec![(Key("http.request.method"), "GET".into())];
        let trace = Trace {
            trace_id: TraceId::from(0x4bf9),
            span_id: SpanId::from(0x00f0),
        };
        histogram.observe(0.5, &labels, Some(trace));
        let text = encoded(&registry);
        let bucket = r#"http_server_request_duration_seconds_bucket{le="1.0",http_request_method="GET"} 1 # {trace_id="00000000000000000000000000004bf9",span_id="00000000000000f0"} 0.5"#;
        assert!(text.contains(bucket), "{text}");
    }

    #[test]
    fn a_value_cannot_break_out_of_its_quotes() {
        let mut registry = Registry::default();
        let gauge = unpushed(&mut registry).up_down("a.b", "Help", "{request}");
        gauge
            .series(&vec![(Key("c"), "\"} 9\n# x\\".into())])
            .add(1);
        let text = encoded(&registry);
        assert!(text.contains(r#"a_b{c="\"} 9\n# x\\"} 1"#), "{text}");
    }
}
