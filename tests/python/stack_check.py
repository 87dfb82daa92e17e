"""Asks a running stack for one completion and waits until Jaeger's API shows the request's whole trace.

The request carries a traceparent, so that the tree must hang below the client: the proxy's SERVER span, below it its
CLIENT span, below that the engine's llm_request, below that queue, prefill and decode. Needs nothing but Python. Prints
the tree; exits 1 when the trace is not whole in time or has another shape.
"""

import argparse
import json
import secrets
import sys
import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

REQUEST_TIMEOUT_S = 60
TRACE_TIMEOUT_S = 60
POLL_INTERVAL_S = 0.2

# Span, the service it belongs to, the span that it must hang below.
TREE = (
    ("POST /v1/completions", "lantern-proxy", "client"),
    ("POST", "lantern-proxy", "POST /v1/completions"),
    ("llm_request", "lantern-inference", "POST"),
    ("queue", "lantern-inference", "llm_request"),
    ("prefill", "lantern-inference", "llm_request"),
    ("decode", "lantern-inference", "llm_request"),
)


def main() -> int:
    """Sends the request, waits for its trace, prints the tree and returns the exit status."""
    parser = argparse.ArgumentParser(description="one completion, and its whole trace in Jaeger")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--jaeger", default="http://127.0.0.1:16686")
    args = parser.parse_args()

    trace_id, client_span_id = secrets.token_hex(16), secrets.token_hex(8)
    complete(args.url, f"00-{trace_id}-{client_span_id}-01")
    deadline = time.monotonic() + TRACE_TIMEOUT_S
    while problems := differences(fetch_trace(args.jaeger, trace_id), client_span_id):
        if time.monotonic() > deadline:
            print(f"trace {trace_id} after {TRACE_TIMEOUT_S} s: {'; '.join(problems)}", file=sys.stderr)
            return 1
        time.sleep(POLL_INTERVAL_S)
    print(f"trace {trace_id}: " + ", ".join(f"{parent} > {name} ({service})" for name, service, parent in TREE))
    return 0


def complete(url: str, traceparent: str) -> None:
    """One completion by the first model that the server lists; an error status raises."""
    with urlopen(f"{url}/models", timeout=REQUEST_TIMEOUT_S) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = {"model": model, "prompt": "San Francisco is a", "max_tokens": 8}
    headers = {"Content-Type": "application/json", "traceparent": traceparent}
    request = Request(f"{url}/completions", data=json.dumps(body).encode(), headers=headers)
    with urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
        print(json.load(answer)["choices"][0]["text"].strip())


def fetch_trace(jaeger: str, trace_id: str) -> dict[str, Any]:
    """The trace as Jaeger's API has it by now; one without spans while it knows none."""
    try:
        with urlopen(f"{jaeger}/api/traces/{trace_id}", timeout=REQUEST_TIMEOUT_S) as answer:
            trace: dict[str, Any] = json.load(answer)["data"][0]
            return trace
    except HTTPError as error:
        if error.code != 404:
            raise
        return {"spans": [], "processes": {}}


def differences(trace: dict[str, Any], client_span_id: str) -> list[str]:
    """What the trace lacks, or has elsewhere than TREE says."""
    spans = {span["operationName"]: span for span in trace["spans"]}
    ids = {"client": client_span_id} | {name: span["spanID"] for name, span in spans.items()}
    found = []
    for name, service, parent in TREE:
        if name not in spans:
            found.append(f"no span {name!r}")
            continue
        parents = [ref["spanID"] for ref in spans[name]["references"] if ref["refType"] == "CHILD_OF"]
        if parents != [ids.get(parent)]:
            found.append(f"{name!r} is not below {parent!r}")
        of_service = trace["processes"][spans[name]["processID"]]["serviceName"]
        if of_service != service:
            found.append(f"{name!r} is of {of_service!r}, not {service!r}")
    if len(trace["spans"]) > len(TREE):
        found.append(f"{len(trace['spans'])} spans, not {len(TREE)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
