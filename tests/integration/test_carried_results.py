"""Quick tasks' results, which the worker stores with the completions of their jobs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord

from tests.support import finishing_app, told_app
from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

_VETO = """
    create function veto() returns trigger language plpgsql as $$ begin raise exception 'nobody touches %', new.task_id; end $$;
    create trigger veto before update on job_queue for each row
        when (new.task_id = 'unlucky' and new.status = 'completed') execute function veto()"""


@pytest.fixture
def counted(database_url: str) -> Callable[[Worker], dict[str, int]]:
    """Calls of PostgreSQL's functions, by name; the worker is stopped for that, since sessions report when they end."""
    rows(database_url, f"alter database {one(database_url, 'select quote_ident(current_database())')} set track_functions = 'pl'")

    def count(worker: Worker) -> dict[str, int]:
        assert worker.stop() == 0
        calls = "select funcname, calls from pg_stat_user_functions where funcname in ('store_result', 'complete_with_results')"
        return {row["funcname"]: row["calls"] for row in rows(database_url, calls)}

    return count


def publish(app: Celery, name: str, arguments: list[tuple[Any, ...]], **options: Any) -> list[Any]:
    with app.producer_or_acquire() as producer, producer.batch():
        return [app.tasks[name].apply_async(given, producer=producer, **options) for given in arguments]


def warm(app: Celery, name: str, arguments: tuple[Any, ...], **options: Any) -> None:
    """Let the worker learn that the task is quick."""
    for result in publish(app, name, [arguments] * 10, **options):
        result.get(timeout=30)


@pytest.mark.parametrize(("pool", "acks"), list(product(["prefork", "threads", "solo"], ["late", "early"])))
def test_results_of_quick_tasks_are_stored_in_batches(pool: str, acks: str, app: Celery, database_url: str, start_worker: Start,
                                                      counted: Callable[[Worker], dict[str, int]]) -> None:
    worker = start_worker("-P", pool, "--prefetch-multiplier", "8", TEST_ACKS=acks)
    warm(app, "t.add", (1, 2))
    results = publish(app, "t.add", [(number, number) for number in range(200)])
    assert [result.get(timeout=30) for result in results] == [2 * number for number in range(200)]
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 210, "all are completed")
    assert rows(database_url, "select 1 from job_queue where owner is not null or attempts <> 1 or result is null") == []
    calls = counted(worker)
    assert calls["store_result"] < 100, "only while the task is not known to be quick: at first, and after a run that was held up"
    assert 1 <= calls["complete_with_results"] <= 190


@pytest.mark.parametrize("value", [
    '"', "\\", '{"a": [null]}', "{}", "NULL", "null", "", " ", ",", "é😀", "\n", "'", "a\0b", "x" * 8000, "x" * 20_000])
def test_any_value_comes_back(value: str, app: Celery, start_worker: Start) -> None:
    start_worker("-c", "1")
    warm(app, "t.add", ("", ""))
    again = publish(app, "t.add", [(value, ""), ("", value), (value, value)])
    assert [result.get(timeout=30) for result in again] == [value, value, value + value]
    assert publish(app, "t.record", [("/dev/null", "word")] * 20)[-1].get(timeout=30) is None


def test_the_rest_of_what_celery_keeps_comes_with_it(app: Celery, start_worker: Start) -> None:
    app.conf.result_extended = True
    start_worker("-c", "1", app="tests.support.extended_app")
    warm(app, "t.add", (1, 2))
    [result] = publish(app, "t.add", [(3, 4)])
    assert result.get(timeout=30) == 7
    assert (result.name, list(result.args), result.kwargs, result.retries) == ("t.add", [3, 4], {}, 0)
    assert result.date_done is not None


@pytest.mark.parametrize("what", ["callback", "errback", "chain", "chord"])
def test_who_is_followed_stores_its_own(what: str, app: Celery, database_url: str, start_worker: Start,
                                        counted: Callable[[Worker], dict[str, int]]) -> None:
    worker = start_worker("--prefetch-multiplier", "8")
    add = app.tasks["t.add"]
    warm(app, "t.add", (1, 2))
    after = add.si(0, 0)
    if what == "chord":
        assert chord([add.s(number, 1) for number in range(20)], app.tasks["celery.accumulate"].s())().get(timeout=30)
    elif what == "chain":
        assert [chain(add.s(number, 1), after)().get(timeout=30) for number in range(20)] == [0] * 20
    else:
        options = {"link": after} if what == "callback" else {"link_error": after}
        assert [result.get(timeout=30) for result in publish(app, "t.add", [(0, 1)] * 20, **options)] == [1] * 20
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status <> 'completed'") == 0, "all is over")
    # A part of a chord is counted in the transaction that stores its result, so that it shows here as well.
    assert counted(worker)["store_result"] >= 20


