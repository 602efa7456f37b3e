"""The end of a row's life: results expire, finished jobs are deleted after their time, nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from celery import Celery

from celery_jobqueue.broker.expiry import Expiries
from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

ROWS = """
insert into job_queue (task_id, status, state, result, finished_at)
select kind || '-' || age, status, state, '"x"',
       case when status in ('completed', 'failed') then now() - make_interval(hours => age) end
  from (values ('completed', 'completed', 'SUCCESS'), ('ignored', 'completed', null), ('failed', 'failed', 'FAILURE'),
               ('pending', 'pending', null), ('processing', 'processing', null)) as k(kind, status, state),
       unnest(array[1, 30, 200, 800]) as age
"""


def retire(url: str, *times: str | None) -> int:
    """The next part of the clean-up, at once: completed, failed, results and, where they differ, failures and chords. Returns how
    many rows were deleted."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("update jobqueue.retirement set looked_at = '-infinity'")
        row = conn.execute(f"select jobqueue.retire({', '.join(['%s'] * len(times))})", times).fetchone()
        assert row is not None
        return int(row[0])


def left(url: str) -> dict[str, bool]:
    """Which jobs there are, and whether each still has its result."""
    return {row["task_id"]: row["state"] is not None for row in rows(url, "select task_id, state from job_queue")}


def test_each_status_has_its_time_and_results_expire_first(database_url: str) -> None:
    rows(database_url, ROWS)
    assert retire(database_url, "7 days", "30 days", "1 day") == 5 + 3
    jobs = left(database_url)
    gone = {"completed-200", "completed-800", "ignored-200", "ignored-800", "failed-800"}
    assert set(jobs) == {f"{kind}-{age}" for kind in ("completed", "ignored", "failed", "pending", "processing")
                         for age in (1, 30, 200, 800)} - gone
    assert {task for task, result in jobs.items() if result} == {"completed-1", "failed-1"}


def test_a_row_never_goes_before_its_result(database_url: str) -> None:
    rows(database_url, ROWS)
    assert retire(database_url, "1 hour", "1 hour", "10 days") == 1 + 2 + 3
    assert {task for task in left(database_url) if task.startswith(("completed", "failed"))} == {
        "completed-1", "completed-30", "completed-200", "failed-1", "failed-30", "failed-200"}


#: Two hours old, beside the jobs: what has no row of its own, and a chord whose header is not through.
LOOSE = """
with ignored as (insert into jobqueue.chord (group_id, changed_at) values ('c', now() - interval '2 hours'))
insert into jobqueue.result (task_id, state, stored_at)
values ('success', 'SUCCESS', now() - interval '2 hours'), ('failure', 'FAILURE', now() - interval '2 hours')
"""


def unexpired(url: str) -> set[str]:
    """Which results and chords there are."""
    return {row["name"] for row in rows(url, "select task_id as name from job_queue where state is not null"
                                             " union all select task_id from jobqueue.result"
                                             " union all select group_id from jobqueue.chord")}


@pytest.mark.parametrize("by", ["a worker's clean-up", "celery.backend_cleanup"])
@pytest.mark.parametrize(("failures", "chords", "stay"), [
    (None, None, {"completed-1", "failed-1"}),
    (86_400 * 2, 60, {"completed-1", "failed-1", "failed-30", "failure"}),
    (60, 86_400, {"completed-1", "c"}),
    (0, 0, {"completed-1", "failed-1", "failed-30", "failed-200", "failed-800", "failure", "c"}),
])
def test_failures_and_chords_have_times_of_their_own(by: str, failures: int | None, chords: int | None, stay: set[str],
                                                     make_client: Callable[..., Celery], database_url: str) -> None:
    app = make_client(result_expires=5400, result_failure_expires=failures, result_chord_expires=chords)
    rows(database_url, ROWS)
    rows(database_url, LOOSE)
    if by == "celery.backend_cleanup":
        app.backend.cleanup()
    else:
        retire(database_url, None, None, *(None if time is None else f"{time} seconds" for time in Expiries.of(app.conf)))
    assert unexpired(database_url) == stay
    assert len(left(database_url)) == 20


def test_times_may_be_timedeltas_and_0_is_never(make_client: Callable[..., Celery]) -> None:
    app = make_client(result_expires=timedelta(hours=1), result_failure_expires=0)
    assert Expiries.of(app.conf) == (3600.0, None, 3600.0)


def test_for_ever(database_url: str) -> None:
    rows(database_url, ROWS)
    assert retire(database_url, None, None, None) == 0
    assert len(left(database_url)) == 20
    assert left(database_url)["completed-800"], "results that never expire are kept, too"


