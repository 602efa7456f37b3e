"""Quick jobs share a message and a place in the pool, and nothing else: what happens to one of them is no other's business."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states

from tests.support.database import one, rows
from tests.support.quick import meet_a_slow_one, most_of, note_moves, publish, watch
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


def messages(app: Celery, worker: Worker) -> int:
    """How many messages the worker has written to its processes."""
    stats = app.control.inspect([worker.name], timeout=5).stats() or {}
    return int(stats[worker.name]["pool"]["writes"]["total"])


def test_quick_jobs_share_a_message(acks: str, app: Celery, database_url: str, start_worker: Start, quick: str) -> None:
    worker = start_worker("-c", "1", "--prefetch-multiplier", "4", TEST_ACKS=acks)
    wait_until(lambda: most_of(database_url, app, quick, 50) >= 2, "the worker knows that the task is quick")
    before = messages(app, worker)
    assert all_went(publish(app, [quick] * 200))
    assert messages(app, worker) - before < 150


def test_headers_that_somebody_wrote_cost_no_place(app: Celery, database_url: str, start_worker: Start, quick: str) -> None:
    """Each fails by itself: those that the pool refuses, and those about which nobody can say whether they have a time limit."""
    worker = start_worker("-c", "1", "--prefetch-multiplier", "4")
    wait_until(lambda: most_of(database_url, app, quick, 50) >= 2, "the worker knows that the task is quick")
    odd = [5, [None], {"a": 1}, True, [None, None, None], 0.5]
    for number, limit in enumerate(odd):
        rows(database_url, "insert into job_queue (task_id, task_name, envelope, payload) values (%s, 't.wait', %s, %s)", (
            f"odd-{number}", json.dumps({"headers": {"task": "t.wait", "id": f"odd-{number}", "timelimit": limit}}),
            json.dumps([[quick], {}, {}])))
    assert all_went(publish(app, [quick] * 20))
    wait_until(lambda: one(database_url, "select count(*) from job_queue where task_id like 'odd-%' and status = 'failed' "
                                         "and error_message like '%cannot be read%'") == len(odd), "they fail, and say why")
    assert all_went(publish(app, [quick] * 20)), "there is still room for others"
    assert worker.process.poll() is None


def test_what_waits_for_a_place_in_the_pool_survives_a_lost_connection(acks: str, app: Celery, database_url: str,
                                                                       start_worker: Start, tmp_path: Path) -> None:
    """Celery drops it from its own line then, and gets it once more."""
    start_worker("-c", "1", "--prefetch-multiplier", "4", TEST_ACKS=acks)
    jobs = publish(app, [str(tmp_path / f"job{number}") for number in range(4)])
    wait_until((tmp_path / "job0").exists, "one runs")
    waiting = 2 if acks == "late" else 1
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'processing'") == waiting, "one waits")
    held_by = ("select array_agg(l.pid) from pg_locks l join pg_database d on d.oid = l.database "
               "where locktype = 'advisory' and datname = current_database()")
    for _ in range(2):
        cut = wait_until(lambda: one(database_url, held_by), "it is known to live")
        rows(database_url, "select pg_terminate_backend(pid) from unnest(%s::int[]) pid", (cut,))
        wait_until(lambda cut=cut: (one(database_url, held_by) or cut) != cut, "it comes back")
    for number in range(4):
        (tmp_path / f"job{number}.go").touch()
    assert all_went(jobs)
    wait_until(lambda: rows(database_url, "select 1 from job_queue where status <> 'completed' or attempts <> 1") == [], "once")


@pytest.mark.parametrize("option", ["--max-tasks-per-child=1000", "--time-limit=60"])
def test_pools_with_ways_of_their_own_work_as_ever(option: str, app: Celery, database_url: str, start_worker: Start, quick: str,
                                                   tmp_path: Path) -> None:
    worker = start_worker("-c", "1", "--prefetch-multiplier", "4", option)
    slow, *others = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    (tmp_path / "slow.go").touch()
    assert all_went([slow, *others])
    wait_until(lambda: untouched_but(database_url, slow) == [], "all of them ran")
    before = messages(app, worker)
    assert all_went(publish(app, [quick] * 100))
    assert messages(app, worker) - before == 100, "each by itself"


def test_a_number_of_processes_that_celery_finds_itself(app: Celery, database_url: str, start_worker: Start, quick: str) -> None:
    """`auto` is a word when the worker is prepared, and all that is prepared has to be."""
    worker = start_worker("-c", "auto", "--prefetch-multiplier", "4")
    wait_until(lambda: most_of(database_url, app, quick, 50) >= 2, "the worker knows that the task is quick")
    assert "Traceback" not in worker.text
    before = messages(app, worker)
    assert all_went(publish(app, [quick] * 200))
    assert messages(app, worker) - before < 150
