"""Workers that leave: what they have not begun goes back, and nothing that runs on in a thread takes it along."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from tests.support import leaving_app
from tests.support.database import one, rows
from tests.support.quick import meet_a_slow_one, most_of, note_moves, publish, watch
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

UNTOUCHED = "select count(*) from job_queue where status = 'pending' and owner is null and (attempts, total_starts) = (0, 0)"


@pytest.fixture
def quick(database_url: str, tmp_path: Path) -> str:
    """What t.wait does not wait for."""
    return watch(database_url, "status = 'processing'", tmp_path)


@pytest.mark.parametrize("acks", ["early", "late"])
def test_threads_that_run_on_after_a_cold_shutdown_take_nothing_along(acks: str, app: Celery, database_url: str,
                                                                      start_worker: Start, quick: str, tmp_path: Path) -> None:
    worker = start_worker("-P", "threads", "-c", "1", "--prefetch-multiplier", "8", TEST_ACKS=acks)
    slow, *_ = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    ran = worker.text.count("succeeded in")
    worker.process.send_signal(signal.SIGQUIT)
    # Acknowledged late, the one that runs on goes back as well: it is to run again.
    wait_until(lambda: one(database_url, UNTOUCHED) == 20 + (acks == "late"), "the others go back")
    (tmp_path / "slow.go").touch()
    assert worker.process.wait(30) == 0
    assert one(database_url, UNTOUCHED) == 20 + (acks == "late")
    assert worker.text.count("succeeded in") <= ran + 1
    if acks == "early":
        assert slow.get(timeout=30) == "went"
        assert one(database_url, "select status from job_queue where task_id = %s", (slow.id,)) == "completed"


@pytest.mark.parametrize(("acks", "how"), [
    ("early", "shutdown"), ("early", "SIGTERM"), ("early", "soft"), ("late", "shutdown"), ("late", "SIGTERM")])
def test_threads_that_leave_finish_what_runs_and_give_back_the_rest(acks: str, how: str, app: Celery, database_url: str,
                                                                    start_worker: Start, quick: str, tmp_path: Path) -> None:
    worker = start_worker("-P", "threads", "-c", "1", "--prefetch-multiplier", "8", TEST_ACKS=acks,
                          app="tests.support.leaving_app", TEST_SOFT=5 if how == "soft" else 0)
    slow, *_ = meet_a_slow_one(database_url, app, quick, tmp_path / "slow")
    if how == "shutdown":
        app.control.shutdown()
    else:
        worker.process.send_signal(signal.SIGQUIT if how == "soft" else signal.SIGTERM)
    told = {"shutdown": "Got shutdown from remote", "SIGTERM": "Warm shutdown", "soft": "Initiating Soft Shutdown"}[how]
    wait_until(lambda: told in worker.text, "it has heard")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'processing'") == 1, "the line goes back")
    assert worker.process.poll() is None, "the one that runs is waited for"
    (tmp_path / "slow.go").touch()
    assert worker.process.wait(30) == 0
    assert slow.get(timeout=30) == "went"
    assert one(database_url, UNTOUCHED) == 20
    assert rows(database_url, "select 1 from job_queue where status not in ('pending', 'completed') or errors is not null") == []


def test_an_early_job_does_not_wait_in_the_pool_behind_a_late_one(app: Celery, database_url: str, start_worker: Start,
                                                                  quick: str, tmp_path: Path) -> None:
    """After a cold shutdown the pool would run it, and it has gone back."""
    leaving_app.add_tasks(app)
    worker = start_worker("-P", "threads", "-c", "1", "--prefetch-multiplier", "8", TEST_ACKS="early",
                          app="tests.support.leaving_app")
    behind = tmp_path / "behind"
    for task in ("t.wait", "t.wait_late"):
        wait_until(lambda task=task: most_of(database_url, app, quick, 50, task) >= 2, "the worker knows that both are quick")
    with app.producer_or_acquire() as producer, producer.batch():
        for name, path in (("t.wait_late", quick), ("t.wait_late", tmp_path / "slow"), ("t.wait", behind)):
            last = app.tasks[name].apply_async((str(path), 1), producer=producer)
    wait_until((tmp_path / "slow").exists, "the late one runs")
    wait_until(lambda: one(database_url, "select owner from job_queue where task_id = %s", (last.id,)), "the early one is there")
    worker.process.send_signal(signal.SIGQUIT)
    wait_until(lambda: "Hitting Ctrl+C again" in worker.text, "it has heard")
    (tmp_path / "slow.go").touch()
    assert worker.process.wait(30) == 0
    untouched = "select (status, attempts) = ('pending', 0) from job_queue where task_id = %s"
    assert one(database_url, untouched, (last.id,))
    assert not behind.exists()


def test_threads_that_leave_start_nothing_more(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-P", "threads", "-c", "20", "--prefetch-multiplier", "4", TEST_ACKS="early")
    note_moves(database_url, "pending", "processing")
    paths = [tmp_path / f"slow{number}" for number in range(80)]
    publish(app, [str(path) for path in paths])
    wait_until(lambda: one(database_url, "select count(*) from job_queue where owner is not null") == 80, "all are held")
    # A start that has not reached its thread when the order comes goes back.
    wait_until(lambda: sum(path.exists() for path in paths) == 20, "the pool is full")
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in worker.text, "it leaves")
    for path in paths:
        path.with_name(path.name + ".go").touch()
    assert worker.process.wait(30) == 0
    assert one(database_url, UNTOUCHED) == 60
    assert one(database_url, "select count(*) from moved") == 20
    assert one(database_url, "select count(*) from job_queue where status = 'completed'") == 20


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_job_that_exits_while_its_worker_leaves_is_not_given_back(pool: str, ignored: bool, app: Celery, database_url: str,
                                                                    start_worker: Start, tmp_path: Path) -> None:
    """It has run, and is to run once."""
    leaving_app.add_tasks(app)
    worker = start_worker("-P", pool, TEST_ACKS="early", TEST_IGNORE=int(ignored), app="tests.support.leaving_app")
    app.tasks["t.exit"].delay(str(tmp_path / "last"))
    wait_until((tmp_path / "last").exists, "it runs")
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in worker.text, "it leaves")
    (tmp_path / "last.go").touch()
    assert worker.process.wait(30) == 0
    [row] = rows(database_url, "select status, attempts, error_message from job_queue")
    assert (row["status"], row["attempts"]) == ("failed", 1)
    assert "that was all" in row["error_message"]


@pytest.mark.parametrize("acks", ["early", "late"])
def test_a_thread_that_outlives_the_heartbeat_timeout_keeps_its_job(acks: str, app: Celery, database_url: str,
                                                                    start_worker: Start, tmp_path: Path) -> None:
    """While a worker waits for its threads nothing of it turns; and a job that has ended meanwhile is told of at once."""
    options = json.dumps({"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0})
    worker = start_worker("-P", "threads", "-c", "2", TEST_ACKS=acks, TEST_OPTIONS=options, TEST_IGNORE=1,
                          app="tests.support.tuned_app")
    publish(app, [str(tmp_path / "short"), str(tmp_path / "long")])
    for name in ("short", "long"):
        wait_until((tmp_path / name).exists, "both run")
    worker.process.terminate()
    wait_until(lambda: "Warm shutdown" in worker.text, "it leaves")
    start_worker("-c", "1", TEST_OPTIONS=options, app="tests.support.tuned_app")
    left = time.monotonic()
    (tmp_path / "short.go").touch()
    told = "select count(*) from job_queue where status = 'completed'"
    wait_until(lambda: one(database_url, told) == 1, "that one is told", 10)
    wait_until(lambda: time.monotonic() > left + 5, "others would have taken it for dead")
    assert worker.process.poll() is None
    (tmp_path / "long.go").touch()
    assert worker.process.wait(30) == 0
    assert rows(database_url, "select status, total_starts from job_queue") == [{"status": "completed", "total_starts": 1}] * 2


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_who_waits_in_a_soft_shutdown_is_not_dead(pool: str, app: Celery, database_url: str, start_worker: Start,
                                                  tmp_path: Path) -> None:
    options = json.dumps({"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0})
    worker = start_worker("-P", pool, "-c", "1", TEST_ACKS="early", TEST_OPTIONS=options, TEST_SOFT=8,
                          app="tests.support.leaving_app")
    publish(app, [str(tmp_path / "long")])
    wait_until((tmp_path / "long").exists, "it runs")
    worker.process.send_signal(signal.SIGQUIT)
    wait_until(lambda: "Initiating Soft Shutdown" in worker.text, "it waits")
    left = time.monotonic()
    start_worker("-c", "1", TEST_OPTIONS=options, app="tests.support.leaving_app")
    wait_until(lambda: time.monotonic() > left + 5, "others would have taken it for dead")
    assert rows(database_url, "select status, total_starts from job_queue") == [{"status": "processing", "total_starts": 1}]
    (tmp_path / "long.go").touch()
    assert worker.process.wait(30) == 0


@pytest.mark.parametrize("acks", ["early", "late"])
def test_a_solo_job_gets_the_result_of_the_one_before_it(acks: str, app: Celery, start_worker: Start) -> None:
    """The loop could tell of it when this job is over only."""
    leaving_app.add_tasks(app)
    start_worker("-P", "solo", "--prefetch-multiplier", "8", TEST_ACKS=acks, app="tests.support.leaving_app")
    for _ in range(5):
        with app.producer_or_acquire() as producer, producer.batch():
            parts = [app.tasks["t.add"].apply_async((n, n), producer=producer) for n in range(4)]
            waiting = app.tasks["t.fetch"].apply_async((parts[-1].id,), producer=producer)
        assert waiting.get(timeout=40) == 6
