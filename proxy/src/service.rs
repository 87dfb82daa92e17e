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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error as PingoraError, Result};
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::config::{ClientTimeouts, Config};
use crate::connection::ConnectionPhase;
use crate::entrance::Entrance;
use crate::error::{Failure, UNRESOLVED};
use crate::forwarded;
use crate::identity::X_REQUEST_ID;
use crate::limits::Gate;
use crate::observer::{Observed, Observer};
use crate::origin::Arrival;
use crate::request::{RequestContext, is_final};
use crate::retry::Broken;
use crate::span::RequestSpan;
use crate::upstream::{Cursor, PrefixKey, Upstreams};
use crate::usage::{self, Asking, is_askable};

/// How long an error answer waits for the rest of the request's body. Closing a connection with
/// unread bytes resets it, and the client would never see the answer.
const ERROR_DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// What pingora sets for a connection of which nothing else was said.
const KEEPALIVE_FOR_EVER: u64 = 0;

/// Attempts at one request: the addresses of the upstreams, and pooled connections that turn out
/// to be dead.
pub(crate) const MAX_ATTEMPTS: usize = 8;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The proxy as pingora calls it.
pub(crate) struct Service {
    observer: Arc<Observer>,
    upstreams: Arc<Upstreams>,
    entrance: Entrance,
    requests: TaskTracker,
    client: ClientTimeouts,
    asks_for_usage: bool,
    /// Whether the proxy takes no more connections, so that answers say that theirs ends.
    leaving: Arc<AtomicBool>,
}

impl Service {
    pub(crate) fn new(
        config: &Config,
        access: Option<Access>,
        upstreams: Arc<Upstreams>,
        requests: TaskTracker,
        observer: Arc<Observer>,
    ) -> Self {
        Self {
            observer,
            upstreams,
            entrance: Entrance::new(access, Gate::new(config.limits, requests.clone())),
            requests,
            client: config.client,
            asks_for_usage: config.ask_for_usage,
            leaving: Arc::default(),
        }
    }

    /// What is to be set when the proxy takes no more connections.
    pub(crate) fn leaving(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.leaving)
    }

    fn observe(&self, session: &Session) -> Observed {
        let inet = |address: Option<&SocketAddr>| address.and_then(SocketAddr::as_inet).copied();
        let digest = session.digest();
        let head = session.req_header().as_ref();
        self.observer.begin(&Arrival {
            head,
            version: Some(head.version),
            peer: inet(session.client_addr()),
            local: inet(session.server_addr()),
            tls: digest.is_some_and(|digest| digest.ssl_digest.is_some()),
        })
    }

    /// What is asked of a request's upstream. A request that nobody observes is left as it is.
    fn asking(&self, request: &RequestHeader, ctx: &RequestContext) -> Option<Asking> {
        let is_observed = ctx.observed.as_ref()?.span.is_some();
        if !self.asks_for_usage || !is_observed {
            return None;
        }
        let route = self.observer.route(request.uri.path());
        if !is_askable(&request.method, route, &request.headers) {
            return None;
        }
        ctx.cursor.as_ref()?.usage().map(Asking::new)
    }
}

