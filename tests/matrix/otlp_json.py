"""OTLP/JSON requests as spans that can be compared, however their writers spell defaults and numbers."""

import json
from collections.abc import Iterable
from typing import Any

# A span, its resource and its scope in plain values, by its id.
Spans = dict[str, dict[str, Any]]

NUMBERS = {"startTimeUnixNano", "endTimeUnixNano", "timeUnixNano"}


def spans_of(requests: Iterable[str]) -> Spans:
    """All spans of the requests."""
    spans: Spans = {}
    for request in requests:
        for resource_spans in json.loads(request).get("resourceSpans", []):
            resource = plain(resource_spans.get("resource", {}))
            for scope_spans in resource_spans.get("scopeSpans", []):
                scope = plain(scope_spans.get("scope", {}))
                for span in scope_spans.get("spans", []):
                    spans[span["spanId"]] = {"resource": resource, "scope": scope, **plain(span)}
    return spans


def differences(sent: Spans, found: Spans) -> list[str]:
    """What of the spans sent is missing, or is another value, among those found."""
    problems = []
    for span_id, span in sent.items():
        if span_id not in found:
            problems.append(f"no span {span['name']!r}")
            continue
        other = found[span_id]
        for key in sorted(span.keys() | other.keys()):
            if span.get(key) != other.get(key):
                problems.append(f"{span['name']!r}: {key} is {other.get(key)!r}, not {span.get(key)!r}")
    return problems


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without fields that say no more than their absence does."""
    values: dict[str, Any] = {}
    for key, value in message.items():
        if key == "attributes":
            value = {attribute["key"]: plain_value(attribute["value"]) for attribute in value}
        elif key in NUMBERS:
            value = int(value)
        elif isinstance(value, dict):
            value = plain(value)
        elif isinstance(value, list):
            value = [plain(item) if isinstance(item, dict) else item for item in value]
        if value not in (None, "", 0, [], {}):
            values[key] = value
    return values


def plain_value(value: dict[str, Any]) -> tuple[str, Any]:
    """An attribute's value and its type; `3.0` and `3` are not the same."""
    ((kind, inner),) = value.items() or [("emptyValue", None)]
    if kind == "intValue":
        inner = int(inner)
    elif kind == "doubleValue":
        inner = float(inner)
    elif kind == "arrayValue":
        inner = [plain_value(item) for item in inner.get("values", [])]
    return kind, inner
