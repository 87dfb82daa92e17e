//! `lantern-shim` killed under load, and on a disk that takes no more: what it acknowledged
//! arrives.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rand::RngExt as _;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::support::backend::{Backend, reserve, reserve_at};
use crate::support::client::PROTOBUF;
use crate::support::process::Process;
use crate::support::spans::{marks, request};
use crate::support::{eventually, exporter};

const ROUNDS: usize = 6;
const CLIENTS: usize = 8;
/// Acknowledged in a round before the kill, at least and at most.
const REQUESTS: std::ops::Range<usize> = 30..400;

/// A backend that comes and goes, and what it has seen while it was there. Its port is its own meanwhile: who else
/// took it would take what is sent to it.
struct Sink {
    address: SocketAddr,
    /// While it is away.
    socket: Option<TcpSocket>,
    seen: Vec<Backend>,
}

impl Sink {
    fn reserved() -> Sink {
        let socket = reserve();
        let address = socket.local_addr().expect("it is bound");
        Sink {
            address,
            socket: Some(socket),
            seen: Vec::new(),
        }
    }

    fn start(&mut self) {
        let socket = self.socket.take().expect("it is away");
        self.seen.push(Backend::listen(socket, []));
    }

    async fn stop(&mut self) {
        self.seen.iter().for_each(Backend::stop);
        eventually("the sink's port is free again", || {
            self.socket = reserve_at(self.address).ok();
            self.socket.is_some()
        })
        .await;
    }

    fn url(&self) -> String {
        format!("http://{}/v1/traces", self.address)
    }

    /// Every span's mark, as often as it came.
    fn marks(&self) -> Vec<String> {
        let deliveries = self.seen.iter().flat_map(Backend::deliveries);
        deliveries
            .flat_map(|delivery| marks(&delivery.message))
            .collect()
    }

    async fn has_all(&self, acknowledged: &Mutex<Vec<String>>) {
        let acknowledged = acknowledged.lock().expect("no panic").clone();
        let mut missing = acknowledged.len();
        eventually("every acknowledged span has arrived", || {
            let seen: HashSet<String> = self.marks().into_iter().collect();
            missing = acknowledged
                .iter()
                .filter(|mark| !seen.contains(*mark))
                .count();
            missing == 0
        })
        .await;
    }
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// The status, if an answer came.
async fn post(client: &Http, address: SocketAddr, body: Bytes) -> Option<StatusCode> {
    let request = Request::post(format!("http://{address}/v1/traces"))
        .header("content-type", PROTOBUF)
        .body(Full::new(body))
        .expect("a request");
    let response = client.request(request).await.ok()?;
    Some(response.status())
}

/// Sends from several clients at once until dropped; what was acknowledged goes to `acknowledged`.
fn load(address: SocketAddr, round: usize, acknowledged: &Arc<Mutex<Vec<String>>>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let acknowledged = Arc::clone(acknowledged);
        clients.spawn(async move {
            let client = Client::builder(TokioExecutor::new()).build_http();
            for at in 0.. {
                let mark = format!("{round}-{number}-{at}");
                let body = request(&mark, 3);
                match post(&client, address, body).await {
                    Some(StatusCode::OK) => acknowledged.lock().expect("no panic").push(mark),
                    Some(status) => panic!("refused with {status}"),
                    // It was killed.
                    None => return,
                }
            }
        });
    }
    clients
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_missing_after_kills_under_load() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sink = Sink::reserved();
    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut said = Vec::new();
    for round in 0..ROUNDS {
        let shim = Process::start(dir.path(), &sink.url(), "");
        let mut clients = load(shim.http, round, &acknowledged);
        let until = |more: usize| {
            let acknowledged = Arc::clone(&acknowledged);
            let target = acknowledged.lock().expect("no panic").len() + more;
            async move {
                eventually("requests are acknowledged", || {
                    acknowledged.lock().expect("no panic").len() >= target
                })
                .await;
            }
        };
        // The sink changes its state in the middle of each round: it is away at every other kill.
        until(rand::rng().random_range(REQUESTS)).await;
        if round % 2 == 0 {
            sink.start();
        } else {
            sink.stop().await;
        }
        until(rand::rng().random_range(REQUESTS)).await;
        said.extend(shim.kill());
        while let Some(client) = clients.join_next().await {
            client.expect("nothing was refused");
        }
    }
    sink.start();
    let shim = Process::start(dir.path(), &sink.url(), "");
    sink.has_all(&acknowledged).await;
    said.extend(shim.kill());
    let recovered = said
        .iter()
        .filter(|line| line.contains("of an earlier run"))
        .count();
    assert!(recovered >= ROUNDS / 2, "{said:#?}");
    assert!(
        !said.iter().any(|line| line.contains("damaged")),
        "{said:#?}"
    );
    let mut times: HashMap<String, usize> = HashMap::new();
    for mark in sink.marks() {
        *times.entry(mark).or_default() += 1;
    }
    let in_parts = times.iter().find(|(_, times)| *times % 3 != 0);
    assert_eq!(in_parts, None, "requests arrive whole, however often");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cuts_writes_short_refuses_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sink = Sink::reserved();
    // No file can grow beyond 32 KiB, so that writes fail half way through.
    let shim = Process::start(dir.path(), &sink.url(), "trap '' XFSZ; ulimit -f 64");
    let client = Client::builder(TokioExecutor::new()).build_http();
    let acknowledged = Mutex::new(Vec::new());
    let mut refused = 0;
    for at in 0..400 {
        let mark = at.to_string();
        match post(&client, shim.http, request(&mark, 3)).await {
            Some(StatusCode::OK) => acknowledged.lock().expect("no panic").push(mark),
            Some(StatusCode::SERVICE_UNAVAILABLE) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    let taken = acknowledged.lock().expect("no panic").len();
    assert!(
        refused > 0 && taken > 200,
        "{refused} refused, {taken} taken"
    );
    shim.kill();
    sink.start();
    let shim = Process::start(dir.path(), &sink.url(), "");
    sink.has_all(&acknowledged).await;
    let said = shim.kill();
    assert!(
        !said.iter().any(|line| line.contains("damaged")),
        "{said:#?}"
    );
}

#[tokio::test]
async fn two_shims_cannot_have_one_queue() {
    let dir = tempfile::tempdir().expect("a directory");
    let sink = Sink::reserved();
    let first = Process::start(dir.path(), &sink.url(), "");
    let exporter = exporter(&sink.url(), "http/protobuf", &[]);
    let config = crate::support::durable(exporter, dir.path(), 1024 * 1024);
    let Err(error) = lantern_shim::Shim::bind(config).await else {
        panic!("the directory is in use");
    };
    let expect = format!(
        "--queue-dir {}: another shim is using it",
        dir.path().display()
    );
    assert_eq!(error.to_string(), expect);
    first.kill();
}
