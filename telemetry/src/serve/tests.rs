//! Silent, slow and endless clients over real sockets. Whoever should wait forever has an hour.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);
/// Far beyond what any wait here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

const LIMITS: Limits = Limits {
    connections: 16,
    streams: 16,
    first_bytes: HOUR,
    head: HOUR,
    header_bytes: 16 * 1024,
};

/// A server of answers that say `ok`, but for `/endless`, which none comes to.
struct Running {
    address: SocketAddr,
    lifetime: Lifetime,
    /// One for each request that came.
    requests: mpsc::UnboundedReceiver<()>,
    task: JoinHandle<()>,
}

async fn start(version: Version, limits: Limits, drain_grace: Duration) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let lifetime = Lifetime {
        shutdown: CancellationToken::new(),
        abandoned: CancellationToken::new(),
        drain_grace,
    };
    let (came, requests) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let came = came.clone();
        async move {
            let _ = came.send(());
            if request.uri().path() == "/endless" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    });
    let task = tokio::spawn(serve(listener, version, service, limits, lifetime.clone()));
    Running {
        address,
        lifetime,
        requests,
        task,
    }
}

async fn in_time<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("never happened: {what}"))
}

fn get(
    address: SocketAddr,
    path: &str,
    http2: bool,
) -> impl Future<Output = Result<Bytes, Box<dyn Error + Send + Sync>>> + Send + 'static {
    let mut builder = Client::builder(TokioExecutor::new());
    let client = builder.http2_only(http2).build_http::<Full<Bytes>>();
    let uri = format!("http://{address}{path}");
    async move {
        let response = client.get(uri.parse()?).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }
}

#[tokio::test]
async fn clients_that_never_say_what_they_speak_lose_their_place() {
    let limits = Limits {
        connections: 1,
        first_bytes: Duration::from_millis(20),
        ..LIMITS
    };
    for (version, http2) in [(Version::Any, false), (Version::Http2, true)] {
        let server = start(version, limits, HOUR).await;
        for said in [&b""[..], b"PRI * HTTP"] {
            let mut silent = TcpStream::connect(server.address).await.expect("accepted");
            silent.write_all(said).await.expect("sent");
            let answer = in_time("the next has its turn", get(server.address, "/", http2)).await;
            assert_eq!(answer.expect("an answer"), "ok", "{version:?} {said:?}");
            drop(silent);
        }
    }
}

#[tokio::test]
async fn a_request_in_single_bytes_is_read_whatever_it_is_first_mistaken_for() {
    let server = start(Version::Any, LIMITS, HOUR).await;
    let mut socket = TcpStream::connect(server.address).await.expect("accepted");
    socket.set_nodelay(true).expect("it is connected");
    // PROPFIND begins as HTTP/2's preface does.
    for byte in b"PROPFIND / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" {
        socket.write_all(&[*byte]).await.expect("sent");
    }
    let mut answer = String::new();
    let reading = socket.read_to_string(&mut answer);
    in_time("an answer", reading).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn both_versions_are_spoken_where_any_is() {
    let server = start(Version::Any, LIMITS, HOUR).await;
    for http2 in [false, true] {
        let answer = get(server.address, "/", http2).await;
        assert_eq!(answer.expect("an answer"), "ok");
    }
}

#[tokio::test]
async fn connections_without_a_request_do_not_delay_a_stop() {
    for said in [&b""[..], b"PRI"] {
        let server = start(Version::Any, LIMITS, HOUR).await;
        let mut silent = TcpStream::connect(server.address).await.expect("accepted");
        silent.write_all(said).await.expect("sent");
        // Accepted in order: when this one is answered, the silent one is being served.
        get(server.address, "/", false).await.expect("an answer");
        server.lifetime.shutdown.cancel();
        in_time("it stops", server.task).await.expect("no panic");
    }
}

#[tokio::test]
async fn requests_in_flight_are_dropped_when_the_grace_is_over() {
    for http2 in [false, true] {
        let mut server = start(Version::Any, LIMITS, Duration::from_millis(20)).await;
        let asking = tokio::spawn(get(server.address, "/endless", http2));
        in_time("it is asked", server.requests.recv()).await;
        server.lifetime.shutdown.cancel();
        in_time("it stops", server.task).await.expect("no panic");
        assert!(server.lifetime.abandoned.is_cancelled());
        let answer = in_time("the client is told", asking).await;
        assert!(answer.expect("no panic").is_err());
    }
}
