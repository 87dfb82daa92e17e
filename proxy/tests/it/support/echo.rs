//! An upstream that keeps what it was asked and answers as the request says: `x-answer` is the
//! status, the body is `answered`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::within;

pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    received: mpsc::UnboundedReceiver<Request<Bytes>>,
}

impl Echo {
    pub(crate) async fn start() -> Self {
        Self::over(None).await
    }

    /// With TLS, and what it is told to speak in it.
    pub(crate) async fn encrypted(config: ServerConfig) -> Self {
        Self::over(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    /// HTTP/1.1 or HTTP/2, as the client begins.
    async fn over(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let (sender, received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, sender) = (tls.clone(), sender.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, sender).await,
                        // A client that does not like what it sees is what some tests are about.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, sender).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, received }
    }

    /// Whether every request that came was taken.
    pub(crate) fn is_idle(&self) -> bool {
        self.received.is_empty()
    }

    /// The next request that was received.
    pub(crate) async fn received(&mut self) -> Request<Bytes> {
        within("a request at the upstream", self.received.recv())
            .await
            .expect("it still serves")
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    sender: mpsc::UnboundedSender<Request<Bytes>>,
) {
    let service = service_fn(move |request| answer(request, sender.clone()));
    let builder = auto::Builder::new(TokioExecutor::new());
    // A connection that breaks is what some tests are about.
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    received: mpsc::UnboundedSender<Request<Bytes>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let status = parts
        .headers
        .get("x-answer")
        .map_or("200", |value| value.to_str().expect("text"));
    let response = Response::builder()
        .status(status)
        .header("x-served-by", "echo")
        .body(Full::from("answered"))
        .expect("a valid status");
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let _ = received.send(Request::from_parts(parts, body));
    Ok(response)
}
