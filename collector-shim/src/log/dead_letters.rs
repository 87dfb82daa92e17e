//! Requests that the backend will never take, as JSON lines with the reason.
//!
//! A line is `{"time_unix_s", "reason", "backend", "signal", "coding", "items", "request"}`; `request`
//! is the protobuf message in base64, compressed by `coding`, ready to be posted once the reason is
//! gone. Two files take turns, so that the older half goes when the bound is reached.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::writing;
use crate::coding::{self, Coding};
use crate::config::LARGEST_REQUEST_BYTES;
use crate::queue::Payload;
use crate::signal::Signal;

const FILE: &str = "dead-letters.jsonl";
const OLDER_FILE: &str = "dead-letters.older.jsonl";
/// Both files together.
pub(super) const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A letter as it is written.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    time_unix_s: u64,
    reason: Cow<'a, str>,
    backend: Cow<'a, str>,
    signal: Signal,
    coding: Coding,
    items: u64,
    request: String,
}

/// A letter that was read back.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) written_at: SystemTime,
    pub(crate) reason: String,
    pub(crate) backend: String,
    pub(crate) payload: Payload,
}

/// Reads the letters of a directory, oldest first.
#[derive(Debug)]
pub(crate) struct Letters {
    files: VecDeque<BufReader<File>>,
    /// Lines that are none: a crash may have left the last one of a file unfinished.
    pub(crate) damaged_lines: u64,
}

impl Letters {
    pub(crate) fn open(dir: &Path) -> io::Result<Letters> {
        let mut files = VecDeque::new();
        for name in [OLDER_FILE, FILE] {
            match File::open(dir.join(name)) {
                Ok(file) => files.push_back(BufReader::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Letters {
            files,
            damaged_lines: 0,
        })
    }

    pub(crate) fn next(&mut self) -> io::Result<Option<Letter>> {
        let mut line = Vec::new();
        while let Some(file) = self.files.front_mut() {
            line.clear();
            if file.take(MAX_BYTES).read_until(b'\n', &mut line)? == 0 {
                self.files.pop_front();
            } else if let Some(letter) = parse(&line) {
                return Ok(Some(letter));
            } else {
                self.damaged_lines += 1;
            }
        }
        Ok(None)
    }
}

fn parse(line: &[u8]) -> Option<Letter> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let request = STANDARD.decode(line.request).ok()?;
    // Nothing else guards a letter's bytes, and whoever reads it counts on them.
    let unbounded = |_| Ok::<_, Infallible>(());
    coding::decompress(line.coding, &request, LARGEST_REQUEST_BYTES, unbounded).ok()?;
    Some(Letter {
        written_at: UNIX_EPOCH.checked_add(Duration::from_secs(line.time_unix_s))?,
        reason: line.reason.into_owned(),
        backend: line.backend.into_owned(),
        payload: Payload {
            coding: line.coding,
            ..Payload::plain(line.signal, request.into(), line.items)
        },
    })
}

/// See the module.
#[derive(Debug)]
pub(super) struct DeadLetters {
    dir: PathBuf,
    max_bytes: u64,
}

impl DeadLetters {
    pub(super) fn new(dir: &Path, max_bytes: u64) -> DeadLetters {
        DeadLetters {
            dir: dir.to_owned(),
            max_bytes,
        }
    }

    /// Writes one letter; it is on disk when this returns. How many older ones had to go for it.
    pub(super) fn write(
        &mut self,
        backend: &str,
        payload: &Payload,
        reason: &str,
    ) -> io::Result<u64> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let line = Line {
            time_unix_s: now.as_secs(),
            reason: Cow::Borrowed(reason),
            backend: Cow::Borrowed(backend),
            signal: payload.signal,
            coding: payload.coding,
            items: payload.items,
            request: STANDARD.encode(&payload.bytes),
        };
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        let (mut file, dropped) = self.file(line.len() as u64)?;
        let bytes = file.metadata()?.len();
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Half a letter is none, and would only take what room there is.
            file.set_len(bytes)?;
            return Err(error);
        }
        Ok(dropped)
    }

    /// The file to append `more` bytes to, and how many letters have made room for it. It is opened for
    /// each letter: they are rare.
    fn file(&self, more: u64) -> io::Result<(File, u64)> {
        let half = self.max_bytes / 2;
        if more > half {
            let message = format!("a letter of {more} bytes where {half} are allowed");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let path = self.dir.join(FILE);
        let open = || writing().create(true).read(true).append(true).open(&path);
        let (mut file, mut dropped) = (open()?, 0);
        let mut bytes = file.metadata()?.len();
        if !ends_with_line(&file, bytes)? {
            file.write_all(b"\n")?;
            bytes += 1;
        }
        if bytes + more > half {
            let older = self.dir.join(OLDER_FILE);
            dropped = count_lines(&older)?;
            if dropped > 0 {
                let (dir, max_bytes) = (self.dir.display(), self.max_bytes);
                tracing::warn!(%dir, max_bytes, dropped, "too many dead letters, the older half goes");
            }
            fs::rename(&path, older)?;
            file = open()?;
        }
        if bytes == 0 || bytes + more > half {
            File::open(&self.dir)?.sync_all()?;
        }
        Ok((file, dropped))
    }
}

