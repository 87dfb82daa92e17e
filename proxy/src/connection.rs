//! A client's connection as pingora sees it: plain or encrypted, HTTP/1 or HTTP/2, collecting small
//! writes.
//!
//! pingora flushes each SSE event but leaves an answer that has a Content-Length in the write
//! buffer until it is complete. Its own stream would hold such an answer back when the upstream
//! sends it slowly; without any buffer, head and body of every small answer would cost a system
//! call and a packet each. Here the buffer is flushed whenever a read finds nothing to do: while
//! it waits for the upstream, pingora always also waits for the client.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{ALPN, SslDigest};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::transport::Transport;

/// Holds the head and body of a short answer; larger writes pass by the buffer.
const WRITE_BUFFER_BYTES: usize = 2048;

/// What a client says first that speaks HTTP/2 without being asked.
/// <https://www.rfc-editor.org/rfc/rfc9113.html#section-3.4>
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug)]
pub(crate) struct ClientConnection {
    stream: BufWriter<Transport>,
    socket: Arc<SocketDigest>,
    tls: Option<Arc<SslDigest>>,
    accepted: SystemTime,
    first: First,
}

/// The first bytes of a connection, read to tell HTTP/2 from HTTP/1, and not yet taken by pingora.
#[derive(Debug, Default)]
struct First {
    bytes: [u8; HTTP2_PREFACE.len()],
    taken: usize,
    read: usize,
}

impl ClientConnection {
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = SocketDigest::from_raw_fd(stream.as_raw_fd());
        let local = stream.local_addr().ok().map(Into::into);
        socket
            .peer_addr
            .set(Some(peer.into()))
            .expect("the digest is new");
        socket.local_addr.set(local).expect("the digest is new");
        Ok(Self {
            stream: BufWriter::with_capacity(WRITE_BUFFER_BYTES, Transport::Plain(stream)),
            socket: Arc::new(socket),
            tls: None,
            accepted: SystemTime::now(),
            first: First::default(),
        })
    }

    /// Comes to terms with the client: the TLS handshake if there is TLS, else the version of HTTP, which
    /// its first bytes tell. The caller bounds the time.
    pub(crate) async fn prepare(self, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        match tls {
            Some(config) => self.encrypt(config).await,
            None => self.read_first_bytes().await,
        }
    }

    async fn encrypt(self, config: Arc<ServerConfig>) -> io::Result<Self> {
        let Transport::Plain(stream) = self.stream.into_inner() else {
            return Err(io::Error::other("the connection is encrypted already"));
        };
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let session = stream.get_ref().1;
        let suite = session.negotiated_cipher_suite();
        let cipher = suite.and_then(|suite| suite.suite().as_str());
        let version = session
            .protocol_version()
            .and_then(|version| version.as_str());
        let digest = SslDigest::new(
            cipher.unwrap_or_default(),
            version.unwrap_or_default(),
            None,
            None,
            Vec::new(),
        );
        let transport = Transport::Encrypted(Box::new(stream));
        Ok(Self {
            stream: BufWriter::with_capacity(WRITE_BUFFER_BYTES, transport),
            tls: Some(Arc::new(digest)),
            ..self
        })
    }

    /// Reads until what came is the preface of HTTP/2 or cannot become it. pingora would peek for all 24
    /// bytes, and wait for ever: a request of HTTP/1 may be shorter.
    async fn read_first_bytes(mut self) -> io::Result<Self> {
        let first = &mut self.first;
        while first.read < first.bytes.len()
            && HTTP2_PREFACE.starts_with(&first.bytes[..first.read])
        {
            match self.stream.read(&mut first.bytes[first.read..]).await? {
                0 => break,
                count => first.read += count,
            }
        }
        Ok(self)
    }
}

impl AsyncRead for ClientConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.first.taken < this.first.read {
            let rest = &this.first.bytes[this.first.taken..this.first.read];
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            this.first.taken += count;
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_pending() && !this.stream.buffer().is_empty() {
            // Nothing to read and nothing more to add: what is buffered must not wait.
            if let Poll::Ready(Err(error)) = Pin::new(&mut this.stream).poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
        match self.stream.get_ref().application_protocol()? {
            b"h2" => Some(ALPN::H2),
            _ => Some(ALPN::H1),
        }
    }
}

#[async_trait]
impl Peek for ClientConnection {
    /// The first bytes; zeros for those that did not come.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let peeked = &self.first.bytes[..buf.len().min(self.first.read)];
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
        None
    }
}

impl GetSocketDigest for ClientConnection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket))
    }
}
