"""What must not stop a worker or cost a job: rows written by hand, cut connections, a loop that is busy with a task."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.support import suicidal_app
from tests.support.cutting import CuttingProxy
from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker, worker

Start = Callable[..., Worker]

ODD_ROWS: dict[str, dict[str, Any]] = {
    "no task, no payload": {},
    "payload: a number": {"task_name": "t.add", "payload": "5"},
    "payload: half": {"task_name": "t.add", "payload": "[[1]]"},
    "payload: an object": {"task_name": "t.add", "payload": '{"a": 1}'},
    "payload: no JSON": {"task_name": "t.add", "payload": "not json"},
    "envelope: garbage": {"task_name": "t.add", "envelope": "garbage", "payload": "[[1, 2], {}, {}]"},
    "envelope: a list": {"task_name": "t.add", "envelope": "[]", "payload": "[[1, 2], {}, {}]"},
    "envelope: null": {"task_name": "t.add", "envelope": "null", "payload": "[[1, 2], {}, {}]"},
    "envelope: odd properties": {"envelope": '{"properties": 5}', "payload": "[[1, 2], {}, {}]"},
    "envelope: odd headers": {"envelope": '{"headers": [1]}', "payload": "[[1, 2], {}, {}]"},
    "envelope: odd delivery": {"envelope": '{"properties": {"delivery_info": 7}}', "payload": "[[1, 2], {}, {}]"},
    "envelope: of a later version": {"task_name": "t.add", "envelope": '{"usual": 2}', "payload": "[[1, 2], {}, {}]"},
    "envelope: odd time limit": {
        "envelope": '{"headers": {"task": "t.add", "id": "x", "timelimit": "x"}}', "payload": "[[1, 2], {}, {}]"},
    "an unknown serializer": {
        "envelope": '{"headers": {"task": "t.add", "id": "y"}, "content-type": "application/x-nothing"}', "payload": "?"},
}


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_rows_that_nobody_can_read_fail_with_a_reason(pool: str, app: Celery, database_url: str, start_worker: Start) -> None:
    for name, columns in ODD_ROWS.items():
        names = ["task_id", *columns]
        rows(database_url, f"insert into job_queue ({', '.join(names)}) values ({', '.join(['%s'] * len(names))})",
             (name, *columns.values()))
    good = app.tasks["t.add"].apply_async((2, 3), priority=10)
    running = start_worker("-P", pool)
    assert good.get(timeout=20) == 5
    unfinished = "select count(*) from job_queue where status in ('pending', 'processing')"
    wait_until(lambda: one(database_url, unfinished) == 0, "all end")
    ended = rows(database_url, "select task_id, status, error_message from job_queue where task_id <> %s", (good.id,))
    assert {row["task_id"]: row["status"] for row in ended} == dict.fromkeys(ODD_ROWS, "failed")
    assert [row["task_id"] for row in ended if not row["error_message"]] == []
    assert running.process.poll() is None
    assert "Unrecoverable" not in running.text
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2


def test_who_waits_for_an_unreadable_job_hears_of_it(app: Celery, database_url: str, start_worker: Start) -> None:
    result = app.tasks["t.add"].delay(1, 2)
    rows(database_url, "update job_queue set payload = 'not json'")
    start_worker()
    with pytest.raises(Exception, match="cannot be read"):
        result.get(timeout=20)


def test_who_gets_an_unreadable_job_gets_the_next_one(app: Celery, database_url: str) -> None:
    rows(database_url, "insert into job_queue (task_id, task_name, envelope, payload)"
                       " values ('odd', 't.add', 'garbage', '[[], {}, {}]')")
    good = app.tasks["t.add"].delay(1, 2)
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("celery").get(block=False)
        assert message.headers["id"] == good.id
        message.ack()
    assert {row["task_id"]: row["status"] for row in rows(database_url, "select task_id, status from job_queue")} == {
        "odd": "failed", good.id: "completed"}
    assert "cannot be read" in one(database_url, "select error_message from job_queue where task_id = 'odd'")


def test_an_unknown_task_says_which(app: Celery, database_url: str, start_worker: Start) -> None:
    result = app.send_task("t.nobody")
    start_worker()
    wait_until(lambda: one(database_url, "select status from job_queue") == "failed", "it has failed")
    assert "t.nobody" in one(database_url, "select error_message from job_queue where task_id = %s", (result.id,))


def cut(url: str) -> None:
    """End every connection to the database but our own."""
    rows(url, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
              " and pid <> pg_backend_pid()")


def test_a_cut_connection_costs_no_automatic_retry(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    start_worker("-c", "1", TEST_RETRIES="1")
    assert app.tasks["t.flaky"].delay(str(tmp_path / "first"), 1).get(timeout=20) == "at last"  # the child has its connection
    cut(database_url)
    again = app.tasks["t.flaky"].delay(str(tmp_path / "second"), 1)
    assert again.get(timeout=30) == "at last"
    errors = one(database_url, "select errors from job_queue where task_id = %s", (again.id,))
    assert [error["error"] for error in errors] == ["ValueError: not yet, run 1"]


def test_a_long_task_in_the_solo_pool_is_not_taken_away(app: Celery, database_url: str, start_worker: Start,
                                                        tmp_path: Path) -> None:
    options = json.dumps({"heartbeat_interval": 0.5, "heartbeat_timeout": 1.5})
    for _ in range(2):
        start_worker("-P", "solo", app="tests.support.tuned_app", TEST_OPTIONS=options)
    mark = tmp_path / "mark"
    running = app.tasks["t.wait"].delay(str(mark))
    wait_until(mark.exists, "the task runs")
    mark.unlink()
    began = one(database_url, "select now()")
    wait_until(lambda: one(database_url, "select now() - %s > interval '5 seconds'", (began,)), "three timeouts have passed")
    Path(f"{mark}.go").touch()
    assert running.get(timeout=20) == "went"
    assert not mark.exists(), "it ran once"
    assert one(database_url, "select attempts from job_queue") == 1


def test_a_job_that_ran_through_a_failover_is_settled_on_the_next_broker(app: Celery, database_url: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with CuttingProxy(database_url) as first:
        brokers = f"{first.url};{database_url}?application_name=second"
        with worker(brokers, tmp_path, TEST_BACKEND=f"file://{tmp_path}") as running:
            app.tasks["t.wait"].apply_async((str(mark),), ignore_result=True)
            wait_until(mark.exists, "the task runs")
            first.stop()
            wait_until(lambda: one(database_url, "select count(*) from pg_stat_activity where application_name = 'second'"),
                       "the second is used")
            Path(f"{mark}.go").touch()
            wait_until(lambda: one(database_url, "select status from job_queue") == "completed", "it is settled")
            assert one(database_url, "select attempts from job_queue") == 1
            assert running.process.poll() is None


def test_a_pool_process_that_is_just_ending_does_not_end_the_worker_when_the_connection_is_cut(
        app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    running = start_worker(app="tests.support.half_dead_app")
    app.send_task("t.half_dead", (str(tmp_path / "gone"),))
    wait_until((tmp_path / "gone").exists, "the process has closed its end")
    rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity"
                       " where datname = current_database() and pid <> pg_backend_pid()")
    wait_until(lambda: "Trying to re-establish" in running.text or running.process.poll() is not None, "the worker has noticed")
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    assert running.process.poll() is None, running.text


def test_a_job_whose_process_dies_beside_others_is_not_run_once_more(app: Celery, database_url: str, start_worker: Start,
                                                                     tmp_path: Path) -> None:
    """Celery would give it to another process, uncounted: it has not read yet that this one has begun it."""
    suicidal_app.add_tasks(app)
    start_worker("-c", "6", "--prefetch-multiplier", "2", app="tests.support.suicidal_app")
    ran = tmp_path / "ran"
    jobs = {app.tasks["t.suicide"].delay(str(ran)).id for _ in range(30)}
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'failed'") == 30, "all have failed", 90)
    assert Counter(ran.read_text().split()) == dict.fromkeys(jobs, 3)


def test_a_job_that_a_dead_process_has_not_read_runs_in_another_as_if_nothing_had_been(
        app: Celery, database_url: str, start_worker: Start) -> None:
    started = start_worker("-c", "1")
    [pid] = app.control.inspect([started.name]).stats()[started.name]["pool"]["processes"]
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", "the process is stopped")
    result = app.tasks["t.add"].delay(1, 2)
    wait_until(lambda: app.control.inspect([started.name]).active()[started.name], "the worker has written it to the process", 20)
    os.kill(pid, signal.SIGKILL)
    assert result.get(timeout=30) == 3
    [row] = rows(database_url, "select status, attempts, total_starts, suspect, errors from job_queue")
    assert row == {"status": "completed", "attempts": 1, "total_starts": 1, "suspect": False, "errors": None}
    assert not app.control.inspect([started.name]).active()[started.name]
