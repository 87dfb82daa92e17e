//! What the log's threads share: what waits to be written, which segments there are, how far the
//! backend has answered.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::record::HEADER_BYTES;
use super::segment::SegmentName;
use crate::queue::{Level, OfferError, Payload};

/// Requests in memory that wait for the disk; one alone may be larger.
const MAX_PENDING_BYTES: u64 = 32 * 1024 * 1024;
/// What one fdatasync covers at most, but for one request that is larger.
const MAX_GROUP_BYTES: u64 = 8 * 1024 * 1024;

/// How long the writer waits for as many requests as it had before, so that they share a sync.
const GATHER_LIMIT: Duration = Duration::from_millis(1);

/// Records on disk that are kept in memory as well.
const MAX_RECENT_BYTES: usize = 8 * 1024 * 1024;

pub(super) type Reply = oneshot::Sender<Result<(), OfferError>>;

/// A request on its way to the disk: all of it is written, or none.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) payloads: Vec<Payload>,
    /// Headers included.
    pub(super) record_bytes: u64,
    /// None when it has been acknowledged already.
    pub(super) reply: Option<Reply>,
}

impl Job {
    pub(super) fn new(payloads: Vec<Payload>, reply: Option<Reply>) -> Job {
        let record_bytes = payloads
            .iter()
            .map(|payload| (HEADER_BYTES + payload.bytes.len()) as u64)
            .sum();
        Job {
            payloads,
            record_bytes,
            reply,
        }
    }
}

/// A file of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) name: SegmentName,
    /// Written and synced.
    pub(super) bytes: u64,
    /// The number after its last record's.
    pub(super) end_seq: u64,
    /// Nothing more is written to it.
    pub(super) is_finished: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pending: VecDeque<Job>,
    /// How many requests are thought to come before the next sync.
    expected: usize,
    /// Of `pending`, and of what is being written.
    pending_bytes: u64,
    /// Oldest first.
    pub(super) segments: VecDeque<Segment>,
    disk_bytes: u64,
    /// The number of the next record to be on disk.
    pub(super) durable_seq: u64,
    /// For each backend, the number of the first record that it has not answered for.
    pub(super) cursors: Vec<u64>,
    /// For each backend, what it has not answered for.
    held: Vec<Level>,
    /// For each backend, how many records were taken and are not settled.
    taken: Vec<usize>,
    /// The newest records, while they are wanted and as far as they fit: most are delivered before
    /// they have left memory, and then need not be read back.
    recent: VecDeque<Payload>,
    recent_bytes: usize,
    is_closed: bool,
    is_stopping: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) max_bytes: u64,
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes who takes batches.
    pub(super) readable: Notify,
    /// Wakes who waits for room.
    pub(super) freed: Notify,
}

