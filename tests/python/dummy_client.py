"""The traced client that vLLM's users know, made with the OpenTelemetry Python SDK and requests.

One CLIENT span around one completion request, its context in the W3C headers. The exporter is configured by the
standard OTEL_* variables alone. Prints one line of JSON: the trace id, the status and the answer. Exits 1 when the
request failed or its span was not accepted.
"""

import argparse
import json
import os
import sys

import requests
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otlp import exporter

PROMPT = "San Francisco is a"
REQUEST_TIMEOUT_S = 120


def main() -> int:
    """Sends the request, prints what came back and returns the exit status."""
    parser = argparse.ArgumentParser(description="one traced completion request")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1/completions")
    parser.add_argument("--model", default="facebook/opt-125m")
    args = parser.parse_args()

    checked = exporter(os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or "grpc")
    service_name = os.environ.get("OTEL_SERVICE_NAME") or "client-service"
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(checked))

    body = {
        "model": args.model,
        "prompt": PROMPT,
        "max_tokens": 10,
        "n": 3,
        # A string, as the clients in use send it.
        "use_beam_search": "true",
        "temperature": 0.0,
    }
    tracer = provider.get_tracer("dummy-client")
    with tracer.start_as_current_span("client-span", kind=SpanKind.CLIENT) as span:
        span.set_attribute("prompt", PROMPT)
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers)
        response = requests.post(args.url, headers=headers, json=body, timeout=REQUEST_TIMEOUT_S)
        trace_id = format_trace_id(span.get_span_context().trace_id)
    provider.shutdown()

    print(json.dumps({"trace_id": trace_id, "status": response.status_code, "body": response.text}))
    return 0 if response.ok and checked.exported_spans == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
