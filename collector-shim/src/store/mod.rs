//! The embedded trace store: traces in memory, by id, under a bound in bytes.
//!
//! Over the bound the trace that came first goes first, whole: half a trace misleads. What went
//! is counted, so that the viewer can say so.

mod decode;
mod json;
mod model;
mod query;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::mem::size_of;
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) use decode::decode;
pub(crate) use json::double_to_json;
pub use model::{
    Attribute, Event, Link, Resource, Scope, Span, SpanKind, Status, StatusCode, Trace, Value,
};
pub(crate) use query::{QueryError, TraceQuery};

/// What is kept and what had to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Holdings {
    pub(crate) traces: u64,
    pub(crate) spans: u64,
    pub(crate) bytes: usize,
    pub(crate) evicted_traces: u64,
    pub(crate) evicted_spans: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Store {
    max_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    traces: HashMap<String, Entry>,
    /// The ids of `traces`, first come first.
    arrivals: VecDeque<String>,
    holdings: Holdings,
}

#[derive(Debug, Default)]
struct Entry {
    spans: Vec<Arc<Span>>,
    seen: HashSet<SpanKey>,
    bytes: usize,
}

impl Entry {
    fn start_ns(&self) -> u64 {
        let starts = self.spans.iter().map(|span| span.start_unix_ns);
        starts.min().unwrap_or(0)
    }
}

/// Senders repeat what they are not sure of; the same span twice is kept once.
type SpanKey = (String, u64, u64);

/// What an entry costs beside its spans: its id twice, the maps' slots.
const ENTRY_BYTES: usize = 2 * (size_of::<String>() + 32) + size_of::<Entry>();
const SPAN_KEY_BYTES: usize = 2 * size_of::<SpanKey>();

/// A trace as it lies in the store: its id and its spans, not copied.
#[derive(Debug, Clone)]
pub(crate) struct StoredTrace {
    pub(crate) trace_id: String,
    pub(crate) spans: Vec<Arc<Span>>,
}

impl Store {
    /// An empty store of at most `max_bytes`.
    pub(crate) fn new(max_bytes: usize) -> Store {
        Store {
            max_bytes,
            kept: Mutex::default(),
        }
    }

    /// Keeps the spans of `traces`, then drops what came first while over the bound.
    pub(crate) fn insert(&self, traces: Vec<Trace>) {
        let mut kept = self.lock();
        for trace in traces {
            let mut resource = None;
            for span in trace.spans {
                // Spans of one resource come in a run, and share it with other traces. It counts
                // once for each run of each trace: rather too much than beyond the bound.
                let address = Arc::as_ptr(&span.resource);
                let shared_bytes = if resource == Some(address) {
                    0
                } else {
                    span.resource.approx_bytes()
                };
                resource = Some(address);
                kept.add(&trace.trace_id, span, shared_bytes);
            }
        }
        while kept.holdings.bytes > self.max_bytes && kept.evict_first() {}
    }

    /// The trace with the id `trace_id`: hex of any case, leading zeros optional.
    pub(crate) fn trace(&self, trace_id: &str) -> Option<StoredTrace> {
        let trace_id = format!("{:0>32}", trace_id.to_ascii_lowercase());
        let kept = self.lock();
        let entry = kept.traces.get(&trace_id)?;
        Some(StoredTrace {
            spans: entry.spans.clone(),
            trace_id,
        })
    }

    /// The newest traces with a span that matches `query`, newest first.
    pub(crate) fn find(&self, query: &TraceQuery) -> Vec<StoredTrace> {
        let kept = self.lock();
        let mut found: Vec<(u64, &String, &Entry)> = kept
            .traces
            .iter()
            .filter(|(_, entry)| entry.spans.iter().any(|span| query.matches(span)))
            .map(|(trace_id, entry)| (entry.start_ns(), trace_id, entry))
            .collect();
        found.sort_by_key(|(start_ns, trace_id, _)| (Reverse(*start_ns), *trace_id));
        found.truncate(query.limit);
        let copied = found.into_iter().map(|(_, trace_id, entry)| StoredTrace {
            trace_id: trace_id.clone(),
            spans: entry.spans.clone(),
        });
        copied.collect()
    }