impl Shared {
    pub(super) fn new(max_bytes: u64, state: State) -> Shared {
        Shared {
            max_bytes,
            state: Mutex::new(state),
            work: Condvar::new(),
            readable: Notify::new(),
            freed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no holder of the log's lock panics")
    }

    /// Queues `job` for the writer, if there is room for it on disk.
    pub(super) fn enqueue(&self, job: Job) -> Result<(), OfferError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(OfferError::Closed);
        }
        let held_bytes = state.held_bytes();
        if held_bytes + job.record_bytes > self.max_bytes {
            return Err(OfferError::Full {
                held_bytes: held_bytes as usize,
                max_bytes: self.max_bytes as usize,
            });
        }
        if state.pending_bytes > 0 && state.pending_bytes + job.record_bytes > MAX_PENDING_BYTES {
            return Err(OfferError::Behind {
                pending_bytes: state.pending_bytes as usize,
            });
        }
        state.pending_bytes += job.record_bytes;
        state.hold(&job.payloads);
        state.pending.push_back(job);
        let is_awaited = state.pending.len() == 1 || state.pending.len() >= state.expected;
        drop(state);
        if is_awaited {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Waits until there is something to write, to remove or to end, at most `limit`. What is to
    /// be written together, and whether it is the last.
    pub(super) fn next_group(&self, limit: Duration) -> (Vec<Job>, bool) {
        let mut state = self.wait_while(self.lock(), limit, State::is_idle);
        if !state.pending.is_empty() {
            state = self.wait_while(state, GATHER_LIMIT, State::expects_more);
        }
        let mut group = Vec::new();
        let mut group_bytes = 0;
        while let Some(job) = state.pending.front()
            && (group.is_empty() || group_bytes + job.record_bytes <= MAX_GROUP_BYTES)
        {
            group_bytes += job.record_bytes;
            group.extend(state.pending.pop_front());
        }
        state.expected = group.len();
        let is_last = state.is_stopping && state.pending.is_empty();
        (group, is_last)
    }

    fn wait_while<'s>(
        &'s self,
        state: MutexGuard<'s, State>,
        limit: Duration,
        condition: fn(&mut State) -> bool,
    ) -> MutexGuard<'s, State> {
        let waited = self.work.wait_timeout_while(state, limit, condition);
        waited.expect("no holder of the log's lock panics").0
    }

    /// `group` is on disk, at the end of the last segment.
    pub(super) fn committed(&self, group: Vec<Job>, end_seq: u64) {
        let mut state = self.lock();
        let bytes = group.iter().map(|job| job.record_bytes).sum::<u64>();
        let segment = state
            .segments
            .back_mut()
            .expect("a group is written to a segment");
        segment.bytes += bytes;
        segment.end_seq = end_seq;
        state.disk_bytes += bytes;
        state.pending_bytes -= bytes;
        let payloads = group.iter().flat_map(|job| &job.payloads);
        for (payload, seq) in payloads.zip(state.durable_seq..) {
            state.remember(payload, seq);
        }
        state.durable_seq = end_seq;
        drop(state);
        self.readable.notify_waiters();
        self.freed.notify_waiters();
        for reply in group.into_iter().filter_map(|job| job.reply) {
            // Who has gone away needs no answer.
            let _ = reply.send(Ok(()));
        }
    }

    /// The disk did not take `group`. Who waits is told; what was acknowledged before it was
    /// written goes back to be tried again, until the end. Whether there is any of that.
    pub(super) fn failed(&self, group: Vec<Job>, error: &OfferError) -> bool {
        let mut state = self.lock();
        let is_stopping = state.is_stopping;
        let (given_up, kept): (Vec<Job>, Vec<Job>) = group
            .into_iter()
            .partition(|job| job.reply.is_some() || is_stopping);
        for job in &given_up {
            state.pending_bytes -= job.record_bytes;
            // What was acknowledged stays counted as held, to be told at the end.
            if job.reply.is_some() {
                for held in &mut state.held {
                    job.payloads
                        .iter()
                        .for_each(|payload| held.subtract(payload));
                }
            }
        }
        let some_are_kept = !kept.is_empty();
        kept.into_iter()
            .rev()
            .for_each(|job| state.pending.push_front(job));
        drop(state);
        self.readable.notify_waiters();
        for reply in given_up.into_iter().filter_map(|job| job.reply) {
            let _ = reply.send(Err(error.clone()));
        }
        some_are_kept
    }

    /// Whether the last segment is in the way: delivered whole, and no room beside it for `more`.
    pub(super) fn must_replace(&self, more: &[Job]) -> bool {
        let state = self.lock();
        let more = more.iter().map(|job| job.record_bytes).sum::<u64>();
        state.oldest_cursor() == state.durable_seq && state.disk_bytes + more > self.max_bytes
    }

    /// What the segments hold.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.lock().disk_bytes
    }

    /// Takes the delivered segments off the list, for the writer to remove.
    pub(super) fn take_removable(&self) -> Vec<Segment> {
        let mut state = self.lock();
        let mut removable = Vec::new();
        while state.has_removable() {
            let segment = state.segments.pop_front().expect("one was seen");
            state.disk_bytes -= segment.bytes;
            removable.push(segment);
        }
        if !removable.is_empty() {
            self.freed.notify_waiters();
        }
        removable
    }

    /// So many records are on their way to `backend`.
    pub(super) fn hand_out(&self, backend: usize, records: usize) {
        self.lock().taken[backend] += records;
    }

    pub(super) fn settle(&self, backend: usize, payload: &Payload) {
        let mut state = self.lock();
        state.taken[backend] = state.taken[backend].saturating_sub(1);
        state.held[backend].subtract(payload);
        state.advance(backend, payload.seq + 1);
        self.wake_if_removable(&state);
        if state.is_all_delivered() {
            self.freed.notify_waiters();
        }
    }

    /// Nothing before `seq` can be taken for `backend` any more.
    pub(super) fn pass_over(&self, backend: usize, seq: u64) {
        let mut state = self.lock();
        if state.taken[backend] > 0 {
            return;
        }
        state.advance(backend, seq);
        self.wake_if_removable(&state);
    }

    fn wake_if_removable(&self, state: &State) {
        if state.has_removable() {
            self.work.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.readable.notify_waiters();
    }

    /// Ends the writer, once it has written what it was given.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.is_stopping = true;
        drop(state);
        self.work.notify_one();
    }

    /// Whether there are records that `backend` has not answered for.
    pub(super) fn has_more(&self, backend: usize) -> bool {
        let state = self.lock();
        state.cursors[backend] < state.durable_seq
    }

    /// Whether nothing more will become readable.
    pub(super) fn is_complete(&self) -> bool {
        let state = self.lock();
        state.is_closed && state.pending_bytes == 0
    }

    pub(super) fn level(&self, backend: usize) -> Level {
        self.lock().held[backend]
    }

    /// What is on disk or on its way there, delivered parts of segments included.
    pub(super) fn held_bytes(&self) -> usize {
        self.lock().held_bytes() as usize
    }
}

