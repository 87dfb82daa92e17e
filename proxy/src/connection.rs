//! A client's connection as pingora sees it: a TCP stream that collects small writes.
//!
//! pingora flushes each SSE event but leaves an answer that has a Content-Length in the write
//! buffer until it is complete. Its own stream would hold such an answer back when the upstream
//! sends it slowly; without any buffer, head and body of every small answer would cost a system
//! call and a packet each. Here the buffer is flushed whenever a read finds nothing to do: while
//! it waits for the upstream, pingora always also waits for the client.
//!
//! It also sees what becomes of requests that are never handed over ([`crate::refusal`]): their
//! beginning is kept until a request is taken from the connection.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Buf as _, Bytes};
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{ALPN, SslDigest};
use pingora::protocols::{
    Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::Failure;
use crate::http2::Watch;
use crate::refusal::{Ends, Refusals};
use crate::transport::Transport;

/// Holds the head and body of a short answer; larger writes pass by the buffer.
const WRITE_BUFFER_BYTES: usize = 2048;

/// How much of a request's head is kept until it is taken. What is longer is cut: it is there for the
/// span of a request that is refused.
const KEPT_HEAD_BYTES: usize = 1024;

/// What every answer of HTTP/1 begins with.
const ANSWER: &[u8] = b"HTTP/1.";

/// Whether a request has been taken from a connection. pingora hands it to each of the connection's
/// sessions.
#[derive(Debug)]
pub(crate) struct ConnectionPhase {
    now: AtomicU8,
    /// Counts the connection among those that have had no request, until it has one.
    newcomer: Mutex<Option<TaskTrackerToken>>,
}

const AWAITS_REQUEST: u8 = 0;
const IN_REQUEST: u8 = 1;
/// As [`AWAITS_REQUEST`], and what is kept is the head of the last request.
const REQUEST_OVER: u8 = 2;
/// No request comes any more: pingora closes a connection whose last request was answered before its body
/// was there.
const LAST_REQUEST_OVER: u8 = 3;

impl ConnectionPhase {
    /// Of the connection that a session belongs to.
    pub(crate) fn of(digest: Option<&Digest>) -> Option<&Self> {
        let user_data = digest?.proxy_digest.as_ref()?.user_data.as_ref()?;
        user_data.downcast_ref::<Arc<Self>>().map(Arc::as_ref)
    }

    /// A request has been handed over.
    pub(crate) fn request_taken(&self) {
        self.now.store(IN_REQUEST, Ordering::Relaxed);
        let mut newcomer = self.newcomer.lock().unwrap_or_else(PoisonError::into_inner);
        *newcomer = None;
    }

    /// What comes now is the next request, unless a rest of this one's body was to come.
    pub(crate) fn request_over(&self, body_is_read: bool) {
        let next = if body_is_read {
            REQUEST_OVER
        } else {
            LAST_REQUEST_OVER
        };
        self.now.store(next, Ordering::Relaxed);
    }
}

pub(crate) struct ClientConnection {
    stream: BufWriter<Transport>,
    socket: Arc<SocketDigest>,
    tls: Option<Arc<SslDigest>>,
    accepted: SystemTime,
    phase: Arc<ConnectionPhase>,
    digest: Arc<ProxyDigest>,
    refusals: Refusals,
    ends: Ends,
    /// What is refused within a connection of HTTP/2.
    http2: Option<Box<Watch>>,
    /// The beginning of a request that has not been taken.
    head: Vec<u8>,
    /// How long a head may take, and when the one that has begun must be there.
    header_timeout: Duration,
    head_deadline: Option<Pin<Box<Sleep>>>,
    /// Why no more of a head will come.
    no_more: Failure,
    /// What is left to write of the answer to a request that was refused. pingora's own is dropped.
    refusal: Option<Bytes>,
}

impl fmt::Debug for ClientConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientConnection").field(&self.ends).finish()
    }
}

impl ClientConnection {
    pub(crate) fn new(
        transport: Transport,
        ends: Ends,
        refusals: Refusals,
        header_timeout: Duration,
        newcomer: TaskTrackerToken,
    ) -> Self {
        let socket = SocketDigest::from_raw_fd(transport.as_raw_fd());
        let (peer, local) = (Some(ends.peer.into()), ends.local.map(Into::into));
        socket.peer_addr.set(peer).expect("the digest is new");
        socket.local_addr.set(local).expect("the digest is new");
        let phase = Arc::new(ConnectionPhase {
            now: AtomicU8::new(AWAITS_REQUEST),
            newcomer: Mutex::new(Some(newcomer)),
        });
        // The one place for data of ours that reaches every session of a connection. Its head has no headers.
        let response = Box::new(ResponseHeader::build(200, Some(0)).expect("a status"));
        let digest = ProxyDigest::new(response, Some(Box::new(Arc::clone(&phase))));
        Self {
            tls: transport.tls_digest().map(Arc::new),
            http2: transport.is_http2().then(|| Box::new(Watch::new())),
            stream: BufWriter::with_capacity(WRITE_BUFFER_BYTES, transport),
            socket: Arc::new(socket),
            accepted: SystemTime::now(),
            phase,
            digest: Arc::new(digest),
            refusals,
            ends,
            head: Vec::new(),
            header_timeout,
            head_deadline: None,
            no_more: Failure::Aborted,
            refusal: None,
        }
    }

