//! One name with several addresses: each trace at one of them.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lantern_shim::{
    Backend as Out, Balance, Config, Destination, Resolve, Resolving, Signals, Waiting, Way,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use tokio::net::TcpSocket;
use tonic::Code;

use crate::support::backend::{Backend, reserve, reserve_at};
use crate::support::client::export;
use crate::support::spans::{encode, resource_spans, span};
use crate::support::{Running, direct, durable_for, eventually, exporter};

const ROOM: usize = 64 * 1024 * 1024;
const TRACES: u8 = 40;

/// A name of which a test says what addresses it has.
#[derive(Debug, Default)]
struct Name(Mutex<Vec<SocketAddr>>);

impl Name {
    fn of(members: &[&SocketAddr]) -> Arc<Name> {
        let name = Arc::new(Name::default());
        name.set(members);
        name
    }

    fn set(&self, members: &[&SocketAddr]) {
        *self.0.lock().expect("no panic") = members.iter().map(|member| **member).collect();
    }
}

impl Resolve for Name {
    fn resolve<'a>(&'a self, host: &'a str, _port: u16) -> Resolving<'a> {
        assert_eq!(host, "sampler.test");
        let members = self.0.lock().expect("no panic").clone();
        Box::pin(async move {
            if members.is_empty() {
                return Err(io::Error::other("no such name"));
            }
            Ok(members)
        })
    }
}

/// Three addresses with one port, as pods have them.
fn addresses() -> [TcpSocket; 3] {
    loop {
        let first = reserve();
        let port = first.local_addr().expect("it is bound").port();
        let other = |last: u8| reserve_at(SocketAddr::from(([127, 0, 0, last], port)));
        if let (Ok(second), Ok(third)) = (other(2), other(3)) {
            return [first, second, third];
        }
    }
}

fn address(socket: &TcpSocket) -> SocketAddr {
    socket.local_addr().expect("it is bound")
}

fn out(name: &Arc<Name>, port: u16, protocol: &str) -> Out {
    let path = if protocol == "grpc" { "" } else { "/v1/traces" };
    let url = format!("http://sampler.test:{port}{path}");
    let balance = Balance {
        resolver: Arc::clone(name) as Arc<dyn Resolve>,
        interval: Duration::from_millis(1),
    };
    Out {
        name: "sampler".to_owned(),
        way: Way::Balanced(Box::new(exporter(&url, protocol, &[])), balance),
        signals: Signals::ALL,
    }
}

fn in_memory(out: Out) -> Config {
    let destination = Destination::Backends {
        backends: vec![out],
        queue_max_bytes: ROOM,
        waiting: Waiting::InMemory,
    };
    Config {
        destination,
        max_request_bytes: ROOM,
        ..Config::embedded()
    }
}

/// Two spans of each trace, side by side in two resources.
fn mixed() -> bytes::Bytes {
    let of_service = |service: &str, id: u8| {
        let spans = (0..TRACES).map(|trace| Span {
            trace_id: vec![trace + 1; 16],
            ..span(id, 0, service, SpanKind::Internal)
        });
        resource_spans(service, spans.collect())
    };
    encode(vec![of_service("front", 1), of_service("back", 2)])
}

/// The spans that came to `backend`, with the service of each, in its bytes.
fn spans_at(backend: &Backend) -> Vec<(String, Vec<u8>, Span)> {
    let mut spans = Vec::new();
    for delivery in backend.deliveries() {
        let request = ExportTraceServiceRequest::decode(delivery.message).expect("a request");
        for resource in request.resource_spans {
            let attributes = resource.resource.expect("it has one").attributes;
            let service = format!("{:?}", attributes[0].value);
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                spans.push((service.clone(), span.trace_id.clone(), span));
            }
        }
    }
    spans
}

fn traces_at(backend: &Backend) -> BTreeSet<Vec<u8>> {
    spans_at(backend)
        .into_iter()
        .map(|(_, trace, _)| trace)
        .collect()
}

fn total(backends: &[&Backend]) -> usize {
    backends.iter().map(|backend| spans_at(backend).len()).sum()
}

