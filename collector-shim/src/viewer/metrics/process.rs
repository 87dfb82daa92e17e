//! What the process takes, by the names of Prometheus' client libraries and of the Collector. Where
//! there is no Linux `/proc`, only how long it has been running.

use std::fs;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{COUNTER, GAUGE, Text};

/// The unit of times in `/proc`: fixed by Linux' interface, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;
const KIB: u64 = 1024;

/// When this was first asked for: [`begin`].
static START: LazyLock<(Instant, SystemTime)> =
    LazyLock::new(|| (Instant::now(), SystemTime::now()));

/// The process counts as running from here on.
pub(crate) fn begin() {
    LazyLock::force(&START);
}

pub(super) fn render(text: &mut Text) {
    let (started, started_at) = *START;
    let since_epoch = started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let metrics = [
        (
            (
                "otelcol_process_uptime",
                COUNTER,
                "Seconds since the start.",
            ),
            started.elapsed().as_secs_f64(),
        ),
        (
            (
                "process_start_time_seconds",
                GAUGE,
                "When it started, in seconds since 1970.",
            ),
            since_epoch.as_secs_f64(),
        ),
    ];
    for (metric, value) in metrics {
        text.metric(metric, &[(String::new(), value)]);
    }
    if let Some(cpu) = read("stat").as_deref().and_then(cpu_time) {
        const HELP: &str = "Seconds of processor time.";
        let samples = [(String::new(), cpu.as_secs_f64())];
        text.metric(("otelcol_process_cpu_seconds", COUNTER, HELP), &samples);
        text.metric(("process_cpu_seconds_total", COUNTER, HELP), &samples);
    }
    if let Some(resident_bytes) = read("status").as_deref().and_then(resident_bytes) {
        const HELP: &str = "Bytes of memory that are its own or shared.";
        let samples = [(String::new(), resident_bytes)];
        text.metric(("otelcol_process_memory_rss", GAUGE, HELP), &samples);
        text.metric(("process_resident_memory_bytes", GAUGE, HELP), &samples);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let samples = [(String::new(), open.count() as u64)];
        text.metric(
            ("process_open_fds", GAUGE, "File descriptors in use."),
            &samples,
        );
    }
}

fn read(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/self/{name}")).ok()
}

/// From `/proc/self/stat`: user and system time, the 14th and 15th field. The second one is the
/// program's name, which may have anything in it but ends with the last parenthesis.
fn cpu_time(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let mut ticks = || times.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

/// From `/proc/self/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_files_are_read_whatever_the_program_is_called() {
        let stat = "7 (a) b (c) R 1 7 7 0 -1 4194304 1 2 3 4 250 50 0 0 20 0 8 0 99 1000 200";
        assert_eq!(cpu_time(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu_time("7 (a) R 1"), None);
        assert_eq!(
            resident_bytes("Name:\ta\nVmRSS:\t    2048 kB\nThreads:\t1\n"),
            Some(2 * 1024 * 1024)
        );
        assert_eq!(resident_bytes("Name:\ta\n"), None);
    }
}
