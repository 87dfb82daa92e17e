//! The SDK's own variables: sampler, batches, limits, propagators, log level, and what is switched off.

use std::sync::{Arc, Once};
use std::time::Duration;

use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::trace::Sampler;

use super::vars::Vars;
use super::{ConfigError, ExporterSettings, Signal, endpoint};

/// The queue's memory is reserved at the start, so its length has a bound.
const MAX_QUEUE_SPANS: u64 = 1 << 18;
const MAX_DELAY: Duration = Duration::from_secs(60 * 60);
/// The specification's default for every count.
const DEFAULT_COUNT_LIMIT: u64 = 128;

/// `OTEL_BSP_*`: when a batch leaves, and how much waits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchSettings {
    pub(crate) schedule_delay: Duration,
    pub(crate) max_queue_spans: usize,
    pub(crate) max_batch_spans: usize,
    pub(crate) export_timeout: Duration,
}

impl BatchSettings {
    pub(super) fn from_vars(vars: &Vars<'_>) -> Result<Self, ConfigError> {
        let duration = |name: &str, default_ms| {
            vars.get(name)
                .map_or(Ok(Duration::from_millis(default_ms)), |var| {
                    var.milliseconds(MAX_DELAY)
                })
        };
        let queue = vars.number(&["OTEL_BSP_MAX_QUEUE_SIZE"], 1..=MAX_QUEUE_SPANS, 2_048)?;
        // A batch that was not chosen follows a small queue; one that was chosen must fit.
        let batch = vars.number(
            &["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"],
            1..=queue,
            queue.min(512),
        )?;
        Ok(Self {
            schedule_delay: duration("OTEL_BSP_SCHEDULE_DELAY", 5_000)?,
            max_queue_spans: to_usize(queue),
            max_batch_spans: to_usize(batch),
            export_timeout: duration("OTEL_BSP_EXPORT_TIMEOUT", 30_000)?,
        })
    }
}

/// `OTEL_*_LIMIT`: how much one span may hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SpanLimits {
    pub(crate) attributes_per_span: u32,
    pub(crate) events_per_span: u32,
    pub(crate) links_per_span: u32,
    /// Whether the environment says how many links.
    names_links: bool,
    pub(crate) attributes_per_event: u32,
    pub(crate) attributes_per_link: u32,
    /// The most characters of a string value; the SDK lacks this one, the exporter applies it.
    pub(crate) value_chars: Option<usize>,
}

impl SpanLimits {
    pub(super) fn from_vars(vars: &Vars<'_>) -> Result<Self, ConfigError> {
        let count = |names: &[&str]| {
            let limit = vars.number(names, 0..=u64::from(u32::MAX), DEFAULT_COUNT_LIMIT)?;
            Ok(u32::try_from(limit).expect("the range is that of u32"))
        };
        let (general, links) = ("OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT");
        let value_chars = vars
            .first(&[
                "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
                "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            ])
            .map(|var| var.number(0..=u64::from(u32::MAX)))
            .transpose()?;
        Ok(Self {
            attributes_per_span: count(&["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", general])?,
            events_per_span: count(&["OTEL_SPAN_EVENT_COUNT_LIMIT"])?,
            links_per_span: count(&[links])?,
            names_links: vars.get(links).is_some(),
            attributes_per_event: count(&["OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", general])?,
            attributes_per_link: count(&["OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", general])?,
            value_chars: value_chars.map(to_usize),
        })
    }

    /// For spans with so many links, unless the environment says how many.
    pub(super) fn make_room_for_links(&mut self, links: usize) {
        if !self.names_links {
            let links = u32::try_from(links).unwrap_or(u32::MAX);
            self.links_per_span = self.links_per_span.max(links);
        }
    }
}

/// `OTEL_TRACES_SAMPLER` and its argument.
pub(super) fn sampler(vars: &Vars<'_>) -> Result<Sampler, ConfigError> {
    let Some(var) = vars.get("OTEL_TRACES_SAMPLER") else {
        return Ok(parent_based(Sampler::AlwaysOn));
    };
    // The argument belongs to the ratio samplers; the others ignore it, as the specification says.
    let by_ratio = || ratio(vars).map(Sampler::TraceIdRatioBased);
    match var.lowercase().as_str() {
        "always_on" => Ok(Sampler::AlwaysOn),
        "always_off" => Ok(Sampler::AlwaysOff),
        "traceidratio" => by_ratio(),
        "parentbased_always_on" => Ok(parent_based(Sampler::AlwaysOn)),
        "parentbased_always_off" => Ok(parent_based(Sampler::AlwaysOff)),
        "parentbased_traceidratio" => by_ratio().map(parent_based),
        _ => Err(var.error(
            "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off \
             or parentbased_traceidratio",
        )),
    }
}

fn parent_based(root: Sampler) -> Sampler {
    Sampler::ParentBased(Box::new(root))
}

fn ratio(vars: &Vars<'_>) -> Result<f64, ConfigError> {
    let Some(var) = vars.get("OTEL_TRACES_SAMPLER_ARG") else {
        return Ok(1.0);
    };
    let ratio = var
        .value
        .parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| var.error("a number from 0 to 1"))
}

/// The formats in which trace context travels in headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PropagatorKind {
    TraceContext,
    Baggage,
    B3,
    B3Multi,
    Jaeger,
}

