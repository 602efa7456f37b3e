"""Quick jobs share a message and a place in the pool, and nothing else: what happens to one of them is no other's business."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states

from tests.support.database import one, rows
from tests.support.quick import meet_a_slow_one, note_moves, watch
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


@pytest.fixture
def quick(database_url: str, tmp_path: Path) -> str:
    """What t.wait does not wait for."""
    return watch(database_url, "status = 'processing'", tmp_path)


@pytest.fixture(params=["late", "early"])
def acks(request: pytest.FixtureRequest) -> str:
    """How the worker acknowledges."""
    return str(request.param)


def running(app: Celery, worker: Worker) -> list[dict[str, Any]]:
    """The tasks that the worker says are running."""
    found: dict[str, list[dict[str, Any]]] = app.control.inspect([worker.name], timeout=5).active() or {}
    return found.get(worker.name, [])


def all_went(results: list[Any]) -> bool:
    return [result.get(timeout=30) for result in results] == ["went"] * len(results)


def untouched_but(database_url: str, slow: Any) -> list[dict[str, Any]]:
    """The jobs, but for this one, that did not simply run."""
    return rows(database_url, "select task_id, status, attempts, errors from job_queue where task_id <> %s "
                "and (status <> 'completed' or attempts <> 1 or errors is not null)", (slow.id,))


def test_the_others_go_to_a_process_that_is_free(acks: str, app: Celery, database_url: str, start_worker: Start, quick: str,
                                                 tmp_path: Path) -> None:
    start_worker("-c", "2", "--prefetch-multiplier", "4", TEST_ACKS=acks)
    note_moves(database_url, "processing", "pending")
    slow, *others = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    assert all_went(others), "while it runs"
    (tmp_path / "slow.go").touch()
    assert slow.get(timeout=30) == "went"
    wait_until(lambda: untouched_but(database_url, slow) == [], "nothing came of it for the others")
    assert one(database_url, "select count(*) from moved") == 0, "none of them went back to the queue for that"


def test_a_process_that_is_killed_takes_only_what_it_runs(acks: str, app: Celery, database_url: str, start_worker: Start,
                                                          quick: str, tmp_path: Path) -> None:
    worker = start_worker("-c", "1", "--prefetch-multiplier", "4", TEST_ACKS=acks)
    slow, *others = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    [task] = running(app, worker)
    assert task["id"] == slow.id
    (tmp_path / "slow.go").touch()
    os.kill(task["worker_pid"], signal.SIGKILL)
    assert all_went(others)
    if acks == "late":
        assert slow.get(timeout=30) == "went", "in another attempt"
        assert one(database_url, "select attempts from job_queue where task_id = %s", (slow.id,)) == 2
    else:
        wait_until(lambda: slow.state == states.FAILURE, "it is lost")
    wait_until(lambda: untouched_but(database_url, slow) == [], "nothing came of it for the others")


def test_a_job_that_is_terminated_takes_no_other_with_it(acks: str, app: Celery, database_url: str, start_worker: Start,
                                                         quick: str, tmp_path: Path) -> None:
    start_worker("-c", "1", "--prefetch-multiplier", "4", TEST_ACKS=acks)
    slow, *others = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    slow.revoke(terminate=True)
    assert all_went(others)
    wait_until(lambda: slow.state == states.REVOKED, "it was stopped")
    wait_until(lambda: untouched_but(database_url, slow) == [], "nothing came of it for the others")


def test_a_job_that_waits_for_another_is_revoked_without_it(acks: str, app: Celery, database_url: str, start_worker: Start,
                                                            quick: str, tmp_path: Path) -> None:
    worker = start_worker("-c", "1", "--prefetch-multiplier", "4", TEST_ACKS=acks)
    slow, behind, *others = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    behind.revoke(terminate=True)
    assert [task["id"] for task in running(app, worker)] == [slow.id], "it still runs"
    (tmp_path / "slow.go").touch()
    assert slow.get(timeout=30) == "went"
    assert all_went(others)
    wait_until(lambda: behind.state == states.REVOKED, "it never ran")


@pytest.mark.parametrize("option", ["--max-tasks-per-child=1000", "--time-limit=60"])
def test_pools_with_ways_of_their_own_work_as_ever(option: str, app: Celery, database_url: str, start_worker: Start, quick: str,
                                                   tmp_path: Path) -> None:
    start_worker("-c", "1", "--prefetch-multiplier", "4", option)
    slow, *others = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    (tmp_path / "slow.go").touch()
    assert all_went([slow, *others])
    wait_until(lambda: untouched_but(database_url, slow) == [], "all of them ran")