@pytest.mark.parametrize("who", ["on_success", "after_return", "task_success", "task_postrun"])
def test_who_hears_of_the_success_finds_the_result(who: str, app: Celery, start_worker: Start, tmp_path: Path) -> None:
    told_app.add_tasks(app)
    heard = tmp_path / "heard"
    method = who in ("on_success", "after_return")
    start_worker("-c", "2", app="tests.support.told_app", TEST_SIGNAL="" if method else who, TEST_HEARD=heard)
    name, first = (f"t.{who}", str(heard)) if method else ("t.add", 0)
    warm(app, name, (first, 1))
    for result in publish(app, name, [(first, 1)] * 40):
        result.get(timeout=30)
    wait_until(lambda: heard.read_text().count("\n") == 50, "all were told")
    assert set(heard.read_text().splitlines()) == {"SUCCESS 1"}


@pytest.mark.parametrize("acks", ["late", "early"])
def test_the_solo_pool_does_not_keep_them_while_the_next_job_runs(acks: str, app: Celery, start_worker: Start,
                                                                  tmp_path: Path) -> None:
    start_worker("-P", "solo", "--prefetch-multiplier", "8", TEST_ACKS=acks)
    warm(app, "t.wait", (str(tmp_path / "warm"), 0))
    *quick, slow = publish(app, "t.wait", [*((str(tmp_path / "quick"), 0),) * 5, (str(tmp_path / "slow"), 60)])
    assert [result.get(timeout=30) for result in quick] == ["gave up"] * 5
    assert not slow.ready()
    (tmp_path / "slow.go").touch()
    assert slow.get(timeout=30) == "went"


def test_where_somebody_else_traces_tasks_nothing_gets_lost(app: Celery, start_worker: Start) -> None:
    start_worker("-c", "2", app="tests.support.traced_elsewhere_app")
    warm(app, "t.add", (1, 2))
    assert [result.get(timeout=30) for result in publish(app, "t.add", [(1, 2)] * 40)] == [3] * 40


def test_a_backend_with_a_way_of_its_own_is_asked(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    start_worker("-c", "2", app="tests.support.noting_backend", TEST_NOTES=tmp_path / "notes")
    warm(app, "t.add", (1, 2))
    assert [result.get(timeout=30) for result in publish(app, "t.add", [(1, 2)] * 40)] == [3] * 40
    # A result is there for the caller before its note is written.
    wait_until(lambda: (tmp_path / "notes").read_text().count("SUCCESS") == 50, "all were noted")


def test_a_duplicate_that_is_left_out_leaves_its_place(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker("-c", "1", app="tests.support.deduplicating_app")
    [done] = publish(app, "t.add", [(1, 2)])
    assert done.get(timeout=30) == 3
    publish(app, "t.add", [(1, 2)] * 4, task_id=done.id, countdown=11)
    rows(database_url, "update job_queue set redelivered = true, run_at = now() where status = 'pending'")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 5, "all are over")
    assert app.tasks["t.add"].delay(2, 2).get(timeout=30) == 4


def test_who_is_done_in_time_is_not_late_because_the_worker_stood_still(app: Celery, database_url: str, start_worker: Start,
                                                                        tmp_path: Path) -> None:
    worker = start_worker("-c", "1")
    mark = tmp_path / "mark"
    warm(app, "t.wait", (str(mark), 0))
    mark.unlink()
    [result] = publish(app, "t.wait", [(str(mark), 0.5)], time_limit=1.0)
    wait_until(mark.exists, "it runs")
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(2)  # its time limit passes while nobody looks; that is what is tried here
    worker.process.send_signal(signal.SIGCONT)
    assert result.get(timeout=30) == "gave up"
    assert one(database_url, "select status from job_queue where task_id = %s", (result.id,)) == "completed"


def test_a_result_that_is_refused_is_a_failure_that_says_why(app: Celery, database_url: str, start_worker: Start) -> None:
    rows(database_url, _VETO)
    worker = start_worker("-c", "2")
    warm(app, "t.add", (1, 2))
    [unlucky] = publish(app, "t.add", [(1, 2)], task_id="unlucky")
    others = publish(app, "t.add", [(number, 1) for number in range(20)])
    assert [other.get(timeout=30) for other in others] == [number + 1 for number in range(20)]
    with pytest.raises(Exception, match="nobody touches unlucky"):
        unlucky.get(timeout=30)
    [row] = rows(database_url, "select status, state, attempts, error_message from job_queue where task_id = 'unlucky'")
    assert (row["status"], row["state"], row["attempts"]) == ("failed", "FAILURE", 1)
    assert "nobody touches unlucky" in row["error_message"]
    assert worker.stop() == 0


def test_a_job_that_finishes_itself_is_not_stored_by_its_worker(make_client: Callable[..., Celery], database_url: str,
                                                                start_worker: Start) -> None:
    rows(database_url, "create table ledger (entry text)")
    app = make_client()
    finishing_app.add_tasks(app)
    worker = start_worker("-c", "2", app="tests.support.finishing_app")
    warm(app, "f.pay", ("warm",))
    results = publish(app, "f.pay", [(f"job {number}",) for number in range(30)])
    assert [result.get(timeout=30) for result in results] == [f"paid job {number}" for number in range(30)]
    assert one(database_url, "select count(*) from ledger") == 40
    assert "was taken from this worker" not in worker.text
