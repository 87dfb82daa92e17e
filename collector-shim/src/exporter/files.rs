//! Files of OTLP/JSON lines, one for each signal, each line a request.
//!
//! <https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/>: a file holds one signal. The one
//! that is written is `traces.jsonl`; a full one becomes `traces.000001.jsonl`, and the oldest full ones
//! go. A line counts as delivered once it is synced: a crash before that leaves at most half of it,
//! which is cut off when the file is opened again, and the line comes again.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{Accepted, Answer, shortened};
use crate::config::FileSettings;
use crate::counts::PerSignal;
use crate::signal::Signal;

/// What every line begins with: `resourceSpans`, `resourceMetrics` and `resourceLogs` alike.
const LINE_START: &[u8] = br#"{"resource"#;
const EXTENSION: &str = "jsonl";
/// Digits of a full file's number; more when they do not suffice.
const NUMBER_DIGITS: usize = 6;
/// How much is read at once of a line that is to be cut off.
const TAIL_CHUNK_BYTES: u64 = 64 * 1024;

/// See the module.
pub(super) struct Files {
    settings: FileSettings,
    /// The file that is written, of each signal that has come. None also after a failure.
    open: Mutex<PerSignal<Option<OpenFile>>>,
}

struct OpenFile {
    file: File,
    length: u64,
}

impl Files {
    pub(super) fn new(settings: FileSettings) -> Files {
        Files {
            settings,
            open: Mutex::default(),
        }
    }

    /// Writes and syncs `line`, which has no end of line yet.
    pub(super) async fn send(self: Arc<Self>, signal: Signal, line: Bytes) -> Answer {
        let writing = tokio::task::spawn_blocking(move || self.append(signal, &line));
        match writing.await.map_err(io::Error::other).flatten() {
            Ok(()) => Answer::Accepted(Accepted::default()),
            Err(error) => Answer::later(shortened(&error.to_string())),
        }
    }

    fn append(&self, signal: Signal, line: &[u8]) -> io::Result<()> {
        if !line.starts_with(LINE_START) {
            // A request of nothing.
            return Ok(());
        }
        let mut open = self.open.lock().expect("no holder of the files panics");
        let slot = open.of_mut(signal);
        let mut current = match slot.take() {
            Some(current) => current,
            None => self.open(signal)?,
        };
        let needed = line.len() as u64 + 1;
        if current.length > 0 && current.length + needed > self.settings.max_bytes {
            self.retire(signal)?;
            current = self.open(signal)?;
        }
        current.file.write_all(line)?;
        current.file.write_all(b"\n")?;
        current.file.sync_data()?;
        current.length += needed;
        *slot = Some(current);
        Ok(())
    }

    /// The file of `signal`, which ends with a whole line. No other process writes to it.
    fn open(&self, signal: Signal) -> io::Result<OpenFile> {
        let dir = &self.settings.dir;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let path = self.current(signal);
        let mut options = OpenOptions::new();
        let mut file = options.create(true).read(true).append(true).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = format!("another process writes to {}", path.display());
                return Err(io::Error::other(reason));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let length = cut_torn_line(&mut file, &path)?;
        File::open(dir)?.sync_all()?;
        Ok(OpenFile { file, length })
    }

    /// Gives the file of `signal` the next number, once there is room for one more.
    fn retire(&self, signal: Signal) -> io::Result<()> {
        let full = self.full(signal)?;
        let excess = (full.len() + 1).saturating_sub(self.settings.max_full_files);
        for number in &full[..excess] {
            fs::remove_file(self.numbered(signal, *number))?;
        }
        let next = full.last().map_or(1, |last| last + 1);
        fs::rename(self.current(signal), self.numbered(signal, next))
    }

    /// The numbers of the full files of `signal`, the oldest first.
    fn full(&self, signal: Signal) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.settings.dir)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| {
                let rest = name.strip_prefix(signal.as_str())?.strip_prefix('.')?;
                let digits = rest.strip_suffix(EXTENSION)?.strip_suffix('.')?;
                let is_ours = digits.bytes().all(|digit| digit.is_ascii_digit());
                is_ours.then(|| digits.parse::<u64>().ok()).flatten()
            });
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn current(&self, signal: Signal) -> PathBuf {
        self.settings.dir.join(format!("{signal}.{EXTENSION}"))
    }

    fn numbered(&self, signal: Signal, number: u64) -> PathBuf {
        let name = format!("{signal}.{number:0NUMBER_DIGITS$}.{EXTENSION}");
        self.settings.dir.join(name)
    }
}

