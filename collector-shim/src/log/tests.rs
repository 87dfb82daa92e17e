//! The log against a model of it: random appends, deliveries, crashes, torn tails, flipped bits.

mod backends;
mod spares;

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::record::{HEADER_BYTES, Header};
use super::segment::SegmentName;
use super::writer::MIN_SEGMENT_BYTES;
use super::{Log, QueueDirError};
use crate::coding::Coding;
use crate::config::{LogAck, QueueDir};
use crate::counts::Counters;
use crate::queue::{Level, OfferError, Payload};
use crate::signal::Signal;

const ROOM: usize = 1024 * 1024;
/// Far beyond what any wait here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let work = async { tokio::time::timeout(PATIENCE, work).await };
    runtime.block_on(work).expect("in time")
}

fn open_with(
    dir: &Path,
    max_bytes: usize,
    ack: LogAck,
) -> Result<(Log, Arc<Counters>), QueueDirError> {
    open_for(dir, max_bytes, ack, &["only"])
}

/// A program that another test is just starting has this one's files until it runs, a lock among them; insta
/// starts cargo.
fn open_for(
    dir: &Path,
    max_bytes: usize,
    ack: LogAck,
    backends: &[&str],
) -> Result<(Log, Arc<Counters>), QueueDirError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match open_once(dir, max_bytes, ack, backends) {
            Err(QueueDirError::InUse { .. }) if Instant::now() < until => {
                std::thread::sleep(POLL_INTERVAL);
            }
            opened => return opened,
        }
    }
}

fn open_once(
    dir: &Path,
    max_bytes: usize,
    ack: LogAck,
    backends: &[&str],
) -> Result<(Log, Arc<Counters>), QueueDirError> {
    let counters: Arc<Counters> = Arc::default();
    let path = dir.to_owned();
    let backends = backends.iter().map(|name| (*name).to_owned()).collect();
    let log = Log::open(
        QueueDir { path, ack },
        max_bytes,
        backends,
        Arc::clone(&counters),
    )?;
    Ok((log, counters))
}

fn open(dir: &Path) -> (Log, Arc<Counters>) {
    open_with(dir, ROOM, LogAck::Disk).expect("nobody else has it")
}

/// Told from others by `id`, and with what looks like a record inside.
fn payload(id: u64, length: usize) -> Payload {
    let mut bytes = id.to_le_bytes().to_vec();
    let empty = Payload::plain(Signal::Logs, Bytes::new(), 1);
    let inner = Header::new(id + 1, &empty).expect("short").encode(0);
    bytes.extend(inner.iter().cycle().take(length));
    Payload::plain(Signal::Traces, Bytes::from(bytes), 1 + id % 3)
}

fn id(payload: &Payload) -> u64 {
    u64::from_le_bytes(*payload.bytes.first_chunk().expect("ours have an id"))
}

async fn append(log: &Log, payload: Payload) {
    log.offer(vec![payload]).await.expect("room");
}

/// Delivers whatever is left, and ends the log.
async fn drain(log: &Log) -> Vec<Payload> {
    log.close();
    let mut delivered = Vec::new();
    while let Some(batch) = log.take(0, 10_000).await {
        batch
            .payloads()
            .iter()
            .for_each(|payload| log.settle(0, payload));
        delivered.extend_from_slice(batch.payloads());
    }
    assert_eq!(log.level(0), Level::default());
    log.finish().await;
    delivered
}

/// Delivers all that waits for `backend`; their ids.
async fn deliver(log: &Log, backend: usize) -> Vec<u64> {
    let mut ids = Vec::new();
    while log.level(backend).total_items() > 0 {
        let batch = log.take(backend, 5_000).await.expect("something waits");
        for payload in batch.payloads() {
            ids.push(id(payload));
            log.settle(backend, payload);
        }
    }
    ids
}

fn segments(dir: &Path) -> Vec<SegmentName> {
    let entries = fs::read_dir(dir).expect("readable").flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| SegmentName::parse(entry.file_name().to_str()?))
        .collect();
    names.sort_unstable();
    names
}

fn truncate(path: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("there");
    file.set_len(bytes).expect("shorter");
}

