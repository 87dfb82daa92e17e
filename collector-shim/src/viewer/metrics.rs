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
use crate::handle::ShimHandle;
use crate::intake::Sink;
use crate::queue::{Level, Queue};
use crate::signal::Signal;
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
        Sink::Queue(queue) => {
            exporter(&mut text, handle, |backend| queue.level(backend));
            size(&mut text, queue.held_bytes(), queue.max_bytes());
            if let Queue::Disk(_) = **queue {
                log(&mut text, counters);
            }
        }
        Sink::Direct(direct) => {
            exporter(&mut text, handle, |_| Level::default());
            size(&mut text, direct.held_bytes(), direct.max_bytes());
        }
        Sink::Store(store) => holdings(&mut text, store.holdings()),
    }
    process::render(&mut text);
    text.0
}

fn receiver(text: &mut Text, counters: &Counters) {
    let labels = |transport: Transport| {
        let transport = transport.as_str();
        format!("{{receiver=\"otlp\",transport=\"{transport}\"}}")
    };
    for signal in Signal::ALL {
        let items = signal.items();
        let metrics = [
            (
                "accepted",
                "acknowledged to their senders.",
                counters.accepted.of(signal),
            ),
            (
                "refused",
                "refused for lack of room.",
                counters.refused.of(signal),
            ),
        ];
        for (what, help, values) in metrics {
            let name = format!("otelcol_receiver_{what}_{items}");
            let help = format!("Of {signal}: {items} {help}");
            let samples = Transport::ALL.map(|one| (labels(one), values.of(one).get()));
            text.metric((&name, COUNTER, &help), &samples);
        }
    }
    let requests = &counters.refused_requests;
    let samples = Transport::ALL.map(|one| (labels(one), requests.of(one).get()));
    text.metric(
        (
            "lantern_receiver_refused_requests",
            COUNTER,
            "Requests refused, for any reason.",
        ),
        &samples,
    );
}

/// What is counted of one backend.
type OfBackend<'a> = &'a dyn Fn(usize) -> u64;

fn exporter(text: &mut Text, handle: &ShimHandle, level: impl Fn(usize) -> Level) {
    let counters = &handle.counters;
    let of = |at: usize| &counters.backends[at];
    let mut metric = |name: &str, kind: &'static str, help: &str, value: OfBackend<'_>| {
        let outlets = handle.outlets.iter().enumerate();
        let samples: Vec<_> = outlets
            .map(|(at, outlet)| (format!("{{exporter=\"otlp/{}\"}}", outlet.name), value(at)))
            .collect();
        text.metric((name, kind, help), &samples);
    };
    for signal in Signal::ALL {
        let items = signal.items();
        metric(
            &format!("otelcol_exporter_sent_{items}"),
            COUNTER,
            "Accepted by the backend.",
            &|at| of(at).delivered.of(signal).get(),
        );
        metric(
            &format!("otelcol_exporter_send_failed_{items}"),
            COUNTER,
            "Rejected for good.",
            &|at| of(at).rejected.of(signal).get(),
        );
        metric(
            &format!("otelcol_exporter_enqueue_failed_{items}"),
            COUNTER,
            "Refused by the queue.",
            &|_| counters.enqueue_failed.of(signal).get(),
        );
        metric(
            &format!("lantern_exporter_unsent_{items}"),
            COUNTER,
            "Not sent, because the backend does not have the signal.",
            &|at| of(at).unsent.of(signal).get(),
        );
        metric(
            &format!("lantern_exporter_queue_{items}"),
            GAUGE,
            "Waiting or on their way out.",
            &|at| *level(at).items.of(signal),
        );
    }
    metric(
        "lantern_exporter_retries",
        COUNTER,
        "Attempts that failed and are repeated.",
        &|at| of(at).retries.get(),
    );
    if handle.tail.is_some() {
        metric(
            "lantern_tail_dropped_spans",
            COUNTER,
            "Dropped by tail decisions.",
            &|at| of(at).tail.dropped_spans.get(),
        );
        metric(
            "lantern_tail_dropped_traces",
            COUNTER,
            "The same in traces, or in parts of one that came apart.",
            &|at| of(at).tail.dropped_traces.get(),
        );
        metric(
            "lantern_tail_early_traces",
            COUNTER,
            "Of those, dropped early for lack of room.",
            &|at| of(at).tail.early_traces.get(),
        );
    }
}

fn size(text: &mut Text, held_bytes: usize, max_bytes: usize) {
    let metrics = [
        (
            "otelcol_exporter_queue_size",
            "Bytes waiting or on their way out.",
            held_bytes,
        ),
        (
            "otelcol_exporter_queue_capacity",
            "Bytes the queue may hold.",
            max_bytes,
        ),
    ];
    for (name, help, bytes) in metrics {
        text.metric((name, GAUGE, help), &[(String::new(), bytes as u64)]);
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
            counters.recovered.of(Signal::Traces),
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
                "Rejected requests that could not be kept, or not for longer.",
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
