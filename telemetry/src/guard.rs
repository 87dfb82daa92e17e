//! The guard: the tracer provider, its runtime and the promise that what was recorded is flushed.
//!
//! Nothing here is global. One process may hold several guards, as `lantern up` does.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, SimpleSpanProcessor, SpanData, SpanExporter,
    SpanProcessor, TracerProviderBuilder,
};
use opentelemetry_sdk::{Resource, resource::TelemetryResourceDetector};
use tokio::runtime::{Handle, Runtime};

use crate::config::{ConfigError, MetricSettings, PropagatorKind, Settings};
use crate::exemplars::Exemplars;
use crate::export::{
    self, DropLedger, ExportContext, LastFailure, Losses, MeteredExporter, OtlpClient, QueueLimits,
    Signal, SpanQueue,
};
use crate::instruments::{Meter, as_named};
use crate::kept::{KeptSpans, RecordAll};
use crate::linked::Linked;
use crate::propagation::Propagator;
use crate::recorded::Recorded;

/// The longest that [`Telemetry::flush`] waits; the SDK gives up a second later.
const FLUSH_LIMIT: Duration = Duration::from_secs(4);
/// The SDK hides its own timeout in words, so at shutdown too it gets a little longer than we wait.
const SDK_SLACK: Duration = Duration::from_secs(1);
/// An exporter that keeps to its timeout knows why it failed; only one that does not is cut off.
const EXPORT_GRACE: Duration = Duration::from_secs(1);
/// The longest that dropping a guard waits: somebody forgot to shut it down, or a test panicked.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// Spans that did not get out. Nothing has logged them: whoever gets this error tells it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlushError {
    /// The endpoint did not take them.
    #[error("{} could not be exported to {endpoint}: {reason}", counted(*.spans))]
    Lost {
        /// How many were given up.
        spans: u64,
        /// Where they were to go.
        endpoint: String,
        /// Why the last of them could not be exported.
        reason: String,
    },
    /// They were still waiting when the time was up.
    #[error("{} still waited for {endpoint} after {limit:?}: {reason}", counted(*.spans))]
    Timeout {
        /// How many waited.
        spans: u64,
        /// Where they were to go.
        endpoint: String,
        /// How long was waited.
        limit: Duration,
        /// Why the last attempt to send them failed.
        reason: String,
    },
    /// The SDK failed in another way.
    #[error("spans could not be flushed: {0}")]
    Sdk(String),
}

/// What a program holds to trace: it gives out tracers and the propagator, and flushes when it is shut
/// down.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    propagator: Propagator,
    recorded: Recorded,
    pipeline: Option<Pipeline>,
    metrics: Option<MetricPipeline>,
    shut_down: bool,
}

/// What is there only when metrics are exported.
#[derive(Debug)]
struct MetricPipeline {
    provider: SdkMeterProvider,
    exemplars: Exemplars,
    /// Dropped last: the provider's last export runs on it.
    _runtime: ExportRuntime,
}

impl MetricPipeline {
    fn start(settings: &MetricSettings, resource: Resource) -> Result<Self, ConfigError> {
        let runtime = ExportRuntime::start();
        let exemplars = Exemplars::default();
        let exporter = MeteredExporter::new(settings, exemplars.clone(), runtime.handle().clone())?;
        let reader = PeriodicReader::builder(exporter).with_interval(settings.interval);
        let provider = SdkMeterProvider::builder()
            .with_reader(reader.build())
            .with_resource(resource)
            .with_view(as_named)
            .build();
        Ok(Self {
            provider,
            exemplars,
            _runtime: runtime,
        })
    }
}

/// What is there only when spans are exported.
#[derive(Debug)]
struct Pipeline {
    runtime: ExportRuntime,
    ledger: Arc<DropLedger>,
    queue: Arc<SpanQueue>,
    last_failure: LastFailure,
}

impl Pipeline {
    /// The provider whose spans go this way.
    fn provider(
        &self,
        settings: &Settings,
        resource: Resource,
    ) -> Result<SdkTracerProvider, ConfigError> {
        // What is made here lives there.
        let _inside = self.runtime.handle().enter();
        let (exporter, batch) = (settings.exporter(), settings.batch());
        let limit = exporter.timeout + EXPORT_GRACE;
        let processor = export::start(ExportContext {
            client: OtlpClient::new(exporter, Signal::Traces, self.last_failure.clone())?,
            resource: export::encoded_resource(&resource),
            queue: Arc::clone(&self.queue),
            ledger: Arc::clone(&self.ledger),
            limit: batch.export_timeout.min(limit),
            delay: batch.schedule_delay,
        });
        let builder = sampling(settings, processor);
        Ok(builder.with_resource(resource).build())
    }
}

