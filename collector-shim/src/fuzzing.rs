//! The parsers of what comes from outside, within reach of the fuzz targets. Errors are text, for they
//! are only looked at by people. Behind the feature `fuzzing`, and no part of the API.

use bytes::Bytes;

pub use crate::log::fuzzing::{recover, segment_file};
pub use crate::receiver::fuzzing::{gunzip, json_to_protobuf, unframe};
use crate::signal::Signal;
use crate::wire;

/// How many spans a request holds, once it is found sound and may be decoded.
pub fn count_spans(request: &[u8]) -> Result<u64, String> {
    let tally = wire::tally(Signal::Traces, request).map_err(|error| error.to_string())?;
    let decodable = tally.check_decodable();
    decodable.map_err(|error| error.to_string())?;
    Ok(tally.items)
}

/// The request with what is no UTF-8 replaced.
pub fn replace_invalid_text(request: &[u8]) -> Result<Vec<u8>, String> {
    wire::replace_invalid_text(request).map_err(|error| error.to_string())
}

/// The request cut into requests of at most `max_bytes`.
pub fn split(request: &Bytes, max_bytes: usize) -> Result<Vec<Bytes>, String> {
    wire::split(request, max_bytes).map_err(|error| error.to_string())
}
