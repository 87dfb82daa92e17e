//! The cursor: up to where the backend has answered. One line of text, replaced as a whole.
//!
//! It may lag behind, and then some records are delivered twice. It never runs ahead.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

const FILE: &str = "cursor";
const NEW_FILE: &str = "cursor.new";
const VERSION: &str = "lantern-cursor-1";

/// The cursor as it was last written. None when there is none that can be trusted.
pub(super) fn read(dir: &Path) -> io::Result<Option<u64>> {
    match fs::read(dir.join(FILE)) {
        Ok(bytes) => {
            let seq = parse(&bytes);
            if seq.is_none() {
                tracing::warn!(
                    dir = %dir.display(),
                    "the queue's cursor is damaged: what is in the queue is sent again"
                );
            }
            Ok(seq)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the cursor. After a crash at any moment the old one or the new one is there.
pub(super) fn write(dir: &Path, seq: u64) -> io::Result<()> {
    let new = dir.join(NEW_FILE);
    let mut file = File::create(&new)?;
    file.write_all(render(seq).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

fn render(seq: u64) -> String {
    let text = format!("{VERSION} {seq}");
    let crc = crc32fast::hash(text.as_bytes());
    format!("{text} {crc:08x}\n")
}

fn parse(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let seq = text.split(' ').nth(1)?.parse().ok()?;
    (render(seq) == text).then_some(seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_a_damaged_one_is_not_trusted() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).expect("readable"), None);
        write(dir.path(), 41).expect("written");
        write(dir.path(), 1_042).expect("written");
        assert_eq!(read(dir.path()).expect("readable"), Some(1_042));
        let whole = fs::read(dir.path().join(FILE)).expect("readable");
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&flipped), None, "bit {bit}");
        }
        assert!((0..whole.len()).all(|end| parse(&whole[..end]).is_none()));
    }
}
