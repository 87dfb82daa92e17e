//! What one request holds, and how much of it may be decoded.
//!
//! An empty attribute is two bytes on the wire and up to two hundred once it is decoded. So it is
//! counted what is to be decoded, before it is. What is only forwarded is bounded by its bytes.

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

/// What a request holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    /// Spans, data points, log records or profiles.
    pub(crate) items: u64,
    /// Attributes, values, events, links and so on.
    pub(super) elements: u64,
}

impl Tally {
    /// Whether a request of spans may be decoded.
    pub(crate) fn check_decodable(&self) -> Result<(), TooMany> {
        match self {
            Tally { items, .. } if *items > MAX_SPANS => Err(TooMany::Spans),
            Tally { elements, .. } if *elements > MAX_ELEMENTS => Err(TooMany::Elements),
            _ => Ok(()),
        }
    }
}
