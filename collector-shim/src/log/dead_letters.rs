//! Requests that the backend will never take, as JSON lines with the reason.
//!
//! A line is `{"time_unix_s", "reason", "backend", "signal", "coding", "items", "request"}`; `request`
//! is the protobuf message in base64, compressed by `coding`, ready to be posted once the reason is
//! gone. Two files take turns, so that the older half goes when the bound is reached.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::queue::Payload;

const FILE: &str = "dead-letters.jsonl";
const OLDER_FILE: &str = "dead-letters.older.jsonl";
/// Both files together.
pub(super) const MAX_BYTES: u64 = 64 * 1024 * 1024;

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

    /// Writes one letter; it is on disk when this returns.
    pub(super) fn write(
        &mut self,
        backend: &str,
        payload: &Payload,
        reason: &str,
    ) -> io::Result<()> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut line = serde_json::json!({
            "time_unix_s": now.as_secs(),
            "reason": reason,
            "backend": backend,
            "signal": payload.signal.as_str(),
            "coding": payload.coding.as_str(),
            "items": payload.items,
            "request": STANDARD.encode(&payload.bytes),
        })
        .to_string();
        line.push('\n');
        let mut file = self.file(line.len() as u64)?;
        file.write_all(line.as_bytes())?;
        file.sync_data()
    }

    /// The file to append `more` bytes to. It is opened for each letter: they are rare.
    fn file(&self, more: u64) -> io::Result<File> {
        let half = self.max_bytes / 2;
        if more > half {
            let message = format!("a letter of {more} bytes where {half} are allowed");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let path = self.dir.join(FILE);
        let open = || OpenOptions::new().create(true).append(true).open(&path);
        let mut file = open()?;
        let bytes = file.metadata()?.len();
        if bytes + more > half {
            fs::rename(&path, self.dir.join(OLDER_FILE))?;
            file = open()?;
        }
        if bytes == 0 || bytes + more > half {
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::signal::Signal;

    #[test]
    fn letters_hold_reason_and_bytes_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = DeadLetters::new(dir.path(), 4_000);
        for number in 0..100_u64 {
            let payload = Payload::plain(Signal::Logs, Bytes::from(vec![number as u8; 30]), number);
            letters
                .write("eu", &payload, "not \"yours\"")
                .expect("written");
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("there");
        let both = read(OLDER_FILE) + &read(FILE);
        assert!(both.len() <= 4_000);
        let lines: Vec<serde_json::Value> = both
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert!(lines.len() > 5);
        for (line, number) in lines.iter().rev().zip((0..100_u64).rev()) {
            assert_eq!(
                (&line["signal"], &line["backend"]),
                (&"logs".into(), &"eu".into())
            );
            assert_eq!(line["reason"], "not \"yours\"");
            assert_eq!(line["items"], number);
            let bytes = STANDARD.decode(line["request"].as_str().expect("text"));
            assert_eq!(bytes.expect("base64"), [number as u8; 30]);
        }
        let large = Payload::plain(Signal::Logs, Bytes::from(vec![0; 4_000]), 1);
        assert!(letters.write("eu", &large, "no").is_err());
    }
}
