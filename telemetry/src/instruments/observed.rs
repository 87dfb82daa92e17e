//! Numbers that somebody else keeps, read when they are scraped or sent.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::names::{legal, total};
use super::{Instruments, Labels, attributes};

/// Where a number is read.
#[derive(Clone)]
pub enum Source {
    /// One that only grows.
    Counter(Arc<dyn Fn() -> u64 + Send + Sync>),
    /// One that goes up and down.
    Gauge(Arc<dyn Fn() -> u64 + Send + Sync>),
    /// A part of something, 0 to 1.
    Ratio(Arc<dyn Fn() -> f64 + Send + Sync>),
}

impl Instruments<'_> {
    /// A number that is read from `source`, with one series. The name and the help are as elsewhere; it has no
    /// unit, as Prometheus' gauges have none.
    pub fn observed(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels,
        source: Source,
    ) {
        if let Some(meter) = self.meter {
            let attributes = attributes(&labels);
            match source.clone() {
                Source::Counter(read) => {
                    let builder = meter.u64_observable_counter(total(name));
                    builder
                        .with_description(help)
                        .with_callback(move |observer| observer.observe(read(), &attributes))
                        .build();
                }
                Source::Gauge(read) => {
                    let builder = meter.u64_observable_gauge(legal(name));
                    builder
                        .with_description(help)
                        .with_callback(move |observer| observer.observe(read(), &attributes))
                        .build();
                }
                Source::Ratio(read) => {
                    let builder = meter.f64_observable_gauge(legal(name));
                    builder
                        .with_description(help)
                        .with_callback(move |observer| observer.observe(read(), &attributes))
                        .build();
                }
            }
        }
        let scraped = Scraped { labels, source };
        self.registry
            .register(name.replace('.', "_"), help, scraped);
    }
}

/// For Prometheus.
#[derive(Debug)]
struct Scraped {
    labels: Labels,
    source: Source,
}

impl EncodeMetric for Scraped {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut encoder = encoder.encode_family(&self.labels)?;
        match &self.source {
            Source::Counter(read) => encoder.encode_counter::<NoLabelSet, _, u64>(&read(), None),
            Source::Gauge(read) => encoder.encode_gauge(&read()),
            Source::Ratio(read) => encoder.encode_gauge(&read()),
        }
    }

    fn metric_type(&self) -> MetricType {
        match &self.source {
            Source::Counter(_) => MetricType::Counter,
            Source::Gauge(_) | Source::Ratio(_) => MetricType::Gauge,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter(_) => "Counter",
            Self::Gauge(_) => "Gauge",
            Self::Ratio(_) => "Ratio",
        })
    }
}