impl Telemetry {
    /// Starts what `settings` ask for. Spans carry `default_service_name` unless the settings name the
    /// service.
    pub fn start(settings: &Settings, default_service_name: &str) -> Result<Self, ConfigError> {
        settings.other_signals().tell();
        let propagator = Propagator::new(settings.propagators());
        let resource = settings.resource(default_service_name);
        let metrics = settings.metrics();
        let metrics = metrics.map(|metrics| MetricPipeline::start(metrics, resource.clone()));
        let metrics = metrics.transpose()?;
        if !settings.exports_traces() {
            let mut off = Self::off(propagator);
            off.metrics = metrics;
            return Ok(off);
        }
        let batch = settings.batch();
        let limits = QueueLimits {
            queue_spans: batch.max_queue_spans,
            batch_spans: batch.max_batch_spans,
            value_chars: settings.limits().value_chars,
        };
        let pipeline = Pipeline {
            runtime: ExportRuntime::start(),
            ledger: Arc::new(DropLedger::new(&settings.exporter().endpoint)),
            queue: Arc::new(SpanQueue::new(limits)),
            last_failure: LastFailure::default(),
        };
        let provider = pipeline.provider(settings, resource)?;
        Ok(Self {
            provider,
            propagator,
            recorded: Recorded::by(settings),
            pipeline: Some(pipeline),
            metrics,
            shut_down: false,
        })
    }

    /// For tests: every span goes to `exporter` as soon as it ends. The exporter keeps what it has when
    /// the guard is shut down, so that a test may look afterwards.
    pub fn with_exporter(exporter: impl SpanExporter + 'static, service_name: &str) -> Self {
        let always = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOn);
        Self::exporting(exporter, service_name, Recorded::every(true), |processor| {
            always.with_span_processor(processor)
        })
    }

    /// For tests: as [`Telemetry::with_exporter`], sampled and limited as `settings` say.
    pub fn with_exporter_sampled(
        exporter: impl SpanExporter + 'static,
        service_name: &str,
        settings: &Settings,
    ) -> Self {
        let recorded = Recorded::by(settings);
        Self::exporting(exporter, service_name, recorded, |processor| {
            sampling(settings, processor)
        })
    }

    fn exporting<E: SpanExporter + 'static>(
        exporter: E,
        service_name: &str,
        recorded: Recorded,
        builder: impl FnOnce(SimpleSpanProcessor<NeverShutDown<E>>) -> TracerProviderBuilder,
    ) -> Self {
        let resource = Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_service_name(service_name.to_owned())
            .build();
        let processor = SimpleSpanProcessor::new(NeverShutDown(exporter));
        let provider = builder(processor).with_resource(resource).build();
        let propagator = Propagator::new(&[PropagatorKind::TraceContext, PropagatorKind::Baggage]);
        Self {
            provider,
            propagator,
            recorded,
            pipeline: None,
            metrics: None,
            shut_down: false,
        }
    }

    /// Records nothing; context still passes through.
    pub fn disabled() -> Self {
        Self::off(Propagator::new(&[
            PropagatorKind::TraceContext,
            PropagatorKind::Baggage,
        ]))
    }

    /// The tracers of a provider that was shut down make spans with an empty context. Injecting one
    /// changes no header, so an incoming trace passes on untouched; a sampler that is always off would
    /// replace its parent by a span that nobody ever sees.
    fn off(propagator: Propagator) -> Self {
        let provider = SdkTracerProvider::builder().build();
        // The only error is that it was shut down before.
        let _ = provider.shutdown();
        Self {
            provider,
            propagator,
            recorded: Recorded::every(false),
            pipeline: None,
            metrics: None,
            shut_down: true,
        }
    }

    /// A tracer whose spans carry `scope` as their instrumentation scope.
    pub fn tracer(&self, scope: &'static str) -> SdkTracer {
        let scope = InstrumentationScope::builder(scope).with_version(env!("CARGO_PKG_VERSION"));
        self.provider.tracer_with_scope(scope.build())
    }

    /// Which spans may be recorded.
    pub fn recorded(&self) -> Recorded {
        self.recorded
    }

    /// A meter whose instruments carry `scope`; `None` when metrics are not exported.
    pub fn meter(&self, scope: &'static str) -> Option<Meter> {
        let scope = InstrumentationScope::builder(scope).with_version(env!("CARGO_PKG_VERSION"));
        let metrics = self.metrics.as_ref()?;
        let meter = metrics.provider.meter_with_scope(scope.build());
        Some(Meter::new(meter, metrics.exemplars.clone()))
    }

    /// The propagator that `OTEL_PROPAGATORS` asks for.
    pub fn propagator(&self) -> Propagator {
        self.propagator.clone()
    }

    /// Exports every span that ended before the call, within a bound of four seconds.
    pub async fn flush(&self) -> Result<(), FlushError> {
        if self.shut_down {
            return Ok(());
        }
        let provider = self.provider.clone();
        self.finish(FLUSH_LIMIT, move || provider.force_flush())
            .await
    }

    /// Exports the metrics and every span that has ended, waiting at most `limit`; spans that end later
    /// are lost.
    pub async fn shutdown(mut self, limit: Duration) -> Result<(), FlushError> {
        let metrics = self.metrics.take();
        let (result, ()) = tokio::join!(
            self.shutdown_traces(limit),
            shutdown_metrics(metrics, limit)
        );
        result
    }

    async fn shutdown_traces(&mut self, limit: Duration) -> Result<(), FlushError> {
        if self.shut_down {
            return Ok(());
        }
        self.shut_down = true;
        let provider = self.provider.clone();
        let sdk_limit = limit.saturating_add(SDK_SLACK);
        let result = self
            .finish(limit, move || provider.shutdown_with_timeout(sdk_limit))
            .await;
        if let Some(pipeline) = &self.pipeline {
            pipeline.ledger.close();
        }
        result
    }

    /// [`Telemetry::shutdown`] for a program whose work is done and does not fail for want of a collector:
    /// spans that did not get out are a warning.
    pub async fn shutdown_or_warn(self, limit: Duration) {
        if let Err(error) = self.shutdown(limit).await {
            tracing::warn!("{error}");
        }
    }

    /// Does `work` within `limit` and says what was lost meanwhile.
    async fn finish(
        &self,
        limit: Duration,
        work: impl FnOnce() -> OTelSdkResult + Send + 'static,
    ) -> Result<(), FlushError> {
        let Some(pipeline) = &self.pipeline else {
            return match within(limit, work).await {
                Some(result) => result.map_err(|error| FlushError::Sdk(error.to_string())),
                None => Err(FlushError::Sdk(format!("no answer within {limit:?}"))),
            };
        };
        let endpoint = pipeline.ledger.endpoint().to_owned();
        let hush = pipeline.ledger.hush();
        let Some(result) = within(limit, work).await else {
            let reason = pipeline.last_failure.get();
            return Err(FlushError::Timeout {
                spans: pipeline.queue.waiting() as u64,
                endpoint,
                limit,
                reason: reason.unwrap_or_else(|| "no answer".to_owned()),
            });
        };
        // The SDK reports the last batch only; the ledger has them all.
        match hush.untold() {
            Some(Losses { spans, reason }) => Err(FlushError::Lost {
                spans,
                endpoint,
                reason,
            }),
            None => result.map_err(|error| FlushError::Sdk(error.to_string())),
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if !self.shut_down {
            // Best effort: what is lost is told by the ledger.
            let _ = self.provider.shutdown_with_timeout(DROP_LIMIT);
            if let Some(pipeline) = &self.pipeline {
                let waiting = pipeline.queue.waiting();
                if waiting > 0 {
                    pipeline.ledger.lost(waiting, "the program ends");
                }
                pipeline.ledger.close();
            }
        }
    }
}

