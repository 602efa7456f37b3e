"""Quick tasks acknowledged early: some are started ahead, up to seven per process, three per thread, and go back if need be."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.support.database import one, rows
from tests.support.quick import meet_a_slow_one, most, most_of, note_moves, watch
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def most_started(url: str, app: Celery, path: str) -> int:
    return most_of(url, app, path, 50)


@pytest.fixture
def quick(database_url: str, tmp_path: Path) -> str:
    """What t.wait does not wait for."""
    return watch(database_url, "status = 'processing'", tmp_path)


@pytest.fixture(params=["prefork", "threads"])
def behind_a_slow_one(request: pytest.FixtureRequest, app: Celery, database_url: str, start_worker: Start, quick: str,
                      tmp_path: Path) -> tuple[Worker, Any, list[Any]]:
    """A worker that took its task for quick; the job that runs there and is slow; those that were published behind it."""
    worker = start_worker("-P", request.param, "-c", "1", "--prefetch-multiplier", "8", TEST_ACKS="early")
    slow, *others = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    assert most(database_url) <= 8
    return worker, slow, others


@pytest.mark.parametrize(("pool", "processes", "most"), [
    ("prefork", 1, 8), ("prefork", 2, 16), ("threads", 1, 4), ("threads", 2, 8), ("solo", 1, 8)])
def test_few_are_started_ahead(pool: str, processes: int, most: int, app: Celery, database_url: str, start_worker: Start,
                               quick: str) -> None:
    start_worker("-P", pool, "-c", str(processes), "--prefetch-multiplier", "32", TEST_ACKS="early")
    wait_until(lambda: most_started(database_url, app, quick) > processes, "some are started ahead")
    for _ in range(5):  # as many as are inside may have ended besides, and be settled by the batch that starts the next
        assert most_started(database_url, app, quick) <= 2 * most
    assert rows(database_url, "select 1 from job_queue where attempts <> 1 or total_starts <> 1 or not at_most_once") == []


def test_of_a_task_of_some_milliseconds_one_per_process_is(app: Celery, database_url: str, start_worker: Start,
                                                          quick: str) -> None:
    def most_napping() -> int:
        return most_of(database_url, app, 0.005, 50, "t.nap")

    start_worker("-c", "2", "--prefetch-multiplier", "16", TEST_ACKS="early")
    wait_until(lambda: most_napping() > 2, "the worker knows that the task is quick")
    # Two run and two are to follow; seldom are more than two ends on their way. With three ahead it was always eight.
    wait_until(lambda: most_napping() <= 6, "it does not start more than one ahead")


def test_solo_gives_back_what_it_does_not_come_to(app: Celery, database_url: str, start_worker: Start, quick: str,
                                                  tmp_path: Path) -> None:
    worker = start_worker("-P", "solo", "--prefetch-multiplier", "8", TEST_ACKS="early")
    slow, *_ = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    assert most(database_url) <= 8
    worker.process.send_signal(signal.SIGTERM)
    (tmp_path / "slow.go").touch()
    assert worker.stop() == 0
    assert rows(database_url, "select 1 from job_queue where status = 'processing' or owner is not null") == []
    untouched = "status = 'pending' and (attempts, total_starts) = (0, 0)"
    assert one(database_url, f"select count(*) from job_queue where {untouched}") == 20
    assert slow.get(timeout=30) == "went"


@pytest.mark.parametrize("acks", ["early", "late"])
def test_while_a_task_becomes_known_as_quick_nothing_stands_in_its_own_way(acks: str, app: Celery, database_url: str,
                                                                           start_worker: Start) -> None:
    """Then a job that is about to start meets one that its claim has started: the pool was empty, and both stood in line."""
    note_moves(database_url, "processing", "pending")
    for name in ("t.add", "celery.accumulate", "t.add", "celery.accumulate"):
        worker = start_worker("-c", "1", "--prefetch-multiplier", "4", TEST_ACKS=acks)
        for result in [app.tasks[name].delay(number, number) for number in range(12)]:
            result.get(timeout=30)
        assert worker.stop() == 0
    assert rows(database_url, "select id from moved") == []


def test_what_waits_behind_a_slow_one_goes_back(app: Celery, database_url: str, start_worker: Start, tmp_path: Path,
                                                behind_a_slow_one: tuple[Worker, Any, list[Any]]) -> None:
    _, slow, others = behind_a_slow_one
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'processing'") == 1, "it goes back")
    assert rows(database_url, "select 1 from job_queue where status = 'pending' and (attempts, total_starts) <> (0, 0)") == []
    start_worker("-c", "1", TEST_ACKS="early")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status <> 'completed'") <= 9, "they run elsewhere")
    (tmp_path / "slow.go").touch()
    assert [result.get(timeout=30) for result in (slow, *others)] == ["went"] * 21
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status <> 'completed'") == 0, "all is over")
    assert rows(database_url, "select 1 from job_queue where attempts <> 1 or errors is not null") == []


def test_a_worker_that_leaves_gives_it_back(database_url: str, tmp_path: Path,
                                            behind_a_slow_one: tuple[Worker, Any, list[Any]]) -> None:
    worker, slow, _ = behind_a_slow_one
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'processing'") == 1, "it goes back")
    assert worker.process.poll() is None, "the one that runs is waited for"
    (tmp_path / "slow.go").touch()
    assert worker.stop() == 0
    assert slow.get(timeout=30) == "went"
    wait_until(lambda: one(database_url, "select count(*) from job_queue where owner is not null") == 0, "it holds nothing")
    assert one(database_url, "select count(*) from job_queue where status = 'pending' and attempts = 0") == 20


def test_a_killed_worker_takes_no_more_with_it(app: Celery, database_url: str, start_worker: Start,
                                               behind_a_slow_one: tuple[Worker, Any, list[Any]]) -> None:
    worker, slow, _ = behind_a_slow_one
    os.killpg(worker.process.pid, signal.SIGKILL)
    start_worker("-c", "1", TEST_ACKS="early")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status in ('pending', 'processing')") == 0,
               "all is over", 60)
    lost = {row["task_id"] for row in rows(database_url, "select task_id from job_queue where status = 'failed'")}
    assert slow.id in lost
    assert len(lost) <= 8
    assert rows(database_url, "select 1 from job_queue where attempts <> 1 or total_starts <> 1") == []
