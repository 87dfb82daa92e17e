//! The shim's own numbers in Prometheus' text format, by the Collector's names: dashboards and
//! alerts made for one read the other.
//!
//! The Collector's counters end in `_total` or do not, by its configuration, and there are dashboards
//! for both. So ours are there by both names.

pub(crate) mod process;

use std::fmt::{Display, Write as _};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

use crate::counts::{Counters, Transport};
use crate::intake::Sink;
use crate::queue::Queue;
use crate::shim::ShimHandle;
use crate::store::Holdings;

const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

pub(super) async fn metrics(State(handle): State<ShimHandle>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], render(&handle)).into_response()
}

fn render(handle: &ShimHandle) -> String {
    let mut text = Text::default();
    let counters = &handle.counters;
    receiver(&mut text, counters);
    match &handle.sink {
        Sink::Queue(queue) => exporter(&mut text, counters, queue),
        Sink::Store(store) => holdings(&mut text, store.holdings()),
    }
    process::render(&mut text);
    text.0
}

fn receiver(text: &mut Text, counters: &Counters) {
    let metrics = [
        (
            (
                "otelcol_receiver_accepted_spans",
                COUNTER,
                "Spans acknowledged to their senders.",
            ),
            &counters.accepted_spans,
        ),
        (
            (
                "otelcol_receiver_refused_spans",
                COUNTER,
                "Spans refused for lack of room.",
            ),
            &counters.refused_spans,
        ),
        (
            (
                "lantern_receiver_refused_requests",
                COUNTER,
                "Requests refused, for any reason.",
            ),
            &counters.refused_requests,
        ),
    ];
    for (metric, values) in metrics {
        let samples = Transport::ALL.map(|transport| {
            let labels = format!("{{receiver=\"otlp\",transport=\"{}\"}}", transport.as_str());
            (labels, values.of(transport).get())
        });
        text.metric(metric, &samples);
    }
}

fn exporter(text: &mut Text, counters: &Counters, queue: &Queue) {
    let level = queue.level();
    let metrics = [
        (
            (
                "otelcol_exporter_sent_spans",
                COUNTER,
                "Spans that the backend accepted.",
            ),
            counters.delivered_spans.get(),
        ),
        (
            (
                "otelcol_exporter_send_failed_spans",
                COUNTER,
                "Spans rejected for good.",
            ),
            counters.rejected_spans.get(),
        ),
        (
            (
                "otelcol_exporter_enqueue_failed_spans",
                COUNTER,
                "Spans the queue refused.",
            ),
            counters.enqueue_failed_spans.get(),
        ),
        (
            (
                "otelcol_exporter_queue_size",
                GAUGE,
                "Bytes waiting or on their way out.",
            ),
            level.bytes as u64,
        ),
        (
            (
                "otelcol_exporter_queue_capacity",
                GAUGE,
                "Bytes the queue may hold.",
            ),
            queue.max_bytes() as u64,
        ),
        (
            (
                "lantern_exporter_queue_spans",
                GAUGE,
                "Spans waiting or on their way out.",
            ),
            level.spans,
        ),
        (
            (
                "lantern_exporter_retries",
                COUNTER,
                "Attempts that failed and are repeated.",
            ),
            counters.retries.get(),
        ),
    ];
    for (metric, value) in metrics {
        text.metric(metric, &[("{exporter=\"otlp\"}".to_owned(), value)]);
    }
    if let Queue::Disk(_) = queue {
        log(text, counters);
    }
}

fn log(text: &mut Text, counters: &Counters) {
    let metrics = [
        (
            (
                "lantern_queue_recovered_spans",
                COUNTER,
                "Spans found waiting on disk at the start.",
            ),
            &counters.recovered_spans,
        ),
        (
            (
                "lantern_queue_damaged_records",
                COUNTER,
                "Records damaged on disk, and lost.",
            ),
            &counters.damaged_records,
        ),
        (
            (
                "lantern_queue_torn_bytes",
                COUNTER,
                "Cut off the log's end at the start.",
            ),
            &counters.torn_bytes,
        ),
        (
            (
                "lantern_dead_letters",
                COUNTER,
                "Rejected requests kept as dead letters.",
            ),
            &counters.dead_letters,
        ),
        (
            (
                "lantern_dead_letters_lost",
                COUNTER,
                "Rejected requests that could not be kept.",
            ),
            &counters.lost_letters,
        ),
    ];
    for (metric, value) in metrics {
        text.metric(metric, &[(String::new(), value.get())]);
    }
}

fn holdings(text: &mut Text, holdings: Holdings) {
    let metrics = [
        (
            ("lantern_store_traces", GAUGE, "Traces in memory."),
            holdings.traces,
        ),
        (
            ("lantern_store_spans", GAUGE, "Spans in memory."),
            holdings.spans,
        ),
        (
            ("lantern_store_bytes", GAUGE, "About what they take."),
            holdings.bytes as u64,
        ),
        (
            (
                "lantern_store_evicted_traces",
                COUNTER,
                "Traces dropped to make room.",
            ),
            holdings.evicted_traces,
        ),
        (
            (
                "lantern_store_evicted_spans",
                COUNTER,
                "Spans dropped to make room.",
            ),
            holdings.evicted_spans,
        ),
    ];
    for (metric, value) in metrics {
        text.metric(metric, &[(String::new(), value)]);
    }
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";
/// What the Collector's names begin with.
const COLLECTOR: &str = "otelcol_";

#[derive(Default)]
struct Text(String);

impl Text {
    /// Name, type and help, then a value for each set of labels.
    fn metric(&mut self, metric: (&str, &str, &str), samples: &[(String, impl Display)]) {
        let (name, kind, help) = metric;
        self.family(metric, samples);
        if kind == COUNTER && name.starts_with(COLLECTOR) {
            self.family((&format!("{name}_total"), kind, help), samples);
        }
    }

    fn family(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        samples: &[(String, impl Display)],
    ) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes it");
        for (labels, value) in samples {
            writeln!(self.0, "{name}{labels} {value}").expect("a string takes it");
        }
    }
}
