//! Records of requests. Of traces each record is one trace of a request, its id the key, as text: that is
//! how the Collector writes it, and what reads the topic finds a trace in one partition.

use std::collections::VecDeque;
use std::fmt::Write as _;

use crate::coding::Coding;
use crate::exporter::parts::by_trace;
use crate::queue::Payload;
use crate::signal::Signal;
use crate::wire;

/// What stands around the value of a record: its key, its lengths, its time.
const OVERHEAD_BYTES: usize = 64;

/// What becomes a record.
#[derive(Debug)]
pub(super) struct Record {
    /// None for what has no trace of its own.
    pub(super) key: Option<String>,
    /// Not compressed.
    pub(super) value: Payload,
}

impl Record {
    pub(super) fn size(&self) -> usize {
        self.value.bytes.len() + OVERHEAD_BYTES
    }
}

/// The records of `payload`, those of a trace in the order of its spans. None is larger than `max_bytes`,
/// but for what cannot be cut.
pub(super) fn records(payload: &Payload, max_bytes: usize) -> Vec<Record> {
    if payload.items == 0 {
        return Vec::new();
    }
    let plain = Payload {
        bytes: payload.decompressed(),
        coding: Coding::Identity,
        ..payload.clone()
    };
    if plain.signal != Signal::Traces {
        return cut(None, plain, max_bytes).collect();
    }
    by_trace(plain, |trace_id| trace_id)
        .into_iter()
        .flat_map(|(trace_id, part)| cut(Some(hex(trace_id)), part, max_bytes))
        .collect()
}

/// In batches that are no larger than `max_bytes`, but for a record that alone is.
pub(super) fn batches(records: Vec<Record>, max_bytes: usize) -> VecDeque<Vec<Record>> {
    let mut batches: VecDeque<Vec<Record>> = VecDeque::new();
    let mut bytes = 0;
    for record in records {
        match batches.back_mut() {
            Some(last) if bytes + record.size() <= max_bytes => {
                bytes += record.size();
                last.push(record);
            }
            _ => {
                bytes = record.size();
                batches.push_back(vec![record]);
            }
        }
    }
    batches
}

fn cut(key: Option<String>, payload: Payload, max_bytes: usize) -> impl Iterator<Item = Record> {
    let max_bytes = max_bytes.saturating_sub(OVERHEAD_BYTES);
    let is_cut = payload.bytes.len() > max_bytes && payload.signal.is_divisible();
    let parts = if is_cut {
        pieces(&payload, max_bytes)
    } else {
        None
    };
    let values = parts.unwrap_or_else(|| vec![payload]);
    values.into_iter().map(move |value| Record {
        key: key.clone(),
        value,
    })
}

/// None when there is something in it too large for one piece.
fn pieces(payload: &Payload, max_bytes: usize) -> Option<Vec<Payload>> {
    let signal = payload.signal;
    let pieces = wire::split(&payload.bytes, max_bytes).ok()?;
    let pieces = pieces.into_iter().map(|piece| {
        let tally = wire::tally(signal, &piece).expect("a piece of what is sound");
        Payload::plain(signal, piece, tally.items)
    });
    Some(pieces.collect())
}

fn hex(id: [u8; 16]) -> String {
    id.iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
