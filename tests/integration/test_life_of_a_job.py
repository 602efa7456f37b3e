"""Real workers: what the row says is what happens."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TaskRevokedError, WorkerLostError

from celery_jobqueue.broker import enqueue_many
from celery_jobqueue.db.errors import InvalidJob
from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def job(url: str, task_id: str) -> dict[str, Any]:
    return rows(url, "select * from job_queue where task_id = %s order by created_at desc limit 1", (task_id,))[0]


def wait_for_status(url: str, task_id: str, *statuses: str, timeout: float = 30) -> dict[str, Any]:
    def settled() -> dict[str, Any] | None:
        row = job(url, task_id)
        return row if row["status"] in statuses else None

    found = wait_until(settled, f"job is {' or '.join(statuses)}", timeout)
    assert found is not None
    return found


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_job_runs_and_its_result_comes_back(pool: str, app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker("-P", pool)
    result = app.tasks["t.add"].delay(2, 3)
    assert result.get(timeout=20) == 5
    row = wait_for_status(database_url, result.id, "completed")
    assert (row["attempts"], row["total_starts"], row["state"], row["result"]) == (1, 1, "SUCCESS", "5")
    assert row["started_at"] <= row["finished_at"]
    assert row["owner"] is None
    assert row["worker"].endswith("@test")


@pytest.mark.parametrize(("pool", "acks", "ignore"), list(itertools.product(
    ["prefork", "threads", "solo"], ["late", "early"], ["0", "1"])))
def test_the_row_is_true_in_every_setting(pool: str, acks: str, ignore: str, make_client: Callable[..., Celery],
                                          database_url: str, start_worker: Start, tmp_path: Path) -> None:
    app = make_client(task_ignore_result=ignore == "1")
    start_worker("-P", pool, TEST_ACKS=acks, TEST_IGNORE=ignore)
    mark = str(tmp_path / "mark")
    waiting = app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the task runs")
    assert job(database_url, waiting.id)["status"] == "processing"
    Path(mark + ".go").touch()
    assert wait_for_status(database_url, waiting.id, "completed")["attempts"] == 1
    failing = app.tasks["t.boom"].delay("bang")
    row = wait_for_status(database_url, failing.id, "failed")
    assert (row["attempts"], row["error_message"]) == (1, "ValueError: bang")
    assert [entry["error"] for entry in row["errors"]] == ["ValueError: bang"]
    assert (row["state"] == "FAILURE") is (ignore == "0")


def test_a_foreign_result_backend_changes_nothing_on_the_row(database_url: str, make_client: Callable[..., Celery],
                                                             start_worker: Start, tmp_path: Path) -> None:
    backend = f"file://{tmp_path}"
    app = make_client(result_backend=backend)
    start_worker(TEST_ACKS="early", TEST_BACKEND=backend)
    good, bad = app.tasks["t.add"].delay(1, 1), app.tasks["t.boom"].delay("bang")
    assert wait_for_status(database_url, good.id, "completed")["state"] is None
    row = wait_for_status(database_url, bad.id, "failed")
    assert row["error_message"] == "ValueError: bang"
    assert good.get(timeout=10) == 2


def test_retries_until_max_attempts(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker(TEST_RETRIES="1")
    result = app.tasks["t.boom"].apply_async(("kaput",), max_attempts=2)
    with pytest.raises(ValueError, match="kaput"):
        result.get(timeout=30)
    row = wait_for_status(database_url, result.id, "failed")
    assert (row["attempts"], row["max_attempts"], row["state"]) == (2, 2, "FAILURE")
    assert row["error_message"] == "ValueError: kaput"
    assert [entry["error"] for entry in row["errors"]] == ["ValueError: kaput"] * 2
    assert [entry["start"] for entry in row["errors"]] == [1, 2]
    assert "kaput" in row["traceback"]


def test_a_failed_attempt_waits_in_the_table(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker(TEST_RETRIES="1")
    result = app.tasks["t.boom"].delay()

    def waiting() -> dict[str, Any] | None:
        row = job(database_url, result.id)
        # The state RETRY is stored a moment after the row has gone back, by a statement of its own.
        return row if row["status"] == "pending" and row["attempts"] == 1 and row["state"] == "RETRY" else None

    row = wait_until(waiting, "the job waits for its second attempt")
    assert row is not None
    assert row["error_message"] == "ValueError: boom"
    assert row["max_attempts"] == 3
    assert row["run_at"] > row["created_at"]
    assert (row["owner"], row["started_at"]) == (None, None)


def test_an_attempt_that_succeeds_keeps_the_errors_before_it(app: Celery, database_url: str, start_worker: Start,
                                                             tmp_path: Path) -> None:
    start_worker(TEST_RETRIES="1")
    result = app.tasks["t.flaky"].delay(str(tmp_path / "runs"), 2)
    assert result.get(timeout=30) == "at last"
    row = wait_for_status(database_url, result.id, "completed")
    assert row["attempts"] == 3
    assert [entry["error"] for entry in row["errors"]] == ["ValueError: not yet, run 1", "ValueError: not yet, run 2"]


def test_a_final_error_is_not_tried_again(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker(TEST_RETRIES="1")
    row = wait_for_status(database_url, app.tasks["t.final"].delay().id, "failed")
    assert (row["attempts"], row["error_message"]) == (1, "FinalError: no use in trying again")


def test_max_attempts_default_is_the_columns(app: Celery, database_url: str) -> None:
    rows(database_url, "alter table job_queue alter max_attempts set default 5")
    assert job(database_url, app.tasks["t.add"].delay(1, 1).id)["max_attempts"] == 5


def test_what_the_task_says_of_max_attempts_and_user_id_counts_in_every_thread(app: Celery, database_url: str) -> None:
    """Celery's current app is another one in the threads of a web server."""
    @app.task(name="t.stubborn", max_attempts=7, shared=False)  # type: ignore[untyped-decorator,unused-ignore]
    def stubborn(event: str, user_id: str) -> None:
        """Never run here."""

    assert job(database_url, stubborn.apply_async(("e", "u"), max_attempts=2).id)["max_attempts"] == 2
    with ThreadPoolExecutor(1) as pool:
        ids = [stubborn.delay("e", "u-17").id, pool.submit(lambda: stubborn.delay("e", "u-17").id).result(),
               enqueue_many(stubborn, [("e", "u-17")])[0].id]
    for task_id in ids:
        row = job(database_url, task_id)
        assert (row["max_attempts"], row["user_id"]) == (7, "u-17")


