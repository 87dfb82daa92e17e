//! Serving HTTP on a listener: bounded in connections, header bytes and time, and drained at the end.
//!
//! Our own and not `axum::serve`, which bounds neither connections nor the drain. Before hyper sees a
//! connection, its first bytes have come: hyper's own limit for a request's head starts only once it
//! knows the version of HTTP, so that a connection that says nothing would keep its place for good.
//! Where a port speaks TLS (`tls`), its handshake counts as those bytes.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io::{self, Cursor};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::LimitedLog;
pub use tls::{Tls, TlsFiles};

mod tls;

/// Pause after a failed accept: the usual reason, no free file descriptor, passes with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a client of HTTP/2 opens with (RFC 9113 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An HTTP/2 connection that says nothing is pinged, and closed when no answer comes.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(20);
/// What may come on an HTTP/2 connection before it is read: several large requests at once, each in
/// one frame where the client makes use of it. A body in one piece need not be put together.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const FRAME_BYTES: u32 = 512 * 1024;

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/2 alone, as gRPC asks.
    Http2,
    /// HTTP/1.1, or HTTP/2 with prior knowledge.
    Any,
}

/// What clients of one port may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones wait in the system's queue.
    pub connections: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// From accepting a connection to its first bytes, the handshake of TLS included.
    pub first_bytes: Duration,
    /// For the head of an HTTP/1 request, the silence before it on a kept connection included.
    pub head: Duration,
    /// A request's head, in bytes.
    pub header_bytes: u32,
}

/// When and how serving ends.
#[derive(Debug, Clone)]
pub struct Lifetime {
    /// Told to stop: no new connections or requests, those in flight go on.
    pub shutdown: CancellationToken,
    /// Cancelled here when the grace is over: what is in flight then is dropped.
    pub abandoned: CancellationToken,
    /// How long requests in flight may go on.
    pub drain_grace: Duration,
}

/// Where connections come in, and whether they are encrypted.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Speaks `tls` on `tcp`, or plain HTTP where there is none.
    pub fn new(tcp: TcpListener, tls: Option<Arc<Tls>>) -> Listener {
        Listener { tcp, tls }
    }
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Listener {
        Listener::new(tcp, None)
    }
}

/// Serves until told to stop. When this returns, every request has ended or been dropped.
pub async fn serve<S, B>(
    listener: impl Into<Listener>,
    version: Version,
    service: S,
    limits: Limits,
    lifetime: Lifetime,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let tracker = TaskTracker::new();
    let builder = builder(version, limits, &tracker, &lifetime);
    let Listener { tcp, tls } = listener.into();
    let mut acceptor = Acceptor {
        listener: tcp,
        places: Arc::new(Semaphore::new(limits.connections)),
        failures: LimitedLog::default(),
    };
    while let Some((socket, place)) = lifetime
        .shutdown
        .run_until_cancelled(acceptor.accept())
        .await
    {
        let (builder, service, lifetime) = (builder.clone(), service.clone(), lifetime.clone());
        let tls = tls.clone();
        tracker.spawn(async move {
            let opening = open(socket, tls.as_deref(), version);
            let opening = tokio::time::timeout(limits.first_bytes, opening);
            // Nothing is in flight yet, so that a stop need not wait for it.
            let opened = lifetime.shutdown.run_until_cancelled(opening).await;
            match opened.map(|in_time| in_time.unwrap_or_else(|late| Err(late.into()))) {
                Some(Ok(Opened::Plain(first, socket))) => {
                    let (reader, writer) = socket.into_split();
                    let socket = replay(first, reader, writer);
                    connection(&builder, socket, service, &lifetime).await;
                }
                Some(Ok(Opened::Encrypted(first, socket))) => {
                    let (reader, writer) = tokio::io::split(socket);
                    let socket = replay(first, reader, writer);
                    connection(&builder, socket, service, &lifetime).await;
                }
                Some(Err(error)) => tracing::debug!(%error, "a connection did not begin"),
                None => {}
            }
            drop(place);
        });
    }
    drop(acceptor);
    drain(&tracker, &lifetime).await;
}

