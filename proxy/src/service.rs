//! The life of a request in pingora's phases:
//!
//! 1. `early_request_filter`: the span starts.
//! 2. `request_filter`: the start of the body is looked at, if the choice of upstream depends on it.
//!    `upstream_peer`: the choice; again after a failed attempt.
//! 3. `upstream_request_filter`: trace context and forwarding headers.
//! 4. `request_body_filter`: the request's body passes by, piece by piece; again for each attempt.
//! 5. `response_filter`, `response_body_filter`: the answer passes by, piece by piece.
//! 6. `fail_to_proxy` if there is no answer: one of ours.
//! 7. `logging`: the span ends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error as PingoraError, ErrorSource, ErrorType, Result};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::bodies::{has_type, is_plain};
use crate::connection::ConnectionPhase;
use crate::error::{CONNECT, Failure, UNRESOLVED};
use crate::identity::{Identity, X_REQUEST_ID};
use crate::observer::{Observed, Observer};
use crate::origin::Arrival;
use crate::span::{RequestSpan, Transferred};
use crate::upstream::{Cursor, PrefixKey, Upstreams};
use crate::usage::{Asking, is_askable};

/// How long an error answer waits for the rest of the request's body. Closing a connection with
/// unread bytes resets it, and the client would never see the answer.
const ERROR_DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How long a client's connection is kept for its next request. pingora's default is for ever.
const CLIENT_KEEPALIVE_SECONDS: u64 = 120;
const KEEPALIVE_FOR_EVER: u64 = 0;

/// How long a client may take to read what is written to it.
const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(300);

/// Attempts at one request: the addresses of the upstreams, and pooled connections that turn out
/// to be dead.
pub(crate) const MAX_ATTEMPTS: usize = 8;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The proxy as pingora calls it.
pub(crate) struct Service {
    observer: Arc<Observer>,
    upstreams: Arc<Upstreams>,
    requests: TaskTracker,
    asks_for_usage: bool,
}

/// What is known of one request. Dropping it ends its span.
#[derive(Default)]
pub(crate) struct RequestContext {
    /// `None` before the first phase.
    observed: Option<Observed>,
    cursor: Option<Cursor>,
    /// Of the attempt that is under way, if the upstream is asked for usage.
    asking: Option<Asking>,
    /// Whether the upstream has said anything, a 1xx included.
    answered: bool,
    /// Tells the server that the request is there. Dropped last, when the span has ended.
    _in_flight: Option<TaskTrackerToken>,
}

impl Service {
    pub(crate) fn new(
        upstreams: Arc<Upstreams>,
        requests: TaskTracker,
        observer: Arc<Observer>,
        asks_for_usage: bool,
    ) -> Self {
        Self {
            observer,
            upstreams,
            requests,
            asks_for_usage,
        }
    }

    fn observe(&self, session: &Session) -> Observed {
        let inet = |address: Option<&SocketAddr>| address.and_then(SocketAddr::as_inet).copied();
        let digest = session.digest();
        self.observer.begin(&Arrival {
            head: session.req_header().as_ref(),
            peer: inet(session.client_addr()),
            local: inet(session.server_addr()),
            tls: digest.is_some_and(|digest| digest.ssl_digest.is_some()),
        })
    }

    /// What is asked of a request's upstream. A request that nobody observes is left as it is.
    fn asking(&self, request: &RequestHeader, observed: &Observed) -> Option<Asking> {
        let asks = self.asks_for_usage
            && observed.span.is_some()
            && is_askable(&request.method, request.uri.path(), &request.headers);
        asks.then(Asking::new)
    }

    fn finish_span(session: &Session, failure: Option<Failure>, ctx: &mut RequestContext) {
        let Some(span) = ctx.span() else { return };
        let status = session.response_written().map(|response| response.status);
        span.finish(
            failure,
            Transferred {
                status: status.filter(|&status| is_final(status)),
                request_body_bytes: session.body_bytes_read(),
                response_body_bytes: session.body_bytes_sent(),
            },
        );
    }
}

impl RequestContext {
    /// `None` for a URL that is excluded.
    fn span(&mut self) -> Option<&mut RequestSpan> {
        self.observed.as_mut()?.span.as_mut()
    }

