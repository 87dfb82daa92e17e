//! Backends that take a request in parts, each with an answer of its own; and taking it apart by trace.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::Answer;
use crate::queue::Payload;
use crate::signal::Signal;
use crate::wire;

/// What became of a part of a request.
pub(super) type Answered = (Payload, Answer);

/// What a [`Share`] is still busy with.
pub(super) type Sharing = Pin<Box<dyn Future<Output = Vec<Answered>> + Send>>;

/// A backend of several places, each of which gets its share.
pub(super) trait Share: Send + Sync {
    /// Whether there is a place for `signal`.
    fn has_place_for(&self, signal: Signal) -> bool;

    /// Sends each part of `payloads` once.
    fn send(self: Arc<Self>, payloads: Vec<Payload>) -> Sharing;
}

/// The same answer for all of `payloads`: to come later.
pub(super) fn all_later(payloads: Vec<Payload>, reason: &str) -> Vec<Answered> {
    let later = |payload| (payload, Answer::later(reason.to_owned()));
    payloads.into_iter().map(later).collect()
}

/// Takes `payload`, which is of traces, apart by what `place_of` says of their ids; each part is plain.
/// What is for one place alone stays as it is.
pub(super) fn by_trace<P: Ord>(
    payload: Payload,
    place_of: impl Fn([u8; 16]) -> P,
) -> BTreeMap<P, Payload> {
    let plain = payload.decompressed();
    let groups = wire::span_groups(&plain).expect("it was checked when it came");
    let mut heads = Vec::with_capacity(groups.len());
    // Of each place the spans, by the place of their heads.
    let mut kept: BTreeMap<P, BTreeMap<usize, Vec<Bytes>>> = BTreeMap::new();
    for (at, group) in groups.into_iter().enumerate() {
        heads.push(group.heads);
        for span in group.spans {
            let of_place = kept.entry(place_of(span.trace_id)).or_default();
            of_place.entry(at).or_default().push(span.bytes);
        }
    }
    if kept.len() <= 1 {
        let nowhere = || place_of(<[u8; 16]>::default());
        let place = kept.into_keys().next().unwrap_or_else(nowhere);
        return BTreeMap::from([(place, payload)]);
    }
    let part = |(place, kept): (P, BTreeMap<usize, Vec<Bytes>>)| {
        let items = kept.values().map(|spans| spans.len() as u64).sum();
        let bytes = wire::put_together(&heads, &kept);
        (place, Payload::plain(payload.signal, bytes, items))
    };
    kept.into_iter().map(part).collect()
}
