//! The parsers of what passes by, within reach of the fuzz targets: each takes a body in the pieces that
//! it comes in. Behind the feature `fuzzing`, and no part of the API.

use std::net::SocketAddr;
use std::time::Instant;

use http::{HeaderMap, Request};
use opentelemetry::KeyValue;

use crate::TrustedProxies;
use crate::genai::Exchange;
use crate::origin::{Arrival, Origin};
use crate::sse::{EventParser, Reader};

/// The data of the complete events of a stream, and how many were counted.
pub fn events(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, i64) {
    let (mut parser, mut recorder) = (EventParser::default(), Recorder::default());
    for piece in pieces {
        parser.push(piece, &mut recorder);
    }
    (recorder.events, parser.events())
}

#[derive(Default)]
struct Recorder {
    events: Vec<Vec<u8>>,
    current: Vec<u8>,
}

impl Reader for Recorder {
    fn data(&mut self, bytes: &[u8]) {
        self.current.extend_from_slice(bytes);
    }

    fn event(&mut self) {
        self.events.push(std::mem::take(&mut self.current));
    }
}

/// What a span says of the body of a request to a model.
pub fn request_attributes(pieces: &[&[u8]]) -> Vec<KeyValue> {
    attributes(pieces, Exchange::request_body)
}

/// What a span says of an answer that is one JSON document.
pub fn document_attributes(pieces: &[&[u8]]) -> Vec<KeyValue> {
    attributes(pieces, Exchange::response_document)
}

/// What a span says of an answer that is a stream of events.
pub fn stream_attributes(pieces: &[&[u8]]) -> Vec<KeyValue> {
    let mut parser = EventParser::default();
    attributes(pieces, |exchange, piece| {
        parser.push(piece, &mut exchange.response_events());
    })
}

fn attributes(pieces: &[&[u8]], mut push: impl FnMut(&mut Exchange, &[u8])) -> Vec<KeyValue> {
    let mut exchange = Exchange::new("chat", Instant::now(), None);
    for piece in pieces {
        push(&mut exchange, piece);
    }
    let mut attributes = Vec::new();
    exchange.attributes(true, &mut attributes);
    // What depends on the clock cannot be compared.
    attributes.retain(|attribute| !attribute.key.as_str().contains(".time_"));
    attributes
}

/// Who asked, by what scheme and for which server, as `peer` and the headers of its request tell.
pub fn origin(
    peer: SocketAddr,
    headers: HeaderMap,
    trusted: &TrustedProxies,
) -> (Option<String>, &'static str, Option<String>) {
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    let (head, ()) = request.into_parts();
    let arrival = Arrival {
        head: &head,
        version: Some(head.version),
        peer: Some(peer),
        local: None,
        tls: false,
    };
    let origin = Origin::of(&arrival, trusted);
    (
        origin.client,
        origin.scheme,
        origin.server.map(|(host, _)| host),
    )
}
