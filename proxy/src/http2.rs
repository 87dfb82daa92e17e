//! What a client's connection of HTTP/2 shows of requests that are refused before anybody here sees them: the library
//! resets their streams, answers 400 or 431 and nothing more, or gives the connection up. Frames are counted, their
//! contents left alone.
//! <https://www.rfc-editor.org/rfc/rfc9113.html#section-4.1>

use std::collections::VecDeque;

use http::StatusCode;

/// What a client begins with.
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;
/// What is looked at of a payload: the longest of the codes below.
const START_BYTES: usize = 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

/// The static table's `:status: 400` (<https://www.rfc-editor.org/rfc/rfc7541.html#appendix-A>).
const STATUS_400: u8 = 0x8c;
/// `:status: 431` of a head that is too large for the library, which then is in the dynamic table, whose first entry
/// says it another time.
const STATUS_431: [u8; 5] = [0x48, 0x83, 0x69, 0x90, 0xff];
const DYNAMIC: std::ops::RangeInclusive<u8> = 0xbe..=0xff;
/// How a change of the dynamic table's size begins, which may stand before it, and the bits that say so.
const TABLE_SIZE: u8 = 0x20;
const TABLE_SIZE_BITS: u8 = 0xe0;
/// All of the other bits: the number goes on.
const TABLE_SIZE_NUMBER: u8 = 0x1f;

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;

/// Requests that may be refused at once; the library allows fewer streams.
const MAX_FRESH: usize = 256;

/// Sees the frames of a connection pass in both directions.
pub(crate) struct Watch {
    read: Frames,
    written: Frames,
    /// Streams of which there is nothing but a head.
    fresh: VecDeque<u32>,
    /// The last that the client has opened.
    last: u32,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            read: Frames::after(PREFACE_BYTES),
            written: Frames::after(0),
            fresh: VecDeque::new(),
            last: 0,
        }
    }

    /// The client has sent these bytes.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        let Self {
            read, fresh, last, ..
        } = self;
        read.push(bytes, &mut |frame| match frame.kind {
            HEADERS if frame.stream > *last => {
                *last = frame.stream;
                if fresh.len() == MAX_FRESH {
                    fresh.pop_front();
                }
                fresh.push_back(frame.stream);
            }
            // It goes on, or the client gives it up.
            DATA | HEADERS | RST_STREAM => fresh.retain(|&stream| stream != frame.stream),
            _ => {}
        });
    }

    /// The library has sent these bytes; `refused` gets the status of each request that it has refused by them, if it
    /// has answered at all.
    pub(crate) fn written(&mut self, bytes: &[u8], refused: &mut impl FnMut(Option<StatusCode>)) {
        let Self { written, fresh, .. } = self;
        written.push(bytes, &mut |frame| match frame.kind {
            HEADERS | RST_STREAM => {
                let known = fresh.iter().position(|&stream| stream == frame.stream);
                let was_fresh = known.and_then(|index| fresh.remove(index)).is_some();
                if let status @ Some(_) = frame.bare_status(was_fresh) {
                    refused(status);
                } else if was_fresh && frame.kind == RST_STREAM && frame.code(0) == PROTOCOL_ERROR {
                    refused(None);
                }
            }
            // Behind the last stream that was looked at.
            GOAWAY if frame.code(4) != NO_ERROR => refused(None),
            _ => {}
        });
    }
}

/// The beginning of a frame.
struct Frame {
    kind: u8,
    stream: u32,
    /// The payload's, of which `start` has the first.
    bytes: usize,
    start: [u8; START_BYTES],
}

impl Frame {
    /// The status of an answer whose head says that and nothing else: ours all have an id. What is `first` on its
    /// stream is a head; what comes later may be trailers, which say anything.
    fn bare_status(&self, first: bool) -> Option<StatusCode> {
        let head = self.start.get(..self.bytes).unwrap_or_default();
        let head = match head {
            [first, rest @ ..] if first & TABLE_SIZE_BITS == TABLE_SIZE => {
                after_number(*first, rest)
            }
            _ => head,
        };
        match head {
            _ if self.kind != HEADERS => None,
            [STATUS_400] => Some(StatusCode::BAD_REQUEST),
            [status] if first && DYNAMIC.contains(status) => {
                Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
            _ if head == STATUS_431 => Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            _ => None,
        }
    }

    /// The number at a place of the payload.
    fn code(&self, at: usize) -> u32 {
        let bytes = self.start[at..at + 4].try_into().expect("four bytes");
        u32::from_be_bytes(bytes)
    }
}

/// What follows a number that begins with these five bits
/// (<https://www.rfc-editor.org/rfc/rfc7541.html#section-5.1>).
fn after_number(first: u8, rest: &[u8]) -> &[u8] {
    if first & TABLE_SIZE_NUMBER != TABLE_SIZE_NUMBER {
        return rest;
    }
    let last = rest.iter().position(|byte| byte & 0x80 == 0);
    last.map_or(&[], |last| &rest[last + 1..])
}

/// Finds the frames in one direction's bytes, however they are cut.
struct Frames {
    /// The header of the current frame, and the start of its payload.
    head: [u8; HEADER_BYTES + START_BYTES],
    filled: usize,
    /// Bytes to pass over before the next header.
    rest: usize,
}

impl Frames {
    fn after(bytes: usize) -> Self {
        Self {
            head: [0; HEADER_BYTES + START_BYTES],
            filled: 0,
            rest: bytes,
        }
    }

