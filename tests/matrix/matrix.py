"""Sends spans of the OpenTelemetry Python SDK by every way through the shim, and looks for each attribute behind it.

Before the shim: the SDK's grpc, http/protobuf and http/json exporters, with gzip and without. Behind it: Jaeger by both
of its protocols, the Collector by all three, and files. What the Collector received it sends on to a server of this
script; what Jaeger has its query API tells. Prints a line for each of the ways; exits 1 unless every span is there as
it was sent.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import otlp_json
from neighbours import Collector, Jaeger, Shim, wait_for
from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter as JsonExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, set_span_in_context
from otlp_json import Spans

CLIENTS = ("grpc", "http/protobuf", "http/json")
# The variable that asks for it; the SDK's gRPC exporter does not know the name of none.
COMPRESSIONS = {"plain": {}, "gzip": {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}}

ATTRIBUTES = {
    "test.bool": True,
    "test.int": -42,
    # One above what a double holds exactly: whoever passes numbers through JavaScript loses it.
    "test.int.large": 2**53 + 1,
    "test.int.least": -(2**63),
    "test.double": 0.1,
    "test.double.whole": 3.0,
    "test.string": 'Grüße, 世界 🏮 "\\\n\t\u0001',
    "test.string.empty": "",
    "test.bools": (True, False),
    "test.ints": (1, 2**53 + 1),
    "test.doubles": (0.5, -0.25),
    "test.strings": ("a", ""),
}


def main() -> int:
    """Starts the neighbours, sends by each way, and tells which spans did not arrive whole."""
    parser = argparse.ArgumentParser(description="every way through the shim")
    for program in ("shim", "jaeger", "collector"):
        parser.add_argument(f"--{program}", required=True)
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, Collector(args.collector, Path(scratch)) as collector, Jaeger(
        args.jaeger
    ) as jaeger:
        for name, protocol, url, arrived in ways_out(collector, jaeger, Path(scratch)):
            with Shim(args.shim, protocol, url) as shim:
                for client in CLIENTS:
                    for compression in COMPRESSIONS:
                        problems = check(shim, client, compression, arrived)
                        print(f"{'FAIL' if problems else 'PASS'} {client} {compression} -> {name}", flush=True)
                        for problem in problems:
                            print(f"     {problem}", file=sys.stderr)
                        failed += bool(problems)
    print(f"{failed} ways lost or changed something" if failed else "every span arrived as it was sent")
    return 1 if failed else 0


Arrived = Callable[[Spans], list[str]]


def ways_out(collector: Collector, jaeger: Jaeger, scratch: Path) -> list[tuple[str, str, str, Arrived]]:
    """Each way's name, protocol and URL, and what tells how spans that arrived by it differ from those sent."""
    files = scratch / "files"

    def in_files(sent: Spans) -> list[str]:
        text = (files / "traces.jsonl").read_text(encoding="utf-8") if files.exists() else ""
        return otlp_json.differences(sent, otlp_json.spans_of(text.splitlines()))

    def at_collector(sent: Spans) -> list[str]:
        return otlp_json.differences(sent, otlp_json.spans_of(collector.received()))

    return [
        ("jaeger grpc", "grpc", jaeger.grpc, jaeger.query.differences),
        ("jaeger http/protobuf", "http/protobuf", jaeger.http, jaeger.query.differences),
        ("collector grpc", "grpc", collector.grpc, at_collector),
        ("collector http/protobuf", "http/protobuf", collector.http, at_collector),
        ("collector http/json", "http/json", collector.http, at_collector),
        ("files", "grpc", f"file://{files}", in_files),
    ]


def check(shim: Shim, client: str, compression: str, arrived: Arrived) -> list[str]:
    """Sends one trace; what is wrong with it where it should have arrived, once nothing is or patience is over."""
    spans = make_spans(f"{client} {compression}")
    with mock.patch.dict(os.environ, COMPRESSIONS[compression]):
        exporter = make_exporter(client, shim)
    result = exporter.export(spans)
    exporter.shutdown()
    if result is not SpanExportResult.SUCCESS:
        return ["the shim did not take it"]
    sent = otlp_json.spans_of([encode_spans(spans).to_json()])
    return wait_for(lambda: arrived(sent))


def make_exporter(client: str, shim: Shim) -> SpanExporter:
    """The SDK's exporter for a protocol."""
    if client == "grpc":
        return GrpcExporter(endpoint=shim.grpc, insecure=True)
    return (HttpExporter if client == "http/protobuf" else JsonExporter)(endpoint=f"{shim.http}/v1/traces")


def make_spans(service: str) -> list[ReadableSpan]:
    """A trace with every kind of span, status and attribute, with events, an exception and links."""
    memory = InMemorySpanExporter()
    resource = Resource.create({"service.name": service, "test.resource": 7, "test.list": ("x", "y")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("lantern-matrix", "1.2.3")
    root = tracer.start_span("root", kind=SpanKind.CLIENT, attributes=ATTRIBUTES)
    context = set_span_in_context(root)
    links: list[Link] = []
    for index, kind in enumerate(SpanKind):
        child = tracer.start_span(f"child-{index}", context=context, kind=kind, attributes=ATTRIBUTES, links=links)
        child.add_event("test.event", ATTRIBUTES)
        if index % 3 == 1:
            child.set_status(Status(StatusCode.OK))
        elif index % 3 == 2:
            child.record_exception(ValueError("a failure of this test's own"))
            child.set_status(Status(StatusCode.ERROR, "the child failed"))
        child.end()
        links = [Link(child.get_span_context(), {"test.link": "previous"})]
    root.end()
    return list(memory.get_finished_spans())


if __name__ == "__main__":
    sys.exit(main())