/// The last export of the metrics; if it fails, its exporter tells.
async fn shutdown_metrics(metrics: Option<MetricPipeline>, limit: Duration) {
    if let Some(metrics) = metrics {
        let _ = within(limit, move || metrics.provider.shutdown()).await;
    }
}

fn counted(spans: u64) -> String {
    let plural = if spans == 1 { "" } else { "s" };
    format!("{spans} span{plural}")
}

/// A provider that hands to `processor` what `settings` sample, or leave to be kept, within their limits.
fn sampling(settings: &Settings, processor: impl SpanProcessor + 'static) -> TracerProviderBuilder {
    let limits = settings.limits();
    let builder = SdkTracerProvider::builder()
        .with_max_attributes_per_span(limits.attributes_per_span)
        .with_max_events_per_span(limits.events_per_span)
        .with_max_links_per_span(limits.links_per_span)
        .with_max_attributes_per_event(limits.attributes_per_event)
        .with_max_attributes_per_link(limits.attributes_per_link);
    if settings.records_unsampled() {
        builder
            .with_span_processor(KeptSpans(processor))
            .with_sampler(RecordAll(Linked(settings.sampler())))
    } else {
        builder
            .with_span_processor(processor)
            .with_sampler(Linked(settings.sampler()))
    }
}

/// Runs blocking `work` on a thread of its own and waits at most `limit`; `None` when it takes longer.
/// It needs no runtime: a guard may be shut down where the caller's is already gone.
async fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = std::sync::mpsc::sync_channel(1);
    let (answer, answered) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = done.send(work());
    });
    std::thread::spawn(move || {
        let _ = answer.send(result.recv_timeout(limit).ok());
    });
    answered.await.ok().flatten()
}

/// The runtime that exports run on. Dropping it never blocks, so it may be dropped inside another one.
#[derive(Debug)]
struct ExportRuntime(Option<Runtime>);

impl ExportRuntime {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp-export")
            .enable_all()
            .build()
            .expect("the system has a thread for the exporter");
        Self(Some(runtime))
    }

    fn handle(&self) -> &Handle {
        self.0
            .as_ref()
            .expect("the runtime is taken only when it is dropped")
            .handle()
    }
}

impl Drop for ExportRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The in-memory exporter forgets its spans when it is shut down.
#[derive(Debug)]
struct NeverShutDown<E>(E);

impl<E: SpanExporter> SpanExporter for NeverShutDown<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.export(batch).await
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}
