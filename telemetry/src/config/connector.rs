//! Connections to an OTLP endpoint, the same for every exporter: straight, or through the proxy that
//! the environment names.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Uri, header};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::codegen::Service;

use super::{ExporterSettings, Protocol};

/// The longest that one attempt to connect may take, and then again to get through a proxy.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connects to one endpoint, with TLS where that is asked for.
pub type Connector = HttpsConnector<Route>;

impl ExporterSettings {
    /// Connects to the endpoint: with TLS where it says https, and with HTTP/2 alone for gRPC.
    pub fn connector(&self) -> Connector {
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(self.rustls_config())
            .https_or_http();
        match self.protocol {
            Protocol::Grpc => builder.enable_http2().wrap_connector(self.route()),
            Protocol::HttpProtobuf | Protocol::HttpJson => builder
                .enable_http1()
                .enable_http2()
                .wrap_connector(self.route()),
        }
    }

    /// The headers of every request: those that were asked for, and what the proxy wants to see of
    /// requests that it reads.
    pub fn request_headers(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        if let Some(Hop::Forwarder { authorization, .. }) = self.hop() {
            headers.extend(authorization.map(|value| (header::PROXY_AUTHORIZATION, value)));
        }
        headers
    }

    pub(super) fn route(&self) -> Route {
        let mut tcp = HttpConnector::new_with_resolver(match self.connect_to {
            Some(address) => Resolver::Fixed(address),
            None => Resolver::System(GaiResolver::new()),
        });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        let to_proxy = HttpsConnectorBuilder::new()
            .with_tls_config(self.anonymous_rustls_config())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp.clone());
        match self.hop() {
            None => Route::Straight(tcp),
            Some(Hop::Tunnel(proxy)) => {
                let tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
                Route::Tunnel(match proxy.basic_auth() {
                    Some(authorization) => tunnel.with_auth(authorization.clone()),
                    None => tunnel,
                })
            }
            Some(Hop::Forwarder { proxy, .. }) => Route::Forwarder(proxy, to_proxy),
        }
    }

    /// The proxy on the way, if there is one. A request that is neither encrypted nor gRPC is handed
    /// to it to pass on; all else goes through a tunnel.
    fn hop(&self) -> Option<Hop> {
        if self.connect_to.is_some() {
            return None;
        }
        let endpoint: Uri = self.endpoint.parse().ok()?;
        let is_read = self.protocol != Protocol::Grpc && endpoint.scheme_str() == Some("http");
        let proxy = self.proxies.between(&endpoint, !is_read)?;
        Some(if is_read {
            Hop::Forwarder {
                authorization: proxy.basic_auth().cloned(),
                proxy: proxy.uri().clone(),
            }
        } else {
            Hop::Tunnel(proxy)
        })
    }
}

enum Hop {
    Tunnel(Intercept),
    Forwarder {
        proxy: Uri,
        authorization: Option<HeaderValue>,
    },
}

/// The way to an endpoint, up to where its TLS begins.
#[derive(Clone, Debug)]
pub enum Route {
    /// No proxy.
    Straight(HttpConnector<Resolver>),
    /// A proxy that is told by CONNECT where to, and reads no more.
    Tunnel(Tunnel<ToProxy>),
    /// A proxy that reads each request, and where it is.
    Forwarder(Uri, ToProxy),
}

type ToProxy = HttpsConnector<HttpConnector<Resolver>>;

impl Service<Uri> for Route {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Straight(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Self::Tunnel(tunnel) => tunnel.poll_ready(cx).map_err(Into::into),
            Self::Forwarder(_, to_proxy) => to_proxy.poll_ready(cx),
        }
    }

    fn call(&mut self, endpoint: Uri) -> Self::Future {
        match self {
            Self::Straight(tcp) => {
                let connecting = tcp.call(endpoint);
                Box::pin(async {
                    Ok(Stream::to_endpoint(MaybeHttpsStream::Http(
                        connecting.await?,
                    )))
                })
            }
            Self::Tunnel(tunnel) => {
                let tunnelling =
                    tokio::time::timeout(CONNECT_LIMIT, tunnel.call(with_port(endpoint)));
                Box::pin(async { Ok(Stream::to_endpoint(tunnelling.await??)) })
            }
            Self::Forwarder(proxy, to_proxy) => {
                let connecting = tokio::time::timeout(CONNECT_LIMIT, to_proxy.call(proxy.clone()));
                Box::pin(async {
                    let io = connecting.await??;
                    Ok(Stream {
                        io,
                        is_read_by_proxy: true,
                    })
                })
            }
        }
    }
}

/// With its port in words: a tunnel takes 443 for granted.
fn with_port(endpoint: Uri) -> Uri {
    if endpoint.scheme_str() != Some("http") || endpoint.port().is_some() {
        return endpoint;
    }
    let mut parts = endpoint.into_parts();
    let authority = parts.authority.map(|authority| format!("{authority}:80"));
    parts.authority = authority.and_then(|authority| authority.parse().ok());
    Uri::from_parts(parts).expect("a URI stays one with a port")
}

/// Finds the address of a host.
#[derive(Clone, Debug)]
pub enum Resolver {
    /// As the system does.
    System(GaiResolver),
    /// It is known.
    Fixed(SocketAddr),
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::System(resolver) => resolver.poll_ready(cx),
            Self::Fixed(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, name: Name) -> Self::Future {
        match self {
            Self::System(resolver) => {
                let resolving = resolver.call(name);
                Box::pin(async { Ok(resolving.await?.collect::<Vec<_>>().into_iter()) })
            }
            Self::Fixed(address) => {
                let address = *address;
                Box::pin(async move { Ok(vec![address].into_iter()) })
            }
        }
    }
}

/// A connection to an endpoint or to the proxy before it.
#[derive(Debug)]
pub struct Stream {
    io: MaybeHttpsStream<TokioIo<TcpStream>>,
    is_read_by_proxy: bool,
}

impl Stream {
    fn to_endpoint(io: MaybeHttpsStream<TokioIo<TcpStream>>) -> Self {
        Self {
            io,
            is_read_by_proxy: false,
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_read_by_proxy)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}
