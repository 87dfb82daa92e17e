"""Exporters of the OpenTelemetry SDK for the test clients, which must not end well when an export did not."""

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

PROTOCOLS = ("grpc", "http/protobuf")


class CheckedExporter(SpanExporter):
    """Counts what the exporter inside it delivered: the SDK's span processors only log a failure."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.exported_spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.exported_spans += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def exporter(protocol: str, endpoint: str | None = None) -> CheckedExporter:
    """The SDK's exporter for a protocol; without an endpoint it reads the standard OTEL_* variables itself."""
    if protocol == "grpc":
        return CheckedExporter(GrpcExporter(endpoint=endpoint))
    if protocol == "http/protobuf":
        return CheckedExporter(HttpExporter(endpoint=endpoint))
    raise ValueError(f"protocol {protocol!r} is not one of {PROTOCOLS}")
