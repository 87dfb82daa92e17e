//! `lantern-shim` as a process of its own, to be killed.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use super::PATIENCE;

pub(crate) struct Process {
    child: Child,
    pub(crate) http: SocketAddr,
    /// What it says on stderr after it has told where it listens.
    lines: mpsc::Receiver<String>,
    start: Vec<String>,
}

impl Process {
    /// Runs on free ports, with its queue in `dir`, and sends to `endpoint` by HTTP. `shell` is run
    /// before it, in the shell that becomes the shim.
    pub(crate) fn start(dir: &Path, endpoint: &str, shell: &str) -> Process {
        let shim = env!("CARGO_BIN_EXE_lantern-shim");
        let script = format!("{shell}\nexec \"$0\" \"$@\"");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script, shim, "--grpc", "127.0.0.1:0"])
            .args(["--http", "127.0.0.1:0", "--viewer", "none", "--queue-dir"])
            .arg(dir)
            .env_clear()
            .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
            .env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        // Reads to the end, so that the pipe never fills.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut start = Vec::new();
        let http = loop {
            let line = lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("it says where it listens: {start:?}"));
            let http = line
                .split(' ')
                .find_map(|word| word.strip_prefix("http=")?.parse().ok());
            start.push(line);
            if let Some(http) = http {
                break http;
            }
        };
        Process {
            child,
            http,
            lines,
            start,
        }
    }

    /// Ends it as nothing can be prepared for; what it had said.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        let mut said = std::mem::take(&mut self.start);
        said.extend(self.lines.iter());
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // When a test fails; after `kill` there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
