//! A queue's files after a crash and on a bad disk: whatever was not damaged is there, and nothing that
//! was never written.
#![no_main]

use std::fs;
use std::path::Path;

use lantern_shim::fuzzing::{recover, segment_file};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// In memory where the system has such a place.
const FAST_DIR: &str = "/dev/shm";
const HEADER_BYTES: usize = 32;

#[derive(Debug, Arbitrary)]
struct Damage {
    salt: u32,
    base_seq: u16,
    payloads: Vec<Vec<u8>>,
    flips: Vec<(u16, u8)>,
    /// So many bytes are cut off the end.
    torn: Option<u16>,
    /// And these stand there.
    garbage: Vec<u8>,
    cursor: Vec<u8>,
    /// A file that was no segment of ours.
    stranger: Vec<u8>,
}

fuzz_target!(|damage: Damage| {
    let fast = Path::new(FAST_DIR);
    let dir = if fast.is_dir() {
        TempDir::new_in(fast)
    } else {
        TempDir::new()
    };
    let dir = dir.expect("a directory");
    check(dir.path(), &damage);
});

fn check(dir: &Path, damage: &Damage) {
    let base_seq = u64::from(damage.base_seq);
    let (name, mut file) = segment_file(1, base_seq, damage.salt, &damage.payloads);
    let whole = file.len();
    let mut touched = vec![false; whole];
    for (at, mask) in &damage.flips {
        if let Some(at) = usize::from(*at).checked_rem(whole).filter(|_| *mask != 0) {
            file[at] ^= mask;
            touched[at] = true;
        }
    }
    let kept = whole - damage.torn.map_or(0, |torn| usize::from(torn).min(whole));
    touched[kept..].fill(true);
    file.truncate(kept);
    file.extend(&damage.garbage);
    write(dir, &name, &file);
    if !damage.cursor.is_empty() {
        write(dir, "cursor", &damage.cursor);
    }
    let (stranger, _) = segment_file(0, base_seq, damage.salt, &[]);
    write(dir, &stranger, &damage.stranger);

    let found = recover(dir).expect("damage is stepped over");
    assert!(found.is_sorted_by_key(|(seq, _)| *seq));
    let mut at = 0;
    for (seq, payload) in (base_seq..).zip(&damage.payloads) {
        let end = at + HEADER_BYTES + payload.len();
        let is_sound = !touched[at..end].contains(&true);
        let read = found
            .iter()
            .find(|(found, _)| *found == seq)
            .map(|(_, bytes)| &bytes[..]);
        assert!(
            read.is_none_or(|read| read == payload),
            "record {seq} has other bytes"
        );
        assert!(
            read.is_some() || !is_sound,
            "record {seq} is sound and lost"
        );
        at = end;
    }
    let again = recover(dir).map(|records| records.len());
    assert_eq!(again, Ok(found.len()), "a second start finds the same");
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    fs::write(dir.join(name), bytes).expect("the disk is not full");
}
