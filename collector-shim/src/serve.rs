//! Serving HTTP on a listener: bounded connections, header timeouts, graceful shutdown. All three
//! ports are served by it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections served at once on one port; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
/// Requests served at once on one HTTP/2 connection.
const MAX_CONCURRENT_STREAMS: u32 = 128;
/// How long a client may take over a request's headers.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
const MAX_HTTP1_BUFFER_BYTES: usize = 64 * 1024;
/// An HTTP/2 connection that says nothing is pinged, and closed when no answer comes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(20);
/// After a failure to accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/2 alone, as gRPC asks.
    Http2,
    /// HTTP/1.1, or HTTP/2 with prior knowledge.
    Any,
}

/// Serves `listener` until `stop`, then lets what is being served finish, for `grace` at most.
pub(crate) async fn serve<S, B>(
    listener: TcpListener,
    version: Version,
    service: S,
    stop: CancellationToken,
    grace: Duration,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let builder = builder(version);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some((stream, place)) = accept(&listener, &places, &stop).await {
        let connection = builder.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection.into_owned());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "connection ended badly");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(?grace, "connections were still busy at shutdown");
    }
}

/// The next connection with its place; none once told to stop.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let accepting = async {
        let place = Arc::clone(places)
            .acquire_owned()
            .await
            .expect("it is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => break (stream, place),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    let (stream, place) = stop.run_until_cancelled(accepting).await?;
    // Answers are small and awaited; without it each could wait for the client's delayed ACK.
    let _ = stream.set_nodelay(true);
    Some((stream, place))
}

fn builder(version: Version) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(MAX_HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_LIMIT);
    match version {
        Version::Http2 => builder.http2_only(),
        Version::Any => builder,
    }
}
