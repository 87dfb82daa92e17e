//! What is known of a request between pingora's phases.

use http::{Method, StatusCode};
use pingora::proxy::Session;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::access::Guest;
use crate::answer::Answer;
use crate::error::Failure;
use crate::limits::Admission;
use crate::observer::Observed;
use crate::span::{RequestSpan, Transferred};
use crate::upstream::Cursor;
use crate::usage::Asking;

/// What is known of one request. Dropping it ends its span.
#[derive(Default)]
pub(crate) struct RequestContext {
    /// `None` before the first phase.
    pub(crate) observed: Option<Observed>,
    pub(crate) cursor: Option<Cursor>,
    /// `None` for a request that needs no API key.
    pub(crate) guest: Option<Guest>,
    /// Seconds after which a client that was refused may ask again.
    pub(crate) retry_after: Option<u64>,
    /// `None` for a request that was not let through.
    pub(crate) admission: Option<Admission>,
    /// Of the attempt that is under way, if the upstream is asked for usage.
    pub(crate) asking: Option<Asking>,
    /// Whether the upstream has said anything, a 1xx included.
    pub(crate) answered: bool,
    /// Tells the server that the request is there. Dropped last, when the span has ended.
    _in_flight: Option<TaskTrackerToken>,
}

impl RequestContext {
    /// Of a request that counts by its `token` as one that is there.
    pub(crate) fn new(token: TaskTrackerToken) -> Self {
        Self {
            _in_flight: Some(token),
            ..Self::default()
        }
    }

    /// `None` for a URL that is excluded.
    pub(crate) fn span(&mut self) -> Option<&mut RequestSpan> {
        self.observed.as_mut()?.span.as_mut()
    }

    /// The attempt that is under way is over.
    pub(crate) fn end_attempt(&mut self, failure: Option<Failure>) {
        if let Some(attempt) = self.span().and_then(RequestSpan::attempt) {
            attempt.end(failure);
        }
    }

    /// Answers a request that failed, unless the upstream's answer has begun or nobody is there.
    pub(crate) async fn answer(&self, session: &mut Session, failure: Failure) {
        let written = session.response_written();
        if written.is_some_and(|response| is_final(response.status)) {
            return;
        }
        let Some(observed) = &self.observed else {
            return;
        };
        let is_head = session.req_header().method == Method::HEAD;
        let answer = Answer::to(failure, self.retry_after, &observed.identity, is_head);
        if let Some(answer) = answer
            && let Err(error) = answer.write(session.as_downstream_mut()).await
        {
            tracing::debug!(%error, "the client left before its error answer");
        }
    }

    /// The request is over; only the first call counts.
    pub(crate) fn finish(&mut self, session: &Session, failure: Option<Failure>) {
        // The key's tokens count before anybody hears of the request's end.
        self.guest = None;
        let Some(span) = self.span() else { return };
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

/// Whether an answer with this status is the last one of its request. 101 is: what follows is
/// no HTTP.
pub(crate) fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}
