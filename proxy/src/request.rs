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
        let mut context = Self::default();
        context._in_flight = Some(token);
        context
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

    /// Whether the attempt may have failed for what was asked in the client's place: then it is made again
    /// without. Its success tells whether the upstream is asked another time.
    pub(crate) fn usage_refused(&mut self, status: StatusCode) -> bool {
        let (Some(cursor), asking) = (&mut self.cursor, &self.asking) else {
            return false;
        };
        if status.is_success() {
            cursor.succeeded(asking.as_ref().is_some_and(Asking::has_asked));
        }
        let refused = asking
            .as_ref()
            .is_some_and(|asking| asking.may_be_refused_by(status));
        if refused {
            cursor.usage_refused();
        }
        refused
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

    /// Counts the tokens that the request's key has used, before anybody hears of the request's end.
    fn settle(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.leave(self.span().and_then(|span| span.tokens()));
        }
    }

    /// The request is over; only the first call counts.
    pub(crate) fn finish(&mut self, session: &Session, failure: Option<Failure>) {
        self.settle();
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

impl Drop for RequestContext {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Whether an answer with this status is the last one of its request. 101 is: what follows is
/// no HTTP.
pub(crate) fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use lantern_telemetry::Telemetry;
    use opentelemetry::trace::Status;
    use opentelemetry_sdk::trace::InMemorySpanExporter;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::config::Config;
    use crate::observer::Observer;
    use crate::origin::Arrival;

    #[tokio::test]
    async fn a_request_whose_handling_panics_leaves_a_span() {
        let exporter = InMemorySpanExporter::default();
        let telemetry = Telemetry::with_exporter(exporter.clone(), "test");
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let observer = Observer::new(&Config::new(nobody, nobody), &telemetry, None);
        let request = http::Request::get("/health").body(());
        let (head, ()) = request.expect("a request").into_parts();
        let mut context = RequestContext::new(TaskTracker::new().token());
        context.observed = Some(observer.begin(&Arrival {
            head: &head,
            version: Some(head.version),
            peer: None,
            local: None,
            tls: false,
        }));
        let handling = tokio::spawn(async move {
            let _context = context;
            panic!("on purpose");
        });
        assert!(handling.await.expect_err("its panic").is_panic());
        telemetry.flush().await.expect("nothing is lost");
        let spans = exporter.get_finished_spans().expect("spans");
        let [span] = &spans[..] else {
            panic!("one span: {spans:?}");
        };
        assert_eq!(span.name, "GET /health");
        assert_eq!(span.status, Status::error(""));
        let error = span
            .attributes
            .iter()
            .find(|kv| *kv.key.as_str() == *"error.type");
        assert_eq!(error.expect("an error").value.as_str(), "aborted");
    }
}
