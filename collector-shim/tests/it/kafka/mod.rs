//! Kafka as a way out: one trace a record, at least once and in order.

mod broker;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use lantern_shim::{Backend as Out, Config, KafkaSettings, Signal, Signals, Way};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tonic::Code;

use crate::support::client::{PROTOBUF, export, export_gzip, post_to};
use crate::support::signals::{http_path, two_of};
use crate::support::spans::{encode, resource_spans};
use crate::support::{Running, direct, durable_for, eventually};
use crate::tls::self_signed;
use broker::{Brokers, Reply, State, Topic};

const TOPIC: &str = "jaeger-spans";
const PARTITIONS: usize = 4;
const TRACES: u8 = 20;
const ROOM: usize = 64 * 1024 * 1024;
const LEADER_NOT_AVAILABLE: i16 = 5;
const TOPIC_AUTHORIZATION_FAILED: i16 = 29;

fn with_topic() -> State {
    State {
        topics: BTreeMap::from([(TOPIC.to_owned(), vec![Vec::new(); PARTITIONS])]),
        ..State::default()
    }
}

fn out(url: &str, variables: &[(&str, &str)]) -> Out {
    let get = |name: &str| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let settings = KafkaSettings::read(url, "K_", &get).expect("valid settings");
    Out {
        name: "kafka".to_owned(),
        way: Way::Kafka(settings),
        signals: Signals::ALL,
    }
}

fn url(brokers: &Brokers) -> String {
    format!("kafka://{}/{TOPIC}", brokers.list())
}

fn to(brokers: &Brokers, dir: &Path) -> Config {
    durable_for(vec![out(&url(brokers), &[])], dir, ROOM)
}

/// A span of each trace in two services; named by `mark`.
fn mixed(mark: &str) -> Bytes {
    let of_service = |service: &str, id: u8| {
        let spans = (0..TRACES).map(|trace| Span {
            trace_id: vec![trace + 1; 16],
            span_id: vec![id; 8],
            name: mark.to_owned(),
            ..Span::default()
        });
        resource_spans(service, spans.collect())
    };
    encode(vec![of_service("front", 1), of_service("back", 2)])
}

/// The spans of `value`, each with its resource.
fn spans(value: &[u8]) -> Vec<(String, Span)> {
    let request = ExportTraceServiceRequest::decode(value).expect("a request");
    let resources = request.resource_spans.into_iter();
    let spans = resources.flat_map(|resource| {
        let around = format!("{:?}", resource.resource);
        let scopes = resource.scope_spans.into_iter();
        let spans = scopes.flat_map(|scope| scope.spans);
        spans
            .map(move |span| (around.clone(), span))
            .collect::<Vec<_>>()
    });
    spans.collect()
}

fn sorted(mut spans: Vec<(String, Span)>) -> Vec<(String, Span)> {
    spans.sort_by_key(|(around, span)| (span.trace_id.clone(), around.clone()));
    spans
}

fn all_spans(topic: &Topic) -> Vec<(String, Span)> {
    let records = topic.iter().flatten();
    records.flat_map(|record| spans(&record.value)).collect()
}

/// The names of a trace's spans, the first of each, as they lie in its partition.
fn marks_of_trace(topic: &Topic, trace: u8) -> Vec<String> {
    let mut marks: Vec<String> = Vec::new();
    for (_, span) in all_spans(topic) {
        if span.trace_id == [trace; 16] && !marks.contains(&span.name) {
            marks.push(span.name);
        }
    }
    marks
}

