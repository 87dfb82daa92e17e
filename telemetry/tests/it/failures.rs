//! Endpoints that do not take spans: what a person is told, and what the guard returns.

use std::net::SocketAddr;
use std::time::Duration;

use lantern_telemetry::{FlushError, Telemetry};
use tokio::net::{TcpListener, TcpSocket};

use crate::receiver::{Answer, Receiver};
use crate::{PATIENCE, PROTOCOLS, end_spans, log, start};

fn start_towards(addr: SocketAddr, protocol: &str, more: &[(&str, &str)]) -> Telemetry {
    let endpoint = format!("http://{addr}");
    let own = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
    ];
    start(&[&own[..], more].concat())
}

/// An address where nobody listens, and what keeps it from everybody else: the log knows a test by it.
fn nobody() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(any).expect("a free port");
    (socket.local_addr().expect("a bound address"), socket)
}

/// An address where connections are taken and nothing is ever answered.
async fn silence() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    (listener.local_addr().expect("a bound address"), listener)
}

#[tokio::test]
async fn endpoint_that_is_down_gives_one_warning_however_much_is_lost() {
    log::record();
    for protocol in PROTOCOLS {
        let (addr, _socket) = nobody();
        let small_batches = [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
            ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ];
        let telemetry = start_towards(addr, protocol, &small_batches);
        end_spans(&telemetry, 4);
        let lines = log::wait_for(&addr.to_string()).await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("WARN") && lines[0].contains("refused"),
            "{lines:?}"
        );

        // The end tells what the warning could not yet know, and tells it once.
        end_spans(&telemetry, 1);
        let error = telemetry.shutdown(PATIENCE).await;
        let FlushError::Lost {
            spans,
            endpoint,
            reason,
        } = error.expect_err("nobody listens")
        else {
            panic!("not a loss")
        };
        assert!(endpoint.contains(&addr.to_string()), "{endpoint}");
        assert!(reason.contains("refused"), "{reason}");
        let lines = log::about(&addr.to_string());
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(log::dropped(&lines) + spans, 5, "{lines:?}");
    }
}

#[tokio::test]
async fn refusal_is_told_with_the_endpoints_words() {
    log::record();
    for (protocol, words) in [
        ("grpc", "PermissionDenied"),
        ("http/protobuf", "403 Forbidden: no such key"),
    ] {
        let mut receiver = Receiver::answering(protocol, [Answer::Forbid]).await;
        let telemetry = start_towards(receiver.addr, protocol, &[]);
        end_spans(&telemetry, 2);
        let error = telemetry.flush().await.expect_err("refused");
        assert!(
            matches!(&error, FlushError::Lost { spans: 2, .. }),
            "{error}"
        );
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(
            receiver.so_far().len(),
            1,
            "what is forbidden is not tried again"
        );

        end_spans(&telemetry, 1);
        telemetry.shutdown(PATIENCE).await.expect("delivered");
        let lines = log::about(&receiver.addr.to_string());
        assert!(lines[0].contains("again"), "{lines:?}");
        assert_eq!((lines.len(), log::dropped(&lines)), (1, 0), "{lines:?}");
    }
}

#[tokio::test]
async fn endpoint_that_comes_back_gets_every_span_and_nobody_is_warned() {
    log::record();
    for protocol in PROTOCOLS {
        let answers = [Answer::Unavailable, Answer::Unavailable];
        let mut receiver = Receiver::answering(protocol, answers).await;
        let telemetry = start_towards(receiver.addr, protocol, &[]);
        end_spans(&telemetry, 2);
        telemetry.flush().await.expect("delivered in the end");
        assert_eq!(receiver.so_far().len(), 3, "{protocol}");
        telemetry.shutdown(PATIENCE).await.expect("nothing is left");
        assert_eq!(log::about(&receiver.addr.to_string()), [""; 0]);
    }
}

