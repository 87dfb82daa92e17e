//! The backend of a bench: takes OTLP by gRPC and HTTP on one port, counts the spans and forgets them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::spans::{Shallow, unframed};

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What has arrived, over all the times that a sink was stopped and started.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    spans: AtomicU64,
    /// How often each id came, where that is asked for.
    ids: Option<Mutex<HashMap<u64, u32>>>,
}

impl Arrived {
    /// Remembers the ids too, which costs.
    pub(crate) fn with_ids() -> Arrived {
        Arrived {
            ids: Some(Mutex::default()),
            ..Arrived::default()
        }
    }

    pub(crate) fn spans(&self) -> u64 {
        self.spans.load(Ordering::Relaxed)
    }

    /// How often each id came.
    pub(crate) fn ids(&self) -> HashMap<u64, u32> {
        let lock = |ids: &Mutex<HashMap<_, _>>| ids.lock().expect("no holder panics").clone();
        self.ids.as_ref().map(lock).unwrap_or_default()
    }

    /// Waits until `wanted` spans have come, or none has for as long as `quiet`.
    pub(crate) async fn wait_for(&self, wanted: u64, quiet: Duration) {
        let (mut last, mut since) = (self.spans(), Instant::now());
        while last < wanted && since.elapsed() < quiet {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = self.spans();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
    }

    fn count(&self, message: Bytes) -> Result<()> {
        let request = Shallow::decode(message)?;
        if let Some(ids) = &self.ids {
            let mut ids = ids.lock().expect("no holder panics");
            request
                .ids()
                .for_each(|id| *ids.entry(id).or_default() += 1);
        }
        self.spans.fetch_add(request.spans(), Ordering::Relaxed);
        Ok(())
    }
}

/// A sink that listens. Dropping it closes its port and its connections.
#[derive(Debug)]
pub(crate) struct Sink {
    accepting: JoinHandle<()>,
}

impl Sink {
    pub(crate) async fn start(address: SocketAddr, arrived: &Arc<Arrived>) -> Result<Sink> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("the sink cannot listen on {address}"))?;
        let accepting = tokio::spawn(accept(listener, Arc::clone(arrived)));
        Ok(Sink { accepting })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, arrived: Arc<Arrived>) {
    let mut connections = JoinSet::new();
    loop {
        // An accept that fails does so for want of descriptors, which the bench has raised.
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        let arrived = Arc::clone(&arrived);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&arrived)));
            let mut server = auto::Builder::new(TokioExecutor::new());
            server
                .http2()
                .initial_stream_window_size(4 * 1024 * 1024)
                .initial_connection_window_size(16 * 1024 * 1024);
            // The sender hangs up when it ends.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    arrived: Arc<Arrived>,
) -> Result<Response<Body>, Infallible> {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    Ok(match (take(request, is_grpc, &arrived).await, is_grpc) {
        (Ok(()), true) => grpc_success(),
        (Ok(()), false) => with_type("application/x-protobuf", StatusCode::OK),
        (Err(error), _) => {
            eprintln!("the sink was sent what it cannot read: {error:#}");
            with_type("text/plain", StatusCode::BAD_REQUEST)
        }
    })
}

async fn take(request: Request<Incoming>, is_grpc: bool, arrived: &Arrived) -> Result<()> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let (message, is_compressed) = if is_grpc {
        unframed(&body).context("a body shorter than a frame's header")?
    } else {
        let encoding = head.headers.get(header::CONTENT_ENCODING);
        (body, encoding.is_some_and(|encoding| encoding == "gzip"))
    };
    if !is_compressed {
        return arrived.count(message);
    }
    let mut plain = Vec::new();
    MultiGzDecoder::new(&message[..]).read_to_end(&mut plain)?;
    arrived.count(plain.into())
}

fn grpc_success() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn with_type(kind: &'static str, status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
