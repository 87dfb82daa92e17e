//! Several backends, each at its own pace.

use std::time::Duration;

use lantern_shim::{Config, Destination, Waiting};
use tonic::Code;

use crate::support::backend::{Backend, Delivery, reserve};
use crate::support::client::export;
use crate::support::spans::{marks, request};
use crate::support::{Running, backend, durable_for, eventually, exporter};

const ROOM: usize = 64 * 1024 * 1024;

fn all_marks(deliveries: &[Delivery]) -> Vec<String> {
    let marks = deliveries.iter().flat_map(|one| marks(&one.message));
    marks.collect()
}

async fn send(shim: &Running, marks: std::ops::Range<usize>) {
    for mark in marks {
        let status = export(shim.grpc, &request(&mark.to_string(), 1)).await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    }
}

fn numbered(marks: std::ops::Range<usize>) -> Vec<String> {
    marks.map(|mark| mark.to_string()).collect()
}

#[tokio::test]
async fn a_backend_that_is_away_holds_back_only_itself_and_gets_all_of_it_later() {
    let dir = tempfile::tempdir().expect("a directory");
    let here = Backend::start([]).await;
    let socket = reserve();
    let away = format!("http://{}", socket.local_addr().expect("it is bound"));
    let backends = vec![
        backend("here", exporter(&here.grpc_url(), "grpc", &[])),
        backend("away", exporter(&away, "grpc", &[])),
    ];
    let config = durable_for(backends, dir.path(), ROOM);
    let shim = Running::start(config.clone()).await;
    send(&shim, 0..20).await;
    here.received(1).await;
    eventually("the one that is here has all", || {
        all_marks(&here.deliveries()) == numbered(0..20)
    })
    .await;
    let (ended, counts) = shim.stop().await;
    ended.expect("what waits is on disk");
    assert_eq!((counts.delivered_spans, counts.queued_spans), (20, 20));

    let shim = Running::start(config).await;
    assert_eq!(shim.handle.counts().recovered_spans, 20);
    send(&shim, 20..25).await;
    let late = Backend::listen(socket, []);
    eventually("the other has all in order", || {
        all_marks(&late.deliveries()) == numbered(0..25)
    })
    .await;
    eventually("nothing waits", || shim.handle.counts().queued_spans == 0).await;
    assert_eq!(all_marks(&here.deliveries()), numbered(0..25));
}

#[tokio::test]
async fn the_bound_is_that_of_the_slowest_backend() {
    let (quick, held) = (Backend::start([]).await, Backend::held());
    let message = request("bulk", 10);
    let backends = [("quick", &quick), ("held", &held)]
        .map(|(name, one)| backend(name, exporter(&one.grpc_url(), "grpc", &[])))
        .to_vec();
    let destination = Destination::Backends {
        backends,
        queue_max_bytes: 5 * message.len(),
        waiting: Waiting::InMemory,
    };
    let shim = Running::start(Config {
        destination,
        max_request_bytes: 5 * message.len(),
        queue_wait: Duration::ZERO,
        ..Config::embedded()
    })
    .await;
    for sent in 1..=5 {
        assert_eq!(export(shim.grpc, &message).await.code(), Code::Ok);
        quick.received(sent).await;
    }
    let status = export(shim.grpc, &message).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    held.release();
    eventually("both have all", || {
        let counts = shim.handle.counts();
        counts.delivered_spans == 100 && counts.queued_spans == 0
    })
    .await;
    assert_eq!(export(shim.grpc, &message).await.code(), Code::Ok);
}
