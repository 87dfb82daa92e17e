//! The `OTEL_*` environment, parsed once and whole: what comes out is ready to use, and what cannot be
//! used is a [`ConfigError`] before anything binds.
//!
//! The SDK reads some of the same variables by itself, but it warns and goes on where we refuse, and it
//! lacks several; so every variable is read here and handed to it as a value.

mod connector;
mod endpoint;
mod error;
mod exporter;
mod proxies;
mod sdk;
#[cfg(test)]
mod tests;
mod tls;
mod vars;

use std::cell::RefCell;
use std::env::VarError;

use opentelemetry::{Key, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::Sampler;
use opentelemetry_semantic_conventions::resource::SERVICE_NAME;

pub use connector::{Connector, Resolver, Route, Stream};
pub use error::ConfigError;
pub use exporter::{Compression, ExporterSettings, Protocol};
pub(crate) use sdk::{BatchSettings, MetricSettings, OtherSignals, PropagatorKind, SpanLimits};
pub use tls::PemFile;

use endpoint::{Endpoint, Scope};
use vars::Vars;

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// As the variables spell it.
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// What OTLP/HTTP appends to an endpoint that was named for all signals.
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }
}

/// Gives `read` the environment of the process. A variable that it asks for and that is not valid UTF-8
/// is an error: `read` would take it for unset.
pub fn from_env<T>(
    read: impl FnOnce(&dyn Fn(&str) -> Option<String>) -> Result<T, ConfigError>,
) -> Result<T, ConfigError> {
    let not_unicode = RefCell::new(None);
    let result = read(&|name| match std::env::var(name) {
        Ok(value) => Some(value),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(value)) => {
            let error = ConfigError::new(name, value.to_string_lossy(), "valid UTF-8");
            not_unicode.borrow_mut().get_or_insert(error);
            None
        }
    });
    match not_unicode.into_inner() {
        Some(error) => Err(error),
        None => result,
    }
}

/// The validated `OTEL_*` environment. The crate's front page lists the variables.
#[derive(Clone, Debug)]
pub struct Settings {
    sdk_disabled: bool,
    /// `OTEL_TRACES_EXPORTER`, when it is set.
    traces_exporter: Option<bool>,
    export_without_endpoint: bool,
    named_endpoint: Option<Endpoint>,
    exporter: ExporterSettings,
    service_name: Option<String>,
    resource_attributes: Vec<(String, String)>,
    sampler: Sampler,
    records_unsampled: bool,
    batch: BatchSettings,
    limits: SpanLimits,
    metrics: Option<MetricSettings>,
    has_metrics: bool,
    propagators: Vec<PropagatorKind>,
    other_signals: OtherSignals,
    log_filter: &'static str,
}

impl Settings {
    /// Reads the environment of the process.
    pub fn from_env() -> Result<Self, ConfigError> {
        from_env(|get| Self::from_vars(get))
    }