    /// Every service with a span, in order of name.
    pub(crate) fn services(&self) -> BTreeSet<Arc<str>> {
        let kept = self.lock();
        kept.spans()
            .map(|span| Arc::clone(&span.service_name))
            .collect()
    }

    /// The operations of `service` with their kinds, in order of name.
    pub(crate) fn operations(&self, service: &str) -> BTreeSet<(String, SpanKind)> {
        let kept = self.lock();
        let of_service = kept.spans().filter(|span| *span.service_name == *service);
        of_service
            .map(|span| (span.name.clone(), span.kind))
            .collect()
    }

    /// How often each service called each other, over spans that start within `window_ns`.
    pub(crate) fn dependencies(
        &self,
        window_ns: std::ops::RangeInclusive<u64>,
    ) -> BTreeMap<(Arc<str>, Arc<str>), u64> {
        let kept = self.lock();
        let mut calls = BTreeMap::new();
        for entry in kept.traces.values() {
            let service_of: HashMap<&str, &Arc<str>> = entry
                .spans
                .iter()
                .map(|span| (&*span.span_id, &span.service_name))
                .collect();
            for span in entry
                .spans
                .iter()
                .filter(|span| window_ns.contains(&span.start_unix_ns))
            {
                let parent = span
                    .parent_span_id
                    .as_deref()
                    .and_then(|id| service_of.get(id));
                if let Some(parent) = parent.filter(|parent| ***parent != span.service_name) {
                    let edge = (Arc::clone(parent), Arc::clone(&span.service_name));
                    *calls.entry(edge).or_insert(0) += 1;
                }
            }
        }
        calls
    }

    pub(crate) fn holdings(&self) -> Holdings {
        self.lock().holdings
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept
            .lock()
            .expect("no holder of the store's lock panics")
    }
}

impl Kept {
    fn spans(&self) -> impl Iterator<Item = &Arc<Span>> {
        self.traces.values().flat_map(|entry| &entry.spans)
    }

    fn add(&mut self, trace_id: &str, span: Span, shared_bytes: usize) {
        if !self.traces.contains_key(trace_id) {
            self.arrivals.push_back(trace_id.to_owned());
            self.traces.insert(trace_id.to_owned(), Entry::default());
            self.holdings.traces += 1;
        }
        let entry = self.traces.get_mut(trace_id).expect("just made sure of");
        let key = (span.span_id.clone(), span.start_unix_ns, span.end_unix_ns);
        if !entry.seen.insert(key) {
            return;
        }
        let own_bytes = if entry.spans.is_empty() {
            ENTRY_BYTES
        } else {
            0
        };
        let bytes = own_bytes + SPAN_KEY_BYTES + shared_bytes + span.approx_bytes();
        entry.bytes += bytes;
        entry.spans.push(Arc::new(span));
        self.holdings.bytes += bytes;
        self.holdings.spans += 1;
    }

    /// Drops the trace that came first; false when there is none.
    fn evict_first(&mut self) -> bool {
        let Some(entry) = self
            .arrivals
            .pop_front()
            .and_then(|id| self.traces.remove(&id))
        else {
            return false;
        };
        let spans = entry.spans.len() as u64;
        self.holdings.bytes -= entry.bytes;
        self.holdings.spans -= spans;
        self.holdings.traces -= 1;
        self.holdings.evicted_spans += spans;
        self.holdings.evicted_traces += 1;
        true
    }
}

impl From<StoredTrace> for Trace {
    fn from(stored: StoredTrace) -> Trace {
        let spans = stored.spans.into_iter().map(Arc::unwrap_or_clone).collect();
        Trace {
            trace_id: stored.trace_id,
            spans,
        }
    }
}
