//! What OTLP carries, and where each kind of it is posted.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of telemetry that OTLP has a service for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// Spans
    Traces,
    /// Data points
    Metrics,
    /// Log records
    Logs,
    /// Profiles, which OTLP still calls a development version
    Profiles,
}

impl Signal {
    /// All of them, each at the place that its number names.
    pub const ALL: [Signal; 4] = [
        Signal::Traces,
        Signal::Metrics,
        Signal::Logs,
        Signal::Profiles,
    ];

    /// As `--signals` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Signal::Traces => "traces",
            Signal::Metrics => "metrics",
            Signal::Logs => "logs",
            Signal::Profiles => "profiles",
        }
    }

    /// What is counted of it, as the Collector's metrics call it.
    pub(crate) fn items(self) -> &'static str {
        match self {
            Signal::Traces => "spans",
            Signal::Metrics => "metric_points",
            Signal::Logs => "log_records",
            Signal::Profiles => "profiles",
        }
    }

    /// Where OTLP/HTTP has it.
    pub(crate) fn http_path(self) -> &'static str {
        match self {
            Signal::Traces => "/v1/traces",
            Signal::Metrics => "/v1/metrics",
            Signal::Logs => "/v1/logs",
            Signal::Profiles => "/v1development/profiles",
        }
    }

    /// The method of its OTLP/gRPC service.
    pub(crate) fn grpc_path(self) -> &'static str {
        match self {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Signal::Profiles => {
                "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export"
            }
        }
    }

    /// The count of refused items in the JSON of a partial success.
    pub(crate) fn rejected_key(self) -> &'static str {
        match self {
            Signal::Traces => "rejectedSpans",
            Signal::Metrics => "rejectedDataPoints",
            Signal::Logs => "rejectedLogRecords",
            Signal::Profiles => "rejectedProfiles",
        }
    }

    /// Whether requests may be joined into one, and one cut into several. The dictionary of profiles
    /// is one for each request, and what refers to it only makes sense beside it.
    pub(crate) fn is_divisible(self) -> bool {
        self != Signal::Profiles
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Some of the signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signals(u8);

impl Signals {
    /// Every signal.
    pub const ALL: Signals = Signals(0b1111);

    /// Whether `signal` is one of them.
    pub fn has(self, signal: Signal) -> bool {
        self.0 & (1 << signal as u8) != 0
    }
}

impl FromIterator<Signal> for Signals {
    fn from_iter<I: IntoIterator<Item = Signal>>(signals: I) -> Signals {
        let bits = signals.into_iter().map(|signal| 1 << signal as u8);
        Signals(bits.fold(0, |all, bit| all | bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_at_its_place_and_in_the_set_of_all() {
        for (place, signal) in Signal::ALL.into_iter().enumerate() {
            assert_eq!(signal as usize, place);
            assert!(Signals::ALL.has(signal));
            let alone: Signals = [signal].into_iter().collect();
            assert!(
                Signal::ALL
                    .iter()
                    .all(|other| alone.has(*other) == (*other == signal))
            );
        }
    }
}
