"""OpenTelemetry: what a job causes belongs to the trace that caused the job, through the table, retries and transactions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery, _state, chain
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.trace import Tracer

from celery_jobqueue.broker import jobs_in
from tests.support.database import one
from tests.support.traced_app import provider_writing
from tests.support.waiting import wait_until
from tests.support.workers import Worker


@pytest.fixture
def tracer(app: Celery, tmp_path: Path) -> Iterator[Tracer]:
    """This process is instrumented; its spans go where the worker's go."""
    provider = provider_writing(tmp_path / "spans")
    # It looks tasks up in the current app. That of whatever was imported before would read its settings, and start a server.
    before = _state._tls.current_app
    app.set_current()
    CeleryInstrumentor().instrument(tracer_provider=provider)
    yield provider.get_tracer("test")
    CeleryInstrumentor().uninstrument()
    _state._set_current_app(before)


def spans(folder: Path, name: str) -> list[dict[str, Any]]:
    return [span for line in (folder / "spans").read_text().splitlines() if (span := json.loads(line))["name"] == name]


def test_a_trace_goes_through_the_queue(app: Celery, database_url: str, start_worker: Callable[..., Worker], tracer: Tracer,
                                        tmp_path: Path) -> None:
    start_worker("-c", "1", app="tests.support.traced_app", TEST_RETRIES="1", TEST_SPANS=tmp_path / "spans")
    tasks = app.tasks
    with tracer.start_as_current_span("request") as request:
        results = {
            "t.add": tasks["t.add"].apply_async((1, 2), countdown=1),
            "t.again": tasks["t.again"].delay(2),                        # Task.retry(), twice
            "t.flaky": tasks["t.flaky"].delay(str(tmp_path / "runs"), 1),  # raises once, and is tried again by itself
        }
        followed = chain(tasks["t.progress"].s(str(tmp_path / "mark")), tasks["celery.accumulate"].s(index=0))
        results["celery.accumulate"] = followed.delay()
        (tmp_path / "mark.go").touch()
    with tracer.start_as_current_span("transaction") as transaction, psycopg.connect(database_url) as conn, jobs_in(conn):
        results["t.boom"] = tasks["t.boom"].apply_async(("in a transaction",), max_attempts=1)
    for result in results.values():
        result.get(timeout=40, propagate=False)

    runs = {"t.add": 1, "t.again": 3, "t.flaky": 2, "t.progress": 1, "celery.accumulate": 1, "t.boom": 1}
    for name, number in runs.items():
        wait_until(lambda name=name, number=number: len(spans(tmp_path, f"run/{name}")) >= number, f"{name} has run")
        found = spans(tmp_path, f"run/{name}")
        cause = (transaction if name == "t.boom" else request).get_span_context()
        assert [span["trace"] for span in found] == [cause.trace_id] * number, name
        published = spans(tmp_path, f"apply_async/{name}")
        assert {span["trace"] for span in published} == {cause.trace_id}
        # A run that the queue itself repeats has the same message, hence the same parent; Task.retry() sends a new one.
        assert [span["parent"] for span in found] == (
            [published[0]["id"]] * number if name == "t.flaky" else [span["id"] for span in published]), name
    assert one(database_url, "select count(*) from job_queue") == len(runs)
