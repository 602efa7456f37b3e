"""Jobs of quick tasks are claimed beyond Celery's prefetch window, and go back when they do not come to their turn."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from tests.support.database import one, rows
from tests.support.quick import most, most_of, publish, watch
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def most_held(url: str, app: Celery, path: str) -> int:
    return most_of(url, app, path, 100)


@pytest.fixture
def quick(database_url: str, tmp_path: Path) -> str:
    """What t.wait does not wait for."""
    return watch(database_url, "owner is not null", tmp_path)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_quick_jobs_are_claimed_beyond_the_window(pool: str, app: Celery, database_url: str, start_worker: Start,
                                                  quick: str) -> None:
    start_worker("-P", pool, "-c", "1", "--prefetch-multiplier", "4")
    assert most_held(database_url, app, quick) >= 4, "also while nobody knows yet that they are quick"
    wait_until(lambda: most_held(database_url, app, quick) > 8, "more is held than the window has places for")
    assert most(database_url) <= 2 * 32
    assert rows(database_url, "select 1 from job_queue where status <> 'completed' or attempts <> 1 or total_starts <> 1") == []


@pytest.mark.parametrize(("options", "window"), [
    ("-c 2 --prefetch-multiplier 3", 6), ("-c 2 --prefetch-multiplier 3 -P threads", 6),
    ("-c 1 --prefetch-multiplier 4 -P solo", 4)])
def test_others_hold_what_the_window_has_places_for(app: Celery, database_url: str, start_worker: Start, quick: str,
                                                    options: str, window: int) -> None:
    start_worker(*options.split())
    for _ in range(5):
        assert most_held(database_url, app, quick) <= 2 * window


def test_a_claim_that_is_refused_is_blamed_on_its_own_job(app: Celery, database_url: str, start_worker: Start,
                                                          quick: str) -> None:
    worker = start_worker("-c", "1", "--prefetch-multiplier", "4")
    wait_until(lambda: most_held(database_url, app, quick) > 8, "the worker knows that the task is quick")
    rows(database_url, """
        create function veto() returns trigger language plpgsql as $$ begin raise exception 'nobody touches it'; end $$;
        create trigger veto before update on job_queue for each row
            when (new.priority = 7 and new.owner is not null) execute function veto()""")
    with app.producer_or_acquire() as producer, producer.batch():
        results = [app.tasks["t.wait"].apply_async((quick,), producer=producer, priority=7 if number == 9 else 5)
                   for number in range(20)]
    for number in (*range(9), *range(10, 20)):
        assert results[number].get(timeout=30) == "went"
    wait_until(lambda: "is claimed" in worker.text, "it is said which one is refused")
    unlucky = one(database_url, "select id from job_queue where status = 'pending'")
    assert [line for line in worker.text.splitlines() if "is claimed" in line and str(unlucky) not in line] == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_waits_behind_a_slow_one_goes_back(pool: str, app: Celery, database_url: str, start_worker: Start, quick: str,
                                                tmp_path: Path) -> None:
    start_worker("-P", pool, "-c", "1", "--prefetch-multiplier", "4")
    wait_until(lambda: most_held(database_url, app, quick) > 8, "the worker knows that the task is quick")
    slow = tmp_path / "slow"
    stuck, *others = publish(app, [str(slow), *[quick] * 20])
    wait_until(slow.exists, "the one that is slow this time runs")
    # What it has in its pool by then, or in its window, is as ever.
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'processing'") <= 2, "the others go back")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where owner is not null") <= 4, "all but the window's")
    back = rows(database_url, "select attempts, total_starts from job_queue where status = 'pending' and owner is null")
    assert {(row["attempts"], row["total_starts"]) for row in back} == {(0, 0)}
    start_worker("-c", "1")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status <> 'completed'") <= 4, "they run elsewhere")
    Path(str(slow) + ".go").touch()
    assert [result.get(timeout=30) for result in (stuck, *others)] == ["went"] * 21
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status <> 'completed'") == 0, "all is over")
    assert rows(database_url, "select 1 from job_queue where attempts <> 1 or errors is not null") == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_leaves_gives_back_what_it_has_started_ahead(pool: str, app: Celery, database_url: str, start_worker: Start,
                                                                   quick: str, tmp_path: Path) -> None:
    worker = start_worker("-P", pool, "-c", "1", "--prefetch-multiplier", "4")
    wait_until(lambda: most_held(database_url, app, quick) > 8, "the worker knows that the task is quick")
    slow = tmp_path / "slow"
    publish(app, [str(slow), *[quick] * 20])
    wait_until(slow.exists, "the one that is slow this time runs")
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'processing'") <= 2, "the others go back")
    assert worker.process.poll() is None, "the one that runs is waited for"
    Path(str(slow) + ".go").touch()
    assert worker.stop() == 0
    wait_until(lambda: one(database_url, "select count(*) from job_queue where owner is not null") == 0, "it holds nothing")
    assert rows(database_url, "select 1 from job_queue where attempts <> (status = 'completed')::int or errors is not null") == []