#[tokio::test]
async fn all_spans_of_a_trace_meet_at_one_address_and_every_address_has_some() {
    for protocol in ["grpc", "http/protobuf", "http/json"] {
        let sockets = addresses();
        let port = address(&sockets[0]).port();
        let name = Name::of(&sockets.each_ref().map(address).each_ref());
        let backends = sockets.map(|socket| Backend::listen(socket, []));
        let shim = Running::start(in_memory(out(&name, port, protocol))).await;
        assert_eq!(export(shim.grpc, &mixed()).await.code(), Code::Ok);
        let counts = shim.settled(2 * u64::from(TRACES)).await;
        assert_eq!(counts.delivered_spans, 2 * u64::from(TRACES), "{protocol}");
        if protocol == "http/json" {
            assert!(
                backends
                    .iter()
                    .all(|backend| backend.deliveries().len() == 1)
            );
            continue;
        }
        let traces = backends.each_ref().map(traces_at);
        assert!(traces.iter().all(|some| !some.is_empty()), "{traces:?}");
        let apart: usize = traces.iter().map(BTreeSet::len).sum();
        assert_eq!(apart, usize::from(TRACES), "no trace is at two addresses");
        let mut arrived: Vec<_> = backends.iter().flat_map(spans_at).collect();
        let sent = Backend::start([]).await;
        let whole = exporter(&sent.grpc_url(), "grpc", &[]);
        let shim = Running::start(Config::forwarding(whole)).await;
        export(shim.grpc, &mixed()).await;
        sent.received(1).await;
        let mut expect = spans_at(&sent);
        let key = |one: &(String, Vec<u8>, Span)| (one.0.clone(), one.1.clone());
        arrived.sort_by_key(key);
        expect.sort_by_key(key);
        assert_eq!(arrived, expect, "each with its resource");
    }
}

#[tokio::test]
async fn an_address_that_is_away_holds_back_its_own_traces_and_doubles_no_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let [first, second, late] = addresses();
    let port = address(&first).port();
    let name = Name::of(&[&address(&first), &address(&second), &address(&late)]);
    let here = [first, second].map(|socket| Backend::listen(socket, []));
    let config = durable_for(vec![out(&name, port, "grpc")], dir.path(), ROOM);
    let shim = Running::start(config).await;
    assert_eq!(export(shim.grpc, &mixed()).await.code(), Code::Ok);
    eventually("it was tried again and again", || {
        shim.handle.counts().retries > 2
    })
    .await;
    let delivered = shim.handle.counts().delivered_spans;
    assert!(delivered > 0 && delivered < 2 * u64::from(TRACES));
    let late = Backend::listen(late, []);
    eventually("all are answered for", || {
        shim.handle.counts().queued_spans == 0
    })
    .await;
    assert_eq!(shim.handle.counts().delivered_spans, 2 * u64::from(TRACES));
    let [first, second] = &here;
    assert_eq!(total(&[first, second, &late]), 2 * usize::from(TRACES));
    assert!(!traces_at(&late).is_empty());
}

#[tokio::test]
async fn an_address_that_the_name_no_longer_has_leaves_its_traces_to_the_others() {
    let [first, second, gone] = addresses();
    let port = address(&first).port();
    let name = Name::of(&[&address(&first), &address(&second), &address(&gone)]);
    let staying = [first, second].map(|socket| Backend::listen(socket, []));
    let shim = Running::start(in_memory(out(&name, port, "grpc"))).await;
    export(shim.grpc, &mixed()).await;
    eventually("one is away", || shim.handle.counts().retries > 0).await;
    let addresses = staying.each_ref().map(|backend| backend.address);
    name.set(&addresses.each_ref());
    shim.settled(2 * u64::from(TRACES)).await;
    let [first, second] = &staying;
    assert_eq!(total(&[first, second]), 2 * usize::from(TRACES));
    // With no answer from the resolver they stay.
    name.set(&[]);
    export(shim.grpc, &mixed()).await;
    shim.settled(4 * u64::from(TRACES)).await;
}

#[tokio::test]
async fn a_sender_who_waits_for_the_backend_is_told_when_one_address_is_away() {
    let [first, second, away] = addresses();
    let port = address(&first).port();
    let name = Name::of(&[&address(&first), &address(&second), &address(&away)]);
    let staying = [first, second].map(|socket| Backend::listen(socket, []));
    let shim = Running::start(direct(vec![out(&name, port, "grpc")], ROOM)).await;
    let status = export(shim.grpc, &mixed()).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let addresses = staying.each_ref().map(|backend| backend.address);
    name.set(&addresses.each_ref());
    assert_eq!(export(shim.grpc, &mixed()).await.code(), Code::Ok);
    let everywhere: BTreeSet<_> = staying.iter().flat_map(traces_at).collect();
    assert_eq!(everywhere.len(), usize::from(TRACES));
}
