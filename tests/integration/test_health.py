"""job_queue_health: how the queue is, in one row that costs little, for whoever watches."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from celery_jobqueue.db import embedded
from tests.support import supabase, workers
from tests.support.app import make_app
from tests.support.database import one, rows
from tests.support.flower import flower
from tests.support.waiting import wait_until

HEALTH = "select * from job_queue_health"


def health(url: str) -> dict[str, Any]:
    [row] = rows(url, HEALTH)
    return row


def seconds(interval: Any) -> float:
    return float(interval.total_seconds())


def job(url: str, **columns: Any) -> None:
    names = ", ".join(columns)
    values = ", ".join(["%s"] * len(columns))
    rows(url, f"insert into job_queue (id, task_name, {names}) values (jobqueue.new_id(), 't.add', {values})",
         tuple(columns.values()))


def minutes_ago(number: float) -> datetime:
    return datetime.now(UTC) - timedelta(minutes=number)


def test_an_empty_queue_is_well(database_url: str) -> None:
    row = health(database_url)
    expected = {"depth": 0, "oldest_pending": None, "scheduled": 0, "reserved": 0, "processing": 0, "longest_running": None,
                "stuck": 0, "failed_last_hour": 0, "workers": 0, "dead_tuples": 0}
    assert {name: row[name] for name in expected} == expected


def test_it_tells_of_every_trouble(database_url: str, tmp_path: Path) -> None:
    job(database_url, queue="a", run_at=minutes_ago(1.5))
    job(database_url, queue="b", priority=1)
    job(database_url, queue="b", run_at=minutes_ago(-1440))
    job(database_url, queue="b", status="failed", finished_at=minutes_ago(59))
    job(database_url, queue="b", status="failed", finished_at=minutes_ago(61))
    # A worker that has died and nobody to notice it; a lease that has ended, and one that has not.
    job(database_url, status="processing", owner=uuid.uuid4(), started_at=minutes_ago(10))
    job(database_url, owner=uuid.uuid4())
    nobody = uuid.UUID(int=0)
    job(database_url, status="processing", owner=nobody, started_at=minutes_ago(1),
        leased_until=minutes_ago(0.1))
    job(database_url, status="processing", owner=nobody, started_at=minutes_ago(1),
        leased_until=minutes_ago(-60))
    row = health(database_url)
    expected = {"depth": 2, "scheduled": 1, "reserved": 1, "processing": 3, "stuck": 3, "failed_last_hour": 1, "workers": 0}
    assert {name: row[name] for name in expected} == expected
    assert 90 <= seconds(row["oldest_pending"]) < 150
    assert 600 <= seconds(row["longest_running"]) < 660
    assert row["table_bytes"] > 0
    # With a worker they are taken back.
    with workers.worker(database_url, tmp_path, "tests.support.app", "-Q", "nothing"):
        wait_until(lambda: health(database_url)["stuck"] == 0, "the dead worker's jobs are taken back")
        assert health(database_url)["workers"] == 1


def test_a_snapshot_that_is_held_open_shows(database_url: str) -> None:
    with psycopg.connect(database_url) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select count(*) from job_queue")
        began = one(database_url, "select clock_timestamp()")
        wait_until(lambda: one(database_url, "select clock_timestamp() - %s > interval '1 second'", (began,)), "a second passes")
        row = health(database_url)
        assert 1 <= seconds(row["oldest_snapshot"]) < 60
        assert row["hidden_sessions"] == 0
    wait_until(lambda: health(database_url)["oldest_snapshot"] is None, "nobody holds a snapshot any more")


def test_looking_reads_no_more_than_it_counts(database_url: str) -> None:
    """No scan of the table and no more than 10,000 of each, whatever lies there and however old its statistics."""
    for number, columns, values in ((30_000, "", ""), (30_000, ", run_at", ", now() + interval '1 day'"),
                                    (15_000, ", status, finished_at", ", 'failed', now()"),
                                    (12_000, ", status, owner, started_at", ", 'processing', gen_random_uuid(), now()")):
        rows(database_url, f"insert into job_queue (id, task_name{columns}) select jobqueue.new_id(), 't.add'{values}"
                           f" from generate_series(1, {number})")

    def read() -> dict[str, int]:
        return {row["name"]: row["n"] for row in rows(database_url, """
            select 'table' as name, seq_tup_read as n from pg_stat_user_tables where relname = 'job_queue'
             union all select indexrelname, idx_tup_read from pg_stat_user_indexes where relname = 'job_queue'""")}

    def used() -> dict[str, int]:
        return {name: n - before[name] for name, n in read().items() if n != before[name]}

    before = read()
    row = health(database_url)
    assert [row[name] for name in ("depth", "scheduled", "processing", "stuck", "failed_last_hour")] == [10_000] * 5
    tuples = wait_until(used, "the server has counted")
    assert 20_000 <= tuples.pop("job_queue_claim") < 20_100
    assert tuples == dict.fromkeys(["job_queue_owner", "job_queue_failed"], 10_000)


def test_flower_shows_it_to_prometheus(database_url: str, tmp_path: Path) -> None:
    job(database_url, status="processing", owner=uuid.uuid4(), started_at=minutes_ago(5))
    with flower(database_url, tmp_path) as site:
        gauges = site.metrics()
        assert gauges["jobqueue_up",] == 1
        assert gauges["jobqueue_stuck_jobs",] == 1
        assert 300 <= gauges["jobqueue_longest_running_seconds",] < 400
        assert gauges["jobqueue_table_bytes",] > 0
        assert {name for (name, *_) in gauges} >= {f"jobqueue_{name}" for name in (
            "oldest_snapshot_seconds", "hidden_sessions", "workers", "live_tuples", "dead_tuples")}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own, set up as Supabase's."""
    home = tmp_path_factory.mktemp("supabase")
    url = embedded.ensure(home)
    supabase.prepare(url)
    yield url
    embedded.down(home)


def test_a_monitor_sees_it_and_what_its_owner_may_not_see_is_counted(cluster: str) -> None:
    """Where the tables' owner is no superuser other sessions are hidden from it. It says so, rather than that there are none."""
    with supabase.project(cluster) as url, closing(make_app(supabase.login(url, supabase.PUBLISHER))) as app:
        app.send_task("t.add", (1, 2))
        monitor = supabase.login(url, supabase.MONITOR)
        with psycopg.connect(supabase.login(url, supabase.STRANGER)) as holder:
            holder.execute("set transaction isolation level repeatable read")
            holder.execute("select 1")
            row = health(monitor)
            assert row["depth"] == 1
            assert row["hidden_sessions"] >= 1
            rows(url, "grant pg_read_all_stats to postgres")
            row = health(monitor)
            assert row["hidden_sessions"] == 0
            assert seconds(row["oldest_snapshot"]) > 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            health(supabase.login(url, supabase.STRANGER))
        refused = pytest.raises(psycopg.errors.InsufficientPrivilege)
        with supabase.request(url, "authenticated", {"sub": "alice"}) as conn, refused:
            conn.execute(HEALTH)