    /// Whether what comes, or was kept, belongs to a request that nobody has taken.
    fn awaits_request(&mut self) -> bool {
        if self.http2.is_some() {
            // Its requests are refused within it.
            return false;
        }
        match self.phase.now.load(Ordering::Relaxed) {
            AWAITS_REQUEST => true,
            REQUEST_OVER => {
                self.head.clear();
                self.phase.now.store(AWAITS_REQUEST, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    /// Records what HTTP/2 has refused by these bytes, which were written.
    fn watch_written(&mut self, bytes: &[u8]) {
        if let Some(http2) = &mut self.http2 {
            let (refusals, ends) = (&self.refusals, self.ends);
            http2.written(bytes, &mut |status| refusals.record_http2(status, ends));
        }
    }

    /// Keeps what has been read of a request that may never be taken.
    fn keep_head(&mut self, read: &[u8]) {
        if self.refusal.is_some() || !self.awaits_request() {
            return;
        }
        if read.is_empty() {
            self.no_more = Failure::ClientDisconnected;
        } else {
            let room = KEPT_HEAD_BYTES - self.head.len();
            self.head.extend_from_slice(&read[..read.len().min(room)]);
        }
    }

    /// Whether the head that has begun was to be there by now. pingora bounds the wait for each of its
    /// bytes, which somebody may send one by one.
    fn poll_head_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let has_begun = self.awaits_request() && !self.head.is_empty();
        if !has_begun {
            self.head_deadline = None;
            return Poll::Pending;
        }
        let limit = self.header_timeout;
        let deadline = self
            .head_deadline
            .get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(deadline.as_mut().poll(cx));
        self.no_more = Failure::ClientTimeout;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether `bytes` are part of pingora's answer to a request that it refuses. The first time,
    /// ours is made.
    fn refuses(&mut self, bytes: &[u8]) -> bool {
        if self.refusal.is_none() && bytes.starts_with(ANSWER) && self.awaits_request() {
            let head = std::mem::take(&mut self.head);
            let answer = self
                .refusals
                .answer(Failure::InvalidRequest, self.ends, &head);
            self.refusal = Some(answer);
        }
        self.refusal.is_some()
    }

    /// Writes what is left of our own answer.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.refusal.as_mut().filter(|rest| rest.has_remaining()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            rest.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        let awaits = self.awaits_request();
        if awaits && !self.head.is_empty() {
            self.refusals.record(self.no_more, self.ends, &self.head);
        }
    }
}

impl AsyncRead for ClientConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.keep_head(&buf.filled()[filled..]);
            if let Some(http2) = &mut self.http2 {
                http2.read(&buf.filled()[filled..]);
            }
        }
        if read.is_pending() && !self.stream.buffer().is_empty() {
            // Nothing to read and nothing more to add: what is buffered must not wait.
            if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
        }
        if read.is_pending() {
            return self.poll_head_deadline(cx);
        }
        read
    }
}

impl AsyncWrite for ClientConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.refuses(buf) {
            return self.poll_refusal(cx).map_ok(|()| buf.len());
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.watch_written(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if bufs.first().is_some_and(|first| self.refuses(first)) {
            let bytes = bufs.iter().map(|buf| buf.len()).sum();
            return self.poll_refusal(cx).map_ok(|()| bytes);
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        let mut rest = written;
        for buf in bufs {
            let bytes = rest.min(buf.len());
            self.watch_written(&buf[..bytes]);
            rest -= bytes;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for ClientConnection {
    async fn shutdown(&mut self) {
        if let Err(error) = self.stream.shutdown().await {
            tracing::debug!(%error, "could not shut a client's connection down");
        }
    }
}

impl UniqueID for ClientConnection {
    fn id(&self) -> UniqueIDType {
        self.stream.get_ref().as_raw_fd()
    }
}

impl Ssl for ClientConnection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.tls.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        let is_http2 = self.stream.get_ref().is_http2();
        Some(if is_http2 { ALPN::H2 } else { ALPN::H1 })
    }
}

#[async_trait]
impl Peek for ClientConnection {
    /// The first bytes; zeros for those that did not come.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let first = self.stream.get_ref().first_bytes();
        let peeked = &first[..buf.len().min(first.len())];
        buf[..peeked.len()].copy_from_slice(peeked);
        Ok(true)
    }
}

impl GetTimingDigest for ClientConnection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.accepted,
            ..TimingDigest::default()
        })]
    }
}

impl GetProxyDigest for ClientConnection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl GetSocketDigest for ClientConnection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket))
    }
}