#[tokio::test]
async fn a_record_is_one_trace_of_a_request_and_a_trace_has_one_partition() {
    for compression in ["none", "gzip"] {
        let (brokers, dir) = (Brokers::start(with_topic()).await, tempfile::tempdir());
        let dir = dir.expect("a directory");
        let backends = vec![out(&url(&brokers), &[("K_COMPRESSION", compression)])];
        let shim = Running::start(durable_for(backends, dir.path(), ROOM)).await;
        let whole = mixed("span");
        assert_eq!(export(shim.grpc, &whole).await.code(), Code::Ok);
        assert_eq!(export_gzip(shim.grpc, &whole).await.code(), Code::Ok);
        let counts = shim.settled(4 * u64::from(TRACES)).await;
        assert_eq!(counts.delivered_spans, 4 * u64::from(TRACES));

        let topic = brokers.records(TOPIC);
        assert!(topic.iter().all(|partition| !partition.is_empty()));
        let mut partitions: BTreeMap<Bytes, BTreeSet<usize>> = BTreeMap::new();
        for (number, records) in topic.iter().enumerate() {
            for record in records {
                assert_eq!(record.was_compressed, compression == "gzip");
                let key = record.key.clone().expect("the trace id");
                let spans = spans(&record.value);
                assert_eq!(spans.len(), 2, "one of each service");
                for (_, span) in spans {
                    let id = span.trace_id.iter().map(|byte| format!("{byte:02x}"));
                    assert_eq!(id.collect::<String>().as_bytes(), key);
                }
                partitions.entry(key).or_default().insert(number);
            }
        }
        assert_eq!(partitions.len(), usize::from(TRACES));
        assert!(partitions.values().all(|numbers| numbers.len() == 1));
        let twice = [spans(&whole), spans(&whole)].concat();
        assert_eq!(sorted(all_spans(&topic)), sorted(twice));
    }
}

#[tokio::test]
async fn nothing_is_lost_or_out_of_order_when_brokers_restart_and_leaders_change() {
    let dir = tempfile::tempdir().expect("a directory");
    let brokers = Brokers::start(with_topic()).await;
    let shim = Running::start(to(&brokers, dir.path())).await;
    let mut sent = Vec::new();
    let mut retries = 0;
    for round in 0..5 {
        match round {
            0 => {}
            1 => brokers.go_down(),
            2 => brokers.state().leader = 1,
            3 => brokers.state().script.push_back(Reply::KeepAndBreak),
            _ => {
                let errors = [LEADER_NOT_AVAILABLE, TOPIC_AUTHORIZATION_FAILED];
                brokers.state().script.extend(errors.map(Reply::Error));
            }
        }
        for at in 0..3 {
            let mark = format!("{round}-{at}");
            assert_eq!(export(shim.grpc, &mixed(&mark)).await.code(), Code::Ok);
            sent.push(mark);
        }
        if round > 0 {
            eventually("it was tried again", || {
                shim.handle.counts().retries > retries
            })
            .await;
        }
        brokers.come_up();
        shim.settled(sent.len() as u64 * 2 * u64::from(TRACES))
            .await;
        retries = shim.handle.counts().retries;
    }
    let counts = shim.handle.counts();
    assert_eq!((counts.rejected_spans, counts.dead_letters), (0, 0));
    let topic = brokers.records(TOPIC);
    for trace in 1..=TRACES {
        assert_eq!(marks_of_trace(&topic, trace), sent, "trace {trace}");
    }
    // Once is enough for all but the one whose acknowledgement was lost.
    let expect = sent.len() * 2 * usize::from(TRACES);
    let found = all_spans(&topic).len();
    assert!(found > expect && found < 2 * expect, "{found} of {expect}");
}

#[tokio::test]
async fn a_record_that_is_too_large_is_a_dead_letter_and_takes_no_other_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let brokers = Brokers::start(with_topic()).await;
    brokers.state().max_batch_bytes = Some(2_000);
    let shim = Running::start(to(&brokers, dir.path())).await;
    let named = |trace: u8, name: String| Span {
        trace_id: vec![trace; 16],
        span_id: vec![1; 8],
        name,
        ..Span::default()
    };
    let mut spans: Vec<_> = (1..=TRACES)
        .map(|trace| named(trace, "s".repeat(200)))
        .collect();
    spans[3].name = "l".repeat(3_000);
    export(shim.grpc, &encode(vec![resource_spans("one", spans)])).await;
    let counts = shim.settled(TRACES.into()).await;
    assert_eq!(counts.delivered_spans, u64::from(TRACES) - 1);
    assert_eq!((counts.rejected_spans, counts.dead_letters), (1, 1));
    let letters = std::fs::read_to_string(dir.path().join("dead-letters.jsonl")).expect("there");
    let letter: serde_json::Value = serde_json::from_str(&letters).expect("one line");
    assert_eq!(letter["items"], 1);
    let reason = letter["reason"].as_str().expect("text");
    assert!(
        reason.starts_with("MESSAGE_TOO_LARGE: topic jaeger-spans"),
        "{reason}"
    );
    assert_eq!(
        all_spans(&brokers.records(TOPIC)).len(),
        usize::from(TRACES) - 1
    );
}

