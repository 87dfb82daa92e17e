//! Decompression: bounded whatever comes, and all members of what a client compressed.
#![no_main]

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use lantern_shim::fuzzing::gunzip;
use libfuzzer_sys::fuzz_target;

const MAX_BYTES: usize = 256 * 1024;
/// Taken chunk by chunk, so that it is what bounds the memory of all requests together.
const ROOM_BYTES: usize = 128 * 1024;

fuzz_target!(|data: &[u8]| {
    let raw = Bytes::copy_from_slice(data);
    if let Ok(plain) = gunzip(raw.clone(), MAX_BYTES, ROOM_BYTES) {
        assert!(plain.len() <= ROOM_BYTES);
        assert_eq!(
            gunzip(raw, plain.len(), ROOM_BYTES),
            Ok(plain),
            "exactly as much is allowed"
        );
    }

    let middle = data.len() / 2;
    let mut members = gzip(&data[..middle]);
    members.extend(gzip(&data[middle..]));
    let plain = gunzip(members.clone().into(), MAX_BYTES, ROOM_BYTES);
    assert_eq!(plain, Ok(Bytes::copy_from_slice(data)));
    if !data.is_empty() {
        assert!(
            gunzip(members.clone().into(), data.len() - 1, ROOM_BYTES).is_err(),
            "over the bound"
        );
        members.pop();
        assert!(
            gunzip(members.into(), MAX_BYTES, ROOM_BYTES).is_err(),
            "cut short"
        );
    }
});

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}
