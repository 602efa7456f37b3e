"""The statements of the user's guide, word for word, against the live table with jobs of real workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

ALL = "SELECT * FROM job_queue ORDER BY created_at DESC LIMIT 50;"
PENDING = "SELECT * FROM job_queue WHERE status = 'pending' ORDER BY priority ASC, created_at ASC;"
FAILED = "SELECT * FROM job_queue WHERE status = 'failed' ORDER BY created_at DESC;"
ERRORS = "SELECT error_message FROM job_queue WHERE status = 'failed';"
RESET = """\
-- Reset stuck jobs (older than 5 minutes)
UPDATE job_queue 
SET status = 'pending', started_at = NULL 
WHERE status = 'processing' 
AND started_at < NOW() - INTERVAL '5 minutes';
"""  # noqa: W291  (the guide's own spaces)


def test_monitoring(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-c", "1")
    mark = str(tmp_path / "mark")
    done = [app.tasks["t.add"].delay(1, n).id for n in range(3)]
    failed = [app.tasks["t.boom"].delay(f"bang {n}").id for n in range(3)]
    running = app.tasks["t.wait"].delay(mark).id
    wait_until(Path(mark).exists, "the last of them runs")
    priorities = [5, 1, 10, None, 3, 5, 1] * 7
    waiting = [app.tasks["t.add"].apply_async((1, 1), **({} if p is None else {"priority": p})).id for p in priorities]
    published = [*done, *failed, running, *waiting]

    newest = rows(database_url, ALL)
    assert [row["task_id"] for row in newest] == published[:-51:-1]
    statuses = {row["task_id"]: row["status"] for row in newest}
    assert statuses[running] == "processing"
    assert {statuses[task_id] for task_id in waiting} == {"pending"}

    in_order = sorted(range(len(waiting)), key=lambda number: (priorities[number] or 5, number))
    assert [row["task_id"] for row in rows(database_url, PENDING)] == [waiting[number] for number in in_order]

    found = rows(database_url, FAILED)
    assert [row["task_id"] for row in found] == failed[::-1]
    assert [row["attempts"] for row in found] == [1, 1, 1]
    assert {row["error_message"] for row in rows(database_url, ERRORS)} == {f"ValueError: bang {n}" for n in range(3)}
    assert {one(database_url, "select status from job_queue where task_id = %s", (task_id,)) for task_id in done} == {"completed"}
    worker.stop(signal.SIGQUIT)


@pytest.mark.parametrize("acks", ["late", "early"])
def test_the_reset_makes_stuck_jobs_run_again(acks: str, app: Celery, database_url: str, start_worker: Start,
                                              tmp_path: Path) -> None:
    """A worker hangs with its jobs, a person resets them, they run in a second worker; then the first one comes back."""
    cases = ("returns", "last", "raises", "retries", "recent")
    stuck = start_worker("-c", "5", app="tests.support.tuned_app", TEST_ACKS=acks)
    ids = {}
    for case in cases:
        options = {"max_attempts": 1} if case == "last" else {}
        ids[case] = app.send_task("t.run", (str(tmp_path / case),), **options).id
    first = {case: pid_of_run(tmp_path, case) for case in cases}
    wait_until(lambda: set(table(database_url, "status").values()) == {"processing"}, "all of them run")
    assert set(table(database_url, "at_most_once").values()) == {acks == "early"}
    os.kill(stuck.process.pid, signal.SIGSTOP)
    rows(database_url, "update job_queue set started_at = started_at - interval '6 minutes' where task_id <> %s",
         (ids["recent"],))

    rows(database_url, RESET)
    for case, row in table(database_url).items():
        if case == ids["recent"]:
            assert row["status"] == "processing"
        else:
            assert (row["status"], row["started_at"], row["owner"], row["at_most_once"]) == ("pending", None, None, False)
            assert row["attempts"] < row["max_attempts"]

    second_worker = start_worker("-c", "4", app="tests.support.tuned_app", TEST_ACKS=acks)
    second = {case: pid_of_run(tmp_path, case, first[case]) for case in cases if case != "recent"}
    tell(tmp_path, "last", second["last"], "return")
    wait_until(lambda: table(database_url, "status")[ids["last"]] == "completed", "the job at its last attempt has run")
    before = table(database_url)
    assert {before[ids[case]]["worker"] for case in second} == {second_worker.name}

    os.kill(stuck.process.pid, signal.SIGCONT)
    for case, order in zip(cases, ("return", "return", "raise", "retry", "return"), strict=True):
        tell(tmp_path, case, first[case], order)
    recent = app.AsyncResult(ids["recent"])
    assert recent.get(timeout=20) == first["recent"]  # what was not reset is still its own
    for case, said in zip(cases, ("succeeded", "succeeded", "raised unexpected", "retry", "succeeded"), strict=True):
        wait_until(lambda case=case, said=said: f"Task t.run[{ids[case]}] {said}" in stuck.text, f"its run {case} is over")
    assert stuck.stop() == 0  # everything it had to say is said
    after = table(database_url)
    # Nothing has changed but the history: that the first run asked for a retry is true whoever has the job now.
    for row in (before[ids["retries"]], after[ids["retries"]]):
        row.update(errors=None, error_message=None)
    del before[ids["recent"]], after[ids["recent"]]
    assert after == before

    for case in ("returns", "raises", "retries"):
        tell(tmp_path, case, second[case], "return")
    for case, pid in second.items():
        assert app.AsyncResult(ids[case]).get(timeout=20) == pid
        wait_until(lambda case=case: table(database_url, "status")[ids[case]] == "completed", "it is completed")
    ended = table(database_url)
    assert {case: (ended[ids[case]]["attempts"], ended[ids[case]]["total_starts"]) for case in second} == {
        "returns": (2, 2), "last": (1, 2), "raises": (2, 2), "retries": (2, 2)}


def test_a_reset_job_that_failed_for_good_may_run_again(app: Celery, database_url: str, start_worker: Start,
                                                        tmp_path: Path) -> None:
    """The same order for a job that is over: one more attempt, and its new end is the one that waits see."""
    start_worker("-c", "1", TEST_RETRIES="1")
    result = app.tasks["t.flaky"].apply_async((str(tmp_path / "runs"), 1), max_attempts=1)
    with pytest.raises(ValueError, match="not yet"):
        result.get(timeout=20)
    wait_until(lambda: one(database_url, "select status from job_queue") == "failed", "it has failed")
    rows(database_url, "UPDATE job_queue SET status = 'pending' WHERE status = 'failed'")
    wait_until(lambda: one(database_url, "select status from job_queue") == "completed", "it has run again")
    assert app.AsyncResult(result.id).get(timeout=20) == "at last"
    row = rows(database_url, "select * from job_queue")[0]
    assert (row["attempts"], row["total_starts"], row["error_message"]) == (1, 2, "ValueError: not yet, run 1")


def pid_of_run(folder: Path, case: str, not_pid: int = 0) -> int:
    """The process that runs the job, once it does."""
    def found() -> int | None:
        pids = [int(path.suffix[1:]) for path in folder.glob(f"{case}.*") if path.suffix[1:].isdigit()]
        return next((pid for pid in pids if pid != not_pid), None)

    pid = wait_until(found, f"{case} runs")
    assert pid is not None
    return pid


def tell(folder: Path, case: str, pid: int, order: str) -> None:
    """What this run of the job shall do."""
    written = folder / "order"
    written.write_text(order)
    written.rename(folder / f"{case}.{pid}.go")


def table(url: str, column: str | None = None) -> dict[str, Any]:
    """Every job's row (or one column of it) by its task id."""
    return {row["task_id"]: row if column is None else row[column] for row in rows(url, "select * from job_queue")}