/// Cuts off what is left of a line that was never finished; how long the file then is. What is no
/// line of ours stays, and is an error.
fn cut_torn_line(file: &mut File, path: &Path) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let whole = whole_lines(file, length)?;
    if whole == length {
        return Ok(length);
    }
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(whole))?;
    file.take(LINE_START.len() as u64).read_to_end(&mut start)?;
    if !LINE_START.starts_with(&start) {
        let path = path.display();
        let reason = format!("{path} does not end with a line of OTLP/JSON");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    file.set_len(whole)?;
    let torn_bytes = length - whole;
    tracing::warn!(path = %path.display(), torn_bytes, "cut off a line that was never finished");
    Ok(whole)
}

/// How many bytes there are up to the last end of a line.
fn whole_lines(file: &mut File, length: u64) -> io::Result<u64> {
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(TAIL_CHUNK_BYTES);
        let mut chunk = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        file.take(end - start).read_to_end(&mut chunk)?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Far beyond what any wait here takes on the slowest machine.
    const PATIENCE: Duration = Duration::from_secs(60);
    const POLL_INTERVAL: Duration = Duration::from_millis(5);

    fn files(dir: &Path, max_bytes: u64, max_full_files: usize) -> Files {
        Files::new(FileSettings {
            dir: dir.to_owned(),
            max_bytes,
            max_full_files,
        })
    }

    fn line(mark: &str) -> String {
        format!(r#"{{"resourceSpans":"{mark}"}}"#)
    }

    /// A program that another test is just starting has this one's files until it runs, locked as they are.
    fn append(files: &Files, mark: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            match files.append(Signal::Traces, line(mark).as_bytes()) {
                Err(error) if is_locked(&error) && Instant::now() < until => {
                    std::thread::sleep(POLL_INTERVAL);
                }
                written => return written.expect("written"),
            }
        }
    }

    fn is_locked(error: &io::Error) -> bool {
        error.to_string().starts_with("another process writes to")
    }

    fn text(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).expect("a file of text")
    }

    #[test]
    fn a_full_file_gets_the_next_number_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("made");
        let two_lines = 2 * (line("a").len() as u64 + 1);
        let archive = files(&dir, two_lines, 2);
        for mark in ["a", "b", "c", "d", "e", "f", "g"] {
            append(&archive, mark);
        }
        let found = archive.full(Signal::Traces).expect("listed");
        assert_eq!(found, [2, 3], "the first file was the oldest");
        let lines = |marks: [&str; 2]| marks.map(|mark| line(mark) + "\n").concat();
        assert_eq!(text(&dir, "traces.000002.jsonl"), lines(["c", "d"]));
        assert_eq!(text(&dir, "traces.000003.jsonl"), lines(["e", "f"]));
        assert_eq!(text(&dir, "traces.jsonl"), line("g") + "\n");
        // After a restart it goes on where it was.
        drop(archive);
        let archive = files(&dir, two_lines, 2);
        for mark in ["h", "i"] {
            append(&archive, mark);
        }
        assert_eq!(text(&dir, "traces.000004.jsonl"), lines(["g", "h"]));
        assert_eq!(archive.full(Signal::Traces).expect("listed"), [3, 4]);
        assert!(archive.full(Signal::Logs).expect("listed").is_empty());
    }

    #[test]
    fn a_line_that_a_crash_left_unfinished_is_cut_off_and_nothing_else_is() {
        let whole = line("a") + "\n";
        for torn in [
            "",
            "{",
            r#"{"resourceSpans":[{"#,
            &line("long").repeat(9_000),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("traces.jsonl");
            fs::write(&path, whole.clone() + torn).expect("written");
            append(&files(dir.path(), u64::MAX, 1), "b");
            let expect = whole.clone() + &line("b") + "\n";
            assert_eq!(text(dir.path(), "traces.jsonl"), expect);
        }
        for other in ["not ours", "{}", "a line\nand the rest of one"] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("traces.jsonl");
            fs::write(&path, other).expect("written");
            let archive = files(dir.path(), u64::MAX, 1);
            let error = archive.append(Signal::Traces, line("b").as_bytes());
            let error = error.expect_err("not ours").to_string();
            assert!(error.contains("traces.jsonl does not end with"), "{error}");
            assert_eq!(text(dir.path(), "traces.jsonl"), other);
        }
    }

    #[test]
    fn two_processes_do_not_write_to_one_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, second) = (files(dir.path(), 9, 1), files(dir.path(), 9, 1));
        append(&first, "a");
        let refused = second.append(Signal::Traces, line("b").as_bytes());
        let error = refused.expect_err("locked");
        assert!(is_locked(&error), "{error}");
        let other = second.append(Signal::Logs, br#"{"resourceLogs":[]}"#);
        other.expect("the other signal's file is free");
    }
}
