//! Segments that are written over what was delivered before, and crashes meanwhile.

use std::ffi::OsString;

use super::*;
use crate::log::active::SPARE_FILE;
use crate::log::inspect::survey;

/// Segments are then as small as they can be.
const SMALL: usize = 16 * MIN_SEGMENT_BYTES as usize;

fn files(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).expect("readable").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort_unstable();
    names
}

/// What a crash at this moment would leave.
fn snapshot(dir: &Path) -> TempDir {
    loop {
        let (copy, names) = (directory(), files(dir));
        let copied = |name: &OsString| fs::copy(dir.join(name), copy.path().join(name)).is_ok();
        // Delivered segments may go at any time.
        if names.iter().all(copied) && files(dir) == names {
            return copy;
        }
    }
}

/// A payload whose record is of so many bytes.
const RECORD_BYTES: u64 = HEADER_BYTES as u64 + 8 + 1_000;

/// Fills a segment and delivers it, so that there is a spare and nothing else; the next id.
async fn leave_a_spare(log: &Log, dir: &Path) -> u64 {
    let mut next = 0;
    while next * RECORD_BYTES < MIN_SEGMENT_BYTES {
        append(log, payload(next, 1_000)).await;
        deliver(log, 0).await;
        next += 1;
    }
    while !segments(dir).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    next
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).expect("there").len()
}

#[test]
fn a_delivered_segment_is_written_over_and_nothing_of_it_is_left_at_the_end() {
    let dir = directory();
    block_on(async {
        let (log, _) = open_with(dir.path(), SMALL, LogAck::Disk).expect("new");
        let next = leave_a_spare(&log, dir.path()).await;
        append(&log, payload(next, 1_000)).await;
        let last = *segments(dir.path()).last().expect("one is written to");
        let path = last.path(dir.path());
        assert!(bytes_of(&path) >= MIN_SEGMENT_BYTES);
        let seen = survey(dir.path()).expect("readable").segments;
        let seen = seen.last().expect("one is written to");
        assert_eq!((seen.damaged_records, seen.torn_bytes), (0, 0));
        assert_eq!((seen.records, seen.end_seq), (1, next + 1));
        log.finish().await;
        assert_eq!(bytes_of(&path), RECORD_BYTES);
        assert!(!dir.path().join(SPARE_FILE).exists());
    });
}

#[test]
fn a_spare_that_somebody_removed_is_not_missed() {
    let dir = directory();
    block_on(async {
        let (log, _) = open_with(dir.path(), SMALL, LogAck::Disk).expect("new");
        let next = leave_a_spare(&log, dir.path()).await;
        fs::remove_file(dir.path().join(SPARE_FILE)).expect("there");
        for id in next..next + 40 {
            append(&log, payload(id, 1_000)).await;
        }
        let delivered = drain(&log).await;
        assert!(delivered.iter().map(id).eq(next..next + 40));
    });
}

#[test]
fn a_spare_of_a_run_that_crashed_is_removed() {
    let dir = directory();
    let crashed = block_on(async {
        let (log, _) = open_with(dir.path(), SMALL, LogAck::Disk).expect("new");
        leave_a_spare(&log, dir.path()).await;
        let crashed = snapshot(dir.path());
        log.finish().await;
        crashed
    });
    assert!(crashed.path().join(SPARE_FILE).exists());
    block_on(async {
        open(crashed.path()).0.finish().await;
        assert!(!crashed.path().join(SPARE_FILE).exists());
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_crash_at_any_byte_that_is_written_over_costs_only_the_torn_record(
        lengths in vec(0..3_000_usize, 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let dir = directory();
        let (before, after, first, next) = block_on(async {
            let (log, _) = open_with(dir.path(), SMALL, LogAck::Disk).expect("new");
            let first = leave_a_spare(&log, dir.path()).await;
            let next = first + lengths.len() as u64;
            for (id, length) in (first..).zip(&lengths) {
                append(&log, payload(id, *length)).await;
            }
            let before = snapshot(dir.path());
            append(&log, payload(next, 2_000)).await;
            let after = snapshot(dir.path());
            log.finish().await;
            (before, after, first, next)
        });
        let last = *segments(after.path()).last().expect("it was written");
        let (old, new) = (last.path(before.path()), last.path(after.path()));
        // What was written of the record: nothing, or the first bytes.
        let is_whole = old.exists() && {
            let (mut torn, new) = (fs::read(&old).expect("there"), fs::read(&new).expect("there"));
            let same = torn.iter().zip(&new).take_while(|(old, new)| old == new).count();
            let record = same..same + HEADER_BYTES + 8 + 2_000;
            let end = same + cut.index(record.len() + 1);
            torn.resize(torn.len().max(end), 0);
            torn[same..end].copy_from_slice(&new[same..end]);
            fs::write(&old, &torn).expect("writable");
            // What was there before may end as the record does.
            torn.get(record.clone()) == Some(&new[record])
        };
        block_on(async {
            let (log, counters) = open(before.path());
            let expect = first..next + u64::from(is_whole);
            let found = drain(&log).await;
            assert!(found.iter().map(id).filter(|id| *id >= first).eq(expect), "{found:?}");
            assert_eq!(counters.damaged_records.get(), 0);
        });
    }
}
