//! `lantern-shim queue` and `lantern-shim dead-letters`, as a user runs them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;
use tokio::process::Command;

use crate::support::backend::{Backend, Reply, reserve};
use crate::support::client::{PROTOBUF, post};
use crate::support::spans::{TRACE_ID, marks, request};
use crate::support::{Running, durable, eventually, exporter};

const MAX_BYTES: usize = 64 * 1024 * 1024;

async fn shim(arguments: &[&str], dir: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lantern-shim"));
    let command = command.args(arguments).arg(dir).args(more).env_clear();
    command
        .kill_on_drop(true)
        .output()
        .await
        .expect("it starts")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A queue in which `messages` wait for a backend that was never there.
async fn queue_of(messages: &[&[u8]]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let nowhere = reserve();
    let url = format!("http://{}", nowhere.local_addr().expect("bound"));
    let shim = Running::start(durable(exporter(&url, "grpc", &[]), dir.path(), MAX_BYTES)).await;
    for message in messages {
        let answer = post(shim.http, PROTOBUF, "", message.to_vec()).await;
        assert_eq!(answer.status, 200);
    }
    shim.stop().await.0.expect("what waits is on disk");
    given_back(dir.path()).await;
    dir
}

/// A program that another test is just starting has this one's files until it runs, the queue's lock among them.
async fn given_back(dir: &Path) {
    let lock = fs::File::open(dir.join("lock")).expect("a queue has one");
    eventually("nobody has the queue", || lock.try_lock().is_ok()).await;
}

/// A directory in which each of `messages` became a dead letter.
async fn letters_of(messages: &[&[u8]]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::start(messages.iter().map(|_| Reply::Http(400, None))).await;
    let exporter = exporter(&backend.http_url(), "http/protobuf", &[]);
    let shim = Running::start(durable(exporter, dir.path(), MAX_BYTES)).await;
    for (at, message) in messages.iter().enumerate() {
        assert_eq!(
            post(shim.http, PROTOBUF, "", message.to_vec()).await.status,
            200
        );
        backend.received(at + 1).await;
    }
    let (ended, counts) = shim.stop().await;
    ended.expect("stopped");
    given_back(dir.path()).await;
    assert_eq!(counts.dead_letters, messages.len() as u64);
    dir
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(dir).expect("readable");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .map(|path| (path.clone(), fs::read(path).expect("readable")))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn inspect_tells_what_waits_and_what_is_torn() {
    let dir = queue_of(&[&request("one", 1), &request("two", 2)]).await;
    let last = files(dir.path()).into_iter().map(|(path, _)| path);
    let last = last.filter(|path| path.extension().is_some_and(|name| name == "segment"));
    let mut torn = OpenOptions::new()
        .append(true)
        .open(last.max().expect("a segment"))
        .expect("writable");
    torn.write_all(b"half a record").expect("written");
    let before = files(dir.path());
    let shown = stdout(&shim(&["queue", "inspect"], dir.path(), &[]).await);
    for line in [
        "(not in use)",
        "waiting       2 records, 3 spans,",
        "damaged       0 records",
        "torn          13 bytes",
        "dead letters  0 requests, 0 damaged lines",
    ] {
        assert!(shown.contains(line), "{line} in\n{shown}");
    }
    assert_eq!(files(dir.path()), before, "nothing was changed");
}

#[tokio::test]
async fn show_prints_what_waits_as_json_lines_from_any_record_on() {
    let dir = queue_of(&[&request("one", 1), &request("two", 2)]).await;
    let names = |shown: &str| {
        let lines = shown.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let spans = &line["resourceSpans"][0]["scopeSpans"][0]["spans"];
            assert_eq!(spans[0]["traceId"], TRACE_ID);
            spans[0]["name"].as_str().expect("a name").to_owned()
        });
        lines.collect::<Vec<_>>()
    };
    let all = stdout(&shim(&["queue", "show"], dir.path(), &[]).await);
    assert_eq!(names(&all), ["one", "two"]);
    let second = shim(&["queue", "show", "--from", "1"], dir.path(), &[]).await;
    assert_eq!(names(&stdout(&second)), ["two"]);
}

