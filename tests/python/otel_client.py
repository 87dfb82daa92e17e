"""Sends traces with the OpenTelemetry Python SDK, so that a receiver meets a real client's bytes.

Each trace is a root span and its children, which between them carry every attribute type, every span kind and
status, events, an exception and links. Prints one line of JSON: the trace ids and the number of spans. Exits 1
when the receiver did not accept every span.
"""

import argparse
import json
import sys

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.util.types import AttributeValue

from otlp import PROTOCOLS, exporter

KINDS = tuple(SpanKind)

ATTRIBUTES: dict[str, AttributeValue] = {
    "test.bool": True,
    "test.int": -42,
    # One above what a double holds exactly: viewers that pass numbers through JavaScript lose it.
    "test.int.large": 2**53 + 1,
    "test.double": 0.125,
    "test.string": "Grüße, 世界 🏮",
    "test.string.empty": "",
    "test.bools": (True, False),
    "test.ints": (1, 2, 3),
    "test.doubles": (0.5, -0.5),
    "test.strings": ("a", "b"),
}


def main() -> int:
    """Exports the traces, prints what was sent and returns the exit status."""
    args = parse_args()
    checked = exporter(args.protocol, args.endpoint)
    provider = TracerProvider(resource=Resource.create({"service.name": args.service_name, "test.resource": 7}))
    provider.add_span_processor(BatchSpanProcessor(checked))
    tracer = provider.get_tracer("lantern-tests", "1.0")

    trace_ids = [send_trace(tracer, args.spans) for _ in range(args.traces)]
    provider.shutdown()

    sent = {"service": args.service_name, "trace_ids": trace_ids, "spans": checked.exported_spans}
    print(json.dumps(sent))
    return 0 if checked.exported_spans == args.traces * args.spans else 1


def parse_args() -> argparse.Namespace:
    """The command line; the endpoint is what the SDK's exporter takes, /v1/traces included for http/protobuf."""
    parser = argparse.ArgumentParser(description="send traces with the OpenTelemetry Python SDK")
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--traces", type=int, default=1)
    parser.add_argument("--spans", type=int, default=6, help="spans of each trace, its root included")
    parser.add_argument("--service-name", default="python-client")
    return parser.parse_args()


def send_trace(tracer: Tracer, spans: int) -> str:
    """One trace of `spans` spans: a root and its children, each linked to the child before it."""
    root = tracer.start_span("root", kind=SpanKind.CLIENT, attributes=ATTRIBUTES)
    context = set_span_in_context(root)
    links: list[Link] = []
    for index in range(1, spans):
        child = tracer.start_span(
            f"child-{index}",
            context=context,
            kind=KINDS[index % len(KINDS)],
            attributes={"test.index": index},
            links=links,
        )
        end_child(child, index)
        # Never the root: Jaeger keeps one reference of two to the same span.
        links = [Link(child.get_span_context(), {"test.link": "previous"})]
    root.end()
    return format_trace_id(root.get_span_context().trace_id)


def end_child(span: Span, index: int) -> None:
    """Gives each child an event; of three children one ends well, one fails and one says nothing."""
    span.add_event("test.event", {"test.index": index, "test.flag": True})
    if index % 3 == 1:
        span.set_status(Status(StatusCode.OK))
    elif index % 3 == 2:
        span.record_exception(ValueError("a failure of this test's own"))
        span.set_status(Status(StatusCode.ERROR, "the child failed"))
    span.end()


if __name__ == "__main__":
    sys.exit(main())