fn flip(path: &Path, bit: usize) {
    let mut bytes = fs::read(path).expect("readable");
    bytes[bit / 8] ^= 1 << (bit % 8);
    fs::write(path, bytes).expect("writable");
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    // Long enough for several segments, and now and then one record longer than a segment.
    let length = prop_oneof![8 => 0..3_000_usize, 1 => Just(20_000_usize), 1 => Just(70_000)];
    vec(length, 1..30)
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    /// Takes a batch and has it answered for.
    Deliver,
    /// The process dies; with the cursor as it was before, if it had not been written yet.
    Crash {
        cursor_is_old: bool,
        torn: Vec<u8>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let crash = (any::<bool>(), vec(any::<u8>(), 0..100));
    let step = prop_oneof![
        5 => (0..4_000_usize).prop_map(Step::Append),
        3 => Just(Step::Deliver),
        1 => crash.prop_map(|(cursor_is_old, torn)| Step::Crash { cursor_is_old, torn }),
    ];
    vec(step, 1..60)
}

/// Ends `log` as a crash would: what was being written stays unfinished.
async fn crash(log: Log, dir: &Path, cursor_is_old: bool, torn: &[u8]) {
    let cursor = dir.join("cursor");
    let old = fs::read(&cursor);
    log.finish().await;
    if cursor_is_old && let Ok(old) = old {
        fs::write(&cursor, old).expect("writable");
    }
    if let Some(last) = segments(dir).last() {
        let path = last.path(dir);
        let mut bytes = fs::read(&path).expect("readable");
        bytes.extend(torn);
        fs::write(&path, bytes).expect("writable");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_all_that_was_acknowledged_is_delivered_in_order(steps in steps()) {
        let dir = directory();
        block_on(async {
            let (mut log, mut counters) = open(dir.path());
            let mut appended = Vec::new();
            // What each run has delivered.
            let mut runs = vec![Vec::new()];
            for step in steps {
                let run = runs.last_mut().expect("never empty");
                match step {
                    Step::Append(length) => {
                        let next = payload(appended.len() as u64, length);
                        appended.push(next.clone());
                        append(&log, next).await;
                    }
                    Step::Deliver if log.level(0).total_items() > 0 => {
                        let batch = log.take(0, 8_000).await.expect("something waits");
                        batch.payloads().iter().for_each(|payload| log.settle(0, payload));
                        run.extend(batch.payloads().iter().map(id));
                    }
                    Step::Deliver => {}
                    Step::Crash { cursor_is_old, torn } => {
                        crash(log, dir.path(), cursor_is_old, &torn).await;
                        (log, counters) = open(dir.path());
                        runs.push(Vec::new());
                    }
                }
            }
            let rest = drain(&log).await;
            for payload in &rest {
                assert_eq!(payload.bytes, appended[id(payload) as usize].bytes);
                assert_eq!(payload.items, appended[id(payload) as usize].items);
            }
            runs.last_mut().expect("never empty").extend(rest.iter().map(id));
            for run in &runs {
                assert!(run.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{runs:?}");
            }
            let mut seen: Vec<u64> = runs.concat();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, (0..appended.len() as u64).collect::<Vec<_>>(), "{runs:?}");
            assert_eq!(counters.damaged_records.get(), 0);
        });
    }

    #[test]
    fn a_tail_torn_at_any_byte_costs_only_the_torn_record(
        lengths in lengths(),
        cut in any::<prop::sample::Index>(),
    ) {
        let dir = directory();
        block_on(async {
            let (log, _) = open(dir.path());
            for (at, length) in lengths.iter().enumerate() {
                append(&log, payload(at as u64, *length)).await;
            }
            log.finish().await;
            let last = *segments(dir.path()).last().expect("something was written");
            let path = last.path(dir.path());
            let whole = fs::metadata(&path).expect("there").len();
            let cut = cut.index(whole as usize + 1) as u64;
            truncate(&path, cut);
            let mut end = 0;
            let sound = lengths[last.base_seq as usize..]
                .iter()
                .map(|length| (HEADER_BYTES + 8 + length) as u64)
                .take_while(|record| {
                    let fits = end + record <= cut;
                    end += if fits { *record } else { 0 };
                    fits
                })
                .count() as u64;
            let (log, counters) = open(dir.path());
            assert_eq!(counters.torn_bytes.get(), cut - end);
            let after = payload(1_000, 5);
            append(&log, after.clone()).await;
            let mut expect: Vec<u64> = (0..last.base_seq + sound).collect();
            expect.push(id(&after));
            assert_eq!(drain(&log).await.iter().map(id).collect::<Vec<_>>(), expect);
            assert_eq!(counters.damaged_records.get(), 0);
        });
    }

    #[test]
    fn flipped_bits_cost_only_the_records_they_hit_and_those_are_counted(
        lengths in lengths(),
        delivered in 0..10_usize,
        flips in vec(any::<(prop::sample::Index, prop::sample::Index)>(), 1..4),
    ) {
        let dir = directory();
        block_on(async {
            let (log, _) = open(dir.path());
            let mut written = Vec::new();
            for (at, length) in lengths.iter().enumerate() {
                written.push(payload(at as u64, *length));
                append(&log, written[at].clone()).await;
            }
            let mut settled = 0;
            while settled < delivered.min(lengths.len()) {
                for payload in log.take(0, 1).await.expect("more waits").payloads() {
                    log.settle(0, payload);
                    settled += 1;
                }
            }
            log.finish().await;
            let names = segments(dir.path());
            for (segment, bit) in &flips {
                let Some(name) = names.get(segment.index(names.len().max(1))) else {
                    continue;
                };
                let path = name.path(dir.path());
                let bits = 8 * fs::metadata(&path).expect("there").len() as usize;
                flip(&path, bit.index(bits));
            }
            let (log, counters) = open(dir.path());
            let found = drain(&log).await;
            for payload in &found {
                assert_eq!(payload.bytes, written[id(payload) as usize].bytes);
                assert_eq!(payload.items, written[id(payload) as usize].items);
            }
            let ids: Vec<u64> = found.iter().map(id).collect();
            assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
            assert!(ids.iter().all(|id| *id >= settled as u64), "{ids:?}");
            let missing = (written.len() - settled - found.len()) as u64;
            assert!(missing <= flips.len() as u64, "{ids:?}");
            // A flip in the last header looks like a torn tail.
            let torn = u64::from(counters.torn_bytes.get() > 0) * flips.len() as u64;
            let damaged = counters.damaged_records.get();
            assert!((damaged..=damaged + torn).contains(&missing), "{damaged} {missing}");
        });
    }
}

#[test]
fn requests_that_come_together_share_their_syncs_and_all_are_acknowledged() {
    let dir = directory();
    block_on(async {
        let (log, _) = open(dir.path());
        let log = Arc::new(log);
        let offers: Vec<_> = (0..200)
            .map(|id| {
                let log = Arc::clone(&log);
                tokio::spawn(async move { append(&log, payload(id, 10)).await })
            })
            .collect();
        for offer in offers {
            offer.await.expect("acknowledged");
        }
        assert_eq!(drain(&log).await.len(), 200);
    });
}

#[test]
fn the_bound_holds_on_disk_and_delivery_makes_room() {
    let dir = directory();
    block_on(async {
        let max_bytes = 200_000;
        // What is to be written over comes on top.
        let most_on_disk = max_bytes as u64 + MIN_SEGMENT_BYTES;
        let (log, _) = open_with(dir.path(), max_bytes, LogAck::Disk).expect("new");
        let on_disk = || {
            let entries = fs::read_dir(dir.path()).expect("readable").flatten();
            let is_cursor = |name: &OsStr| name.as_encoded_bytes().starts_with(b"cursor");
            let segments = entries.filter(|entry| !is_cursor(&entry.file_name()));
            let sizes = segments.map(|entry| entry.metadata().map_or(0, |data| data.len()));
            sizes.sum::<u64>()
        };
        let mut taken = 0;
        let mut delivered = 0;
        for _ in 0..3 {
            let refusal = loop {
                match log.offer(vec![payload(taken, 5_000)]).await {
                    Ok(()) => taken += 1,
                    Err(refusal) => break refusal,
                }
                assert!(on_disk() <= most_on_disk);
            };
            assert!(matches!(refusal, OfferError::Full { .. }), "{refusal}");
            while delivered < taken {
                for payload in log.take(0, 50_000).await.expect("more waits").payloads() {
                    assert_eq!(id(payload), delivered);
                    log.settle(0, payload);
                    delivered += 1;
                }
            }
            // As large as the bound lets it be: nothing of what is delivered may be in its way.
            append(&log, payload(taken, max_bytes - HEADER_BYTES - 8)).await;
            taken += 1;
            assert!(on_disk() <= most_on_disk);
        }
        assert_eq!(drain(&log).await.len(), 1);
    });
}

#[test]
fn a_disk_that_fails_refuses_and_what_was_queued_in_memory_is_written_later() {
    for ack in [LogAck::Disk, LogAck::Memory] {
        let parent = directory();
        let dir = parent.path().join("queue");
        block_on(async {
            let (log, _) = open_with(&dir, ROOM, ack).expect("new");
            fs::remove_dir_all(&dir).expect("ours");
            let offered = log.offer(vec![payload(1, 10)]).await;
            match ack {
                LogAck::Disk => assert!(matches!(offered, Err(OfferError::Disk(_))), "{offered:?}"),
                LogAck::Memory => assert_eq!(offered, Ok(())),
            }
            fs::create_dir(&dir).expect("writable");
            append(&log, payload(2, 10)).await;
            let expect: &[u64] = if ack == LogAck::Disk { &[2] } else { &[1, 2] };
            assert_eq!(drain(&log).await.iter().map(id).collect::<Vec<_>>(), expect);
        });
    }
}

#[test]
fn a_directory_has_one_user_at_a_time() {
    let dir = directory();
    block_on(async {
        let (log, _) = open(dir.path());
        let second = open_once(dir.path(), ROOM, LogAck::Disk, &["only"]).expect_err("in use");
        assert!(matches!(second, QueueDirError::InUse { .. }), "{second}");
        log.finish().await;
        open(dir.path()).0.finish().await;
    });
}

#[test]
fn signal_and_coding_are_kept() {
    let dir = directory();
    block_on(async {
        let written: Vec<Payload> = Signal::ALL
            .into_iter()
            .zip([Coding::Gzip, Coding::Identity, Coding::Zstd, Coding::Gzip])
            .map(|(signal, coding)| Payload {
                signal,
                coding,
                ..payload(signal as u64, 100)
            })
            .collect();
        let (log, _) = open(dir.path());
        log.offer(written.clone()).await.expect("room");
        log.finish().await;
        let (log, _) = open(dir.path());
        let mut read = drain(&log).await;
        read.iter_mut().for_each(|payload| payload.seq = 0);
        assert_eq!(read, written);
    });
}

#[test]
fn a_segment_that_somebody_removed_or_cut_off_is_counted_and_holds_nothing_up() {
    for cut_off in [false, true] {
        let dir = directory();
        block_on(async {
            let (log, _) = open(dir.path());
            for at in 0..9 {
                append(&log, payload(at, 50_000)).await;
            }
            log.finish().await;
            // Read from the files from here on.
            let (log, counters) = open(dir.path());
            let names = segments(dir.path());
            assert!(names.len() >= 3, "{names:?}");
            let (gone, after) = (names[1].base_seq, names[2].base_seq);
            let path = names[1].path(dir.path());
            if cut_off {
                truncate(&path, 0);
            } else {
                fs::remove_file(path).expect("there");
            }
            let expect: Vec<_> = (0..gone).chain(after..9).collect();
            assert_eq!(drain(&log).await.iter().map(id).collect::<Vec<_>>(), expect);
            assert_eq!(counters.damaged_records.get(), after - gone);
        });
    }
}

#[test]
fn nothing_is_acknowledged_that_went_to_a_file_that_was_removed() {
    let dir = directory();
    block_on(async {
        let (log, _) = open(dir.path());
        append(&log, payload(0, 10)).await;
        fs::remove_file(segments(dir.path())[0].path(dir.path())).expect("there");
        let offered = log.offer(vec![payload(1, 10)]).await;
        assert!(matches!(offered, Err(OfferError::Disk(_))), "{offered:?}");
        append(&log, payload(2, 10)).await;
        assert_eq!(drain(&log).await.iter().map(id).collect::<Vec<_>>(), [0, 2]);
    });
}

#[test]
fn what_is_on_disk_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let parent = directory();
    let dir = parent.path().join("queue");
    block_on(async {
        let (log, _) = open(&dir);
        append(&log, payload(0, 10)).await;
        log.bury(0, &payload(1, 10), "no").await;
        log.finish().await;
    });
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let files: Vec<_> = fs::read_dir(&dir).expect("readable").flatten().collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        assert_eq!(mode(&file.path()), 0o600, "{file:?}");
    }
}
