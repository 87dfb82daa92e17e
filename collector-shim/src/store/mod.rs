//! The embedded trace store: traces in memory, by id, under a bound in bytes.
//!
//! Over the bound the trace that came first goes first, whole: half a trace misleads. What went
//! is counted, so that the viewer can say so.

mod decode;
mod index;
mod json;
mod model;
mod query;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::mem::size_of;
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) use decode::decode;
use index::Index;
pub(crate) use json::double_to_json;
pub use model::{
    Attribute, Event, Link, Resource, Scope, Span, SpanKind, Status, StatusCode, Trace, Value,
};
pub(crate) use query::{ERROR_TAG, QueryError, TraceQuery, made_tags};

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
    traces: HashMap<Arc<str>, Entry>,
    /// The ids of `traces`, first come first.
    arrivals: VecDeque<Arc<str>>,
    /// The same by their start, so that a search ends at its limit.
    by_start: BTreeSet<(u64, Arc<str>)>,
    index: Index,
    holdings: Holdings,
}

#[derive(Debug, Default)]
struct Entry {
    spans: Vec<Arc<Span>>,
    seen: HashSet<SpanKey>,
    /// The earliest of its spans.
    start_ns: u64,
    bytes: usize,
}

/// Senders repeat what they are not sure of; the same span twice is kept once.
type SpanKey = (String, u64, u64);

/// What an entry costs beside its spans: its id once, and in each map and list a slot, of which up to
/// half are empty.
const ENTRY_BYTES: usize =
    64 + 2 * (size_of::<(Arc<str>, Entry)>() + 2 * size_of::<(u64, Arc<str>)>());
/// A place in the list of spans, and in the set of those seen with the id that is copied there.
const SPAN_KEY_BYTES: usize = 2 * (size_of::<Arc<Span>>() + size_of::<SpanKey>() + 1) + 32;

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
            let mut owner = None;
            for span in trace.spans {
                // Spans of one scope come in a run, and share it and their resource with other
                // traces. Both count once for each run of each trace: rather too much than beyond
                // the bound.
                let address = (Arc::as_ptr(&span.resource), Arc::as_ptr(&span.scope));
                let shared_bytes = if owner == Some(address) {
                    0
                } else {
                    span.shared_bytes()
                };
                owner = Some(address);
                kept.add(&trace.trace_id, span, shared_bytes);
            }
        }
        while kept.holdings.bytes > self.max_bytes && kept.evict_first() {}
    }

    /// The trace with the id `trace_id`: hex of any case, leading zeros optional.
    pub(crate) fn trace(&self, trace_id: &str) -> Option<StoredTrace> {
        let trace_id = format!("{:0>32}", trace_id.to_ascii_lowercase());
        let kept = self.lock();
        let entry = kept.traces.get(&*trace_id)?;
        Some(StoredTrace {
            spans: entry.spans.clone(),
            trace_id,
        })
    }

    /// The spans elsewhere that link into the trace `trace_id` (as for [`Store::trace`]): the `limit`
    /// longest of them, each with its trace's id, first come first.
    pub(crate) fn linking(&self, trace_id: &str, limit: usize) -> Vec<StoredTrace> {
        let trace_id = format!("{:0>32}", trace_id.to_ascii_lowercase());
        let kept = self.lock();
        let others = kept.traces.iter().filter(|(id, _)| ***id != *trace_id);
        let spans = others.flat_map(|(id, entry)| entry.spans.iter().map(move |span| (id, span)));
        let mut linking: Vec<_> = spans
            .filter(|(_, span)| span.links.iter().any(|link| link.trace_id == trace_id))
            .collect();
        linking.sort_unstable_by_key(|(_, span)| std::cmp::Reverse(span.duration_ns()));
        linking.truncate(limit);
        linking.sort_unstable_by_key(|(_, span)| span.start_unix_ns);
        let alone = linking.into_iter().map(|(id, span)| StoredTrace {
            trace_id: id.to_string(),
            spans: vec![Arc::clone(span)],
        });
        alone.collect()
    }

    /// The newest traces with a span that matches `query`, newest first.
    pub(crate) fn find(&self, query: &TraceQuery) -> Vec<StoredTrace> {
        let kept = self.lock();
        if !kept.index.may_match(query) {
            return Vec::new();
        }
        // Newest first: the search ends at the limit, and does not look at every span to sort.
        let entries = kept.by_start.iter().rev().map(|(_, trace_id)| {
            let entry = kept.traces.get(trace_id);
            (trace_id, entry.expect("every start is of a trace kept"))
        });
        entries
            .filter(|(_, entry)| entry.spans.iter().any(|span| query.matches(span)))
            .take(query.limit)
            .map(|(trace_id, entry)| StoredTrace {
                trace_id: trace_id.to_string(),
                spans: entry.spans.clone(),
            })
            .collect()
    }

    /// Every service with a span, in order of name.
    pub(crate) fn services(&self) -> BTreeSet<Arc<str>> {
        self.lock().index.services()
    }

    /// The operations of `service` with their kinds, in order of name.
    pub(crate) fn operations(&self, service: &str) -> BTreeSet<(String, SpanKind)> {
        self.lock().index.operations(service)
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
    fn add(&mut self, trace_id: &str, span: Span, shared_bytes: usize) {
        if !self.traces.contains_key(trace_id) {
            let id: Arc<str> = trace_id.into();
            let entry = Entry {
                start_ns: span.start_unix_ns,
                ..Entry::default()
            };
            self.arrivals.push_back(Arc::clone(&id));
            self.by_start.insert((entry.start_ns, Arc::clone(&id)));
            self.traces.insert(id, entry);
            self.holdings.traces += 1;
        }
        let entry = self.traces.get_mut(trace_id).expect("just made sure of");
        if span.start_unix_ns < entry.start_ns {
            let mut place = (entry.start_ns, Arc::from(trace_id));
            self.by_start.remove(&place);
            place.0 = span.start_unix_ns;
            entry.start_ns = span.start_unix_ns;
            self.by_start.insert(place);
        }
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
        self.holdings.bytes += bytes + self.index.add(&span);
        entry.spans.push(Arc::new(span));
        self.holdings.spans += 1;
    }

    /// Drops the trace that came first; false when there is none.
    fn evict_first(&mut self) -> bool {
        let Some((id, entry)) = self
            .arrivals
            .pop_front()
            .and_then(|id| self.traces.remove_entry(&id))
        else {
            return false;
        };
        self.by_start.remove(&(entry.start_ns, id));
        let freed = entry.spans.iter().map(|span| self.index.remove(span));
        self.holdings.bytes -= freed.sum::<usize>();
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
