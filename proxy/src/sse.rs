//! Reads a `text/event-stream` as its bytes pass by: counts its events and hands their data on.
//!
//! Chunks are no measure: a server may put several events into one, and the network may cut one
//! in two. <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>

use memchr::memchr2;

const DATA: &[u8] = b"data";
/// May stand before the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Who wants to know what the events say.
pub(crate) trait Reader {
    /// The next bytes of the current event's data. Its lines are joined by a line feed.
    fn data(&mut self, bytes: &[u8]);
    /// The current event is complete.
    fn event(&mut self);
}

/// Nobody: the events are only counted.
impl Reader for () {
    fn data(&mut self, _bytes: &[u8]) {}
    fn event(&mut self) {}
}

/// The state between two bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct EventParser {
    events: i64,
    line: Line,
    /// Whether the current event has a data line; without one it is a comment, and dispatches
    /// nothing.
    has_data: bool,
    /// Whether the last byte was CR, so that a following LF belongs to the same line end.
    after_cr: bool,
}

/// Where in a line the next byte is.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// At the start of the stream, behind so many bytes of the byte order mark.
    Mark(usize),
    /// Behind so many bytes of `data`.
    Name(usize),
    /// Behind `data:`; one space may come that is not part of the data.
    Colon,
    Data,
    Ignored,
}

impl Default for Line {
    fn default() -> Self {
        Self::Mark(0)
    }
}

impl EventParser {
    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8], reader: &mut impl Reader) {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let after_cr = std::mem::take(&mut self.after_cr);
            if after_cr && byte == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let taken = match self.line {
                Line::Data | Line::Ignored => self.value(rest, reader),
                Line::Mark(matched) => self.mark(byte, matched),
                Line::Name(matched) => self.name(byte, matched, reader),
                Line::Colon => {
                    self.line = Line::Data;
                    usize::from(byte == b' ')
                }
            };
            rest = &rest[taken..];
        }
    }

    /// Complete events so far, a closing `[DONE]` included.
    pub(crate) fn events(&self) -> i64 {
        self.events
    }

    /// One byte of the byte order mark, if it is one. Like all below it returns how many bytes it took.
    fn mark(&mut self, byte: u8, matched: usize) -> usize {
        let is_mark = BYTE_ORDER_MARK[matched] == byte;
        self.line = match matched + usize::from(is_mark) {
            0 => Line::Name(0),
            whole if whole == BYTE_ORDER_MARK.len() => Line::Name(0),
            part if is_mark => Line::Mark(part),
            // A part of a mark begins a name that is not `data`.
            _ => Line::Ignored,
        };
        usize::from(is_mark)
    }

    /// One byte of a field's name.
    fn name(&mut self, byte: u8, matched: usize, reader: &mut impl Reader) -> usize {
        let is_data = matched == DATA.len();
        match byte {
            b'\n' | b'\r' => {
                if is_data {
                    self.begin_data(reader);
                }
                if matched == 0 && std::mem::take(&mut self.has_data) {
                    self.events += 1;
                    reader.event();
                }
                self.end_line(byte);
            }
            b':' if is_data => {
                self.begin_data(reader);
                self.line = Line::Colon;
            }
            _ if DATA.get(matched) == Some(&byte) => self.line = Line::Name(matched + 1),
            _ => self.line = Line::Ignored,
        }
        1
    }

    fn begin_data(&mut self, reader: &mut impl Reader) {
        if std::mem::replace(&mut self.has_data, true) {
            reader.data(b"\n");
        }
    }

    /// The rest of a line, as far as it is there.
    fn value(&mut self, rest: &[u8], reader: &mut impl Reader) -> usize {
        let end = memchr2(b'\n', b'\r', rest);
        let value = &rest[..end.unwrap_or(rest.len())];
        if matches!(self.line, Line::Data) && !value.is_empty() {
            reader.data(value);
        }
        let Some(end) = end else {
            return rest.len();
        };
        self.end_line(rest[end]);
        end + 1
    }

    fn end_line(&mut self, byte: u8) {
        self.line = Line::Name(0);
        self.after_cr = byte == b'\r';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Complete events' data, and that of the event that is not complete.
    #[derive(Default)]
    struct Recorder {
        events: Vec<String>,
        current: String,
    }

    impl Reader for Recorder {
        fn data(&mut self, bytes: &[u8]) {
            self.current
                .push_str(str::from_utf8(bytes).expect("the tests are ASCII"));
        }

        fn event(&mut self) {
            self.events.push(std::mem::take(&mut self.current));
        }
    }

    /// A stream, its complete events, and what of another one has come.
    const STREAMS: &[(&str, &[&str], &str)] = &[
        ("", &[], ""),
        ("data: a\n\n", &["a"], ""),
        ("data:a\n\n", &["a"], ""),
        ("data:  a \n\n", &[" a "], ""),
        ("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"], ""),
        ("data: a\r\rdata: b\r\r", &["a", "b"], ""),
        ("data: a\n", &[], "a"),
        ("data: a", &[], "a"),
        ("data: a\ndata: b\n\n", &["a\nb"], ""),
        ("data: a\ndata\ndata:\ndata: \n\n", &["a\n\n\n"], ""),
        ("event: x\nid: 1\ndata: {}\n\n", &["{}"], ""),
        (": ping\n\n\n\n", &[], ""),
        ("event: no-data\n\n", &[], ""),
        ("data\n\n", &[""], ""),
        ("xdata: a\n\ndataset: b\n\ndat\n\n", &[], ""),
        ("data: a: b\n\ndata: [DONE]\n\n", &["a: b", "[DONE]"], ""),
        ("\u{feff}data: a\n\n", &["a"], ""),
        ("\u{feff}\u{feff}data: a\n\ndata: b\n\n", &["b"], ""),
        ("\u{fefe}data: a\n\ndata: b\n\n", &["b"], ""),
    ];

    #[test]
    fn events_with_data_are_read_however_the_stream_is_cut() {
        for (stream, events, rest) in STREAMS {
            for size in 1..=stream.len().max(1) {
                let (mut parser, mut recorder) = (EventParser::default(), Recorder::default());
                for chunk in stream.as_bytes().chunks(size) {
                    parser.push(chunk, &mut recorder);
                }
                assert_eq!(recorder.events, *events, "{stream:?} in chunks of {size}");
                assert_eq!(recorder.current, *rest, "{stream:?} in chunks of {size}");
                assert_eq!(parser.events(), events.len() as i64, "{stream:?}");
            }
        }
    }
}
