//! Where traces end up: the shim's embedded store or the real Jaeger. Both take OTLP over gRPC and
//! HTTP and both answer Jaeger's query API, so a test that holds for one must hold for the other.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use super::process::Process;
use super::{free_addr, http, provided_by, wait_for};

/// A running backend.
pub(crate) struct Backend {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) query: SocketAddr,
    _process: Process,
}

impl Backend {
    /// The shim that keeps traces itself.
    pub(crate) fn embedded() -> Self {
        let [grpc, http, query] = [free_addr(), free_addr(), free_addr()];
        let process = Process::lantern(
            &[
                "shim",
                "--grpc",
                &grpc.to_string(),
                "--http",
                &http.to_string(),
                "--viewer",
                &query.to_string(),
            ],
            &[],
        );
        Self {
            grpc,
            http,
            query,
            _process: process,
        }
        .ready()
    }

    /// Jaeger 1.57 all-in-one, built from its Go module.
    pub(crate) fn jaeger() -> Self {
        let binary = provided_by("jaeger/build.sh");
        let [grpc, http, query] = [free_addr(), free_addr(), free_addr()];
        let mut command = Command::new(binary);
        command
            .arg(format!("--collector.otlp.grpc.host-port={grpc}"))
            .arg(format!("--collector.otlp.http.host-port={http}"))
            .arg(format!("--query.http-server.host-port={query}"))
            .arg("--log-level=warn");
        // Everything else that it listens on, out of the way of other Jaegers.
        for port in [
            "admin.http.host-port",
            "collector.grpc-server.host-port",
            "collector.http-server.host-port",
            "query.grpc-server.host-port",
            "http-server.host-port",
            "processor.jaeger-binary.server-host-port",
            "processor.jaeger-compact.server-host-port",
            "processor.zipkin-compact.server-host-port",
        ] {
            command.arg(format!("--{port}={}", free_addr()));
        }
        let process = Process::start(command, &[]);
        Self {
            grpc,
            http,
            query,
            _process: process,
        }
        .ready()
    }

    fn ready(mut self) -> Self {
        let url = format!("http://{}/api/services", self.query);
        self._process.wait_until("the backend's query API", || {
            http().get(&url).call().is_ok()
        });
        self
    }

    /// The endpoint for exporters that speak `protocol`.
    pub(crate) fn endpoint(&self, protocol: &str) -> String {
        endpoint(protocol, self.grpc, self.http)
    }

    /// `data` of a query API's answer; `None` while it is no success.
    pub(crate) fn query(&self, path: &str) -> Option<Value> {
        let url = format!("http://{}{path}", self.query);
        let mut response = http().get(&url).call().ok()?;
        if !response.status().is_success() {
            return None;
        }
        let body: Value = response
            .body_mut()
            .read_json()
            .expect("the query API answers JSON");
        Some(body["data"].clone())
    }

    /// The trace, once it holds at least `spans` spans.
    pub(crate) fn trace(&self, trace_id: &str, spans: usize) -> Trace {
        wait_for(&format!("{spans} spans of trace {trace_id}"), || {
            let data = self.query(&format!("/api/traces/{trace_id}"))?;
            let trace = Trace(data.get(0)?.clone());
            (trace.spans().len() >= spans).then_some(trace)
        })
    }
}

/// What OTEL_EXPORTER_OTLP_TRACES_ENDPOINT must say to reach a receiver by `protocol`.
pub(crate) fn endpoint(protocol: &str, grpc: SocketAddr, http: SocketAddr) -> String {
    match protocol {
        "grpc" => format!("grpc://{grpc}"),
        "http/protobuf" => format!("http://{http}/v1/traces"),
        other => panic!("no endpoint for protocol {other:?}"),
    }
}

/// A trace in Jaeger's JSON.
pub(crate) struct Trace(Value);

impl Trace {
    pub(crate) fn spans(&self) -> &[Value] {
        self.0["spans"].as_array().expect("a trace has spans")
    }

    /// The first span of that name.
    pub(crate) fn span(&self, operation: &str) -> &Value {
        self.spans()
            .iter()
            .find(|span| span["operationName"] == operation)
            .unwrap_or_else(|| panic!("no span {operation:?} in {:#}", self.0))
    }

    /// The value of a tag of the first span of that name; `Null` when it has none.
    pub(crate) fn tag(&self, operation: &str, key: &str) -> Value {
        let tags = self.span(operation)["tags"]
            .as_array()
            .expect("a span has tags");
        let found = tags.iter().find(|tag| tag["key"] == key);
        found.map_or(Value::Null, |tag| tag["value"].clone())
    }

    /// `service operation` a line, children indented below their parents, siblings by time.
    pub(crate) fn tree(&self) -> String {
        let mut children: HashMap<&str, Vec<&Value>> = HashMap::new();
        let ids: Vec<&str> = self
            .spans()
            .iter()
            .filter_map(|span| span["spanID"].as_str())
            .collect();
        for span in self.spans() {
            let parent = span["references"]
                .as_array()
                .and_then(|all| {
                    all.iter()
                        .find(|reference| reference["refType"] == "CHILD_OF")
                })
                .and_then(|reference| reference["spanID"].as_str())
                .filter(|parent| ids.contains(parent));
            children
                .entry(parent.unwrap_or_default())
                .or_default()
                .push(span);
        }
        for siblings in children.values_mut() {
            // Queue and prefill may share a microsecond: then the shorter one came first.
            siblings.sort_by_key(|span| (span["startTime"].as_u64(), span["duration"].as_u64()));
        }
        let mut lines = String::new();
        self.write_tree(&children, "", 0, &mut lines);
        lines
    }

    fn write_tree(
        &self,
        children: &HashMap<&str, Vec<&Value>>,
        parent: &str,
        depth: usize,
        lines: &mut String,
    ) {
        for span in children.get(parent).map(Vec::as_slice).unwrap_or_default() {
            let process = span["processID"].as_str().expect("a span has a process");
            let service = &self.0["processes"][process]["serviceName"];
            let (service, operation) = (service.as_str(), span["operationName"].as_str());
            lines.push_str(&"  ".repeat(depth));
            lines.push_str(service.expect("a process has a service name"));
            lines.push(' ');
            lines.push_str(operation.expect("a span has a name"));
            lines.push('\n');
            let id = span["spanID"].as_str().expect("a span has an id");
            self.write_tree(children, id, depth + 1, lines);
        }
    }
}