/// Waits for requests in flight, then drops those that outlast the grace.
async fn drain(tracker: &TaskTracker, lifetime: &Lifetime) {
    tracker.close();
    let ended = tokio::time::timeout(lifetime.drain_grace, tracker.wait());
    if ended.await.is_err() {
        tracing::warn!(
            connections = tracker.len(),
            "requests are dropped: the grace is over"
        );
    }
    lifetime.abandoned.cancel();
    tracker.wait().await;
}

struct Acceptor {
    listener: TcpListener,
    places: Arc<Semaphore>,
    /// Without descriptors there are ten a second.
    failures: LimitedLog,
}

impl Acceptor {
    /// The next connection, once there is a place for it.
    async fn accept(&mut self) -> (TcpStream, OwnedSemaphorePermit) {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .expect("it is never closed");
        loop {
            match self.listener.accept().await {
                Ok((socket, _)) => return (socket, place),
                Err(error) => {
                    if let Some(failures) = self.failures.due(1) {
                        tracing::warn!(%error, failures, "connections cannot be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A connection with its first bytes.
enum Opened {
    Plain(Bytes, TcpStream),
    Encrypted(Bytes, Box<TlsStream<TcpStream>>),
}

async fn open(mut socket: TcpStream, tls: Option<&Tls>, version: Version) -> io::Result<Opened> {
    // Answers are small and awaited; without it each could wait for the client's delayed ACK.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    match tls {
        None => {
            let first = first_bytes(&mut socket, version).await?;
            Ok(Opened::Plain(first, socket))
        }
        Some(tls) => {
            let mut socket = Box::new(tls.acceptor().accept(socket).await?);
            let first = first_bytes(&mut socket, version).await?;
            Ok(Opened::Encrypted(first, socket))
        }
    }
}

/// What tells HTTP/2 from HTTP/1: the whole preface, or a byte that differs from it.
async fn first_bytes(socket: &mut (impl AsyncRead + Unpin), version: Version) -> io::Result<Bytes> {
    let mut first = BytesMut::with_capacity(HTTP2_PREFACE.len());
    while first.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&first) {
        let left = (HTTP2_PREFACE.len() - first.len()) as u64;
        if (&mut *socket).take(left).read_buf(&mut first).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
    if version == Version::Http2 && first != HTTP2_PREFACE {
        return Err(io::Error::other("no HTTP/2 where nothing else is spoken"));
    }
    Ok(first.freeze())
}

/// A socket's halves with the bytes already read from it put back.
fn replay(
    first: Bytes,
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
) -> impl AsyncRead + AsyncWrite + Unpin {
    tokio::io::join(Cursor::new(first).chain(reader), writer)
}

async fn connection<S, B>(
    builder: &Builder<Tracked>,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S,
    lifetime: &Lifetime,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        biased;
        () = lifetime.abandoned.cancelled() => return,
        () = lifetime.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            lifetime.abandoned.run_until_cancelled(connection).await
        }
        ended = connection.as_mut() => Some(ended),
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(error, "a connection ended early");
    }
}

fn builder(
    version: Version,
    limits: Limits,
    tracker: &TaskTracker,
    lifetime: &Lifetime,
) -> Builder<Tracked> {
    let mut builder = Builder::new(Tracked {
        tracker: tracker.clone(),
        abandoned: lifetime.abandoned.clone(),
    });
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.header_bytes as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT);
    match version {
        Version::Http2 => builder.http2_only(),
        Version::Any => builder,
    }
}

/// Runs the tasks of HTTP/2 connections so that the drain waits for them and can end them.
#[derive(Debug, Clone)]
struct Tracked {
    tracker: TaskTracker,
    abandoned: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let abandoned = self.abandoned.clone();
        self.tracker
            .spawn(abandoned.run_until_cancelled_owned(task));
    }
}

#[cfg(test)]
mod tests;
