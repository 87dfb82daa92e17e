"""The programs around the shim, and the shim: each on free loopback ports, ended with its `with` block."""

import gzip
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from otlp_json import Spans

PATIENCE_S = 30
POLL_INTERVAL_S = 0.05
# What Jaeger calls the types of values that it keeps as they are.
JAEGER_TYPES = {"boolValue": "bool", "intValue": "int64", "doubleValue": "float64", "stringValue": "string"}
KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(problems: Callable[[], list[str]], patience_s: float = PATIENCE_S) -> list[str]:
    """Asks again and again; none once there are none, else those of the last time."""
    deadline = time.monotonic() + patience_s
    while found := problems():
        if time.monotonic() > deadline:
            return found
        time.sleep(POLL_INTERVAL_S)
    return []


class Process:
    """A program that runs until its block ends; what it says is shown if it does not come up."""

    patience_s: float = PATIENCE_S

    def __init__(self, command: list[str], ports: list[int], env: dict[str, str]) -> None:
        self._ports = ports
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(command, env=env, stdout=self._said, stderr=subprocess.STDOUT)

    def __enter__(self) -> Any:
        if problems := wait_for(self._closed_ports, self.patience_s):
            self.__exit__(None, None, None)
            self._said.seek(0)
            raise RuntimeError(f"{problems}: {self._said.read().decode(errors='replace')}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(self.patience_s)

    def kill(self) -> None:
        """As a crash would end it."""
        self._process.kill()
        self._process.wait(self.patience_s)

    def _closed_ports(self) -> list[str]:
        def is_open(port: int) -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        return [f"nothing listens on port {port}" for port in self._ports if not is_open(port)]


class Shim(Process):
    """The shim with one backend."""

    def __init__(self, program: str, protocol: str, url: str, *flags: str) -> None:
        grpc, http = free_port(), free_port()
        self.grpc, self.http = f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}"
        command = [program, "--grpc", f"127.0.0.1:{grpc}", "--http", f"127.0.0.1:{http}", "--viewer", "none"]
        env = {"LANTERN_BACKEND_OUT_PROTOCOL": protocol}
        super().__init__([*command, "--backend", f"out={url}", *flags], [grpc, http], env)


class Collector(Process):
    """The OpenTelemetry Collector, which sends what it receives to a server of ours as OTLP/JSON."""

    def __init__(self, program: str, scratch: Path) -> None:
        grpc, http = free_port(), free_port()
        self.grpc, self.http = f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}"
        self._requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        sink = f"http://127.0.0.1:{self._server.server_port}"
        config = {
            "receivers": {
                "otlp": {
                    "protocols": {
                        "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
                        "http": {"endpoint": f"127.0.0.1:{http}"},
                    }
                }
            },
            "exporters": {"otlphttp": {"endpoint": sink, "encoding": "json"}},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["otlphttp"]}},
            },
        }
        path = scratch / "collector.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        super().__init__([program, "--config", f"file:{path}"], [grpc, http], {})

    def received(self) -> list[str]:
        """Every request that came out of it."""
        return list(self._requests)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        requests = self._requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_zipped = self.headers.get("Content-Encoding") == "gzip"
                requests.append((gzip.decompress(body) if is_zipped else body).decode())
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing: what came is checked."""

        return Handler


class QueryApi:
    """Jaeger's query API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def differences(self, sent: Spans) -> list[str]:
        """What of the trace sent is missing, or is another value, in Jaeger."""
        trace_id = next(iter(sent.values()))["traceId"]
        trace = self._trace(trace_id)
        found = {span["spanID"]: span for span in trace["spans"]}
        if len(trace["spans"]) != len(sent):
            return [f"{len(trace['spans'])} spans, not {len(sent)}"]
        problems = []
        for span_id, span in sent.items():
            if span_id not in found:
                problems.append(f"no span {span['name']!r}")
                continue
            expect = as_jaeger_has_it(span)
            shown = shown_by_jaeger(found[span_id], trace["processes"])
            for key, value in expect.items():
                if shown.get(key) != value:
                    problems.append(f"{span['name']!r}: {key} is {shown.get(key)!r}, not {value!r}")
        return problems

    def _trace(self, trace_id: str) -> dict[str, Any]:
        try:
            with urlopen(f"{self._url}/api/traces/{trace_id}", timeout=PATIENCE_S) as answer:
                trace: dict[str, Any] = json.load(answer)["data"][0]
                return trace
        except HTTPError as error:
            if error.code != 404:
                raise
            return {"spans": [], "processes": {}}