def test_it_walks_through_the_whole_table_and_begins_again(database_url: str) -> None:
    rows(database_url, "insert into job_queue (status, payload, finished_at) select 'completed', repeat('x', 1500),"
                       " now() - interval '9 days' from generate_series(1, 4000)")
    blocks = one(database_url, "select pg_relation_size('job_queue') / current_setting('block_size')::int")
    assert blocks > 512, "more than two looks are needed"
    looks = [retire(database_url, "7 days", "30 days", "1 day") for _ in range(-(-blocks // 256))]
    assert min(looks) > 0
    assert sum(looks) == 4000
    assert one(database_url, "select block from jobqueue.retirement") == 0


def test_what_stays_for_a_short_time_is_looked_at_more_often(database_url: str) -> None:
    rows(database_url, "alter table job_queue set (fillfactor = 10)")
    rows(database_url, "insert into job_queue (status, payload, finished_at) select 'completed', repeat('x', 1500), now()"
                       " from generate_series(1, 12000)")
    blocks = one(database_url, "select pg_relation_size('job_queue') / current_setting('block_size')::int")
    assert retire(database_url, "1 minute", "1 minute", "1 minute") == 0
    assert one(database_url, "select block from jobqueue.retirement") == blocks // 30 > 256
    assert retire(database_url, "7 days", "30 days", "1 day") == 0
    assert one(database_url, "select block from jobqueue.retirement") == blocks // 30 + 256


def test_a_row_that_users_hold_stops_nothing_else(database_url: str) -> None:
    rows(database_url, ROWS)
    rows(database_url, "create table invoice (job uuid references job_queue)")
    rows(database_url, "insert into invoice select id from job_queue where task_id = 'completed-800'")
    assert retire(database_url, "7 days", "30 days", "1 day") == 4 + 4, "four deleted, four results emptied"
    assert "completed-800" in left(database_url)
    assert one(database_url, "select looked_at > now() - interval '1 minute' from jobqueue.retirement"), "it goes on behind that"
    rows(database_url, "drop table invoice")
    assert retire(database_url, "7 days", "30 days", "1 day") == 1


def test_a_row_that_somebody_has_locked_is_left_for_the_next_walk(database_url: str) -> None:
    rows(database_url, ROWS)
    with psycopg.connect(database_url) as somebody:
        somebody.execute("select from job_queue where task_id = 'completed-800' for update")
        assert retire(database_url, "7 days", "30 days", "1 day") == 4
    assert retire(database_url, "7 days", "30 days", "1 day") == 1 + 3


def test_two_at_once_do_not_walk_twice(database_url: str) -> None:
    rows(database_url, ROWS)
    with psycopg.connect(database_url) as first, psycopg.connect(database_url, autocommit=True) as second:
        call = "select jobqueue.retire('7 days', '30 days', '1 day')"
        assert first.execute(call).fetchone() == (8,)
        second.execute("set lock_timeout = '3s'")
        assert second.execute(call).fetchone() == (0,), "it neither waits nor works"


@pytest.mark.parametrize(("options", "stays"), [({}, True), ({"keep_completed": 0.5}, False)])
def test_a_worker_does_it(options: dict[str, Any], stays: bool, make_client: Callable[..., Celery], database_url: str,
                          start_worker: Start) -> None:
    app = make_client(result_expires=timedelta(seconds=1))
    result = app.tasks["t.add"].delay(1, 1)
    rows(database_url, "insert into job_queue (task_id, status, finished_at)"
                       " values ('old', 'completed', now() - interval '8 days')")
    start_worker(app="tests.support.tuned_app", TEST_OPTIONS=json.dumps(options), TEST_EXPIRES="1")
    wait_until(lambda: "old" not in left(database_url), "the old job is gone")
    if stays:
        wait_until(lambda: left(database_url) == {result.id: False}, "the result has expired, the job is there")
    else:
        wait_until(lambda: left(database_url) == {}, "the job is gone")


def test_a_worker_keeps_failures_for_longer(app: Celery, database_url: str, start_worker: Start) -> None:
    results = [app.tasks[f"t.{name}"].delay() for name in ("final", "boom")]
    start_worker(app="tests.support.tuned_app", TEST_EXPIRES="1", TEST_FAILURE_EXPIRES="86400")
    good = app.tasks["t.add"].delay(1, 1)
    wait_until(lambda: left(database_url) == {good.id: False, **dict.fromkeys((r.id for r in results), True)}, "only it expires")


def test_a_worker_that_finds_much_goes_on_soon(database_url: str, start_worker: Start) -> None:
    rows(database_url, "insert into job_queue (status, payload, finished_at) select 'completed', repeat('x', 1500),"
                       " now() - interval '9 days' from generate_series(1, 1900)")
    start_worker(app="tests.support.tuned_app")
    wait_until(lambda: one(database_url, "select count(*) from job_queue") < 1900, "the first step is done")
    wait_until(lambda: not left(database_url), "so are three more, at ten seconds a step it would take thirty", 15)