    /// Reads the variables that `get` gives, as a test does.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let vars = Vars::new(&get);
        let resource = vars
            .get("OTEL_RESOURCE_ATTRIBUTES")
            .map(|var| var.pairs())
            .transpose()?;
        let exporter = ExporterSettings::from_vars(&vars, Signal::Traces)?;
        let settings = Self {
            sdk_disabled: vars.switch("OTEL_SDK_DISABLED")?,
            traces_exporter: sdk::traces_exporter(&vars)?,
            export_without_endpoint: true,
            named_endpoint: named_endpoint(&vars, Signal::Traces, exporter.insecure)?,
            exporter,
            service_name: vars.get("OTEL_SERVICE_NAME").map(|var| var.value),
            resource_attributes: resource.unwrap_or_default(),
            sampler: sdk::sampler(&vars)?,
            records_unsampled: false,
            batch: BatchSettings::from_vars(&vars)?,
            limits: SpanLimits::from_vars(&vars)?,
            metrics: MetricSettings::from_vars(&vars)?,
            has_metrics: false,
            propagators: sdk::propagators(&vars)?,
            other_signals: OtherSignals::from_vars(&vars)?,
            log_filter: sdk::log_filter(&vars)?,
        };
        Ok(settings.resolved())
    }

    /// Sends traces to `url`, as given by `flag`, whatever the environment says. Like
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` it is taken as it is, path included.
    pub fn with_traces_endpoint(mut self, flag: &str, url: &str) -> Result<Self, ConfigError> {
        let insecure = self.exporter.insecure;
        self.named_endpoint = Some(Endpoint::parse(
            flag,
            url.trim(),
            insecure,
            Scope::OneSignal,
        )?);
        Ok(self.resolved())
    }

    /// Sends by `protocol`, whatever the environment says.
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.exporter.protocol = protocol;
        self.resolved()
    }

    /// Names the service, whatever the environment says.
    pub fn with_service_name(mut self, name: &str) -> Self {
        self.service_name = Some(name.to_owned());
        self
    }

    /// Leaves tracing off when nobody named an endpoint or chose an exporter: the inference server
    /// behaves so, as its users know it.
    pub fn only_if_endpoint_set(mut self) -> Self {
        self.export_without_endpoint = false;
        self
    }

    /// The endpoint for traces as the environment or a flag names it; `None` when neither does.
    pub fn traces_endpoint(&self) -> Option<&str> {
        self.named_endpoint.as_ref().map(Endpoint::named)
    }

    /// The variable or flag that names the endpoint for traces; `None` when none does.
    pub fn traces_endpoint_variable(&self) -> Option<&str> {
        self.named_endpoint.as_ref().map(Endpoint::variable)
    }

    /// The protocol that traces are sent by.
    pub fn protocol(&self) -> Protocol {
        self.exporter.protocol
    }

    /// The filter for [`crate::process::init_logging`], from `OTEL_LOG_LEVEL`.
    pub fn log_filter(&self) -> &str {
        self.log_filter
    }

    /// How traces are sent.
    pub fn exporter(&self) -> &ExporterSettings {
        &self.exporter
    }

    /// Whether spans are recorded and exported at all.
    pub fn exports_traces(&self) -> bool {
        let chosen = self
            .traces_exporter
            .unwrap_or(self.export_without_endpoint || self.named_endpoint.is_some());
        chosen && !self.sdk_disabled
    }

    /// The name of the service, `default` when neither the environment nor a flag gives one.
    pub fn service_name<'a>(&'a self, default: &'a str) -> &'a str {
        let attribute = || {
            let mut attributes = self.resource_attributes.iter().rev();
            attributes
                .find(|(key, _)| key == SERVICE_NAME)
                .map(|(_, value)| value.as_str())
        };
        self.service_name
            .as_deref()
            .or_else(attribute)
            .unwrap_or(default)
    }

    pub(crate) fn resource(&self, default_service_name: &str) -> Resource {
        let attributes = self.resource_attributes.iter();
        Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_attributes(attributes.map(|(key, value)| {
                KeyValue::new(Key::from(key.clone()), Value::from(value.clone()))
            }))
            .with_service_name(self.service_name(default_service_name).to_owned())
            .build()
    }

    /// For a program that has metrics: exports them if `OTEL_METRICS_EXPORTER` says so.
    pub fn with_metrics(mut self) -> Self {
        self.has_metrics = true;
        self.other_signals.export_metrics();
        self
    }

    /// How metrics are sent; `None` when they are not.
    pub(crate) fn metrics(&self) -> Option<&MetricSettings> {
        let exported = self.has_metrics && !self.sdk_disabled;
        self.metrics.as_ref().filter(|_| exported)
    }

    /// For a program whose spans have up to so many links: none of them is cut off, unless
    /// `OTEL_SPAN_LINK_COUNT_LIMIT` says so.
    pub fn with_links_per_span(mut self, links: usize) -> Self {
        self.limits.make_room_for_links(links);
        self
    }

    /// Records spans that are not sampled too, so that those that turn out to matter can be kept: they
    /// end with the attribute [`crate::KEPT`].
    pub fn recording_unsampled(mut self) -> Self {
        self.records_unsampled = true;
        self
    }

    pub(crate) fn records_unsampled(&self) -> bool {
        self.records_unsampled
    }

    pub(crate) fn sampler(&self) -> Sampler {
        self.sampler.clone()
    }

    pub(crate) fn batch(&self) -> &BatchSettings {
        &self.batch
    }

    pub(crate) fn limits(&self) -> &SpanLimits {
        &self.limits
    }

    pub(crate) fn propagators(&self) -> &[PropagatorKind] {
        &self.propagators
    }

    pub(crate) fn other_signals(&self) -> &OtherSignals {
        &self.other_signals
    }

    /// With the URL that endpoint and protocol mean together.
    fn resolved(mut self) -> Self {
        let url = endpoint::resolve(
            self.named_endpoint.as_ref(),
            self.exporter.protocol,
            Signal::Traces,
        );
        self.exporter.endpoint = url;
        self
    }
}

fn named_endpoint(
    vars: &Vars<'_>,
    signal: Signal,
    insecure: bool,
) -> Result<Option<Endpoint>, ConfigError> {
    let specific = vars.get(&format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.name()));
    let general = || vars.get("OTEL_EXPORTER_OTLP_ENDPOINT");
    let named = specific
        .map(|var| (var, Scope::OneSignal))
        .or_else(|| general().map(|var| (var, Scope::AllSignals)));
    named
        .map(|(var, scope)| Endpoint::parse(&var.name, &var.value, insecure, scope))
        .transpose()
}
