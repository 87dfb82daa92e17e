//! A new program takes the place of a running one.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Echo, Peer, RawUpstream, request, within};

/// Clients that ask all the time while a program is replaced.
const CLIENTS: usize = 4;
/// Requests that are answered before and after it.
const REQUESTS: usize = 40;

/// A program, and what it and those that take its place log.
struct Program {
    child: Child,
    log: mpsc::UnboundedReceiver<String>,
    /// What it says once it serves.
    ready: String,
    address: SocketAddr,
    /// The program that took its place.
    successor: Option<String>,
}

fn proxy(upstream: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lantern-proxy"));
    command
        .args(["--listen", "127.0.0.1:0"])
        .args(["--upstream", &format!("http://{upstream}")])
        .env_clear()
        .env("OTEL_TRACES_EXPORTER", "none");
    command
}

impl Program {
    async fn start(mut command: Command) -> Self {
        // A successor inherits them, and nobody is to wait for it to close them.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (sender, log) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = sender.send(line);
            }
        });
        let mut program = Self {
            child,
            log,
            ready: String::new(),
            address: SocketAddr::from(([0; 4], 0)),
            successor: None,
        };
        program.ready = program.logged("listen=").await;
        let address = word_behind(&program.ready, "listen=");
        program.address = address.expect("it is there").parse().expect("an address");
        program
    }

    /// The next line that is logged with `text` in it.
    async fn logged(&mut self, text: &str) -> String {
        let found = async {
            loop {
                let line = self.log.recv().await.expect("it logs that first");
                if line.contains(text) {
                    return line;
                }
            }
        };
        within(text, found).await
    }

    fn signal(&self, name: &str) {
        send(name, &self.child.id().expect("it runs").to_string());
    }

    /// Asks for a new program, and waits for its start.
    async fn upgrade(&mut self) {
        self.signal("-USR2");
        let line = self.logged("pid=").await;
        self.successor = word_behind(&line, "pid=").map(str::to_owned);
    }

    async fn ended_well(&mut self) {
        let status = within("the old program's end", self.child.wait()).await;
        assert_eq!(status.expect("a child").code(), Some(0));
    }

    /// Stops the program that took over, and waits for it to end.
    async fn stop_successor(mut self) {
        send("-TERM", &self.successor.take().expect("there is one"));
        let closed = async { while self.log.recv().await.is_some() {} };
        within("the end of all programs", closed).await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        if let Some(successor) = &self.successor {
            let _ = Command::new("kill").args(["-KILL", successor]).status();
        }
    }
}

/// The word that follows `key` in a line.
fn word_behind<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key)?.1.split(' ').next()
}

fn send(signal: &str, pid: &str) {
    let status = Command::new("kill").args([signal, pid]).status();
    assert!(status.expect("kill is there").success());
}

/// A request on a connection of its own, which must be answered.
async fn get(address: SocketAddr, path: &str) -> String {
    let mut client = Peer::connect(address).await;
    let line = format!("GET {path} HTTP/1.1");
    client.write(&request(&[&line, "Host: a"], "")).await;
    let response = client.read_response().await;
    assert_eq!(response.status, 200, "{path}");
    response.body
}

