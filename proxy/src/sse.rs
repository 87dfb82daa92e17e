//! Counts the events of a `text/event-stream` as its bytes pass by.
//!
//! Chunks are no measure: a server may put several events into one, and the network may cut one
//! in two. <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>

const DATA: &[u8] = b"data";

/// The state between two bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct EventCounter {
    events: i64,
    /// Length of the current line.
    line_bytes: usize,
    /// How many bytes of `data` the current line begins with.
    data_prefix: usize,
    /// Whether the current event has a data line; without one it is a comment, and dispatches
    /// nothing.
    has_data: bool,
    /// Whether the last byte was CR, so that a following LF belongs to the same line end.
    after_cr: bool,
}

impl EventCounter {
    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_cr => {
                    self.after_cr = false;
                    continue;
                }
                b'\n' | b'\r' => self.end_line(),
                _ => {
                    if self.data_prefix == self.line_bytes
                        && self.data_prefix < DATA.len()
                        && byte == DATA[self.data_prefix]
                    {
                        self.data_prefix += 1;
                        self.has_data |= self.data_prefix == DATA.len();
                    }
                    self.line_bytes += 1;
                }
            }
            self.after_cr = byte == b'\r';
        }
    }

    /// Complete events so far, a closing `[DONE]` included.
    pub(crate) fn events(&self) -> i64 {
        self.events
    }

    fn end_line(&mut self) {
        if self.line_bytes == 0 && self.has_data {
            self.events += 1;
            self.has_data = false;
        }
        self.line_bytes = 0;
        self.data_prefix = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAMS: &[(&str, i64)] = &[
        ("", 0),
        ("data: a\n\n", 1),
        ("data: a\r\n\r\ndata: b\r\n\r\n", 2),
        ("data: a\r\rdata: b\r\r", 2),
        ("data: a\n", 0),
        ("data: a\ndata: b\n\n", 1),
        ("event: x\nid: 1\ndata: {}\n\n", 1),
        (": ping\n\n\n\n", 0),
        ("event: no-data\n\n", 0),
        ("data\n\n", 1),
        ("xdata: a\n\n", 0),
        ("data: a\n\ndata: [DONE]\n\n", 2),
    ];

    #[test]
    fn events_with_data_are_counted_however_the_stream_is_cut() {
        for (stream, events) in STREAMS {
            for size in 1..=stream.len().max(1) {
                let mut counter = EventCounter::default();
                stream
                    .as_bytes()
                    .chunks(size)
                    .for_each(|chunk| counter.push(chunk));
                assert_eq!(counter.events(), *events, "{stream:?} in chunks of {size}");
            }
        }
    }
}
