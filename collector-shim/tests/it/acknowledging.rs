//! `--ack backend`: a request is answered with what the backend has answered.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::support::backend::{Backend, Reply, reserve};
use crate::support::client::{EXPORT, JSON, PROTOBUF, call, export, frame, gzip, post};
use crate::support::spans::{full_trace, request};
use crate::support::{Running, backend, direct, eventually, exporter};

const ROOM: usize = 64 * 1024 * 1024;

async fn shim(backends: &[&Backend], protocol: &str) -> Running {
    let backends = backends.iter().enumerate().map(|(at, one)| {
        let exporter = exporter(&one.url(protocol), protocol, &[]);
        backend(&format!("backend-{at}"), exporter)
    });
    Running::start(direct(backends.collect(), ROOM)).await
}

#[tokio::test]
async fn an_answer_comes_only_once_the_backend_has_accepted() {
    let backend = Backend::held();
    let shim = shim(&[&backend], "grpc").await;
    let address = shim.grpc;
    let sending = tokio::spawn(async move { export(address, &full_trace()).await });
    backend.received(1).await;
    assert_eq!(shim.handle.counts().received_spans, 0);
    assert!(!sending.is_finished());
    backend.release();
    let status = sending.await.expect("no panic");
    assert_eq!(status.code(), Code::Ok);
    let counts = shim.handle.counts();
    assert_eq!((counts.received_spans, counts.delivered_spans), (3, 3));
}

#[tokio::test]
async fn compressed_requests_are_passed_on_as_they_came() {
    let backend = Backend::start([]).await;
    let shim = shim(&[&backend], "http/protobuf").await;
    let bytes = gzip(&full_trace());
    let (status, _) = call(shim.grpc, EXPORT, "gzip", frame(true, &bytes)).await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(backend.deliveries()[0].raw, bytes);
}

#[tokio::test]
async fn a_partial_success_is_told_to_the_sender_in_its_own_words() {
    for protocol in ["grpc", "http/protobuf"] {
        let partial = || Reply::Partial(2);
        let backend = Backend::start([partial(), partial(), partial()]).await;
        let shim = shim(&[&backend], protocol).await;
        let message = [&[0x08, 2, 0x12, 17][..], b"some were too old"].concat();
        let expect = [&[0x0a, message.len() as u8], &message[..]].concat();
        let (status, body) = call(
            shim.grpc,
            EXPORT,
            "identity",
            frame(false, &request("a", 5)),
        )
        .await;
        assert_eq!((status.code(), &body[5..]), (Code::Ok, &expect[..]));
        let answer = post(shim.http, PROTOBUF, "", request("a", 5)).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (200, &expect[..])
        );
        let json = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{
            "traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b7"}]}]}]}"#;
        let answer = post(shim.http, JSON, "", json).await;
        let told = answer.json();
        // There was one.
        assert_eq!(told["partialSuccess"]["rejectedSpans"], "1");
        assert_eq!(told["partialSuccess"]["errorMessage"], "some were too old");
        let counts = shim.handle.counts();
        assert_eq!((counts.delivered_spans, counts.rejected_spans), (6, 5));
    }
}

#[tokio::test]
async fn a_backend_that_is_busy_or_away_is_told_with_its_wait_and_not_tried_again() {
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
    let busy = Status::with_error_details(Code::ResourceExhausted, "busy", details);
    for (protocol, reply) in [
        ("grpc", Reply::Status(busy)),
        ("http/protobuf", Reply::Http(429, Some("7"))),
    ] {
        let backend = Backend::start([reply.clone(), reply]).await;
        let shim = shim(&[&backend], protocol).await;
        let status = export(shim.grpc, &full_trace()).await;
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let wait = status.get_details_retry_info().expect("RetryInfo");
        assert_eq!(wait.retry_delay, Some(Duration::from_secs(7)));
        let answer = post(shim.http, PROTOBUF, "", full_trace()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("retry-after")),
            (503, "7")
        );
        assert_eq!(backend.deliveries().len(), 2);
        let counts = shim.handle.counts();
        assert_eq!((counts.received_spans, counts.refused_spans), (0, 6));
    }
    let url = format!("http://{}", reserve().local_addr().expect("it is bound"));
    let away = direct(vec![backend("away", exporter(&url, "grpc", &[]))], ROOM);
    let shim = Running::start(away).await;
    let status = export(shim.grpc, &full_trace()).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test]
async fn what_the_backend_refuses_for_good_is_refused_for_good() {
    for (reply, code, http) in [
        (Reply::Http(400, None), Code::InvalidArgument, 400),
        (Reply::Http(413, None), Code::ResourceExhausted, 413),
        (Reply::Http(401, None), Code::Unauthenticated, 401),
        (Reply::Http(403, None), Code::PermissionDenied, 403),
        (Reply::Http(500, None), Code::Internal, 500),
        (Reply::Http(302, None), Code::Unknown, 500),
    ] {
        let backend = Backend::start([reply.clone(), reply]).await;
        let shim = shim(&[&backend], "http/protobuf").await;
        let status = export(shim.grpc, &full_trace()).await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.details().is_empty(), "no RetryInfo: {status:?}");
        let answer = post(shim.http, PROTOBUF, "", full_trace()).await;
        assert_eq!(answer.status, http, "{code:?}");
    }
}

#[tokio::test]
async fn all_backends_have_to_accept() {
    let busy = Reply::Status(Status::unavailable("busy"));
    let (first, second) = (Backend::start([]).await, Backend::start([busy]).await);
    let shim = shim(&[&first, &second], "grpc").await;
    let status = export(shim.grpc, &full_trace()).await;
    assert_eq!(status.code(), Code::Unavailable);
    let status = export(shim.grpc, &full_trace()).await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(
        (first.deliveries().len(), second.deliveries().len()),
        (2, 2)
    );
}

#[tokio::test]
async fn what_is_on_its_way_is_bounded() {
    let backend_held = Backend::held();
    // Large enough to count as what it is.
    let message = request("bulk", 200);
    let exporter = exporter(&backend_held.grpc_url(), "grpc", &[]);
    let room = 3 * message.len();
    let shim = Running::start(direct(vec![backend("held", exporter)], room)).await;
    let mut sending = Vec::new();
    for sent in 1..=3 {
        let (address, message) = (shim.grpc, message.clone());
        sending.push(tokio::spawn(async move { export(address, &message).await }));
        backend_held.received(sent).await;
    }
    let status = export(shim.grpc, &message).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("on their way"), "{status:?}");
    backend_held.release();
    for sending in sending {
        assert_eq!(sending.await.expect("no panic").code(), Code::Ok);
    }
    eventually("there is room again", || {
        shim.handle.counts().delivered_spans == 600
    })
    .await;
    assert_eq!(export(shim.grpc, &message).await.code(), Code::Ok);
}

#[tokio::test]
async fn requests_on_their_way_are_bounded_in_number_however_small() {
    let held = Backend::held();
    let exporter = exporter(&held.grpc_url(), "grpc", &[]);
    let room = 3 * 4_096;
    let shim = Running::start(direct(vec![backend("held", exporter)], room)).await;
    let mut sending = Vec::new();
    for sent in 1..=3 {
        let address = shim.grpc;
        sending.push(tokio::spawn(async move {
            export(address, &request("one", 1)).await
        }));
        held.received(sent).await;
    }
    let status = export(shim.grpc, &request("one", 1)).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    held.release();
    for sending in sending {
        assert_eq!(sending.await.expect("no panic").code(), Code::Ok);
    }
}
