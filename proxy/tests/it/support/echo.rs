//! An upstream that keeps what it was asked and answers as the request says: `x-answer` is the
//! status, the body is `answered`.

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::within;

pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    received: mpsc::UnboundedReceiver<Request<Bytes>>,
}

impl Echo {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let (sender, received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service = service_fn(move |request| answer(request, sender.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
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
