//! What the OTLP specification asks of a receiver, clause by clause, of every signal and by both
//! protocols: <https://opentelemetry.io/docs/specs/otlp/>. What it asks of an exporter is in
//! [`super::delivery`], what of both at once in [`super::acknowledging`].

use bytes::Bytes;
use lantern_shim::{Config, Signal};
use prost::Message as _;

use crate::support::backend::Backend;
use crate::support::client::{Answer, JSON, PROTOBUF, call, frame, gzip, post_to, zstd};
use crate::support::signals::{grpc_path, http_path, two_of};
use crate::support::{Running, exporter, forwarding};

/// The largest request that the shim of these tests takes.
const MOST: usize = 10_000;

/// A request, and what the specification wants answered.
struct Duty {
    clause: &'static str,
    content_type: &'static str,
    coding: &'static str,
    body: Bytes,
    /// The HTTP status, and gRPC's code; JSON has none of the latter.
    http: u16,
    grpc: Option<i32>,
}

impl Duty {
    fn protobuf(clause: &'static str, coding: &'static str, body: Bytes) -> Duty {
        Duty {
            clause,
            content_type: PROTOBUF,
            coding,
            body,
            http: 200,
            grpc: Some(0),
        }
    }

    fn json(clause: &'static str, content_type: &'static str, body: Bytes) -> Duty {
        Duty {
            content_type,
            grpc: None,
            ..Duty::protobuf(clause, "", body)
        }
    }

    fn refused(self, http: u16, grpc: i32) -> Duty {
        let grpc = self.grpc.map(|_| grpc);
        Duty { http, grpc, ..self }
    }
}

fn duties(signal: Signal) -> Vec<Duty> {
    let sound = || two_of(signal);
    let broken = || Bytes::from_static(b"\x0a\x05x");
    let large = || Bytes::from(vec![0; MOST + 1]);
    let bomb = || vec![0; 1_000 * MOST];
    let unknown_field = || [&sound()[..], &[0x9a, 0x3f, 2, 0xff, 0xfe]].concat();
    let mut duties = vec![
        Duty::protobuf("a server MUST accept no compression", "", sound()),
        Duty::protobuf("a server MUST accept gzip", "gzip", gzip(&sound())),
        Duty::protobuf("zstd is taken as well", "zstd", zstd(&sound())),
        Duty::protobuf("an empty request succeeds", "", Bytes::new()),
        Duty::protobuf("unknown fields MUST be ignored", "", unknown_field().into()),
        Duty::protobuf("bad data is not retryable", "", broken()).refused(400, 3),
        Duty::protobuf("nor is what is no gzip", "gzip", broken()).refused(400, 3),
        Duty::protobuf("a request's size is limited", "", large()).refused(413, 8),
        Duty::protobuf("after decompression too", "gzip", gzip(&bomb())).refused(413, 8),
        Duty::protobuf("whatever the coding", "zstd", zstd(&bomb())).refused(413, 8),
        Duty::protobuf("other codings are told", "br", sound()).refused(415, 12),
        Duty::json("JSON is JSON", JSON, "{".into()).refused(400, 3),
        Duty::json("JSON's size is limited", JSON, vec![b' '; MOST + 1].into()).refused(413, 8),
        Duty::json("other types are told", "text/plain", sound()).refused(415, 12),
    ];
    for content_type in [JSON, "application/json; charset=utf-8", "Application/JSON"] {
        let clause = "an empty JSON request succeeds, parameters allowed";
        duties.push(Duty::json(clause, content_type, "{}".into()));
        let clause = "unknown keys MUST be ignored";
        let body = r#"{"fromTheFuture":[1,{}],"resourceSpans_":null}"#;
        duties.push(Duty::json(clause, content_type, body.into()));
    }
    duties
}

/// Every 4xx and 5xx has a `google.rpc.Status` in the request's type, small and with a message.
fn check_status(answer: &Answer, duty: &Duty) {
    let clause = duty.clause;
    let message = if duty.content_type == PROTOBUF {
        assert_eq!(answer.header("content-type"), PROTOBUF, "{clause}");
        let status = tonic_types::Status::decode(&answer.body[..]).expect("a Status");
        assert_eq!(Some(status.code), duty.grpc, "{clause}");
        status.message
    } else {
        assert_eq!(answer.header("content-type"), JSON, "{clause}");
        answer.json()["message"].to_string()
    };
    assert!(!message.is_empty() && answer.body.len() < 1_000, "{clause}");
}

#[tokio::test]
async fn every_signal_is_received_as_the_specification_asks() {
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(forwarding(exporter, MOST, 100 * MOST)).await;
    for signal in Signal::ALL {
        for duty in duties(signal) {
            let what = format!("{signal}: {}", duty.clause);
            let url = format!("http://{}{}", shim.http, http_path(signal));
            let answer = post_to(&url, duty.content_type, duty.coding, duty.body.clone()).await;
            assert_eq!(answer.status, duty.http, "{what}");
            if duty.http >= 400 {
                check_status(&answer, &duty);
                assert_eq!(answer.header("retry-after"), "", "{what}");
            } else {
                let media_type = duty.content_type.to_ascii_lowercase();
                assert!(
                    media_type.starts_with(answer.header("content-type")),
                    "{what}"
                );
                let full_success: &[u8] = if duty.content_type == PROTOBUF {
                    b""
                } else {
                    b"{}"
                };
                assert_eq!(&answer.body[..], full_success, "{what}");
            }
            let Some(code) = duty.grpc else { continue };
            let body = frame(!duty.coding.is_empty(), &duty.body);
            let (status, message) = call(shim.grpc, grpc_path(signal), duty.coding, body).await;
            assert_eq!(status.code() as i32, code, "{what}: {status:?}");
            assert!(status.details().is_empty(), "{what}: no RetryInfo");
            let full_success: &[u8] = if code == 0 { &[0; 5] } else { &[] };
            assert_eq!(&message[..], full_success, "{what}");
        }
    }
}

#[tokio::test]
async fn invalid_utf8_is_passed_on_and_not_lost() {
    let backend = Backend::start([]).await;
    let shim = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(shim)).await;
    let mut sent = 0;
    for (signal, text) in [
        (Signal::Traces, &b"span"[..]),
        (Signal::Metrics, b"metric"),
        (Signal::Logs, b"said"),
    ] {
        let mut message = two_of(signal).to_vec();
        let found = message.windows(text.len()).position(|at| at == text);
        message[found.expect("it is there")] = 0xff;
        let body = frame(false, &message);
        let (status, _) = call(shim.grpc, grpc_path(signal), "identity", body).await;
        assert_eq!(status.code(), tonic::Code::Ok, "{status:?}");
        sent += 1;
        let delivery = backend.received(sent).await.pop().expect("it came");
        assert_eq!(delivery.message, message);
    }
}
