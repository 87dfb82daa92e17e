//! A client of HTTP/1.1 or HTTP/2 over any stream.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;

use super::within;

pub(crate) enum Client {
    Http1(Mutex<http1::SendRequest<Full<Bytes>>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub(crate) async fn http1(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .expect("it says nothing yet");
        tokio::spawn(connection);
        Self::Http1(Mutex::new(sender))
    }

    pub(crate) async fn http2(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("an open connection");
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub(crate) async fn try_send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                let (mut parts, body) = request.into_parts();
                let host = parts.uri.authority().expect("an absolute URL").as_str();
                parts.headers.insert("host", host.parse().expect("a name"));
                let path = parts.uri.path_and_query().expect("a path").clone();
                parts.uri = path.into();
                let request = Request::from_parts(parts, body);
                sender.lock().await.send_request(request).await
            }
            Self::Http2(sender) => sender.clone().send_request(request).await,
        }
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        within("an answer", self.try_send(request))
            .await
            .expect("an answer")
    }
}
