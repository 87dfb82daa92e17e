//! What the crate logged, for the tests of this process.

use std::io;
use std::sync::{LazyLock, Mutex};

static LINES: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(Mutex::default);

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LINES
            .lock()
            .expect("no test panics here")
            .extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts to record; each test that reads the log calls it first.
pub(crate) fn record() {
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(|| Writer)
        .try_init();
}

/// The lines about `endpoint`, which no other test uses.
pub(crate) fn about(endpoint: &str) -> Vec<String> {
    let lines = LINES.lock().expect("no test panics here").clone();
    let lines = String::from_utf8(lines).expect("log lines are UTF-8");
    lines
        .lines()
        .filter(|line| line.contains(endpoint))
        .map(ToOwned::to_owned)
        .collect()
}

/// The lines about `endpoint`, once there is one.
pub(crate) async fn wait_for(endpoint: &str) -> Vec<String> {
    let told = async {
        while about(endpoint).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(crate::PATIENCE, told).await;
    waited.expect("a line about it");
    about(endpoint)
}

/// How many spans the lines say were dropped.
pub(crate) fn dropped(lines: &[String]) -> u64 {
    let count = |line: &String| {
        let (before, _) = line.rsplit_once(" dropped")?;
        before.rsplit(' ').next()?.parse::<u64>().ok()
    };
    lines.iter().filter_map(count).sum()
}