impl State {
    /// What a start has found on disk; `held` of it waits for the backend.
    pub(super) fn recovered(
        segments: VecDeque<Segment>,
        cursors: Vec<u64>,
        next_seq: u64,
        held: Vec<Level>,
    ) -> State {
        State {
            disk_bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments,
            durable_seq: next_seq,
            taken: vec![0; cursors.len()],
            cursors,
            held,
            ..State::default()
        }
    }

    /// Where the slowest backend is.
    pub(super) fn oldest_cursor(&self) -> u64 {
        let cursors = self.cursors.iter().copied();
        cursors.min().unwrap_or(self.durable_seq)
    }

    /// The record of that number, if it is still in memory.
    pub(super) fn recent(&self, seq: u64) -> Option<&Payload> {
        let first = self.recent.front()?.seq;
        self.recent
            .get(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    fn remember(&mut self, payload: &Payload, seq: u64) {
        let mut payload = payload.clone();
        payload.seq = seq;
        self.recent_bytes += payload.bytes.len();
        self.recent.push_back(payload);
        self.forget();
    }

    /// Drops from memory what nobody wants any more, and what does not fit.
    fn forget(&mut self) {
        let oldest = self.oldest_cursor();
        while let Some(first) = self.recent.front()
            && (first.seq < oldest || self.recent_bytes > MAX_RECENT_BYTES)
        {
            self.recent_bytes -= first.bytes.len();
            self.recent.pop_front();
        }
    }

    fn held_bytes(&self) -> u64 {
        // Segments that are delivered whole are removed before the next write.
        let on_disk = if self.is_all_delivered() {
            0
        } else {
            self.disk_bytes
        };
        on_disk + self.pending_bytes
    }

    /// The segment of that number, and the one to read after it.
    pub(super) fn segments_from(&self, number: Option<u64>) -> (Option<Segment>, Option<Segment>) {
        let mut segments = self.segments.iter().copied();
        let current = segments
            .clone()
            .find(|segment| Some(segment.name.number) == number);
        // One in which nothing has been written may yet be given up.
        let next = segments
            .find(|segment| segment.bytes > 0 && number.is_none_or(|n| segment.name.number > n));
        (current, next)
    }

    /// Where the segment after `number` begins.
    pub(super) fn limit_seq(&self, number: u64) -> u64 {
        let mut segments = self.segments.iter();
        segments
            .find(|segment| segment.name.number > number)
            .map_or(u64::MAX, |segment| segment.name.base_seq)
    }

    fn is_idle(&mut self) -> bool {
        self.pending.is_empty() && !self.is_stopping && !self.has_removable()
    }

    /// Where many send at once, a sync for each few of them would cost more than it tells. Who sends
    /// alone never waits.
    fn expects_more(&mut self) -> bool {
        self.pending.len() < self.expected && !self.is_stopping
    }

    fn is_all_delivered(&self) -> bool {
        self.oldest_cursor() == self.durable_seq && self.pending_bytes == 0
    }

    fn has_removable(&self) -> bool {
        self.segments
            .front()
            .is_some_and(|segment| segment.is_finished && segment.end_seq <= self.oldest_cursor())
    }

    fn advance(&mut self, backend: usize, seq: u64) {
        let cursor = &mut self.cursors[backend];
        *cursor = (*cursor).max(seq);
        if *cursor == self.durable_seq && self.pending_bytes == 0 {
            // Records that were damaged while they waited were never released.
            self.held[backend] = Level::default();
        }
        self.forget();
    }

    fn hold(&mut self, payloads: &[Payload]) {
        for held in &mut self.held {
            payloads.iter().for_each(|payload| held.add(payload));
        }
    }
}
