//! Exemplars for OTLP: of each bucket of a histogram the last observation that has a trace. The SDK keeps
//! none, so they are kept here and joined to what it exports.
//! <https://opentelemetry.io/docs/specs/otel/metrics/sdk/#alignedhistogrambucketexemplarreservoir>

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue as Attribute, any_value};
use opentelemetry_proto::tonic::metrics::v1::exemplar::Value as ExemplarValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Exemplar, HistogramDataPoint};

use crate::instruments::{Labels, Trace};

/// Those of all histograms of a meter provider.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exemplars(Arc<Mutex<Vec<Arc<OfHistogram>>>>);

/// Those of one histogram, by its series.
pub(crate) struct OfHistogram {
    name: &'static str,
    bounds: &'static [f64],
    series: Mutex<HashMap<Labels, Arc<OfSeries>>>,
}

/// Those of one series: of each bucket the last.
#[derive(Debug)]
pub(crate) struct OfSeries {
    bounds: &'static [f64],
    buckets: Mutex<Buckets>,
}

/// The attributes of a series as text, sorted.
type Attributes = Vec<(String, String)>;
/// As many as there are bounds and one, or none until something is noted.
type Buckets = Vec<Option<Noted>>;

/// What will be an exemplar when it is exported.
#[derive(Clone, Copy, Debug)]
struct Noted {
    value: f64,
    trace: Trace,
    at: SystemTime,
}

impl Exemplars {
    /// For a histogram with these upper bounds, ascending.
    pub(crate) fn histogram(&self, name: &'static str, bounds: &'static [f64]) -> Arc<OfHistogram> {
        let histogram = Arc::new(OfHistogram {
            name,
            bounds,
            series: Mutex::default(),
        });
        lock(&self.0).push(Arc::clone(&histogram));
        histogram
    }

    /// Moves what has come since the last time into the points of `request` that it belongs to.
    pub(crate) fn join(&self, request: &mut ExportMetricsServiceRequest) {
        let mut taken: HashMap<(&str, Attributes), Buckets> = HashMap::new();
        for histogram in lock(&self.0).iter() {
            for (labels, series) in lock(&histogram.series).iter() {
                let buckets = std::mem::take(&mut *lock(&series.buckets));
                if !buckets.is_empty() {
                    let text = labels.iter();
                    let text = text.map(|(key, value)| (key.0.to_owned(), value.to_string()));
                    taken.insert((histogram.name, sorted(text)), buckets);
                }
            }
        }
        for (name, point) in points(request) {
            let attributes = sorted(point.attributes.iter().map(written));
            let buckets = taken.remove(&(name, attributes));
            let exemplars = buckets.into_iter().flatten().flatten();
            point.exemplars.extend(exemplars.map(Exemplar::from));
        }
    }
}

impl OfHistogram {
    /// Those of the series of `labels`.
    pub(crate) fn series(&self, labels: &Labels) -> Arc<OfSeries> {
        let mut known = lock(&self.series);
        if let Some(series) = known.get(labels) {
            return Arc::clone(series);
        }
        let series = Arc::new(OfSeries {
            bounds: self.bounds,
            buckets: Mutex::default(),
        });
        known.insert(labels.clone(), Arc::clone(&series));
        series
    }
}

impl OfSeries {
    /// Notes that `value` was observed `at` that time by `trace`.
    pub(crate) fn note(&self, value: f64, trace: Trace, at: SystemTime) {
        // A bucket holds what is not above its bound; the last one the rest.
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        let mut buckets = lock(&self.buckets);
        buckets.resize(self.bounds.len() + 1, None);
        buckets[bucket] = Some(Noted { value, trace, at });
    }
}

impl From<Noted> for Exemplar {
    fn from(noted: Noted) -> Self {
        let since = noted.at.duration_since(UNIX_EPOCH);
        Self {
            filtered_attributes: Vec::new(),
            time_unix_nano: since.map_or(0, |since| since.as_nanos() as u64),
            trace_id: noted.trace.trace_id.to_bytes().to_vec(),
            span_id: noted.trace.span_id.to_bytes().to_vec(),
            value: Some(ExemplarValue::AsDouble(noted.value)),
        }
    }
}

impl fmt::Debug for OfHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfHistogram")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All points of histograms, each with its metric's name.
fn points(
    request: &mut ExportMetricsServiceRequest,
) -> impl Iterator<Item = (&str, &mut HistogramDataPoint)> {
    let resources = request.resource_metrics.iter_mut();
    let scopes = resources.flat_map(|resource| resource.scope_metrics.iter_mut());
    let metrics = scopes.flat_map(|scope| scope.metrics.iter_mut());
    metrics.flat_map(|metric| {
        let name = metric.name.as_str();
        let points = match &mut metric.data {
            Some(Data::Histogram(histogram)) => histogram.data_points.as_mut_slice(),
            _ => &mut [],
        };
        points.iter_mut().map(move |point| (name, point))
    })
}

fn sorted(attributes: impl Iterator<Item = (String, String)>) -> Attributes {
    let mut attributes: Attributes = attributes.collect();
    attributes.sort_unstable();
    attributes
}

/// An attribute as it is compared; those of instruments are text and integers.
fn written(attribute: &Attribute) -> (String, String) {
    let value = match &attribute.value {
        Some(AnyValue {
            value: Some(any_value::Value::StringValue(text)),
        }) => text.clone(),
        Some(AnyValue {
            value: Some(any_value::Value::IntValue(number)),
        }) => number.to_string(),
        _ => String::new(),
    };
    (attribute.key.clone(), value)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is whole at once.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
