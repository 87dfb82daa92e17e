//! The cursors: up to where each backend has answered. One line of text, replaced as a whole.
//!
//! They may lag behind, and then some records are delivered twice. They never run ahead.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::writing;

const FILE: &str = "cursor";
const NEW_FILE: &str = "cursor.new";
const VERSION: &str = "lantern-cursors-1";

/// The number of the first record that each backend, by its name, has not answered for.
pub(crate) type Cursors = BTreeMap<String, u64>;

/// The cursors as they were last written. None at all when they cannot be trusted.
pub(super) fn read(dir: &Path) -> io::Result<Cursors> {
    match fs::read(dir.join(FILE)) {
        Ok(bytes) => {
            let cursors = parse(&bytes);
            if cursors.is_none() {
                tracing::warn!(
                    dir = %dir.display(),
                    "the queue's cursors are damaged: what is in the queue is sent again"
                );
            }
            Ok(cursors.unwrap_or_default())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cursors::new()),
        Err(error) => Err(error),
    }
}

/// Replaces the cursors. After a crash at any moment the old ones or the new ones are there.
pub(super) fn write(dir: &Path, cursors: &Cursors) -> io::Result<()> {
    let new = dir.join(NEW_FILE);
    let mut file = writing().create(true).truncate(true).open(&new)?;
    file.write_all(render(cursors).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

fn render(cursors: &Cursors) -> String {
    let mut text = VERSION.to_owned();
    for (backend, seq) in cursors {
        text.push_str(&format!(" {backend}={seq}"));
    }
    let crc = crc32fast::hash(text.as_bytes());
    format!("{text} {crc:08x}\n")
}

fn parse(bytes: &[u8]) -> Option<Cursors> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (entries, _) = text.rsplit_once(' ')?;
    let entries = entries.split(' ').skip(1);
    let cursors = entries
        .map(|entry| {
            let (backend, seq) = entry.split_once('=')?;
            Some((backend.to_owned(), seq.parse().ok()?))
        })
        .collect::<Option<Cursors>>()?;
    (render(&cursors) == text).then_some(cursors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back_and_damaged_ones_are_not_trusted() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).expect("readable"), Cursors::new());
        let cursors = |near: u64| {
            let pairs = [("far", 7), ("near", near)];
            Cursors::from(pairs.map(|(name, seq)| (name.to_owned(), seq)))
        };
        write(dir.path(), &cursors(41)).expect("written");
        write(dir.path(), &cursors(1_042)).expect("written");
        assert_eq!(read(dir.path()).expect("readable"), cursors(1_042));
        let whole = fs::read(dir.path().join(FILE)).expect("readable");
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&flipped), None, "bit {bit}");
        }
        assert!((0..whole.len()).all(|end| parse(&whole[..end]).is_none()));
    }
}