/// `OTEL_PROPAGATORS`, each once, in the order given.
pub(super) fn propagators(vars: &Vars<'_>) -> Result<Vec<PropagatorKind>, ConfigError> {
    let Some(var) = vars.get("OTEL_PROPAGATORS") else {
        return Ok(vec![PropagatorKind::TraceContext, PropagatorKind::Baggage]);
    };
    let value = var.lowercase();
    let names: Vec<_> = value
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if names == ["none"] {
        return Ok(Vec::new());
    }
    let mut kinds = Vec::new();
    for name in names {
        let kind = match name {
            "tracecontext" => PropagatorKind::TraceContext,
            "baggage" => PropagatorKind::Baggage,
            "b3" => PropagatorKind::B3,
            "b3multi" => PropagatorKind::B3Multi,
            "jaeger" => PropagatorKind::Jaeger,
            _ => {
                return Err(var.error(
                    "none, or a comma-separated list of tracecontext, baggage, b3, b3multi, jaeger",
                ));
            }
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// `OTEL_LOG_LEVEL` as a tracing filter.
pub(super) fn log_filter(vars: &Vars<'_>) -> Result<&'static str, ConfigError> {
    let Some(var) = vars.get("OTEL_LOG_LEVEL") else {
        return Ok("info");
    };
    match var.lowercase().as_str() {
        "none" | "off" => Ok("off"),
        "error" => Ok("error"),
        "warn" | "warning" => Ok("warn"),
        "info" => Ok("info"),
        "debug" => Ok("debug"),
        "trace" | "verbose" | "all" => Ok("trace"),
        _ => Err(var.error("none, error, warn, info, debug or trace")),
    }
}

/// `OTEL_TRACES_EXPORTER`: `None` when it is unset, else whether spans are exported.
pub(super) fn traces_exporter(vars: &Vars<'_>) -> Result<Option<bool>, ConfigError> {
    let Some(var) = vars.get("OTEL_TRACES_EXPORTER") else {
        return Ok(None);
    };
    match var.lowercase().as_str() {
        "otlp" => Ok(Some(true)),
        "none" => Ok(Some(false)),
        _ => Err(var.error("otlp or none")),
    }
}

/// What the environment asks of the signals that are not exported. `otlp` is their exporter unless
/// somebody says otherwise, so to name it is no mistake; to export nothing in silence would be one.
#[derive(Clone, Debug)]
pub(crate) struct OtherSignals {
    asked: Vec<String>,
    /// Shared by the settings that come of one environment: several programs may run in one process.
    told: Arc<Once>,
}

/// The exporters that the specification knows, by signal. <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#exporter-selection>
const OTHER_SIGNALS: [(&str, &[&str]); 2] = [
    (
        "OTEL_METRICS_EXPORTER",
        &["otlp", "prometheus", "console", "logging", "none"],
    ),
    (
        "OTEL_LOGS_EXPORTER",
        &["otlp", "console", "logging", "none"],
    ),
];

impl OtherSignals {
    pub(super) fn from_vars(vars: &Vars<'_>) -> Result<Self, ConfigError> {
        let mut asked = Vec::new();
        for (name, known) in OTHER_SIGNALS {
            let Some(var) = vars.get(name) else { continue };
            let list = var.lowercase();
            let mut exporters = list.split(',').map(str::trim);
            if !exporters.clone().all(|exporter| known.contains(&exporter)) {
                return Err(var.error(format!(
                    "{}, a list of them, or leave it unset: only traces are exported",
                    known.join(", ")
                )));
            }
            if exporters.any(|exporter| exporter != "none") {
                asked.push(format!("{name}='{}'", var.value));
            }
        }
        Ok(Self {
            asked,
            told: Arc::new(Once::new()),
        })
    }

    /// Metrics are exported by OTLP after all; what else was asked of them still has no effect.
    pub(super) fn export_metrics(&mut self) {
        let name = OTHER_SIGNALS[0].0;
        let is_met = |asked: &String| {
            let list = asked
                .strip_prefix(name)
                .map(|rest| rest.trim_matches(['=', '\'']));
            list.is_some_and(|list| {
                let mut exporters = list.split(',').map(str::trim);
                exporters.all(|exporter| exporter.eq_ignore_ascii_case("otlp"))
            })
        };
        self.asked.retain(|asked| !is_met(asked));
    }

    /// Says once that nothing will come of it.
    pub(crate) fn tell(&self) {
        if let Some(notice) = self.notice() {
            self.told.call_once(|| tracing::info!("{notice}"));
        }
    }

    pub(super) fn notice(&self) -> Option<String> {
        let asked = self.asked.join(", ");
        (!asked.is_empty())
            .then(|| format!("this program does not export that, so it has no effect: {asked}"))
    }
}

/// How metrics are sent.
#[derive(Clone, Debug)]
pub(crate) struct MetricSettings {
    pub(crate) exporter: ExporterSettings,
    /// From one export to the next.
    pub(crate) interval: Duration,
    pub(crate) temporality: Temporality,
}

impl MetricSettings {
    /// `None` unless they are asked for: unlike traces they are off by default.
    pub(super) fn from_vars(vars: &Vars<'_>) -> Result<Option<Self>, ConfigError> {
        let asked = vars.get(OTHER_SIGNALS[0].0).is_some_and(|var| {
            let list = var.lowercase();
            list.split(',').any(|exporter| exporter.trim() == "otlp")
        });
        if !asked {
            return Ok(None);
        }
        let mut exporter = ExporterSettings::from_vars(vars, Signal::Metrics)?;
        let endpoint = super::named_endpoint(vars, Signal::Metrics, exporter.insecure)?;
        exporter.endpoint =
            endpoint::resolve(endpoint.as_ref(), exporter.protocol, Signal::Metrics);
        let interval = vars.get("OTEL_METRIC_EXPORT_INTERVAL");
        let interval = interval
            .map(|var| var.milliseconds(MAX_DELAY))
            .transpose()?;
        Ok(Some(Self {
            exporter,
            interval: interval.unwrap_or(Duration::from_secs(60)),
            temporality: temporality(vars)?,
        }))
    }
}

fn temporality(vars: &Vars<'_>) -> Result<Temporality, ConfigError> {
    let preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    let Some(var) = vars.get(preference) else {
        return Ok(Temporality::Cumulative);
    };
    match var.lowercase().as_str() {
        "cumulative" => Ok(Temporality::Cumulative),
        "delta" => Ok(Temporality::Delta),
        "lowmemory" => Ok(Temporality::LowMemory),
        _ => Err(var.error("cumulative, delta or lowmemory")),
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