    fn end_attempt(&mut self, failure: Option<Failure>) {
        if let Some(attempt) = self.span().and_then(RequestSpan::attempt) {
            attempt.end(failure);
        }
    }
}

#[async_trait]
impl ProxyHttp for Service {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext {
            _in_flight: Some(self.requests.token()),
            ..RequestContext::default()
        }
    }

    /// None: bodies pass as they are, so there is no use for pingora's compression.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        // Without this a client that pipelines gets a 400 for its first request.
        session.set_pipelining_enabled(true);
        session.set_total_drain_timeout(Some(ERROR_DRAIN_LIMIT));
        session.set_write_timeout(Some(CLIENT_WRITE_TIMEOUT));
        if session.get_keepalive() == Some(KEEPALIVE_FOR_EVER) {
            session.set_keepalive(Some(CLIENT_KEEPALIVE_SECONDS));
        }
        if let Some(phase) = ConnectionPhase::of(session.digest()) {
            phase.request_taken();
        }
        ctx.observed = Some(self.observe(session));
        Ok(())
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<bool> {
        if session.req_header().method == Method::CONNECT {
            return Err(PingoraError::new_down(CONNECT));
        }
        let key = if self.upstreams.balances_by_prefix() {
            prefix_key(session).await?
        } else {
            None
        };
        ctx.cursor = Some(Cursor::new(Arc::clone(&self.upstreams), key));
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<Box<HttpPeer>> {
        let cursor = ctx.cursor.as_mut().expect("`request_filter` came first");
        let Some((peer, destination)) = cursor.peer().await else {
            let context = "no upstream's name has an address";
            return Err(PingoraError::explain(UNRESOLVED, context).into_up());
        };
        let observed = ctx.observed.as_mut();
        if let Some(span) = observed.and_then(|observed| observed.span.as_mut()) {
            let head = session.req_header();
            self.observer.start_attempt(span, head, &destination);
        }
        Ok(Box::new(peer))
    }

    /// Nothing was sent, so trying elsewhere is safe.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut RequestContext,
        mut error: Box<PingoraError>,
    ) -> Box<PingoraError> {
        ctx.end_attempt(Some(Failure::of(&error)));
        let elsewhere = ctx.cursor.as_mut().is_some_and(Cursor::connect_failed);
        error.set_retry(elsewhere);
        error
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::fd::RawFd,
        digest: Option<&Digest>,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        ctx.answered = false;
        if let Some(cursor) = &mut ctx.cursor {
            cursor.connected(digest, reused);
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let observed = ctx.observed.as_mut().expect("the request has begun");
        request.insert_header(X_REQUEST_ID, observed.identity.request_id.clone())?;
        if let Some(span) = &mut observed.span {
            if let Some(context) = span.attempt_context() {
                self.observer.trace_headers.replace(context, request)?;
            }
            if let Some(attempt) = span.attempt() {
                attempt.request_head(&self.observer.instrumentation, &request.headers);
            }
        }
        ctx.asking = self.asking(session.req_header(), observed);
        if ctx.asking.is_some() {
            // The body may grow.
            request.remove_header(&CONTENT_LENGTH);
        }
        let peer = session.client_addr().and_then(|address| address.as_inet());
        if let Some(peer) = peer {
            let forwarded = forwarded_for(&request.headers, &peer.ip().to_canonical().to_string());
            request.insert_header(X_FORWARDED_FOR, forwarded)?;
        }
        let scheme = HeaderValue::from_static(observed.scheme);
        request.insert_header(X_FORWARDED_PROTO, scheme)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        if let (Some(span), Some(body)) = (ctx.span(), &*body) {
            span.request_body(body);
        }
        if let Some(asking) = &mut ctx.asking {
            asking.request_body(body);
        }
        Ok(())
    }

    /// As the upstream has sent it: pingora fits it to the client's version of HTTP afterwards.
    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        if let Some(attempt) = ctx.span().and_then(RequestSpan::attempt) {
            attempt.answered_by(response.version);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        ctx.answered = true;
        if !is_final(response.status) {
            return Ok(());
        }
        let observed = ctx.observed.as_mut().expect("the request has begun");
        if let Some(span) = &mut observed.span {
            let head = (response.status, &response.headers);
            span.response_started(&self.observer.instrumentation, &observed.identity, head);
        }
        if let Some(asking) = &mut ctx.asking {
            asking.response_head(&response.headers);
        }
        observed.identity.sign(response)?;
        response.remove_header(&KEEP_ALIVE);
        response.remove_header(&PROXY_CONNECTION);
        if session.req_header().version == Version::HTTP_10 {
            // It knows no chunks: the end of the connection is the end of the body.
            response.remove_header(&TRANSFER_ENCODING);
        }
        if session.is_process_shutting_down() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut RequestContext,
    ) -> Result<Option<Duration>> {
        if let (Some(span), Some(body)) = (ctx.span(), &*body) {
            span.response_body(body);
        }
        if let Some(asking) = &mut ctx.asking {
            asking.response_body(body, end_of_stream);
        }
        if end_of_stream {
            ctx.end_attempt(None);
        }
        Ok(None)
    }

    /// Whether a request that broke may be sent again: if the upstream says in HTTP/2 that it has not
    /// looked at it; or if the connection came from the pool and ended without a byte of an answer, as it
    /// does when the upstream gives up an idle connection, and, unless the method is idempotent, the
    /// upstream cannot have read the whole request. pingora keeps the first 64 KiB of a body for this; a
    /// longer one cannot be sent again.
    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<PingoraError>,
        ctx: &mut RequestContext,
        client_reused: bool,
    ) -> Box<PingoraError> {
        ctx.end_attempt(Some(Failure::of(&error)));
        let left_unread = ctx.cursor.as_ref().is_some_and(Cursor::left_bytes_unread);
        let is_harmless = left_unread
            || !session.as_downstream_mut().is_body_done()
            || session.req_header().method.is_idempotent();
        let is_going_away = client_reused && is_harmless && closed_without_a_byte(&error);
        let retry = !ctx.answered
            && !session.as_ref().retry_buffer_truncated()
            && (is_going_away || is_refused(&mut error));
        let mut error = error.more_context(format!("upstream {peer}"));
        error.set_retry(retry);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &PingoraError,
        ctx: &mut RequestContext,
    ) -> FailToProxy {
        let failure = Failure::of(error);
        if failure == Failure::ClientDisconnected {
            tracing::debug!(%error, "the client left");
        } else {
            tracing::warn!(cause = failure.as_str(), %error, "request failed");
        }
        let unanswered = session
            .response_written()
            .is_none_or(|response| !is_final(response.status));
        let identity = ctx.observed.as_ref().map(|observed| &observed.identity);
        if let Some(status) = failure.status().filter(|_| unanswered)
            && let Some(identity) = identity
            && let Err(error) = answer_failure(session, failure, status, identity).await
        {
            tracing::debug!(%error, "the client left before its error answer");
        }
        Self::finish_span(session, Some(failure), ctx);
        if failure.status().is_some() {
            // Whatever the outcome, the connection is closed next.
            let _ = tokio::time::timeout(ERROR_DRAIN_LIMIT, session.drain_request_body()).await;
        }
        let error_code = failure.status().map_or(0, |status| status.as_u16());
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&PingoraError>,
        ctx: &mut RequestContext,
    ) {
        Self::finish_span(session, error.map(Failure::of), ctx);
        let body_is_read = session.is_body_done();
        if let Some(phase) = ConnectionPhase::of(session.digest()) {
            phase.request_over(body_is_read);
        }
    }

    /// `fail_to_proxy` logs.
    fn suppress_error_log(
        &self,
        _session: &Session,
        _ctx: &RequestContext,
        _error: &PingoraError,
    ) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &RequestContext,
        error: &PingoraError,
        _context: ProxyWarnLogContext,
    ) -> bool {
        tracing::debug!(%error, "another attempt");
        true
    }
}

