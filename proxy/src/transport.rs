//! The bytes of a client's connection, encrypted or not, and the version of HTTP that they are.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pingora::protocols::tls::SslDigest;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a client says first that speaks HTTP/2 without being asked.
/// <https://www.rfc-editor.org/rfc/rfc9113.html#section-3.4>
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's connection of which it is known what is spoken on it.
#[derive(Debug)]
pub(crate) struct Transport {
    stream: Stream,
    is_http2: bool,
    first: First,
}

/// Boxed where it is large: most connections are plain.
#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// The first bytes of a connection, read to tell HTTP/2 from HTTP/1, and not yet taken.
#[derive(Debug, Default)]
struct First {
    bytes: [u8; HTTP2_PREFACE.len()],
    taken: usize,
    read: usize,
}

impl Transport {
    /// Comes to terms with the client: the TLS handshake if there is TLS, then its first bytes, which without TLS tell
    /// the version of HTTP. The caller bounds the time. `in_handshake` is true from the handshake's first byte to its end.
    pub(crate) async fn prepare(
        stream: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        in_handshake: &AtomicBool,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let mut transport = match tls {
            Some(config) => {
                // One that merely ends is a look at whether the port is open.
                if stream.peek(&mut [0]).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                in_handshake.store(true, Ordering::Relaxed);
                let encrypted = Self::encrypted(stream, config).await?;
                in_handshake.store(false, Ordering::Relaxed);
                encrypted
            }
            None => Self::plain(stream),
        };
        transport.read_first().await?;
        Ok(transport)
    }

    /// As [`Self::prepare`], within `limit`, for a client that is only answered. One that has not spoken by then is
    /// taken to speak HTTP/1, unless there is TLS.
    pub(crate) async fn reach(
        stream: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        limit: Duration,
    ) -> io::Result<Self> {
        if let Some(config) = tls {
            return timeout(limit, Self::encrypted(stream, config)).await?;
        }
        let mut transport = Self::plain(stream);
        if let Ok(read) = timeout(limit, transport.read_first()).await {
            read?;
        }
        Ok(transport)
    }

    fn plain(stream: TcpStream) -> Self {
        Self {
            is_http2: false,
            stream: Stream::Plain(stream),
            first: First::default(),
        }
    }

    async fn encrypted(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        Ok(Self {
            is_http2: stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            stream: Stream::Encrypted(Box::new(stream)),
            first: First::default(),
        })
    }

    /// Reads until what came is the preface of HTTP/2 or cannot become it. pingora would peek for all 24
    /// bytes, and wait for ever: a request of HTTP/1 may be shorter. In TLS it would wait for the first of them.
    async fn read_first(&mut self) -> io::Result<()> {
        let Self { stream, first, .. } = self;
        while first.read < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(first.rest()) {
            let room = &mut first.bytes[first.read..];
            let read = match stream {
                Stream::Plain(stream) => stream.read(room).await?,
                Stream::Encrypted(stream) => stream.read(room).await?,
            };
            match read {
                0 => break,
                count => first.read += count,
            }
        }
        // In TLS the handshake has decided.
        if let Stream::Plain(_) = stream {
            self.is_http2 = first.rest() == HTTP2_PREFACE;
        }
        Ok(())
    }

    pub(crate) fn is_http2(&self) -> bool {
        self.is_http2
    }

    /// What was read and not yet taken.
    pub(crate) fn first_bytes(&self) -> &[u8] {
        self.first.rest()
    }

    /// What was agreed on in the TLS handshake, if there was one.
    pub(crate) fn tls_digest(&self) -> Option<SslDigest> {
        let Stream::Encrypted(stream) = &self.stream else {
            return None;
        };
        let session = stream.get_ref().1;
        let suite = session.negotiated_cipher_suite();
        let cipher = suite.and_then(|suite| suite.suite().as_str());
        let version = session.protocol_version();
        let version = version.and_then(|version| version.as_str());
        let (cipher, version) = (cipher.unwrap_or_default(), version.unwrap_or_default());
        Some(SslDigest::new(cipher, version, None, None, Vec::new()))
    }
}

impl First {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..self.read]
    }
}

impl AsRawFd for Transport {
    fn as_raw_fd(&self) -> RawFd {
        match &self.stream {
            Stream::Plain(stream) => stream.as_raw_fd(),
            Stream::Encrypted(stream) => stream.get_ref().0.as_raw_fd(),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, first, .. } = self.get_mut();
        let rest = first.rest();
        if !rest.is_empty() {
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            first.taken += count;
            return Poll::Ready(Ok(()));
        }
        match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Encrypted(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