/// Of a file that need not be there.
fn count_lines(path: &Path) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut lines = 0;
    while file.skip_until(b'\n')? > 0 {
        lines += 1;
    }
    Ok(lines)
}

/// Whether a line may follow. A crash may have cut the last one off.
fn ends_with_line(file: &File, bytes: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if bytes > 0 {
        file.read_exact_at(&mut last, bytes - 1)?;
    }
    Ok(last == [b'\n'])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn letters_hold_reason_and_bytes_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = DeadLetters::new(dir.path(), 4_000);
        let mut dropped = 0;
        for number in 0..100_u64 {
            let payload = Payload::plain(Signal::Logs, Bytes::from(vec![number as u8; 30]), number);
            dropped += letters
                .write("eu", &payload, "not \"yours\"")
                .expect("written");
        }
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).expect("there");
        let both = text(OLDER_FILE) + &text(FILE);
        assert!(both.len() <= 4_000);
        let line: serde_json::Value =
            serde_json::from_str(both.lines().next().expect("one")).expect("JSON");
        assert_eq!(line["reason"], "not \"yours\"");
        let read = || {
            let mut letters = Letters::open(dir.path()).expect("readable");
            let mut kept = Vec::new();
            while let Some(letter) = letters.next().expect("readable") {
                kept.push(letter);
            }
            (kept, letters.damaged_lines)
        };
        let (kept, damaged_lines) = read();
        assert_eq!(damaged_lines, 0);
        assert!(kept.len() > 5);
        assert_eq!(kept.len() as u64 + dropped, 100);
        for (letter, number) in kept.iter().rev().zip((0..100_u64).rev()) {
            assert_eq!(letter.payload.signal, Signal::Logs);
            assert_eq!(letter.backend, "eu");
            assert_eq!(letter.reason, "not \"yours\"");
            assert_eq!(letter.payload.items, number);
            assert_eq!(letter.payload.bytes[..], [number as u8; 30]);
            assert!(letter.written_at > UNIX_EPOCH);
        }
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).expect("there");
        fs::write(&path, &whole[..whole.len() - 5]).expect("writable");
        let (left, damaged_lines) = read();
        assert_eq!((left.len(), damaged_lines), (kept.len() - 1, 1));
        let next = Payload::plain(Signal::Logs, Bytes::from_static(b"next"), 1);
        letters.write("eu", &next, "no").expect("written");
        let (left, damaged_lines) = read();
        let last = left.last().expect("one");
        assert_eq!((&last.payload, damaged_lines), (&next, 1));
        let large = Payload::plain(Signal::Logs, Bytes::from(vec![0; 4_000]), 1);
        assert!(letters.write("eu", &large, "no").is_err());
    }
    #[test]
    fn a_letter_whose_bytes_are_damaged_is_passed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = DeadLetters::new(dir.path(), MAX_BYTES);
        let compressed = coding::gzip(b"a request");
        let broken = [&compressed[..4], b"something else"].concat();
        for bytes in [compressed, broken] {
            let payload = Payload {
                coding: Coding::Gzip,
                ..Payload::plain(Signal::Logs, bytes.into(), 1)
            };
            letters.write("eu", &payload, "no").expect("written");
        }
        let mut read = Letters::open(dir.path()).expect("readable");
        let letter = read.next().expect("readable").expect("one is sound");
        assert_eq!(&letter.payload.decompressed()[..], b"a request");
        assert!(read.next().expect("readable").is_none());
        assert_eq!(read.damaged_lines, 1);
    }
}