    fn push(&mut self, mut bytes: &[u8], found: &mut impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let passed = self.rest.min(bytes.len());
                self.rest -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let wanted = self.wanted();
            let taken = (wanted - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == self.wanted() {
                self.complete(found);
            }
        }
    }

    /// How much of the frame is to be kept: its length is known once its header is there.
    fn wanted(&self) -> usize {
        if self.filled < HEADER_BYTES {
            return HEADER_BYTES;
        }
        HEADER_BYTES + self.payload_bytes().min(START_BYTES)
    }

    fn payload_bytes(&self) -> usize {
        let [high, middle, low] = [0, 1, 2].map(|at| usize::from(self.head[at]));
        high << 16 | middle << 8 | low
    }

    fn complete(&mut self, found: &mut impl FnMut(Frame)) {
        let (header, start) = self.head.split_at(HEADER_BYTES);
        let stream = header[5..].try_into().expect("four bytes");
        found(Frame {
            kind: header[3],
            // The highest bit is reserved.
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
            bytes: self.payload_bytes(),
            start: start.try_into().expect("the payload's start"),
        });
        *self = Self::after(self.payload_bytes().saturating_sub(START_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let header = [&length[1..], &[kind, 0], &stream.to_be_bytes()].concat();
        [header, payload.to_vec()].concat()
    }

    /// Which requests are refused, of what a client sends and what it is answered, in pieces of any size.
    fn check(sent: &[Vec<u8>], answered: &[Vec<u8>], refused: &[Option<StatusCode>]) {
        let sent = [&[0; PREFACE_BYTES], &sent.concat()[..]].concat();
        let answered = answered.concat();
        for size in 1..=sent.len() {
            let mut watch = Watch::new();
            sent.chunks(size).for_each(|piece| watch.read(piece));
            let mut seen = Vec::new();
            for piece in answered.chunks(size) {
                watch.written(piece, &mut |status| seen.push(status));
            }
            assert_eq!(seen, refused, "{size}: {sent:?} {answered:?}");
        }
    }

    #[test]
    fn a_head_whose_stream_is_reset_for_its_form_is_refused() {
        let head = |stream| frame(HEADERS, stream, &[0x82; 20]);
        let reset = |stream, code: u8| frame(RST_STREAM, stream, &[0, 0, 0, code]);
        let settings = frame(4, 0, &[]);
        check(&[head(1)], &[settings.clone(), reset(1, 1)], &[None]);
        check(
            &[head(1), head(3)],
            &[reset(1, 1), reset(3, 1)],
            &[None, None],
        );
        check(&[settings, head(1)], &[reset(1, 1), reset(1, 1)], &[None]);
        check(&[head(1)], &[reset(1, 8)], &[]);
        check(&[head(1)], &[frame(HEADERS, 1, &[0x88]), reset(1, 1)], &[]);
        // Its body or its trailers were at fault: somebody has seen the request.
        check(&[head(1), frame(DATA, 1, b"body")], &[reset(1, 1)], &[]);
        check(&[head(1), head(1)], &[reset(1, 1)], &[]);
    }

    #[test]
    fn an_answer_that_says_a_status_and_nothing_else_is_the_librarys() {
        let head = frame(HEADERS, 1, &[0x82; 20]);
        let answer = |block: &[u8]| frame(HEADERS, 1, block);
        let reset = frame(RST_STREAM, 1, &[0, 0, 0, 1]);
        let refused = [Some(StatusCode::BAD_REQUEST)];
        let sent = std::slice::from_ref(&head);
        check(sent, &[answer(b"\x8c")], &refused);
        check(sent, &[answer(b"\x8c"), reset], &refused);
        check(sent, &[answer(b"\x3f\xe1\x1f\x8c")], &refused);
        let refused = [Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)];
        check(sent, &[answer(&STATUS_431)], &refused);
        check(sent, &[answer(b"\xbe")], &refused);
        check(sent, &[answer(b"\x88\xbf"), answer(b"\xbe")], &[]);
        for ours in [
            &b"\x88"[..],
            b"\x8c\x88",
            b"\x3f\xe1\x1f\x88",
            &[0x8c; 9],
            b"",
        ] {
            check(sent, &[answer(ours)], &[]);
        }
    }

    #[test]
    fn a_connection_that_is_given_up_is_refused_and_one_that_ends_is_not() {
        let goodbye = |code: u8| frame(GOAWAY, 0, &[0, 0, 0, 0, 0, 0, 0, code]);
        check(&[], &[goodbye(1)], &[None]);
        check(&[], &[goodbye(0)], &[]);
    }
}