/// Whether an answer with this status is the last one of its request. 101 is: what follows is
/// no HTTP.
fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// The key of the prompt that the request's body starts with, if it does. Only what comes with the first
/// read decides, at most the 64 KiB that pingora keeps for a retry: from there the upstream gets it.
async fn prefix_key(session: &mut Session) -> Result<Option<u64>> {
    let head = session.req_header();
    if head.method != Method::POST
        || !has_type(&head.headers, b"application/json")
        || !is_plain(&head.headers)
        // It sends no body before the upstream has said that it wants one.
        || head.headers.contains_key(EXPECT)
    {
        return Ok(None);
    }
    let client = session.as_downstream_mut();
    client.enable_retry_buffering();
    let mut key = PrefixKey::new();
    while let Some(bytes) = client
        .read_request_body()
        .await
        .map_err(|error| error.into_down())?
    {
        key.push(&bytes);
        if !bytes.is_empty() {
            break;
        }
    }
    if client.retry_buffer_truncated() {
        let context = "one read gave more of the body than can be kept";
        return Err(PingoraError::explain(ErrorType::InternalError, context));
    }
    Ok(key.finish())
}

/// The addresses in X-Forwarded-For and, behind them, the peer.
fn forwarded_for(headers: &HeaderMap, peer: &str) -> HeaderValue {
    let mut list = Vec::with_capacity(peer.len());
    for value in headers.get_all(X_FORWARDED_FOR) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(peer.as_bytes());
    HeaderValue::from_maybe_shared(Bytes::from(list)).expect("header values and an IP address")
}