#[async_trait]
impl ProxyHttp for Service {
    /// Boxed: pingora moves it from future to future, and each keeps a place for it.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Self::CTX {
        Box::new(RequestContext::new(self.requests.token()))
    }

    /// None: bodies pass as they are, so there is no use for pingora's compression.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        // Without this a client that pipelines gets a 400 for its first request.
        session.set_pipelining_enabled(true);
        session.set_total_drain_timeout(Some(ERROR_DRAIN_LIMIT));
        session.set_read_timeout(Some(self.client.silence));
        session.set_write_timeout(Some(self.client.silence));
        if session.get_keepalive() == Some(KEEPALIVE_FOR_EVER) {
            session.set_keepalive(Some(self.client.idle_seconds()));
        }
        if let Some(phase) = ConnectionPhase::of(session.digest()) {
            phase.request_taken();
        }
        ctx.observed = Some(self.observe(session));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        let admitted = self.entrance.admit(session.req_header(), ctx);
        admitted.map_err(Failure::into_error)?;
        let key = if self.upstreams.balances_by_prefix() {
            PrefixKey::read(session, self.client.silence).await?
        } else {
            None
        };
        ctx.cursor = Some(Cursor::new(Arc::clone(&self.upstreams), key));
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
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
        ctx: &mut Self::CTX,
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
        ctx: &mut Self::CTX,
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
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        ctx.asking = self.asking(session.req_header(), ctx);
        let observed = ctx.observed.as_mut().expect("the request has begun");
        self.entrance.keep_key(request);
        request.insert_header(X_REQUEST_ID, observed.identity.request_id.clone())?;
        if let Some(span) = &mut observed.span {
            if let Some(context) = span.attempt_context() {
                self.observer.trace_headers.replace(context, request)?;
            }
            if let Some(attempt) = span.attempt() {
                attempt.request_head(&self.observer.instrumentation, &request.headers);
            }
        }
        if ctx.asking.is_some() {
            // The body may grow.
            request.remove_header(&CONTENT_LENGTH);
        }
        let peer = session.client_addr().and_then(|address| address.as_inet());
        forwarded::tell(request, peer.map(|peer| peer.ip()), observed.scheme)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(admission) = &mut ctx.admission {
            let admitted = admission.body(session.body_bytes_read());
            admitted.map_err(Failure::into_error)?;
        }
        if let (Some(span), Some(body)) = (ctx.span(), &*body) {
            span.request_body(body);
        }
        if let Some(asking) = &mut ctx.asking {
            asking.request_body(body, !session.as_ref().retry_buffer_truncated());
        }
        Ok(())
    }

    /// As the upstream has sent it: pingora fits it to the client's version of HTTP afterwards.
    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(attempt) = ctx.span().and_then(RequestSpan::attempt) {
            attempt.answered_by(response.version);
        }
        if ctx.usage_refused(response.status) {
            let head = (response.status, &response.headers);
            if let Some(attempt) = ctx.span().and_then(RequestSpan::attempt) {
                attempt.response_head(&self.observer.instrumentation, head.0, head.1);
            }
            ctx.end_attempt(None);
            let context = "asked for usage, the upstream refused";
            return Err(PingoraError::explain(usage::REFUSED, context).into_up());
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
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
            asking.response_head(response, session.req_header().version)?;
        }
        observed.identity.sign(response)?;
        if let Some(guest) = &mut ctx.guest {
            guest.response_head(&response.headers);
        }
        response.remove_header(&KEEP_ALIVE);
        response.remove_header(&PROXY_CONNECTION);
        if session.req_header().version == Version::HTTP_10 {
            // It knows no chunks: the end of the connection is the end of the body.
            response.remove_header(&TRANSFER_ENCODING);
        }
        if self.leaving.load(Ordering::Relaxed) {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if let (Some(span), Some(body)) = (ctx.span(), &*body) {
            span.response_body(body);
        }
        if let (Some(guest), Some(body)) = (&mut ctx.guest, &*body) {
            guest.response_body(body);
        }
        if let Some(asking) = &mut ctx.asking {
            asking.response_body(body, end_of_stream);
        }
        if end_of_stream {
            ctx.end_attempt(None);
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<PingoraError>,
        ctx: &mut Self::CTX,
        client_reused: bool,
    ) -> Box<PingoraError> {
        if *error.etype() == usage::REFUSED {
            error.set_retry(true);
            return error;
        }
        ctx.end_attempt(Some(Failure::of(&error)));
        let left_unread = ctx.cursor.as_ref().is_some_and(Cursor::left_bytes_unread);
        let broken = Broken {
            reused: client_reused,
            harmless: left_unread
                || !session.as_downstream_mut().is_body_done()
                || session.req_header().method.is_idempotent(),
            answered: ctx.answered,
            body_kept: !session.as_ref().retry_buffer_truncated(),
        };
        let again = broken.may_be_sent_again(&mut error);
        let mut error = error.more_context(format!("upstream {peer}"));
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &PingoraError,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        let failure = Failure::of(error);
        if failure == Failure::ClientDisconnected {
            tracing::debug!(%error, "the client left");
        } else {
            tracing::warn!(cause = failure.as_str(), %error, "request failed");
        }
        ctx.answer(session, failure).await;
        ctx.finish(session, Some(failure));
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
        ctx: &mut Self::CTX,
    ) {
        ctx.finish(session, error.map(Failure::of));
        let body_is_read = session.is_body_done();
        if let Some(phase) = ConnectionPhase::of(session.digest()) {
            phase.request_over(body_is_read);
        }
    }

    /// `fail_to_proxy` logs.
    fn suppress_error_log(
        &self,
        _session: &Session,
        _ctx: &Self::CTX,
        _error: &PingoraError,
    ) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Self::CTX,
        error: &PingoraError,
        _context: ProxyWarnLogContext,
    ) -> bool {
        tracing::debug!(%error, "another attempt");
        true
    }
}
