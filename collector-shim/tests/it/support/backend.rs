//! A backend that takes OTLP by both protocols, records what comes, and answers by script.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;

use super::client::frame;
use super::eventually;

/// What to answer a request with.
#[derive(Clone)]
pub(crate) enum Reply {
    Accept,
    /// Accepted but for so many spans.
    Partial(i64),
    /// A gRPC status.
    Status(tonic::Status),
    /// An HTTP status, and a Retry-After.
    Http(u16, Option<&'static str>),
}

/// One request as it came.
#[derive(Clone)]
pub(crate) struct Delivery {
    /// Decompressed.
    pub(crate) message: Bytes,
    /// As it came.
    pub(crate) raw: Bytes,
    /// What it was compressed by, if it was.
    pub(crate) coding: String,
    pub(crate) headers: HeaderMap,
    pub(crate) path: String,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
}

struct State {
    script: Mutex<VecDeque<Reply>>,
    deliveries: Mutex<Vec<Delivery>>,
    /// Each answer takes one; a held backend has none.
    answers: Semaphore,
    /// A request with this in it is bad data.
    refused: Option<&'static str>,
    tls: Option<TlsAcceptor>,
}

impl Default for State {
    fn default() -> State {
        State {
            script: Mutex::default(),
            deliveries: Mutex::default(),
            answers: Semaphore::new(MANY),
            refused: None,
            tls: None,
        }
    }
}

/// More than any test sends.
const MANY: usize = 1_000_000;

impl Backend {
    /// Answers by `script`, then accepts all.
    pub(crate) async fn start(script: impl IntoIterator<Item = Reply>) -> Backend {
        Backend::listen(reserve(), script)
    }

    /// Listens only now on an address that refused connections before.
    pub(crate) fn listen(socket: TcpSocket, script: impl IntoIterator<Item = Reply>) -> Backend {
        let script = Mutex::new(script.into_iter().collect());
        Backend::run(
            socket,
            State {
                script,
                ..State::default()
            },
        )
    }

    /// Records, but answers nothing before [`Backend::release`].
    pub(crate) fn held() -> Backend {
        let answers = Semaphore::new(0);
        Backend::run(
            reserve(),
            State {
                answers,
                ..State::default()
            },
        )
    }

    /// The same, and then refuses what holds `refused`.
    pub(crate) fn held_refusing(refused: &'static str) -> Backend {
        let (answers, refused) = (Semaphore::new(0), Some(refused));
        Backend::run(
            reserve(),
            State {
                answers,
                refused,
                ..State::default()
            },
        )
    }

    /// Speaks TLS.
    pub(crate) fn encrypted(tls: rustls::ServerConfig) -> Backend {
        let tls = Some(TlsAcceptor::from(Arc::new(tls)));
        Backend::run(
            reserve(),
            State {
                tls,
                ..State::default()
            },
        )
    }

    pub(crate) fn release(&self) {
        self.state.answers.add_permits(MANY);
    }

    fn run(socket: TcpSocket, state: State) -> Backend {
        let listener = socket.listen(64).expect("it is bound");
        let address = listener.local_addr().expect("it listens");
        let state = Arc::new(state);
        let stop = CancellationToken::new();
        let serving = accept(listener, Arc::clone(&state), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Backend {
            address,
            state,
            stop: stop.clone(),
            _stop_when_dropped: stop.drop_guard(),
        }
    }

    /// Goes away, connections included; what it has recorded stays.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    pub(crate) fn grpc_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn http_url(&self) -> String {
        format!("http://{}/v1/traces", self.address)
    }

    /// The way to it by `protocol`.
    pub(crate) fn url(&self, protocol: &str) -> String {
        match protocol {
            "grpc" => self.grpc_url(),
            _ => self.http_url(),
        }
    }

    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.state.deliveries.lock().expect("no panic").clone()
    }

    /// Waits for `count` requests.
    pub(crate) async fn received(&self, count: usize) -> Vec<Delivery> {
        eventually("the backend has the requests", || {
            self.deliveries().len() >= count
        })
        .await;
        self.deliveries()
    }
}

