"""The test application with OpenTelemetry, as its documentation tells; every span is a line of JSON in TEST_SPANS."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from tests.support.app import app

__all__ = ["app", "provider_writing"]


class _ToFile(SpanExporter):
    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._path.open("a") as file:
            for span in spans:
                context = span.get_span_context()
                assert context is not None
                file.write(json.dumps({
                    "name": span.name, "trace": context.trace_id, "id": context.span_id,
                    "parent": span.parent.span_id if span.parent else None, "attributes": dict(span.attributes or {})}) + "\n")
        return SpanExportResult.SUCCESS


def provider_writing(path: Path) -> TracerProvider:
    """Spans go to this file as they end."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(_ToFile(path)))
    return provider


if where := os.environ.get("TEST_SPANS"):
    CeleryInstrumentor().instrument(tracer_provider=provider_writing(Path(where)))
