//! The names by which a client and an operator can talk of the same request: `x-request-id` on
//! its way to the upstream and on every answer, and `traceresponse`, which names the trace.
//! <https://www.w3.org/TR/trace-context-2/#traceresponse-header>

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use lantern_telemetry::{trace_id_digits, traceparent};
use opentelemetry::trace::{SpanContext, TraceId};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use pingora::http::ResponseHeader;

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Longest id that is taken from a client.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// What a request is called.
pub(crate) struct Identity {
    pub(crate) request_id: HeaderValue,
    /// Whether the client chose the id.
    pub(crate) from_client: bool,
    /// `None` when there is no trace.
    trace: Option<SpanContext>,
}

impl Identity {
    /// Of a request with `headers`, whose span has the context `span`.
    pub(crate) fn new(headers: &HeaderMap, span: Option<&SpanContext>) -> Self {
        let trace = span.filter(|span| span.is_valid()).cloned();
        let named = client_id(headers);
        let from_client = named.is_some();
        let request_id = named.unwrap_or_else(|| {
            let trace_id = trace.as_ref().map(SpanContext::trace_id);
            let id = trace_id.unwrap_or_else(|| RandomIdGenerator::default().new_trace_id());
            header_value(trace_id_digits(id))
        });
        Self {
            request_id,
            from_client,
            trace,
        }
    }

    /// The trace's id, for an error's body.
    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().map(SpanContext::trace_id)
    }

    /// `traceresponse`, when there is a trace.
    fn traceresponse(&self) -> Option<HeaderValue> {
        self.trace.as_ref().map(traceparent).map(header_value)
    }

    /// Puts both headers onto an answer, in place of the upstream's.
    pub(crate) fn sign(&self, response: &mut ResponseHeader) -> pingora::Result<()> {
        response.insert_header(X_REQUEST_ID, self.request_id.clone())?;
        match self.traceresponse() {
            Some(value) => response.insert_header(TRACERESPONSE, value),
            None => Ok(()),
        }
    }
}

/// The client's own id, if it is one that may stand in logs and headers as it is.
fn client_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(X_REQUEST_ID).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let bytes = value.as_bytes();
    let is_sane = (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte));
    is_sane.then(|| value.clone())
}

fn header_value(digits: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(digits)).expect("hexadecimal digits and dashes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(ids: &[&str]) -> (String, bool) {
        let mut headers = HeaderMap::new();
        for id in ids {
            headers.append(X_REQUEST_ID, HeaderValue::from_str(id).expect("a value"));
        }
        let identity = Identity::new(&headers, None);
        let id = identity.request_id.to_str().expect("text").to_owned();
        (id, identity.from_client)
    }

    #[test]
    fn the_answer_names_trace_span_and_flags() {
        let (trace_id, span_id) = (0x4bf9 << 64 | 0x0123_4567_89ab_cdef, 0xf0);
        let flags = opentelemetry::TraceFlags::SAMPLED;
        let state = opentelemetry::trace::TraceState::NONE;
        let span = SpanContext::new(trace_id.into(), span_id.into(), flags, false, state);
        let identity = Identity::new(&HeaderMap::new(), Some(&span));
        assert_eq!(identity.request_id, "0000000000004bf90123456789abcdef");
        assert_eq!(
            identity.traceresponse().expect("a trace"),
            "00-0000000000004bf90123456789abcdef-00000000000000f0-01"
        );
    }

    #[test]
    fn a_sane_id_of_the_client_is_kept() {
        for id in ["a", "req_0aB-1.2:3/4+5=6@7", &"x".repeat(128)] {
            assert_eq!(id_of(&[id]), (id.to_owned(), true));
        }
    }

    #[test]
    fn any_other_is_replaced_by_a_new_one() {
        for ids in [
            &[][..],
            &[""],
            &["a b"],
            &["<script>"],
            &["a", "b"],
            &[&"x".repeat(129)],
        ] {
            let (id, from_client) = id_of(ids);
            assert!(!from_client, "{ids:?}");
            assert_eq!(id.len(), 32, "{id}");
        }
        assert_ne!(id_of(&[]), id_of(&[]));
    }
}
