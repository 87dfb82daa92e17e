//! Senders of OTLP by gRPC: as fast as they are answered, or at a pace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// How long a sender waits when it was refused, as an SDK would, though not as long.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);
/// A request that is not answered by then counts as refused.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connection to whoever takes OTLP by gRPC.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    is_gzip: bool,
}

impl Connection {
    /// `is_gzip`: frames will be compressed.
    pub(crate) async fn open(address: SocketAddr, is_gzip: bool) -> Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // It ends with the connection, and what was sent on it fails by itself.
        tokio::spawn(driver);
        Ok(Connection {
            sender,
            address,
            is_gzip,
        })
    }

    /// Sends one framed request; whether it was accepted. An error is a broken connection.
    pub(crate) async fn export(&mut self, frame: Bytes) -> Result<bool> {
        let answer = tokio::time::timeout(ANSWER_LIMIT, self.send(frame));
        answer.await.unwrap_or(Ok(false))
    }

    async fn send(&mut self, frame: Bytes) -> Result<bool> {
        let mut request = Request::post(format!("http://{}{EXPORT}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if self.is_gzip {
            request = request.header("grpc-encoding", "gzip");
        }
        self.sender.ready().await?;
        let request = request.body(Full::new(frame))?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        let is_ok =
            |headers: &HeaderMap| headers.get("grpc-status").is_some_and(|code| code == "0");
        Ok(is_ok(&head.headers) || body.trailers().is_some_and(is_ok))
    }
}

/// What is sent again and again.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) frame: Bytes,
    pub(crate) is_gzip: bool,
    pub(crate) spans_per_request: u64,
    pub(crate) connections: usize,
    /// Requests at once on one connection.
    pub(crate) in_flight: usize,
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) accepted_spans: AtomicU64,
    pub(crate) refused_spans: AtomicU64,
}

impl Sent {
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted_spans.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused_spans.load(Ordering::Relaxed)
    }
}

impl Load {
    /// Sends for `duration`, each place in flight waiting for its answer and no longer; and, where
    /// `spans_per_second` is given, at most so many.
    pub(crate) async fn run(
        &self,
        to: SocketAddr,
        duration: Duration,
        spans_per_second: Option<u64>,
    ) -> Result<Arc<Sent>> {
        let sent: Arc<Sent> = Arc::default();
        let until = Instant::now() + duration;
        let places = (self.connections * self.in_flight) as u64;
        let pause = spans_per_second.map(|rate| {
            Duration::from_secs(1).mul_f64((self.spans_per_request * places) as f64 / rate as f64)
        });
        let mut senders = JoinSet::new();
        for _ in 0..self.connections {
            let connection = Connection::open(to, self.is_gzip).await?;
            for _ in 0..self.in_flight {
                let sender = self.clone().sender(connection.clone(), Arc::clone(&sent));
                senders.spawn(async move { sender.until(until, pause).await });
            }
        }
        while let Some(ended) = senders.join_next().await {
            ended??;
        }
        Ok(sent)
    }

    fn sender(self, connection: Connection, sent: Arc<Sent>) -> Sender {
        Sender {
            load: self,
            connection,
            sent,
        }
    }
}

struct Sender {
    load: Load,
    connection: Connection,
    sent: Arc<Sent>,
}

impl Sender {
    async fn until(mut self, until: Instant, pause: Option<Duration>) -> Result<()> {
        let mut turns = pause.map(tokio::time::interval);
        if let Some(turns) = &mut turns {
            turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
        }
        while Instant::now() < until {
            if let Some(turns) = &mut turns {
                turns.tick().await;
            }
            let spans = self.load.spans_per_request;
            if self.connection.export(self.load.frame.clone()).await? {
                self.sent.accepted_spans.fetch_add(spans, Ordering::Relaxed);
            } else {
                self.sent.refused_spans.fetch_add(spans, Ordering::Relaxed);
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::free_address;
    use crate::shim::gzip;
    use crate::sink::{Arrived, Sink};
    use crate::spans;

    async fn check(is_gzip: bool) {
        let plain = spans::request(1, 8, 200);
        let message = if is_gzip {
            gzip(&plain).expect("memory takes all")
        } else {
            plain
        };
        let load = Load {
            frame: spans::framed(&message, is_gzip),
            is_gzip,
            spans_per_request: 8,
            connections: 2,
            in_flight: 2,
        };
        let (to, arrived) = (
            free_address().await.expect("a port"),
            Arc::new(Arrived::with_ids()),
        );
        let _sink = Sink::start(to, &arrived).await.expect("it listens");
        let sent = load
            .run(to, Duration::from_millis(50), None)
            .await
            .expect("it is answered");
        assert!(sent.accepted() >= 4 * 8);
        assert_eq!((arrived.spans(), sent.refused()), (sent.accepted(), 0));
        let mut ids: Vec<_> = arrived.ids().into_keys().collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(1..=8));
    }

    #[tokio::test]
    async fn what_the_sink_counts_is_what_was_accepted() {
        check(false).await;
        check(true).await;
    }

    #[tokio::test]
    async fn a_sink_that_is_gone_is_an_error() {
        let to = free_address().await.expect("a port");
        let arrived: Arc<Arrived> = Arc::default();
        let sink = Sink::start(to, &arrived).await.expect("it listens");
        let mut connection = Connection::open(to, false).await.expect("it listens");
        drop(sink);
        let request = spans::framed(&spans::request(1, 1, 100), false);
        let fails = async { while connection.export(request.clone()).await.is_ok() {} };
        let failed = tokio::time::timeout(Duration::from_secs(60), fails).await;
        failed.expect("the connection is closed");
    }
}
