//! Several backends: each with a cursor of its own, some new, some gone, some behind.

use super::*;

#[test]
fn each_backend_has_its_own_cursor_and_what_the_slowest_needs_is_kept() {
    let dir = directory();
    let open = || open_for(dir.path(), ROOM, LogAck::Disk, &["near", "far"]);
    block_on(async {
        let (log, _) = open().expect("new");
        for at in 0..100 {
            append(&log, payload(at, 3_000)).await;
        }
        assert_eq!(deliver(&log, 0).await, (0..100).collect::<Vec<_>>());
        assert_eq!((log.level(0).bytes, log.level(1).bytes), (0, 100 * 3_008));
        let held = segments(dir.path()).len();
        log.finish().await;

        let (log, counters) = open().expect("free again");
        assert_eq!(
            counters.recovered.of(Signal::Traces).get(),
            log.level(1).total_items()
        );
        assert_eq!(log.level(0), Level::default());
        append(&log, payload(100, 10)).await;
        assert_eq!(deliver(&log, 0).await, [100]);
        assert!(segments(dir.path()).len() >= held);
        assert_eq!(deliver(&log, 1).await, (0..101).collect::<Vec<_>>());
        log.finish().await;
        assert!(segments(dir.path()).len() <= 1);
    });
}

#[test]
fn a_new_backend_gets_what_is_there_and_a_gone_one_holds_nothing_up() {
    let dir = directory();
    block_on(async {
        let open = |backends: &[&str]| open_for(dir.path(), ROOM, LogAck::Disk, backends);
        let (log, _) = open(&["old", "stays"]).expect("new");
        append(&log, payload(1, 10)).await;
        append(&log, payload(2, 10)).await;
        assert_eq!(deliver(&log, 1).await, [1, 2]);
        log.finish().await;

        let (log, _) = open(&["stays", "new"]).expect("free again");
        assert_eq!(log.level(0), Level::default());
        assert_eq!(deliver(&log, 1).await, [1, 2]);
        log.finish().await;
        let (log, counters) = open(&["stays", "new"]).expect("free again");
        assert_eq!(counters.recovered.of(Signal::Traces).get(), 0);
        log.finish().await;
    });
}

#[test]
fn a_new_backend_misses_nothing_of_what_was_delivered_and_removed_before_it_came() {
    let dir = directory();
    block_on(async {
        let open = |backends: &[&str]| open_for(dir.path(), ROOM, LogAck::Disk, backends);
        let (log, _) = open(&["old"]).expect("new");
        append(&log, payload(1, 10)).await;
        assert_eq!(deliver(&log, 0).await, [1]);
        log.finish().await;
        // The segment of an earlier run goes once it is seen to be delivered.
        open(&["old"]).expect("free again").0.finish().await;
        assert!(segments(dir.path()).is_empty());

        let (log, counters) = open(&["old", "new"]).expect("free again");
        append(&log, payload(2, 10)).await;
        assert_eq!(deliver(&log, 0).await, [2]);
        assert_eq!(deliver(&log, 1).await, [2]);
        assert_eq!(counters.damaged_records.get(), 0);
        log.finish().await;
        assert_eq!(segments(dir.path()).len(), 1);
    });
}

#[test]
fn a_backend_that_falls_behind_what_memory_keeps_is_served_from_the_files() {
    let dir = directory();
    block_on(async {
        let backends = ["near", "far"];
        let room = 64 * 1024 * 1024;
        let (log, _) = open_for(dir.path(), room, LogAck::Disk, &backends).expect("new");
        // Three times what is kept.
        let count = 96;
        for at in 0..count {
            append(&log, payload(at, 256 * 1024)).await;
            if at == 0 {
                // Has a file open before it falls behind.
                let batch = log.take(1, 1).await.expect("one waits");
                log.settle(1, &batch.payloads()[0]);
            }
        }
        assert_eq!(deliver(&log, 0).await, (0..count).collect::<Vec<_>>());
        assert_eq!(deliver(&log, 1).await, (1..count).collect::<Vec<_>>());
        append(&log, payload(count, 10)).await;
        assert_eq!(deliver(&log, 1).await, [count]);
        log.finish().await;
    });
}
