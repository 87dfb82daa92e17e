//! How much one request may hold, whatever its bytes.
//!
//! An empty attribute is two bytes on the wire, three in JSON, and up to two hundred once it is
//! decoded. So it is counted what is to be decoded, before it is.

/// Spans of one request. An SDK sends hundreds, a Collector thousands.
pub(crate) const MAX_SPANS: u64 = 65_536;
/// Attributes, their values, events, links and so on, of one request together.
pub(crate) const MAX_ELEMENTS: u64 = 500_000;

/// Which bound a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooMany {
    #[error("more than {MAX_SPANS} spans in one request")]
    Spans,
    #[error("more than {MAX_ELEMENTS} attributes, values, events and links in one request")]
    Elements,
}

/// What was met so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    spans: u64,
    elements: u64,
}

impl Tally {
    pub(crate) const NONE: Tally = Tally {
        spans: 0,
        elements: 0,
    };

    pub(crate) fn spans(&self) -> u64 {
        self.spans
    }

    pub(crate) fn span(&mut self) -> Result<(), TooMany> {
        self.spans += 1;
        if self.spans > MAX_SPANS {
            return Err(TooMany::Spans);
        }
        Ok(())
    }

    pub(crate) fn element(&mut self) -> Result<(), TooMany> {
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return Err(TooMany::Elements);
        }
        Ok(())
    }
}