#[tokio::test]
async fn spans_that_an_accepted_request_lost_are_told() {
    log::record();
    for protocol in PROTOCOLS {
        let answers = [Answer::Reject {
            spans: 2,
            message: "clocks from the future",
        }];
        let mut receiver = Receiver::answering(protocol, answers).await;
        let telemetry = start_towards(receiver.addr, protocol, &[]);
        end_spans(&telemetry, 5);
        let error = telemetry.flush().await.expect_err("two were rejected");
        assert!(
            matches!(&error, FlushError::Lost { spans: 2, .. }),
            "{error}"
        );
        assert!(
            error.to_string().contains("clocks from the future"),
            "{error}"
        );
        assert_eq!(
            receiver.so_far().len(),
            1,
            "what was accepted in part is not sent again"
        );
        telemetry.shutdown(PATIENCE).await.expect("nothing is left");
        let lines = log::about(&receiver.addr.to_string());
        assert_eq!(log::dropped(&lines), 0, "the error told it: {lines:?}");
    }
}

#[tokio::test]
async fn endpoint_that_never_answers_is_given_up_in_time() {
    log::record();
    for protocol in PROTOCOLS {
        let (addr, _listener) = silence().await;
        let telemetry = start_towards(addr, protocol, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "50")]);
        end_spans(&telemetry, 3);
        let error = telemetry.flush().await.expect_err("nobody answers");
        assert!(
            matches!(&error, FlushError::Lost { spans: 3, .. }),
            "{error}"
        );
        telemetry.shutdown(PATIENCE).await.expect("nothing is left");
        assert_eq!(log::about(&addr.to_string()), [""; 0]);
    }
}

#[tokio::test]
async fn shutdown_ends_at_its_limit_and_says_what_still_waited() {
    for protocol in PROTOCOLS {
        let (addr, _listener) = silence().await;
        let telemetry = start_towards(addr, protocol, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")]);
        end_spans(&telemetry, 3);
        let limit = Duration::from_millis(50);
        let ended = tokio::time::timeout(PATIENCE, telemetry.shutdown(limit)).await;
        let endpoint = match protocol {
            "grpc" => format!("http://{addr}"),
            _ => format!("http://{addr}/v1/traces"),
        };
        let expect = FlushError::Timeout {
            spans: 3,
            endpoint,
            limit,
            reason: "no answer".to_owned(),
        };
        assert_eq!(ended.expect("it ends"), Err(expect), "{protocol}");
    }
}

#[tokio::test]
async fn shutdown_that_ends_before_the_export_does_says_why_and_says_it_once() {
    log::record();
    for protocol in PROTOCOLS {
        let (addr, _socket) = nobody();
        let patient = [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "3600000"),
        ];
        let telemetry = start_towards(addr, protocol, &patient);
        end_spans(&telemetry, 1);
        let error = telemetry.shutdown(Duration::from_secs(1)).await;
        let error = error.expect_err("nobody listens");
        assert!(
            matches!(&error, FlushError::Timeout { spans: 1, .. }),
            "{error}"
        );
        let line = error.to_string();
        assert!(line.starts_with("1 span still waited for"), "{line}");
        assert!(line.contains("Connection refused"), "{line}");
        assert_eq!(log::about(&addr.to_string()), [""; 0]);
    }
}

#[tokio::test]
async fn program_that_ends_well_warns_of_what_it_could_not_export() {
    log::record();
    for protocol in PROTOCOLS {
        let (addr, _socket) = nobody();
        let telemetry = start_towards(addr, protocol, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "100")]);
        end_spans(&telemetry, 2);
        telemetry.shutdown_or_warn(PATIENCE).await;
        let lines = log::about(&addr.to_string());
        assert_eq!(lines.len(), 1, "{lines:?}");
        let told = ["WARN", "2 spans", "Connection refused"];
        assert!(told.iter().all(|word| lines[0].contains(word)), "{lines:?}");
    }
}

#[tokio::test]
async fn spans_beyond_the_queue_are_counted() {
    log::record();
    let (addr, _listener) = silence().await;
    let narrow = [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"),
    ];
    let telemetry = start_towards(addr, "grpc", &narrow);
    end_spans(&telemetry, 20);
    let limit = Duration::from_millis(50);
    let error = telemetry.shutdown(limit).await.expect_err("nobody answers");
    let FlushError::Timeout { spans: waiting, .. } = error else {
        panic!("{error}")
    };
    let lines = log::about(&addr.to_string());
    assert!(
        lines[0].contains("the queue of 4 spans is full"),
        "{lines:?}"
    );
    assert_eq!(log::dropped(&lines) + waiting, 20, "{lines:?}");
    assert!(
        (4..=5).contains(&waiting),
        "the queue and one in flight, not {waiting}"
    );
}