class Jaeger(Process):
    """Jaeger all-in-one."""

    def __init__(self, program: str) -> None:
        grpc, http, query = free_port(), free_port(), free_port()
        self.grpc, self.http = f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}"
        self.query = QueryApi(query)
        named = {
            "collector.otlp.grpc.host-port": grpc,
            "collector.otlp.http.host-port": http,
            "query.http-server.host-port": query,
        }
        others = (
            "query.grpc-server.host-port",
            "admin.http.host-port",
            "collector.grpc-server.host-port",
            "collector.http-server.host-port",
            "http-server.host-port",
            "processor.jaeger-binary.server-host-port",
            "processor.jaeger-compact.server-host-port",
            "processor.zipkin-compact.server-host-port",
        )
        flags = [f"--{flag}=127.0.0.1:{port}" for flag, port in (named | dict.fromkeys(others, 0)).items()]
        super().__init__([program, *flags], list(named.values()), {"OTEL_TRACES_SAMPLER": "always_off"})


def as_jaeger_has_it(span: dict[str, Any]) -> dict[str, Any]:
    """What Jaeger makes of a span: every fact of it by a name of ours."""
    facts: dict[str, Any] = {
        "name": span["name"],
        "start": span["startTimeUnixNano"] // 1000,
        "duration": (span["endTimeUnixNano"] - span["startTimeUnixNano"]) // 1000,
        "kind": ("string", KINDS[span["kind"]]),
        "parent": span.get("parentSpanId"),
        "links": [link["spanId"] for link in span.get("links", [])],
    }
    resource = dict(span["resource"]["attributes"])
    facts["service"] = resource.pop("service.name")[1]
    facts |= {f"resource {key}": jaeger_value(value) for key, value in resource.items()}
    facts |= {f"attribute {key}": jaeger_value(value) for key, value in span.get("attributes", {}).items()}
    status = span.get("status", {})
    if "code" in status:
        facts["attribute otel.status_code"] = ("string", {1: "OK", 2: "ERROR"}[status["code"]])
    if "message" in status:
        facts["attribute otel.status_description"] = ("string", status["message"])
    events = span.get("events", [])
    facts["event times"] = [event["timeUnixNano"] // 1000 for event in events]
    for index, event in enumerate(events):
        facts[f"event {index} event"] = ("string", event["name"])
        attributes = event.get("attributes", {}).items()
        facts |= {f"event {index} {key}": jaeger_value(value) for key, value in attributes}
    return facts


def jaeger_value(value: tuple[str, Any]) -> tuple[str, Any]:
    """An attribute as a tag; lists become JSON in a string."""
    kind, inner = value
    if kind == "arrayValue":
        return "list", [item for _, item in inner]
    return JAEGER_TYPES[kind], inner


def shown_by_jaeger(span: dict[str, Any], processes: dict[str, Any]) -> dict[str, Any]:
    """The facts of a span in Jaeger's JSON, by the same names."""
    process = processes[span["processID"]]
    tags = dict(map(tag, span["tags"]))
    facts: dict[str, Any] = {
        "name": span["operationName"],
        "start": span["startTime"],
        "duration": span["duration"],
        "kind": tags.get("span.kind"),
        "service": process["serviceName"],
        "links": [one["spanID"] for one in span["references"] if one["refType"] == "FOLLOWS_FROM"],
    }
    parents = [one["spanID"] for one in span["references"] if one["refType"] == "CHILD_OF"]
    facts["parent"] = parents[0] if parents else None
    facts |= {f"resource {key}": value for key, value in map(tag, process["tags"])}
    facts |= {f"attribute {key}": value for key, value in tags.items()}
    facts["event times"] = [log["timestamp"] for log in span["logs"]]
    for index, log in enumerate(span["logs"]):
        facts |= {f"event {index} {key}": value for key, value in map(tag, log["fields"])}
    return facts


def tag(shown: dict[str, Any]) -> tuple[str, tuple[str, Any]]:
    """A tag's key, type and value."""
    kind, value = shown["type"], shown["value"]
    if kind == "int64":
        value = int(value)
    elif kind == "float64":
        value = float(value)
    elif kind == "string" and value.startswith("["):
        kind, value = "list", json.loads(value)
    return shown["key"], (kind, value)