def test_task_retry_rearms_its_own_row(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    result = app.tasks["t.again"].delay(4)
    assert result.get(timeout=30) == 4
    row = wait_for_status(database_url, result.id, "completed")
    assert one(database_url, "select count(*) from job_queue") == 1
    assert (row["attempts"], row["total_starts"], row["status"]) == (1, 5, "completed")
    # The worker's main process notes the last retry, while the next run may have ended in a process of the pool already.
    wait_until(lambda: len(job(database_url, result.id)["errors"]) >= 4, "all retries are noted")
    assert len(job(database_url, result.id)["errors"]) == 4


@pytest.mark.parametrize("acks", ["late", "early"])
def test_a_retry_that_waits_in_the_worker_says_so(acks: str, app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker(TEST_ACKS=acks)
    result = app.tasks["t.again"].delay(1, countdown=3)  # claimed again at once: it is due soon
    wait_until(lambda: job(database_url, result.id)["owner"] and job(database_url, result.id)["total_starts"], "it waits again")
    wait_until(lambda: result.state == "RETRY", "the state is there", 2)
    assert (result.info.args, job(database_url, result.id)["status"]) == (("retry 0",), "pending")
    assert result.get(timeout=20) == 1


def test_canvas(app: Celery, start_worker: Start) -> None:
    start_worker()
    add = app.tasks["t.add"]
    assert group(add.s(i, i) for i in range(5))().get(timeout=20) == [0, 2, 4, 6, 8]
    assert chain(add.s(1, 2), add.s(3), add.s(4))().get(timeout=20) == 10
    total = app.tasks["celery.accumulate"].s() if "celery.accumulate" in app.tasks else None
    assert total is not None
    assert chord([add.s(1, 1), add.s(2, 2)], total)().get(timeout=30) == [[2, 4]]


def test_urgent_jobs_first_then_the_oldest(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "order")
    for word, priority in (("low", 10), ("a", 5), ("b", None), ("urgent", 1), ("c", 5)):
        options = {} if priority is None else {"priority": priority}
        app.tasks["t.record"].apply_async((path, word), **options)
    start_worker("-c", "1")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 5, "all ran")
    assert Path(path).read_text().split() == ["urgent", "a", "b", "c", "low"]


def test_an_urgent_job_passes_a_backlog(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    path, mark = str(tmp_path / "order"), str(tmp_path / "mark")
    start_worker("-c", "1")
    app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the only process is busy")
    for _ in range(20):
        app.tasks["t.record"].delay(path, "normal")
    app.tasks["t.record"].apply_async((path, "urgent"), priority=1)
    Path(mark + ".go").touch()
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 22, "all ran")
    assert Path(path).read_text().split().index("urgent") == 0


@pytest.mark.parametrize(("options", "field"), [
    ({"priority": 11}, "priority"), ({"max_attempts": 0}, "max_attempts"),
    ({"task_id": "a\0b"}, "task_id"), ({"queue": "a\0b"}, "queue"),
])
def test_bad_input_raises_at_the_call_and_writes_nothing(app: Celery, database_url: str, options: dict[str, Any],
                                                         field: str) -> None:
    with pytest.raises(InvalidJob, match=field):
        app.tasks["t.add"].apply_async((1, 2), **options)
    assert one(database_url, "select count(*) from job_queue") == 0


def test_a_delayed_job_waits_in_the_table_and_starts_on_time(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    result = app.tasks["t.add"].apply_async((1, 1), countdown=11)
    row = job(database_url, result.id)
    assert row["run_at"] - row["created_at"] > timedelta(seconds=10)
    wait_until(lambda: rows(database_url, "select id from jobqueue.worker where idle"), "the worker is idle")
    assert job(database_url, result.id)["owner"] is None
    row = wait_for_status(database_url, result.id, "completed")
    assert timedelta(0) <= row["started_at"] - row["run_at"] < timedelta(seconds=0.5)


def test_an_expired_job_never_runs_and_says_so(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    result = app.tasks["t.record"].apply_async((path, "x"), expires=-5)
    start_worker()
    row = wait_for_status(database_url, result.id, "failed")
    assert "expired" in row["error_message"]
    assert row["attempts"] == 0
    assert not Path(path).exists()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)


def test_progress_is_readable_while_the_job_runs(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    start_worker()
    mark = str(tmp_path / "mark")
    result = app.tasks["t.progress"].delay(mark)
    wait_until(Path(mark).exists, "the task runs")
    row = job(database_url, result.id)
    assert (row["status"], row["state"], row["result"]) == ("processing", "PROGRESS", '{"done": 1, "total": 2}')
    assert (result.state, result.info) == ("PROGRESS", {"done": 1, "total": 2})
    Path(mark + ".go").touch()
    assert result.get(timeout=10) == "done"


def test_a_killed_pool_process_costs_one_attempt(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    start_worker()
    result = app.tasks["t.die"].delay(str(tmp_path / "died"))
    assert result.get(timeout=30) == "survived"
    row = wait_for_status(database_url, result.id, "completed")
    assert row["attempts"] == 2
    assert "WorkerLostError" in row["errors"][0]["error"]


def test_a_job_that_always_kills_its_process_fails(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    result = app.tasks["t.die"].apply_async(max_attempts=2)
    with pytest.raises(WorkerLostError):
        result.get(timeout=40)
    row = wait_for_status(database_url, result.id, "failed")
    assert (row["attempts"], row["state"]) == (2, "FAILURE")
    assert "WorkerLostError" in row["error_message"]
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2


@pytest.mark.parametrize(("acks", "ends"), [("late", "completed"), ("early", "failed")])
def test_a_dead_workers_jobs_are_taken_over(acks: str, ends: str, app: Celery, database_url: str, start_worker: Start,
                                            tmp_path: Path) -> None:
    dead = start_worker("-c", "1", TEST_ACKS=acks)
    mark = str(tmp_path / "mark")
    running = app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the task runs")
    reserved = app.tasks["t.add"].delay(1, 2)
    start_worker("-c", "1", TEST_ACKS=acks)
    Path(mark).unlink()
    os.kill(dead.process.pid, signal.SIGKILL)
    killed = time.monotonic()
    assert reserved.get(timeout=20) == 3
    if acks == "late":
        wait_until(Path(mark).exists, "the job runs again", 20)
        assert time.monotonic() - killed < 12
        Path(mark + ".go").touch()
        assert running.get(timeout=20) == "went"
    else:
        with pytest.raises(WorkerLostError):
            running.get(timeout=20)
        assert not Path(mark).exists()
    row = wait_for_status(database_url, running.id, ends)
    assert row["attempts"] == (2 if acks == "late" else 1)
    assert "Worker lost" in row["error_message"]
    assert one(database_url, "select count(*) from jobqueue.worker") == 1


def test_a_warm_shutdown_finishes_what_runs_and_gives_back_the_rest(app: Celery, database_url: str, start_worker: Start,
                                                                    tmp_path: Path) -> None:
    leaving = start_worker("-c", "1", "--prefetch-multiplier", "4")
    mark = str(tmp_path / "mark")
    running = app.tasks["t.wait"].delay(mark)
    others = [app.tasks["t.add"].delay(1, n) for n in range(3)]
    wait_until(Path(mark).exists, "the task runs")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where owner is not null") == 4, "all are claimed")
    leaving.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in leaving.text, "the worker is leaving")
    Path(mark + ".go").touch()
    assert leaving.stop() == 0
    assert job(database_url, running.id)["status"] == "completed"
    back = [job(database_url, other.id) for other in others]
    assert {(row["status"], row["attempts"], row["owner"]) for row in back} == {("pending", 0, None)}
    assert one(database_url, "select count(*) from jobqueue.worker") == 0


def test_workers_survive_losing_every_connection(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker()
    mark = str(tmp_path / "mark")
    running = app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the task runs")
    Path(mark).unlink()
    rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity"
                       " where datname = current_database() and pid <> pg_backend_pid()")
    assert app.tasks["t.add"].delay(20, 22).get(timeout=30) == 42
    Path(mark + ".go").touch()
    assert running.get(timeout=30) == "went"
    row = wait_for_status(database_url, running.id, "completed")
    assert (row["attempts"], Path(mark).exists()) == (1, False)
    assert worker.process.poll() is None


def test_revoking_a_running_task_stops_it(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    start_worker()
    mark = str(tmp_path / "mark")
    result = app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the task runs")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    row = wait_for_status(database_url, result.id, "failed")
    assert "terminated" in row["error_message"]


def test_revoking_a_waiting_job_needs_no_worker(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    revoked = [app.tasks["t.record"].delay(path, "x"), app.tasks["t.record"].apply_async((path, "y"), countdown=3600)]
    app.control.revoke([result.id for result in revoked])
    for result in revoked:
        row = job(database_url, result.id)
        assert (row["status"], row["error_message"], row["state"], row["attempts"]) == ("failed", "revoked", "REVOKED", 0)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
    start_worker()
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    assert not Path(path).exists()


def test_revoking_a_job_that_waits_in_a_worker_costs_no_attempt(app: Celery, database_url: str, start_worker: Start,
                                                                tmp_path: Path) -> None:
    start_worker("-c", "1", TEST_ACKS="early")
    mark = str(tmp_path / "mark")
    running, waiting = app.tasks["t.wait"].delay(mark), app.tasks["t.add"].delay(1, 1)
    wait_until(lambda: Path(mark).exists() and job(database_url, waiting.id)["owner"], "one runs, the other is reserved")
    waiting.revoke()
    wait_until(lambda: waiting.id in str(app.control.inspect(timeout=1).revoked()), "the worker knows")
    Path(mark + ".go").touch()
    row = wait_for_status(database_url, waiting.id, "failed")
    assert (row["attempts"], row["state"], row["error_message"]) == (0, "REVOKED", "revoked")
    assert running.get(timeout=10) == "went"


def test_a_revoked_job_does_not_come_back_from_a_dead_worker(app: Celery, database_url: str, start_worker: Start,
                                                             tmp_path: Path) -> None:
    dead = start_worker("-c", "1")
    mark = str(tmp_path / "mark")
    running = app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the task runs")
    running.revoke()
    wait_until(lambda: job(database_url, running.id)["revoked_at"], "the revocation is noted")
    assert job(database_url, running.id)["status"] == "processing"
    Path(mark).unlink()
    os.kill(dead.process.pid, signal.SIGKILL)
    start_worker("-c", "1")
    row = wait_for_status(database_url, running.id, "failed")
    assert (row["error_message"], Path(mark).exists()) == ("revoked", False)
    with pytest.raises(TaskRevokedError):
        running.get(timeout=10)


def test_an_unknown_task_fails_with_a_reason(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    row = wait_for_status(database_url, app.send_task("t.nobody").id, "failed")
    assert "t.nobody" in row["error_message"] or "rejected" in row["error_message"]
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
