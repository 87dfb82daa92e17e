//! The shim's own numbers in Prometheus' text format, by the Collector's names: dashboards and
//! alerts made for one read the other.

use std::fmt::Write as _;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

use crate::counts::Transport;
use crate::intake::Sink;
use crate::shim::ShimHandle;

const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

pub(super) async fn metrics(State(handle): State<ShimHandle>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], render(&handle)).into_response()
}

fn render(handle: &ShimHandle) -> String {
    let counters = &handle.counters;
    let mut text = Text::default();
    let per_transport = |of: &crate::counts::PerTransport| {
        Transport::ALL.map(|transport| {
            let labels = format!("{{receiver=\"otlp\",transport=\"{}\"}}", transport.as_str());
            (labels, of.of(transport).get())
        })
    };
    text.metric(
        (
            "otelcol_receiver_accepted_spans",
            "counter",
            "Spans acknowledged to their senders.",
        ),
        &per_transport(&counters.accepted_spans),
    );
    text.metric(
        (
            "otelcol_receiver_refused_spans",
            "counter",
            "Spans refused for lack of room.",
        ),
        &per_transport(&counters.refused_spans),
    );
    text.metric(
        (
            "lantern_receiver_refused_requests",
            "counter",
            "Requests refused, whatever the reason.",
        ),
        &per_transport(&counters.refused_requests),
    );
    match &handle.sink {
        Sink::Queue(queue) => {
            let level = queue.level();
            let exporter = |value: u64| [("{exporter=\"otlp\"}".to_owned(), value)];
            text.metric(
                (
                    "otelcol_exporter_sent_spans",
                    "counter",
                    "Spans that the backend accepted.",
                ),
                &exporter(counters.delivered_spans.get()),
            );
            text.metric(
                (
                    "otelcol_exporter_send_failed_spans",
                    "counter",
                    "Spans rejected for good.",
                ),
                &exporter(counters.rejected_spans.get()),
            );
            text.metric(
                (
                    "otelcol_exporter_enqueue_failed_spans",
                    "counter",
                    "Spans the queue refused.",
                ),
                &exporter(counters.enqueue_failed_spans.get()),
            );
            text.metric(
                (
                    "lantern_exporter_retries",
                    "counter",
                    "Attempts that failed and are repeated.",
                ),
                &exporter(counters.retries.get()),
            );
            text.metric(
                (
                    "otelcol_exporter_queue_size",
                    "gauge",
                    "Bytes waiting or on their way out.",
                ),
                &exporter(level.bytes as u64),
            );
            text.metric(
                (
                    "otelcol_exporter_queue_capacity",
                    "gauge",
                    "Bytes the queue may hold.",
                ),
                &exporter(queue.max_bytes() as u64),
            );
            text.metric(
                (
                    "lantern_exporter_queue_spans",
                    "gauge",
                    "Spans waiting or on their way out.",
                ),
                &exporter(level.spans),
            );
        }
        Sink::Store(store) => {
            let holdings = store.holdings();
            let store = |value: u64| [(String::new(), value)];
            text.metric(
                ("lantern_store_traces", "gauge", "Traces in memory."),
                &store(holdings.traces),
            );
            text.metric(
                ("lantern_store_spans", "gauge", "Spans in memory."),
                &store(holdings.spans),
            );
            text.metric(
                ("lantern_store_bytes", "gauge", "About what they take."),
                &store(holdings.bytes as u64),
            );
            text.metric(
                (
                    "lantern_store_evicted_traces",
                    "counter",
                    "Traces dropped to make room.",
                ),
                &store(holdings.evicted_traces),
            );
            text.metric(
                (
                    "lantern_store_evicted_spans",
                    "counter",
                    "Spans dropped to make room.",
                ),
                &store(holdings.evicted_spans),
            );
        }
    }
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    /// Name, type and help, then a value for each set of labels.
    fn metric(&mut self, (name, kind, help): (&str, &str, &str), samples: &[(String, u64)]) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes it");
        for (labels, value) in samples {
            writeln!(self.0, "{name}{labels} {value}").expect("a string takes it");
        }
    }
}