#[tokio::test]
async fn a_signal_goes_to_its_own_topic_or_nowhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let brokers = Brokers::start(State {
        creates_partitions: Some(PARTITIONS),
        ..State::default()
    })
    .await;
    let backends = vec![out(&url(&brokers), &[("K_METRICS_TOPIC", "otlp_metrics")])];
    let shim = Running::start(durable_for(backends, dir.path(), ROOM)).await;
    export(shim.grpc, &mixed("span")).await;
    for (signal, expect) in [(Signal::Metrics, 200), (Signal::Logs, 404)] {
        let url = format!("http://{}{}", shim.http, http_path(signal));
        let answer = post_to(&url, PROTOBUF, "", two_of(signal)).await;
        assert_eq!(answer.status, expect, "{signal}");
    }
    shim.settled(2 * u64::from(TRACES)).await;
    eventually("the metrics are there", || {
        shim.handle.counts_of(Signal::Metrics).delivered_spans == 2
    })
    .await;
    let metrics = brokers.records("otlp_metrics").concat();
    assert_eq!((metrics.len(), &metrics[0].key), (1, &None));
    assert_eq!(metrics[0].value, two_of(Signal::Metrics));
    let topics: Vec<String> = brokers.state().topics.keys().cloned().collect();
    assert_eq!(topics, [TOPIC, "otlp_metrics"]);
}

#[tokio::test]
async fn a_sender_who_waits_is_told_whether_the_brokers_have_it() {
    let brokers = Brokers::start(State::default()).await;
    let shim = Running::start(direct(vec![out(&url(&brokers), &[])], ROOM)).await;
    let status = export(shim.grpc, &mixed("span")).await;
    assert_eq!(status.code(), Code::Unavailable);
    let reason = "the brokers have no topic jaeger-spans";
    assert!(status.message().contains(reason), "{status}");
    *brokers.state() = with_topic();
    brokers.go_down();
    let status = export(shim.grpc, &mixed("span")).await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    brokers.come_up();
    let status = export(shim.grpc, &mixed("span")).await;
    assert_eq!(status.code(), Code::Ok, "{status}");
    assert_eq!(
        all_spans(&brokers.records(TOPIC)).len(),
        2 * usize::from(TRACES)
    );
}

#[tokio::test]
async fn brokers_with_the_certificate_get_the_records_and_a_changed_one_is_followed() {
    let ((used, certificate), (_, other)) = (self_signed(), self_signed());
    let brokers = Brokers::encrypted(with_topic(), used).await;
    let trust = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(trust.path(), other).expect("written");
    let dir = tempfile::tempdir().expect("a directory");
    let url = format!("kafka+tls://{}/{TOPIC}", brokers.list());
    let path = trust.path().to_str().expect("text");
    let backends = vec![out(&url, &[("K_CERTIFICATE", path)])];
    let mut config = durable_for(backends, dir.path(), ROOM);
    config.door.reload_interval = Duration::from_millis(20);
    let shim = Running::start(config).await;
    export(shim.grpc, &mixed("span")).await;
    eventually("the handshake has failed", || {
        shim.handle.counts().retries > 0
    })
    .await;
    assert!(all_spans(&brokers.records(TOPIC)).is_empty());
    std::fs::write(trust.path(), certificate).expect("written");
    shim.settled(2 * u64::from(TRACES)).await;
    assert_eq!(
        all_spans(&brokers.records(TOPIC)).len(),
        2 * usize::from(TRACES)
    );
}
