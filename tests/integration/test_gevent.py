"""Workers without an event loop: gevent's greenlets, and pools whose threads acknowledge while the main one waits for jobs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.exceptions import TaskRevokedError

from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]
#: What the pools have in common is Celery's synloop: `drain_events` blocks, and acknowledgements come from elsewhere.
LOOPS = {"gevent": ("tests.support.app", "-P", "gevent"),
         "threads": ("tests.support.synloop_app", "-P", "threads"),
         "prefork": ("tests.support.synloop_app", "-P", "prefork")}


def job(url: str, task_id: str) -> dict[str, Any]:
    return rows(url, "select *, clock_timestamp() as now from job_queue where task_id = %s", (task_id,))[0]


def start(start_worker: Start, loop: str, *options: str, **env: str) -> Worker:
    app, *pool = LOOPS[loop]
    return start_worker(*pool, *options, app=app, **env)


@pytest.mark.parametrize("loop", LOOPS)
def test_acknowledgements_from_everywhere_lose_nothing(loop: str, make_client: Callable[..., Celery], database_url: str,
                                                       start_worker: Start, tmp_path: Path) -> None:
    # Without results only the acknowledgement settles a job.
    app = make_client(task_ignore_result=True)
    worker = start(start_worker, loop, "-c", "8" if loop != "prefork" else "2", TEST_IGNORE="1")
    path = tmp_path / "ran"
    for number in range(200):
        app.tasks["t.record"].delay(str(path), str(number))
    bad = [app.tasks["t.boom"].delay(f"bang {number}") for number in range(20)]
    wait_until(lambda: one(database_url, "select count(*) from job_queue where finished_at is not null") == 220, "all ran")
    assert sorted(map(int, path.read_text().split())) == list(range(200))
    assert one(database_url, "select count(*) from job_queue where attempts = 1 and total_starts = 1 and owner is null") == 220
    assert {job(database_url, result.id)["error_message"] for result in bad} == {f"ValueError: bang {n}" for n in range(20)}
    # A job that ends while the worker waits for others is settled at once, not with the next job or the next look.
    mark = tmp_path / "mark"
    waiting = app.tasks["t.wait"].delay(str(mark))
    wait_until(mark.exists, "it runs")
    assert job(database_url, waiting.id)["status"] == "processing"
    wait_until(lambda: rows(database_url, "select id from jobqueue.worker where idle"), "the worker waits")
    before = job(database_url, waiting.id)["now"]
    Path(f"{mark}.go").touch()
    wait_until(lambda: job(database_url, waiting.id)["status"] == "completed", "it is settled")
    assert job(database_url, waiting.id)["finished_at"] - before < timedelta(seconds=1)
    assert worker.stop() == 0
    assert one(database_url, "select count(*) from jobqueue.worker") == 0


@pytest.mark.parametrize("acks", ["late", "early"])
def test_greenlets_do_all_that_processes_do(acks: str, app: Celery, database_url: str, start_worker: Start,
                                            tmp_path: Path) -> None:
    worker = start(start_worker, "gevent", "-c", "30", "-E", TEST_ACKS=acks, TEST_RETRIES="1")
    marks = [tmp_path / f"mark{number}" for number in range(25)]
    waiting = [app.tasks["t.wait"].delay(str(mark)) for mark in marks]
    wait_until(lambda: all(mark.exists() for mark in marks), "all run at the same time")
    assert one(database_url, "select count(*) from job_queue where status = 'processing'") == 25
    assert app.control.inspect(timeout=2).ping() == {worker.name: {"ok": "pong"}}
    later = app.tasks["t.add"].apply_async((1, 1), countdown=5)
    wait_until(lambda: later.id in str(app.control.inspect(timeout=1).scheduled()), "it waits in the worker's timer", 5)
    revoked = app.tasks["t.add"].apply_async((1, 1), countdown=3600)
    revoked.revoke()
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=10)
    # The running ones survive the loss of the worker's connections, and are not run again.
    rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity"
                       " where datname = current_database() and pid <> pg_backend_pid()")
    assert chord(group(app.tasks["t.add"].s(n, n) for n in range(5)), app.tasks["celery.accumulate"].s())().get(timeout=30) == [
        [0, 2, 4, 6, 8]]
    assert later.get(timeout=30) == 2
    for mark in marks:
        Path(f"{mark}.go").touch()
    assert [result.get(timeout=30) for result in waiting] == ["went"] * 25
    wait_until(lambda: {(row["status"], row["attempts"]) for row in (job(database_url, result.id) for result in waiting)} == {
        ("completed", 1)}, "all are settled after one attempt")
    flaky = app.tasks["t.flaky"].delay(str(tmp_path / "runs"), 1)
    assert flaky.get(timeout=30) == "at last"
    wait_until(lambda: job(database_url, flaky.id)["status"] == "completed", "the retry is settled")
    assert [entry["error"] for entry in job(database_url, flaky.id)["errors"]] == ["ValueError: not yet, run 1"]


def test_greenlets_leave_nothing_behind(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-P", "gevent", "-c", "2", "--prefetch-multiplier", "2", app="tests.support.tuned_app",
                          TEST_OPTIONS='{"heartbeat_interval": 0.2}')
    marks = [tmp_path / f"mark{number}" for number in range(2)]
    running = [app.tasks["t.wait"].delay(str(mark)) for mark in marks]
    wait_until(lambda: all(mark.exists() for mark in marks), "both greenlets are busy")
    others = [app.tasks["t.add"].delay(1, n) for n in range(2)]
    wait_until(lambda: one(database_url, "select count(*) from job_queue where owner is not null") == 4, "all are claimed")
    # A full pool of greenlets stops nobody but the jobs that wait for it: the worker goes on to beat.
    beat = one(database_url, "select heartbeat_at from jobqueue.worker")
    wait_until(lambda: one(database_url, "select heartbeat_at from jobqueue.worker") - beat > timedelta(seconds=1), "it beats")
    assert {job(database_url, other.id)["status"] for other in others} == {"pending"}
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in worker.text, "the worker is leaving")
    for mark in marks:
        Path(f"{mark}.go").touch()
    assert worker.stop() == 0
    assert {(row["status"], row["attempts"]) for row in (job(database_url, done.id) for done in running)} == {("completed", 1)}
    # The loop hears of the signal up to two seconds later, and a greenlet that is free by then takes the next job.
    ends = {(row["status"], row["attempts"], row["owner"]) for row in (job(database_url, other.id) for other in others)}
    assert ends <= {("pending", 0, None), ("completed", 1, None)}
    assert one(database_url, "select count(*) from jobqueue.worker") == 0
