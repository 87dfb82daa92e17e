//! OTLP/JSON in: what it becomes is protobuf, and stays the same through opentelemetry-proto's own JSON.
#![no_main]

use lantern_shim::fuzzing::{count_spans, json_to_protobuf};
use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;

fuzz_target!(|json: &[u8]| {
    let Ok(protobuf) = json_to_protobuf(json) else {
        return;
    };
    let decoded = ExportTraceServiceRequest::decode(&protobuf[..]).expect("it was just encoded");
    let in_spans = |error: &String| error.contains("without");
    let counted = count_spans(&protobuf);
    assert!(
        counted.as_ref().err().is_none_or(in_spans),
        "only ids may be missing: {counted:?}"
    );

    let text = serde_json::to_string(&decoded).expect("it has string keys");
    // JSON has no such numbers, and opentelemetry-proto does not write their names.
    if format!("{decoded:?}").contains("DoubleValue") {
        return;
    }
    let again = json_to_protobuf(text.as_bytes()).expect("another encoder's JSON is read");
    let again = ExportTraceServiceRequest::decode(&again[..]).expect("it was just encoded");
    assert_eq!(again, decoded, "{text}");
});
