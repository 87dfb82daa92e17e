//! The log's files for the fuzz targets: see [`crate::fuzzing`].

use std::path::Path;

use bytes::Bytes;

use super::record::Header;
use super::recovery;
use super::segment::{Scanner, SegmentName};
use crate::queue::Payload;
use crate::signal::Signal;

/// A segment's file name, and what is in it: a record for each of `payloads`.
pub fn segment_file(
    number: u64,
    base_seq: u64,
    salt: u32,
    payloads: &[Vec<u8>],
) -> (String, Vec<u8>) {
    let name = SegmentName {
        number,
        base_seq,
        salt,
    };
    let path = name.path(Path::new(""));
    let mut file = Vec::new();
    for (seq, payload) in (base_seq..).zip(payloads) {
        let payload = Payload::plain(Signal::Traces, Bytes::copy_from_slice(payload), 1);
        let header = Header::new(seq, &payload).expect("payloads of a fuzzer are short");
        file.extend(header.encode(salt));
        file.extend(&payload.bytes);
    }
    (path.display().to_string(), file)
}

/// What a start finds in `dir`: sequence numbers and payloads, in order.
pub fn recover(dir: &Path) -> Result<Vec<(u64, Bytes)>, String> {
    let found = recovery::recover(dir, &["only".to_owned()]).map_err(|error| error.to_string())?;
    let segments = Vec::from(found.state.segments);
    let limits = segments.iter().skip(1).map(|next| next.name.base_seq);
    let limits = limits.chain([u64::MAX]);
    let mut records = Vec::new();
    for (segment, limit_seq) in segments.iter().zip(limits) {
        let scanner = Scanner::open(dir, segment.name, limit_seq);
        let mut scanner = scanner.map_err(|error| error.to_string())?;
        scanner.read_to(segment.bytes);
        while let Some(found) = scanner.next().map_err(|error| error.to_string())? {
            records.extend(found.payload.map(|payload| (found.seq, payload.bytes)));
        }
    }
    Ok(records)
}
