//! A proxy under test, the spans it ends, and the two sides it stands between.

mod client;
mod echo;
mod peer;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use lantern_proxy::{Config, Proxy};
use lantern_telemetry::{Settings, Telemetry};
use opentelemetry::trace::SpanKind;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use client::Client;
pub(crate) use echo::Echo;
pub(crate) use peer::{Peer, RawUpstream, Response};

/// Past this, a condition that a test waits for is taken not to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The result of `future`, which must come.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// A request's lines as bytes of HTTP/1.
pub(crate) fn request(lines: &[&str], body: &str) -> String {
    format!("{}\r\n\r\n{body}", lines.join("\r\n"))
}

/// Ended spans, in the order in which they ended.
pub(crate) struct Spans {
    requests: mpsc::UnboundedReceiver<SpanData>,
    attempts: mpsc::UnboundedReceiver<SpanData>,
}

#[derive(Debug)]
struct Forward {
    requests: mpsc::UnboundedSender<SpanData>,
    attempts: mpsc::UnboundedSender<SpanData>,
}

impl SpanExporter for Forward {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        for span in batch {
            let to = match span.span_kind {
                SpanKind::Client => &self.attempts,
                _ => &self.requests,
            };
            // A test that does not look at its spans has dropped the other end.
            let _ = to.send(span);
        }
        Ok(())
    }
}

impl Spans {
    pub(crate) fn new() -> (Telemetry, Self) {
        Self::of(|exporter| Telemetry::with_exporter(exporter, "proxy-under-test"))
    }

    /// Sampled as `settings` say.
    pub(crate) fn sampled(settings: &Settings) -> (Telemetry, Self) {
        Self::of(|exporter| {
            Telemetry::with_exporter_sampled(exporter, "proxy-under-test", settings)
        })
    }

    fn of(telemetry: impl FnOnce(Forward) -> Telemetry) -> (Telemetry, Self) {
        let (requests, requests_ended) = mpsc::unbounded_channel();
        let (attempts, attempts_ended) = mpsc::unbounded_channel();
        let exporter = Forward { requests, attempts };
        (
            telemetry(exporter),
            Self {
                requests: requests_ended,
                attempts: attempts_ended,
            },
        )
    }

    /// The SERVER span of the next request.
    pub(crate) async fn next(&mut self) -> SpanData {
        within("a span", self.requests.recv())
            .await
            .expect("the exporter is still there")
    }

    /// The CLIENT spans that have ended: a request's attempts end before it.
    pub(crate) fn attempts(&mut self) -> Vec<SpanData> {
        std::iter::from_fn(|| self.attempts.try_recv().ok()).collect()
    }

    /// Whether no request has ended whose span was not yet taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

/// The value of an attribute as text; `None` when the span has none.
pub(crate) fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let values: Vec<_> = span
        .attributes
        .iter()
        .filter(|kv| kv.key.as_str() == key)
        .map(|kv| kv.value.to_string())
        .collect();
    assert!(values.len() <= 1, "{key} is set {} times", values.len());
    values.into_iter().next()
}

/// A proxy that serves on a free port until it is stopped.
pub(crate) struct TestProxy {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) spans: Spans,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), lantern_proxy::Error>>,
    telemetry: Telemetry,
}

impl TestProxy {
    pub(crate) async fn in_front_of(upstream: SocketAddr) -> Self {
        Self::with(config(upstream)).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let (telemetry, spans) = Spans::new();
        Self::traced_by(config, telemetry, spans).await
    }

    pub(crate) async fn traced_by(config: Config, telemetry: Telemetry, spans: Spans) -> Self {
        let proxy = Proxy::bind(config, &telemetry).await.expect("a free port");
        let address = proxy.local_addr();
        let metrics = proxy.metrics_addr();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(proxy.run(shutdown.clone()));
        Self {
            address,
            metrics,
            spans,
            shutdown,
            serving,
            telemetry,
        }
    }

    pub(crate) async fn connect(&self) -> Peer {
        Peer::connect(self.address).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(&self, request: &str) -> Response {
        let mut client = self.connect().await;
        client.write(request).await;
        client.read_response().await
    }

    /// Tells the proxy to stop, without waiting.
    pub(crate) fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Waits until the proxy has stopped; its spans.
    pub(crate) async fn stopped(self) -> Spans {
        self.stop().await.1
    }

    /// Waits until the proxy has stopped, and until its telemetry has gone out.
    pub(crate) async fn exported(self) {
        let (telemetry, _) = self.stop().await;
        let shutdown = telemetry.shutdown(PATIENCE).await;
        shutdown.expect("nothing is lost");
    }

    async fn stop(self) -> (Telemetry, Spans) {
        self.shutdown.cancel();
        let served = within("the proxy's end", self.serving).await;
        served.expect("no panic").expect("a clean end");
        (self.telemetry, self.spans)
    }
}

/// Waits until the proxy at `address`, told to stop, takes no more connections.
pub(crate) async fn refuses_connections(address: SocketAddr) {
    let refused = async {
        loop {
            match tokio::net::TcpStream::connect(address).await {
                // It came before the listener was gone. Nothing is waited for: a handshake that the kernel
                // finishes while the listener closes leaves a client that is told so when it writes, and not before.
                Ok(late) => drop(late),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => return error,
            }
            tokio::task::yield_now().await;
        }
    };
    let error = within("the end of the listener", refused).await;
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

/// The configuration of a proxy on a free port.
pub(crate) fn config(upstream: SocketAddr) -> Config {
    Config::new(SocketAddr::from(([127, 0, 0, 1], 0)), upstream)
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    listener.local_addr().expect("a bound listener")
}