/// An address that refuses connections until [`Backend::listen`].
pub(crate) fn reserve() -> TcpSocket {
    reserve_at(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port")
}

/// The same, where a backend was before.
pub(crate) fn reserve_at(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    loop {
        let (stream, _) = listener.accept().await.expect("accepts");
        let state = Arc::clone(&state);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            match state.tls.clone() {
                None => serve(stream, state).await,
                // A client that does not trust us ends the handshake.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, state).await;
                    }
                }
            }
        }));
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<State>) {
    let service = service_fn(move |request| answer(Arc::clone(&state), request));
    let builder = Builder::new(TokioExecutor::new());
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Ok(Response::new(Body::empty()));
    };
    let body = body.to_bytes();
    let speech = match parts.headers["content-type"].to_str() {
        Ok("application/grpc") => Speech::Grpc,
        Ok("application/json") => Speech::Json,
        _ => Speech::Protobuf,
    };
    let is_grpc = speech == Speech::Grpc;
    let (was_compressed, named_by, raw) = if is_grpc {
        (body[0] == 1, "grpc-encoding", body.slice(5..))
    } else {
        (true, "content-encoding", body)
    };
    let named = parts.headers.get(named_by).filter(|_| was_compressed);
    let coding = named
        .map_or("", |name| name.to_str().expect("text"))
        .to_owned();
    let mut message = Vec::new();
    match coding.as_str() {
        "" => message = raw.to_vec(),
        // The first member alone, as tonic reads it.
        "gzip" => drop(
            GzDecoder::new(&raw[..])
                .read_to_end(&mut message)
                .expect("sound gzip"),
        ),
        "zstd" => message = zstd::decode_all(&raw[..]).expect("sound zstd"),
        other => panic!("compressed by {other}"),
    }
    let holds = |text: &str| {
        message
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    let is_refused = state.refused.is_some_and(holds);
    let path = parts.uri.path().to_owned();
    let delivery = Delivery {
        message: message.into(),
        raw,
        coding,
        headers: parts.headers,
        path,
    };
    state.deliveries.lock().expect("no panic").push(delivery);
    state
        .answers
        .acquire()
        .await
        .expect("never closed")
        .forget();
    if is_refused {
        return Ok(Reply::Http(400, None).into_response(speech));
    }
    let reply = state
        .script
        .lock()
        .expect("no panic")
        .pop_front()
        .unwrap_or(Reply::Accept);
    Ok(reply.into_response(speech))
}

/// What a request came in, and is answered in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speech {
    Grpc,
    Protobuf,
    Json,
}

impl Reply {
    fn into_response(self, speech: Speech) -> Response<Body> {
        match self {
            Reply::Accept => accepted(speech, &ExportTraceServiceResponse::default()),
            Reply::Partial(rejected_spans) => {
                let error_message = "some were too old".to_owned();
                let partial = ExportTracePartialSuccess {
                    rejected_spans,
                    error_message,
                };
                let partial_success = Some(partial);
                accepted(speech, &ExportTraceServiceResponse { partial_success })
            }
            Reply::Status(status) => status.into_http(),
            Reply::Http(status, retry_after) => {
                let mut response = Response::builder().status(status);
                if let Some(retry_after) = retry_after {
                    response = response.header("retry-after", retry_after);
                }
                response.body(Body::empty()).expect("a response")
            }
        }
    }
}

fn accepted(speech: Speech, response: &ExportTraceServiceResponse) -> Response<Body> {
    let message = response.encode_to_vec();
    let (body, content_type) = match speech {
        Speech::Grpc => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body = Full::new(frame(false, &message));
            let body = body.with_trailers(async { Some(Ok(trailers)) });
            (Body::new(body), "application/grpc")
        }
        Speech::Protobuf => {
            let body = Body::new(Full::new(Bytes::from(message)));
            (body, "application/x-protobuf")
        }
        Speech::Json => {
            let json = serde_json::to_vec(response).expect("it has a JSON");
            (Body::new(Full::new(Bytes::from(json))), "application/json")
        }
    };
    let response = Response::builder().header("content-type", content_type);
    response.body(body).expect("a response")
}
