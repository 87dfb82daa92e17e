//! What waits for a decision, and for the backend's answer to what was kept. Pure: no clock, no I/O.
//!
//! A trace is kept from the first span on that says so; what of it came before goes out then, and what
//! comes later at once. Spans that no such one has come for wait, and are dropped when their time is
//! over or there is no more room. So a decision to drop is nothing to be remembered: of what comes
//! later, too, only what keeps a trace is kept.
//!
//! Spans that wait are parts of the requests that they came in, which are in memory until nothing of
//! them is left to do, and are counted by that.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;

use super::policy::TailPolicy;
use crate::queue::{Batch, Payload};
use crate::signal::Signal;
use crate::wire::{self, Heads, RawSpan, SpanGroup};

/// How many kept traces are remembered, for spans of theirs that come later.
const MAX_KEPT_TRACES: usize = 65_536;
/// What a span in memory takes beside its bytes, its trace included.
const SPAN_BYTES: usize = 320;
/// What a deadline takes.
const DEADLINE_BYTES: usize = 64;

type TraceId = [u8; 16];

/// See the module.
#[derive(Debug)]
pub(super) struct Buffer {
    policy: TailPolicy,
    undecided: HashMap<TraceId, Undecided>,
    /// When each undecided trace is dropped. What is decided otherwise stays here for as long.
    deadlines: VecDeque<(Instant, TraceId)>,
    kept: HashSet<TraceId>,
    /// The same, oldest first.
    kept_order: VecDeque<TraceId>,
    /// Requests of which not all is dropped or answered for, oldest first.
    sources: VecDeque<Source>,
    /// The number of the first of them.
    first_source: u64,
    held_bytes: usize,
    /// Kept, and not taken yet.
    ready: VecDeque<Payload>,
    ready_bytes: usize,
}

/// A request that was taken from the queue.
#[derive(Debug)]
struct Source {
    payload: Payload,
    /// Spans that are neither dropped nor answered for.
    left: u64,
    /// What it takes in memory.
    bytes: usize,
    /// What stands around its spans.
    heads: Vec<Heads>,
}

#[derive(Debug)]
struct Undecided {
    deadline: Instant,
    spans: Vec<HeldSpan>,
}

/// A span that waits.
#[derive(Debug)]
struct HeldSpan {
    source: u64,
    /// The place of its heads among those of its request.
    heads: usize,
    bytes: Bytes,
}

/// What a step has brought about.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Requests of which nothing is left to do, in the order in which they came.
    pub(super) done: Vec<Payload>,
    pub(super) dropped_spans: u64,
    pub(super) dropped_traces: u64,
    /// Of those, the ones that had not waited for as long as they should.
    pub(super) early_traces: u64,
}

impl Buffer {
    pub(super) fn new(policy: TailPolicy) -> Buffer {
        Buffer {
            policy,
            undecided: HashMap::new(),
            deadlines: VecDeque::new(),
            kept: HashSet::new(),
            kept_order: VecDeque::new(),
            sources: VecDeque::new(),
            first_source: 0,
            held_bytes: 0,
            ready: VecDeque::new(),
            ready_bytes: 0,
        }
    }

    /// What was kept, as much as fits and leaves together. Each payload has the number in its `seq`
    /// that it is to be confirmed by.
    pub(super) fn next_batch(&mut self, max_batch_bytes: usize) -> Option<Batch> {
        let mut batch = Batch::of(self.ready.pop_front()?);
        while let Some(next) = self
            .ready
            .pop_front_if(|next| batch.has_room_for(next, max_batch_bytes))
        {
            batch.push(next);
        }
        let taken = batch.payloads().iter();
        self.ready_bytes -= taken.map(|payload| payload.bytes.len()).sum::<usize>();
        Some(batch)
    }

    /// How much is kept and not taken yet.
    pub(super) fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// When there may next be something to drop.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Takes a request in.
    pub(super) fn add(&mut self, payload: Payload, now: Instant) -> Outcome {
        let source = self.first_source + self.sources.len() as u64;
        let plain = match payload.signal {
            Signal::Traces => payload.decompressed(),
            Signal::Metrics | Signal::Logs | Signal::Profiles => Bytes::new(),
        };
        // Nothing is decided of other signals, nor of what cannot be taken apart.
        let groups = wire::span_groups(&plain).unwrap_or_default();
        let in_groups: usize = groups.iter().map(|group| group.spans.len()).sum();
        let bytes = payload.bytes.len() + plain.len() + in_groups * SPAN_BYTES;
        self.held_bytes += bytes;
        for group in &groups {
            self.keep_traces_of(group);
        }
        let mut outgoing = Outgoing::default();
        let mut held = 0;
        let mut heads = Vec::with_capacity(groups.len());
        for group in groups {
            held += self.sort_out((source, heads.len()), group.spans, &mut outgoing, now);
            heads.push(group.heads);
        }
        // When all of it is kept, it leaves as it came.
        let whole = (held == 0).then(|| {
            outgoing.remove(&source);
            Payload {
                seq: source,
                ..payload.clone()
            }
        });
        let left = payload.items;
        self.sources.push_back(Source {
            payload,
            left,
            bytes,
            heads,
        });
        for (source, kept) in outgoing {
            let part = self.part(source, &kept);
            self.let_out(part);
        }
        whole.into_iter().for_each(|whole| self.let_out(whole));
        self.make_room()
    }

