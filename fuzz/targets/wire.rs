//! The walk over a request's protobuf, and the cutting of one, against prost.
#![no_main]

use bytes::Bytes;
use lantern_shim::fuzzing::{count_spans, replace_invalid_text, split};
use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let Some((limit, request)) = data.split_first() else {
        return;
    };
    let Ok(count) = count_spans(request) else {
        return refused(request);
    };
    let clean = replace_invalid_text(request).expect("the request was found sound");
    assert_eq!(clean.len(), request.len());
    assert_eq!(
        count_spans(&clean).as_ref(),
        Ok(&count),
        "cleaning changes no span"
    );
    let decoded = spans(&clean);
    assert_eq!(decoded.len() as u64, count);
    assert!(
        decoded
            .iter()
            .all(|span| span.trace_id.len() == 16 && span.span_id.len() == 8)
    );

    let max_bytes = 16 * (1 + usize::from(*limit));
    let Ok(parts) = split(&Bytes::from(clean), max_bytes) else {
        return;
    };
    assert!(parts.iter().all(|part| part.len() <= max_bytes));
    let shared_out: Vec<Span> = parts.iter().flat_map(|part| spans(part)).collect();
    assert_eq!(shared_out, decoded, "every span is in one part, in order");
});

/// What the walk refuses is no request to prost either, or has spans without ids, or too much in it.
fn refused(request: &[u8]) {
    let Ok(decoded) = ExportTraceServiceRequest::decode(request) else {
        return;
    };
    let scopes = decoded
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans);
    let all = scopes.flat_map(|scope| &scope.spans);
    let has_ids = |span: &Span| {
        let is_id = |id: &[u8], length| id.len() == length && id.iter().any(|byte| *byte != 0);
        is_id(&span.trace_id, 16)
            && is_id(&span.span_id, 8)
            && [0, 8].contains(&span.parent_span_id.len())
            && span.links.iter().all(|link| {
                [0, 16].contains(&link.trace_id.len()) && [0, 8].contains(&link.span_id.len())
            })
    };
    // An id that is given twice is checked both times, and prost keeps the last; groups of unknown fields
    // and messages nested deeper than any sender's are refused by one of the two only.
    let is_as_written = decoded.encode_to_vec() == request;
    let error = count_spans(request).expect_err("it was refused");
    assert!(
        !is_as_written || error.contains("nested") || !all.clone().all(has_ids),
        "refused: {error}"
    );
}

fn spans(request: &[u8]) -> Vec<Span> {
    let request =
        ExportTraceServiceRequest::decode(request).expect("what the walk takes prost takes");
    let scopes = request
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}