/// Clients that ask until they are stopped, each request by a path of its own.
struct Load {
    answered: Arc<AtomicUsize>,
    stop: CancellationToken,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        let (answered, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let next = Arc::new(AtomicUsize::new(0));
        let client = |_| {
            let (answered, next, stop) = (Arc::clone(&answered), Arc::clone(&next), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    get(address, &load_path(next.fetch_add(1, Ordering::Relaxed))).await;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self {
            answered,
            stop,
            clients,
        }
    }

    /// Waits until so many more have been answered.
    async fn answered(&self, more: usize) {
        let until = self.answered.load(Ordering::Relaxed) + more;
        let answered = async {
            while self.answered.load(Ordering::Relaxed) < until {
                assert!(self.clients.iter().all(|client| !client.is_finished()));
                tokio::task::yield_now().await;
            }
        };
        within("answers", answered).await;
    }

    /// How many have been answered: all.
    async fn stopped(self) -> usize {
        self.stop.cancel();
        for client in self.clients {
            client.await.expect("every request was answered");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

fn load_path(number: usize) -> String {
    format!("/v1/models/load-{number:06}")
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_no_connection_is_refused_and_no_span_is_lost() {
    let (upstream, mut collector) = (Echo::start().await, Echo::start().await);
    let mut command = proxy(upstream.address);
    command
        .env("OTEL_TRACES_EXPORTER", "otlp")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://{}", collector.address),
        )
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "262144");
    let mut program = Program::start(command).await;
    let load = Load::on(program.address);
    load.answered(REQUESTS).await;
    program.upgrade().await;
    let ready = program.logged("listen=").await;
    let address = program.address.to_string();
    assert_eq!(word_behind(&ready, "listen="), Some(address.as_str()));
    program.ended_well().await;
    load.answered(REQUESTS).await;
    let requests = load.stopped().await;
    program.stop_successor().await;

    let mut exported = String::new();
    while !collector.is_idle() {
        let export = collector.received().await;
        exported.push_str(&String::from_utf8_lossy(export.body()));
    }
    for path in (0..requests).map(load_path) {
        assert!(exported.contains(&path), "no span of {path}");
    }
}

#[tokio::test]
async fn a_stream_in_flight_is_finished_by_the_program_that_began_it() {
    let upstream = RawUpstream::bind().await;
    let mut program = Program::start(proxy(upstream.address())).await;
    let mut client = Peer::connect(program.address).await;
    client
        .write(&request(&["GET /v1/stream HTTP/1.1", "Host: a"], ""))
        .await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    server
        .write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.read_head().await;
    program.upgrade().await;
    program.logged("the new program has taken over").await;

    let answered = async {
        let mut server = upstream.accept().await;
        server.read_message().await;
        server
            .write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
            .await;
    };
    let (body, ()) = tokio::join!(get(program.address, "/v1/models"), answered);
    assert_eq!(body, "ok", "the new program answers beside the stream");
    server.write_chunk("the end").await;
    server.write_chunk("").await;
    assert_eq!(client.read_chunk().await, "the end");
    program.ended_well().await;
    program.stop_successor().await;
}

#[tokio::test]
async fn the_port_of_the_metrics_is_handed_over_too() {
    let echo = Echo::start().await;
    let mut command = proxy(echo.address);
    command.args(["--metrics", "127.0.0.1:0"]);
    let mut program = Program::start(command).await;
    let metrics = word_behind(&program.ready, "metrics=");
    let metrics: SocketAddr = metrics.expect("a port").parse().expect("an address");
    program.upgrade().await;
    program.ended_well().await;
    get(program.address, "/health").await;
    // A request is measured when it is over, which may be after its client has read the answer.
    let counted = "http_server_request_duration_seconds_count{";
    let scraped = async { while !get(metrics, "/metrics").await.contains(counted) {} };
    within("the new program's metrics", scraped).await;
    program.stop_successor().await;
}

fn write(path: &Path, settings: &str) {
    std::fs::write(path, settings).expect("it can be written");
}

#[tokio::test]
async fn a_new_program_that_fails_leaves_the_old_one_where_it_is() {
    let echo = Echo::start().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("proxy.toml");
    write(&path, "max_connections = 10\n");
    let mut command = proxy(echo.address);
    command.arg("--config").arg(&path);
    let mut program = Program::start(command).await;
    write(&path, "max_connections = 0\n");
    program.upgrade().await;
    let failed = program.logged("did not take over").await;
    assert!(failed.ends_with("it ended, exit status: 64"), "{failed}");
    assert_eq!(get(program.address, "/health").await, "answered");

    // And another may take over after it.
    write(&path, "max_connections = 20\n");
    program.upgrade().await;
    program.ended_well().await;
    assert_eq!(get(program.address, "/health").await, "answered");
    program.stop_successor().await;
}

#[tokio::test]
async fn a_stop_while_a_new_program_starts_ends_both() {
    let echo = Echo::start().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("proxy.toml");
    write(&path, "max_connections = 10\n");
    let mut command = proxy(echo.address);
    command.arg("--config").arg(&path);
    let mut program = Program::start(command).await;
    // Reading it does not end, so that the new program is never ready.
    std::fs::remove_file(&path).expect("it is there");
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo is there").success());
    program.upgrade().await;
    program.signal("-TERM");
    program.ended_well().await;
    let closed = async { while program.log.recv().await.is_some() {} };
    within("the end of the new program", closed).await;
    program.successor = None;
}

#[tokio::test]
async fn a_socket_of_systemd_is_taken_by_its_address() {
    let echo = Echo::start().await;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lantern-proxy"));
    let mapping = FdMapping {
        parent_fd: OwnedFd::from(socket),
        child_fd: 3,
    };
    command
        .args(["--listen", &address.to_string()])
        .args(["--upstream", &format!("http://{}", echo.address)])
        .env_clear()
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("LISTEN_FDS", "1")
        .fd_mappings(vec![mapping])
        .expect("one descriptor");
    let program = Program::start(command).await;
    assert_eq!(program.address, address);
    assert_eq!(get(address, "/health").await, "answered");
}

#[test]
fn what_is_handed_over_and_is_no_socket_ends_the_program_with_64() {
    let file = tempfile::tempfile().expect("a temporary file");
    let mapping = FdMapping {
        parent_fd: OwnedFd::from(file),
        child_fd: 3,
    };
    let mut command = proxy(SocketAddr::from(([127, 0, 0, 1], 1)));
    command
        .env("LISTEN_FDS", "1")
        .fd_mappings(vec![mapping])
        .expect("one descriptor");
    let output = command.output().expect("it starts");
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(
        text.contains("LISTEN_FDS='1 (fd 3 is not a socket)'"),
        "{text}"
    );
}