    /// The kept spans of a request.
    fn part(&self, source: u64, kept: &BTreeMap<usize, Vec<Bytes>>) -> Payload {
        let place = (source - self.first_source) as usize;
        let request = wire::put_together(&self.sources[place].heads, kept);
        let items = kept.values().map(|spans| spans.len() as u64).sum();
        Payload {
            seq: source,
            ..Payload::plain(Signal::Traces, request, items)
        }
    }

    fn let_out(&mut self, payload: Payload) {
        self.ready_bytes += payload.bytes.len();
        self.ready.push_back(payload);
    }

    /// Remembers which traces the spans of `group` say to keep.
    fn keep_traces_of(&mut self, group: &SpanGroup) {
        for span in &group.spans {
            if self.policy.keeps(&group.service, span) && self.kept.insert(span.trace_id) {
                self.kept_order.push_back(span.trace_id);
            }
        }
    }

    /// Puts what belongs to a kept trace to what goes out, with what of it waited, and holds the rest:
    /// how many. The spans are those of a request's number with the heads at a place.
    fn sort_out(
        &mut self,
        (source, heads): (u64, usize),
        spans: Vec<RawSpan>,
        outgoing: &mut Outgoing,
        now: Instant,
    ) -> usize {
        let mut held = 0;
        for RawSpan {
            bytes, trace_id, ..
        } in spans
        {
            let span = HeldSpan {
                source,
                heads,
                bytes,
            };
            if self.kept.contains(&trace_id) {
                let waiting = self.undecided.remove(&trace_id);
                let waiting = waiting.into_iter().flat_map(|waiting| waiting.spans);
                for span in waiting.chain([span]) {
                    let parts = outgoing.entry(span.source).or_default();
                    parts.entry(span.heads).or_default().push(span.bytes);
                }
                continue;
            }
            held += 1;
            let deadline = now + self.policy.wait;
            let waiting = self.undecided.entry(trace_id).or_insert_with(|| {
                self.deadlines.push_back((deadline, trace_id));
                Undecided {
                    deadline,
                    spans: Vec::new(),
                }
            });
            waiting.spans.push(span);
        }
        held
    }

    /// Drops what is over a bound, oldest first.
    fn make_room(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while self.kept_order.len() > MAX_KEPT_TRACES
            && let Some(oldest) = self.kept_order.pop_front()
        {
            self.kept.remove(&oldest);
        }
        while self.memory_bytes() > self.policy.max_bytes
            && let Some((deadline, trace_id)) = self.deadlines.pop_front()
        {
            let traces = outcome.dropped_traces;
            self.drop_trace(&trace_id, deadline, &mut outcome);
            outcome.early_traces += outcome.dropped_traces - traces;
            outcome.done.extend(self.done());
        }
        outcome
    }

    fn memory_bytes(&self) -> usize {
        self.held_bytes + self.deadlines.len() * DEADLINE_BYTES
    }

    /// Drops the traces whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some((deadline, trace_id)) = self.deadlines.pop_front_if(|(at, _)| *at <= now) {
            self.drop_trace(&trace_id, deadline, &mut outcome);
        }
        outcome.done = self.done();
        outcome
    }

    /// Drops all that is undecided: nothing more will come, and nothing outlives the process.
    pub(super) fn give_up(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        for (deadline, trace_id) in std::mem::take(&mut self.deadlines) {
            self.drop_trace(&trace_id, deadline, &mut outcome);
        }
        outcome.early_traces = outcome.dropped_traces;
        outcome.done = self.done();
        outcome
    }

    /// Unless it is decided otherwise, or was, and is undecided anew.
    fn drop_trace(&mut self, trace_id: &TraceId, deadline: Instant, outcome: &mut Outcome) {
        let is_due = |waiting: &Undecided| waiting.deadline == deadline;
        if !self.undecided.get(trace_id).is_some_and(is_due) {
            return;
        }
        let waiting = self.undecided.remove(trace_id);
        for span in waiting.into_iter().flat_map(|waiting| waiting.spans) {
            outcome.dropped_spans += 1;
            self.finish(span.source, 1);
        }
        outcome.dropped_traces += 1;
    }

    /// The backend has answered for `items` of the request with this number.
    pub(super) fn confirm(&mut self, source: u64, items: u64) -> Vec<Payload> {
        self.finish(source, items);
        self.done()
    }

    fn finish(&mut self, source: u64, items: u64) {
        let at = source.checked_sub(self.first_source);
        let source = at.and_then(|at| self.sources.get_mut(usize::try_from(at).ok()?));
        if let Some(source) = source {
            source.left = source.left.saturating_sub(items);
        }
    }

    /// Forgets the oldest requests, as far as nothing is left to do with them.
    fn done(&mut self) -> Vec<Payload> {
        let mut done = Vec::new();
        while let Some(source) = self.sources.pop_front_if(|source| source.left == 0) {
            self.first_source += 1;
            self.held_bytes -= source.bytes;
            done.push(source.payload);
        }
        done
    }
}

/// Kept spans on their way out, by the number of their request and the place of their heads in it.
type Outgoing = BTreeMap<u64, BTreeMap<usize, Vec<Bytes>>>;