/// Whether the upstream connection ended before a byte of an answer. pingora tells how many bytes
/// of a head it had only in the text of its error.
fn closed_without_a_byte(error: &PingoraError) -> bool {
    if *error.esource() != ErrorSource::Upstream {
        return false;
    }
    match error.etype() {
        ErrorType::WriteError => true,
        ErrorType::ConnectionClosed | ErrorType::ReadError => error
            .context
            .as_ref()
            .is_some_and(|context| context.as_str().ends_with("bytes already read: 0")),
        _ => false,
    }
}

/// Whether the upstream has told that it did not look at the request: by REFUSED_STREAM, by a GOAWAY without
/// an error that counts the request out, or by HTTP_1_1_REQUIRED.
fn is_refused(error: &mut PingoraError) -> bool {
    // What may be tried again only on connections from the pool is no such word.
    error.retry.decide_reuse(false);
    let is_word_of_http2 = matches!(error.etype(), ErrorType::H2Error | ErrorType::H2Downgrade);
    is_word_of_http2 && error.retry()
}

async fn answer_failure(
    session: &mut Session,
    failure: Failure,
    status: StatusCode,
    identity: &Identity,
) -> Result<()> {
    let body = failure.openai_body(identity.trace_id());
    let mut response = ResponseHeader::build(status, Some(6))?;
    response.insert_header(CONTENT_TYPE, "application/json")?;
    response.insert_header(CONTENT_LENGTH, body.len())?;
    response.insert_header(CACHE_CONTROL, "no-store")?;
    identity.sign(&mut response)?;
    let is_head = session.req_header().method == Method::HEAD;
    let body = if is_head { Bytes::new() } else { body };
    session
        .as_downstream_mut()
        .write_error_response(response, body)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_appended_to_the_addresses_that_came_in() {
        let mut headers = HeaderMap::new();
        assert_eq!(forwarded_for(&headers, "10.0.0.1"), "10.0.0.1");
        headers.append(
            X_FORWARDED_FOR,
            HeaderValue::from_static("1.1.1.1, 2.2.2.2"),
        );
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("3.3.3.3"));
        assert_eq!(
            forwarded_for(&headers, "10.0.0.1"),
            "1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1"
        );
    }

    #[test]
    fn only_a_connection_that_ended_without_a_byte_of_an_answer_is_tried_again() {
        let closed = |bytes: usize| {
            let context = format!("while reading response headers, bytes already read: {bytes}");
            PingoraError::explain(ErrorType::ConnectionClosed, context)
        };
        assert!(closed_without_a_byte(&closed(0).into_up()));
        assert!(!closed_without_a_byte(&closed(10).into_up()));
        assert!(!closed_without_a_byte(&closed(0).into_down()));
        assert!(closed_without_a_byte(&PingoraError::new_up(
            ErrorType::WriteError
        )));
        assert!(!closed_without_a_byte(&PingoraError::new_up(
            ErrorType::ReadTimedout
        )));
    }
}
