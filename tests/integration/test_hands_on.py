"""What people do by hand to jobs that run or wait, and what the log says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery

from tests.integration.test_users_guide import pid_of_run, tell
from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def records(worker: Worker) -> list[dict[str, Any]]:
    """What a worker of tests.support.json_app has logged."""
    return [json.loads(line) for line in worker.text.splitlines() if line.startswith('{"message"')]


def about(worker: Worker, words: str) -> list[dict[str, Any]]:
    return [record for record in records(worker) if words in record["message"]]


@pytest.mark.parametrize("env", [
    {}, {"TEST_IGNORE": "1", "TEST_ACKS": "early"}, {"TEST_RETRIES": "1", "TEST_BACKEND": "cache+memory://"}],
    ids=["results here", "early, ignored", "automatic retries, results elsewhere"])
def test_a_deleted_jobs_late_end_changes_nothing_and_is_logged(env: dict[str, str], app: Celery, database_url: str,
                                                               start_worker: Start, tmp_path: Path) -> None:
    """An administrator deletes the rows of running jobs; then they return, raise, or ask for a retry."""
    cases = {"returns": "return", "raises": "raise", "retries": "retry"}
    worker = start_worker("-c", "3", app="tests.support.json_app", **env)
    ids = {case: app.send_task("t.run", (str(tmp_path / case),)).id for case in cases}
    pids = {case: pid_of_run(tmp_path, case) for case in cases}
    jobs = {row["task_id"]: str(row["id"]) for row in rows(database_url, "delete from job_queue returning id, task_id")}
    assert set(jobs) == set(ids.values())

    for case, order in cases.items():
        tell(tmp_path, case, pids[case], order)
        told = wait_until(lambda case=case: [record for record in about(worker, "was taken from this worker")
                                             if record["job_id"] == jobs[ids[case]]], f"the log tells of {case}")
        assert [(record["task_id"], record["task_name"], record["attempt"], record["max_attempts"]) for record in told] == [
            (ids[case], "t.run", 1, 3)]
    # Another that is nobody's business, in the same worker: everything said of the first three is said by then.
    add = app.tasks["t.add"].delay(1, 2).id
    wait_until(lambda: one(database_url, "select min(status) from job_queue") == "completed", "it runs")
    assert [row["task_id"] for row in rows(database_url, "select task_id from job_queue")] == [add]
    assert worker.stop() == 0
    assert len(about(worker, "was taken from this worker")) == 3
    assert one(database_url, "select count(*) from job_queue") == 1
    assert one(database_url, "select count(*) from jobqueue.result") == 0


def test_deleting_what_a_worker_has_reserved(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    """A claimed job that goes before it started does not start."""
    worker = start_worker("-c", "1", "--prefetch-multiplier", "4", app="tests.support.json_app", TEST_ACKS="early")
    mark = tmp_path / "mark"
    app.tasks["t.wait"].delay(str(mark))
    wait_until(mark.exists, "the first runs")
    reserved = app.tasks["t.record"].delay(str(tmp_path / "never"), "ran").id
    wait_until(lambda: one(database_url, "select owner from job_queue where task_id = %s", (reserved,)), "it is claimed")
    rows(database_url, "delete from job_queue where task_id = %s", (reserved,))
    Path(f"{mark}.go").touch()
    [told] = wait_until(lambda: about(worker, "before it started"), "the log tells of it")
    assert (told["task_id"], told["task_name"]) == (reserved, "t.record")
    assert app.tasks["t.add"].delay(1, 2).get(timeout=20) == 3
    assert not (tmp_path / "never").exists()


def test_what_the_table_refuses_from_anybody(database_url: str) -> None:
    """A priority that no claim looks at, or an attempt count that never ends, cannot be written by hand either."""
    rows(database_url, "insert into job_queue (task_name) values ('t.add')")
    for edit, constraint in {"priority = 11": "job_queue_priority", "priority = 0": "job_queue_priority",
                             "status = 'done'": "job_queue_status", "attempts = -1": "job_queue_attempts",
                             "max_attempts = 0": "job_queue_max_attempts"}.items():
        with pytest.raises(psycopg.errors.CheckViolation, match=constraint):
            rows(database_url, f"update job_queue set {edit}")
    for column in ("status", "queue", "priority", "attempts", "max_attempts", "run_at", "task_id"):
        with pytest.raises(psycopg.errors.NotNullViolation, match=column):
            rows(database_url, f"update job_queue set {column} = null")


EDITS: dict[str, tuple[str, str]] = {
    "never expires": ("expires_at = 'infinity'", "completed"),
    "expired long ago": ("expires_at = '-infinity'", "failed"),
    "due since ever": ("run_at = '-infinity'", "completed"),
    "more attempts than there may be": ("attempts = 9", "completed"),
    "the least urgent": ("priority = 10", "completed"),
    "somebody else's result": ("state = 'SUCCESS', result = 'not json'", "completed"),
    "another task": ("task_name = 't.nobody'", "failed"),
    "no task": ("task_name = null", "failed"),
    "deep payload": ("payload = repeat('[', 100000)", "failed"),
    "odd history": ("errors = '{\"a\": 1}'", "completed"),
    "history: a number": ("errors = '5', payload = '[[\"a\", 1], {}, {}]'", "failed"),
    "odd history, retried": ("errors = '[{\"start\": \"x\"}]', task_name = 't.again', payload = '[[1], {}, {}]'", "completed"),
    "long number": ("payload = '[[' || repeat('9', 10000) || ', 1], {}, {}]'", "failed"),
}


def test_edited_rows_run_or_fail_with_a_reason(app: Celery, database_url: str, start_worker: Start) -> None:
    for name, (edit, _) in EDITS.items():
        rows(database_url, "select enqueue_job('t.add', '[1, 2]', task_id => %s)", (name,))
        rows(database_url, f"update job_queue set {edit} where task_id = %s", (name,))
    worker = start_worker("-c", "2")
    unfinished = "select count(*) from job_queue where status in ('pending', 'processing')"
    wait_until(lambda: one(database_url, unfinished) == 0, "all end")
    ended = rows(database_url, "select task_id, status, error_message from job_queue")
    assert {row["task_id"]: row["status"] for row in ended} == {name: status for name, (_, status) in EDITS.items()}
    assert [row["task_id"] for row in ended if row["status"] == "failed" and not row["error_message"]] == []
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    assert worker.process.poll() is None
    assert "Unrecoverable" not in worker.text


def test_every_line_of_a_running_job_says_which(app: Celery, database_url: str, start_worker: Start) -> None:
    worker = start_worker("-c", "1", app="tests.support.json_app")
    task_id = app.send_task("t.says", ("hello", 1), max_attempts=7).id
    wait_until(lambda: one(database_url, "select status from job_queue") == "completed", "it has run twice")
    job_id = str(one(database_url, "select id from job_queue"))
    assert worker.stop() == 0
    expected = {"job_id": job_id, "task_id": task_id, "task_name": "t.says", "max_attempts": 7}
    for words, logger in (("hello", "somewhere.else"), ("retry: ", "celery.app.trace"), ("succeeded in", "celery.app.trace")):
        for record in (found := about(worker, words)):
            assert record == {**expected, "attempt": 1, "message": record["message"], "logger": logger}, words
        assert len(found) == (2 if words == "hello" else 1)
    assert {record["job_id"] for record in about(worker, "mine")} == {"my own"}  # what a line says itself stays
    assert all("job_id" not in record for record in about(worker, "ready"))