#[tokio::test]
async fn replay_sends_the_bytes_that_came_and_leaves_the_queue() {
    for protocol in ["grpc", "http/protobuf"] {
        let messages = [request("one", 1), request("two", 2)];
        let dir = queue_of(&[&messages[0], &messages[1]]).await;
        let backend = Backend::start([Reply::Http(503, None)]).await;
        let url = match protocol {
            "grpc" => backend.grpc_url(),
            _ => backend.http_url(),
        };
        for _ in 0..2 {
            let to = ["--to", &url, "--protocol", protocol];
            let told = stdout(&shim(&["queue", "replay"], dir.path(), &to).await);
            assert!(told.contains("accepted 3 spans"), "{told}");
        }
        let deliveries = backend.deliveries();
        let last = &deliveries.last().expect("delivered").message;
        assert_eq!(last[..], messages.concat()[..], "{protocol}");
        assert_eq!(deliveries.len(), 3, "one refused, and two replays");
    }
}

#[tokio::test]
async fn replay_ends_when_the_backend_stays_away() {
    let dir = queue_of(&[&request("one", 1)]).await;
    let nowhere = reserve();
    let url = format!("http://{}", nowhere.local_addr().expect("bound"));
    let to = ["--to", &url, "--give-up-seconds", "1"];
    let output = shim(&["queue", "replay"], dir.path(), &to).await;
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(
        told.contains("record 0 is the first that it may not have"),
        "{told}"
    );
}

#[tokio::test]
async fn a_queue_in_use_is_shown_and_not_replayed() {
    let dir = tempfile::tempdir().expect("a directory");
    let nowhere = reserve();
    let url = format!("http://{}", nowhere.local_addr().expect("bound"));
    let _running =
        Running::start(durable(exporter(&url, "grpc", &[]), dir.path(), MAX_BYTES)).await;
    let shown = stdout(&shim(&["queue", "inspect"], dir.path(), &[]).await);
    assert!(shown.contains("(in use by a shim"), "{shown}");
    let output = shim(&["queue", "replay"], dir.path(), &["--to", &url]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("another shim is using it"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test]
async fn dead_letters_are_listed_shown_and_sent_again() {
    let messages = [request("one", 1), request("two", 2)];
    let dir = letters_of(&[&messages[0], &messages[1]]).await;
    let listed = stdout(&shim(&["dead-letters", "list"], dir.path(), &[]).await);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(
        listed
            .lines()
            .all(|line| line.contains("400") || line.contains("reason"))
    );
    let shown = stdout(&shim(&["dead-letters", "show"], dir.path(), &["2"]).await);
    assert!(
        shown.lines().count() == 1 && shown.contains("\"two\""),
        "{shown}"
    );

    let backend = Backend::start([]).await;
    let url = backend.http_url();
    let to = ["--to", &url, "--protocol", "http/protobuf"];
    stdout(&shim(&["dead-letters", "replay"], dir.path(), &to).await);
    assert_eq!(backend.deliveries()[0].message[..], messages.concat()[..]);
    let again = [&["1"][..], &to].concat();
    stdout(&shim(&["dead-letters", "replay"], dir.path(), &again).await);
    assert_eq!(marks(&backend.deliveries()[1].message), ["one"]);

    let refusing = Backend::start([Reply::Http(400, None)]).await;
    let url = refusing.http_url();
    let to = ["1", "--to", &url, "--protocol", "http/protobuf"];
    let output = shim(&["dead-letters", "replay"], dir.path(), &to).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("rejected 1 spans for good"),
        "{}",
        stderr(&output)
    );
    let output = shim(&["dead-letters", "show"], dir.path(), &["9"]).await;
    assert!(
        stderr(&output).contains("there is no letter 9"),
        "{}",
        stderr(&output)
    );
}
