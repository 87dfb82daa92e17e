//! A stream of events, in any pieces, against the standard's algorithm over the whole of it.
#![no_main]

use lantern_fuzz::in_pieces;
use lantern_proxy::fuzzing::events;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((stream, pieces)) = in_pieces(data) else {
        return;
    };
    let (found, count) = events(&pieces);
    assert_eq!(found.len() as i64, count);
    assert_eq!(found, as_the_standard_says(stream));
});

/// <https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>
fn as_the_standard_says(stream: &[u8]) -> Vec<Vec<u8>> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let (mut events, mut data) = (Vec::new(), None::<Vec<u8>>);
    for line in complete_lines(stream) {
        if line.is_empty() {
            events.extend(data.take());
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        if name != b"data" {
            continue;
        }
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut data {
            Some(data) => {
                data.push(b'\n');
                data.extend(value);
            }
            None => data = Some(value.to_vec()),
        }
    }
    events
}

/// Lines end with CR LF, LF or CR.
fn complete_lines(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(end) = stream.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        lines.push(&stream[..end]);
        let both = stream[end..].starts_with(b"\r\n");
        stream = &stream[end + 1 + usize::from(both)..];
    }
    lines
}
