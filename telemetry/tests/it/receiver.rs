//! A small OTLP receiver, by either protocol, that keeps what it gets and answers as told.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

/// What a receiver answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Accept,
    /// Success, but for some spans.
    Reject {
        spans: i64,
        message: &'static str,
    },
    /// Try again: 503 or UNAVAILABLE.
    Unavailable,
    /// Never: 403 or PERMISSION_DENIED.
    Forbid,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) request: ExportTraceServiceRequest,
}

/// The TLS of a receiver: its identity, and the authority of its clients if they must show one.
#[derive(Clone, Debug)]
pub(crate) struct ServerTls {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) client_ca: Option<String>,
    /// The same for rustls.
    pub(crate) config: Arc<rustls::ServerConfig>,
}

/// A receiver that runs until the test's runtime ends.
pub(crate) struct Receiver {
    pub(crate) addr: SocketAddr,
    received: mpsc::UnboundedReceiver<Received>,
}

impl Receiver {
    /// Accepts everything.
    pub(crate) async fn start(protocol: &str) -> Self {
        Self::answering(protocol, []).await
    }

    /// Gives `answers` one after the other, then accepts everything.
    pub(crate) async fn answering<const N: usize>(protocol: &str, answers: [Answer; N]) -> Self {
        Self::with_tls(protocol, answers, None).await
    }

    pub(crate) async fn with_tls<const N: usize>(
        protocol: &str,
        answers: [Answer; N],
        tls: Option<ServerTls>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let (sender, received) = mpsc::unbounded_channel();
        let state = State {
            sender,
            answers: Arc::new(Mutex::new(answers.into())),
        };
        match protocol {
            "grpc" => tokio::spawn(serve_grpc(listener, state, tls)),
            _ => tokio::spawn(serve_http(listener, state, tls)),
        };
        Self { addr, received }
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Received {
        let next = tokio::time::timeout(crate::PATIENCE, self.received.recv()).await;
        next.expect("a request arrives").expect("the receiver runs")
    }

    /// The requests that have arrived.
    pub(crate) fn so_far(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

#[derive(Clone)]
struct State {
    sender: mpsc::UnboundedSender<Received>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl State {
    fn next_answer(&self, received: Received) -> Answer {
        // Nobody listens any more when the test is over.
        let _ = self.sender.send(received);
        let mut answers = self.answers.lock().expect("no handler panics");
        answers.pop_front().unwrap_or(Answer::Accept)
    }
}

fn response(answer: &Answer) -> ExportTraceServiceResponse {
    let partial_success = match answer {
        Answer::Reject { spans, message } => Some(ExportTracePartialSuccess {
            rejected_spans: *spans,
            error_message: (*message).to_owned(),
        }),
        _ => None,
    };
    ExportTraceServiceResponse { partial_success }
}

async fn serve_grpc(listener: TcpListener, state: State, tls: Option<ServerTls>) {
    let service = TraceServiceServer::new(state)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    let mut server = Server::builder();
    if let Some(tls) = tls {
        let mut config =
            ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
        if let Some(ca) = tls.client_ca {
            config = config.client_ca_root(Certificate::from_pem(ca));
        }
        server = server.tls_config(config).expect("valid TLS");
    }
    let serving = server
        .add_service(service)
        .serve_with_incoming(TcpIncoming::from(listener));
    serving.await.expect("the receiver runs");
}

#[tonic::async_trait]
impl TraceService for State {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let (metadata, _, request) = request.into_parts();
        let headers = metadata.into_headers();
        let answer = self.next_answer(Received {
            path: String::new(),
            headers,
            request,
        });
        match answer {
            Answer::Unavailable => Err(tonic::Status::unavailable("come back later")),
            Answer::Forbid => Err(tonic::Status::permission_denied("no such key")),
            answer => Ok(tonic::Response::new(response(&answer))),
        }
    }
}

async fn serve_http(listener: TcpListener, state: State, tls: Option<ServerTls>) {
    let acceptor = tls.map(|tls| TlsAcceptor::from(tls.config));
    loop {
        let (stream, _) = listener.accept().await.expect("the receiver accepts");
        tokio::spawn(serve_connection(stream, acceptor.clone(), state.clone()));
    }
}

async fn serve_connection(stream: TcpStream, acceptor: Option<TlsAcceptor>, state: State) {
    let service = service_fn(move |request| answer_http(request, state.clone()));
    let builder = auto::Builder::new(TokioExecutor::new());
    // A connection that breaks is seen by the exporter under test.
    match acceptor {
        None => {
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        }
    }
}

async fn answer_http(
    request: Request<Incoming>,
    state: State,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    let mut plain = body.to_vec();
    if parts
        .headers
        .get("content-encoding")
        .is_some_and(|encoding| encoding == "gzip")
    {
        plain.clear();
        flate2::read::GzDecoder::new(&*body)
            .read_to_end(&mut plain)
            .expect("gzip");
    }
    let is_json = parts.headers["content-type"] == "application/json";
    let request = if is_json {
        serde_json::from_slice(&plain).expect("JSON")
    } else {
        ExportTraceServiceRequest::decode(&*plain).expect("protobuf")
    };
    let path = parts.uri.path().to_owned();
    let answer = state.next_answer(Received {
        path,
        headers: parts.headers,
        request,
    });
    let (status, body) = match &answer {
        Answer::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "come back later".into()),
        Answer::Forbid => (StatusCode::FORBIDDEN, "no such\nkey".into()),
        answer if is_json => {
            let json = serde_json::to_vec(&response(answer)).expect("it has a JSON");
            (StatusCode::OK, json)
        }
        answer => (StatusCode::OK, response(answer).encode_to_vec()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    Ok(response)
}
