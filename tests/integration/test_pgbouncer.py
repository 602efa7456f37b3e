"""Everything works through a pooler in transaction mode, by polling, and nothing is left behind on its connections."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery, chord, group
from celery.exceptions import TaskRevokedError

from celery_jobqueue.broker import pooling, settings
from celery_jobqueue.broker.session import Session
from celery_jobqueue.db import migrate
from tests.support import workers
from tests.support.app import make_app
from tests.support.database import fresh_database, one, rows
from tests.support.pgbouncer import POOL_SIZE, PgBouncer, left_behind, pgbouncer
from tests.support.waiting import wait_until
from tests.support.workers import Worker

pytestmark = pytest.mark.needs_pgbouncer

Start = Callable[..., Worker]
TAKEN = "is taken for a pooler in transaction mode"


@pytest.fixture(scope="module")
def pooler(server: str) -> Iterator[PgBouncer]:
    """A PgBouncer in front of the test server."""
    with pgbouncer(server) as running:
        yield running


@pytest.fixture
def direct_url(server: str) -> Iterator[str]:
    """An empty database, past the pooler."""
    with fresh_database(server) as url:
        yield url


@pytest.fixture
def url(direct_url: str, pooler: PgBouncer) -> str:
    """The same database through the pooler, migrated through it."""
    url = pooler.url(direct_url)
    assert [migration.line for migration in migrate.migrate(url, migrate.LINES)][::len(migrate.migrations("queue"))] == [
        "queue", "certificates"]
    return url


@pytest.fixture(params=["told"])
def said(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What applications say of the pooler: that it is there, or nothing."""
    return {"pooled": True} if request.param == "told" else {}


@pytest.fixture
def app(url: str, said: dict[str, Any]) -> Iterator[Celery]:
    """A client behind the pooler."""
    with closing(make_app(url, broker_transport_options=said)) as app:
        yield app
        app.backend.result_consumer.stop()


@pytest.fixture
def start(url: str, said: dict[str, Any], tmp_path: Path) -> Iterator[Start]:
    """Starts workers behind the pooler."""
    with ExitStack() as stack:
        def started(*options: str, **more: Any) -> Worker:
            return stack.enter_context(workers.worker(
                url, tmp_path, "tests.support.tuned_app", *options, TEST_OPTIONS=json.dumps({**said, **more}), TEST_RETRIES="1"))

        yield started


def job(url: str, task_id: str) -> dict[str, Any]:
    return rows(url, "select * from job_queue where task_id = %s", (task_id,))[0]


@pytest.mark.parametrize("said", ["told", "found out"], indirect=True)
def test_a_whole_life_through_the_pooler(said: dict[str, Any], app: Celery, url: str, direct_url: str, pooler: PgBouncer,
                                         start: Start, tmp_path: Path) -> None:
    assert migrate.migrate(url, migrate.LINES) == []
    worker = start()
    add = app.tasks["t.add"]
    results = [add.delay(n, n) for n in range(20)]
    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(20)]
    assert group(add.s(n, 1) for n in range(5))().get(timeout=20) == [1, 2, 3, 4, 5]
    assert chord([add.s(1, 1), add.s(2, 2)], app.tasks["celery.accumulate"].s(index=0))().get(timeout=30) == [2, 4]

    in_timer = add.apply_async((1, 2), countdown=1)
    in_table = one(direct_url, "select enqueue_job('t.add', '[3, 4]', run_at => now() + interval '1 second')::text")
    assert app.AsyncResult(in_table).get(timeout=20) == 7
    assert in_timer.get(timeout=20) == 3
    for task_id in (in_timer.id, in_table):
        row = job(direct_url, task_id)
        assert row["run_at"] <= row["started_at"]

    assert app.tasks["t.flaky"].delay(str(tmp_path / "runs"), 1).get(timeout=20) == "at last"
    assert app.tasks["t.again"].delay(2).get(timeout=20) == 2
    with pytest.raises(ValueError, match="kaput"):
        app.tasks["t.boom"].apply_async(("kaput",), max_attempts=1).get(timeout=20)

    assert app.control.inspect(timeout=10, limit=1).ping() == {worker.name: {"ok": "pong"}}
    mark = tmp_path / "mark"
    waiting = app.tasks["t.wait"].delay(str(mark))
    wait_until(mark.exists, "the task runs")
    waiting.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=20)
    assert one(direct_url, "select holds_lock from jobqueue.worker") is False

    # More clients than server connections, or this would prove little.
    database = direct_url.rpartition("/")[2]
    [pool] = [pool for pool in pooler.show("pools") if pool["database"] == database]
    assert pool["cl_active"] > POOL_SIZE >= pool["sv_active"] + pool["sv_idle"] + pool["sv_used"]
    assert worker.stop() == 0
    assert one(direct_url, "select count(*) from jobqueue.worker") == 0
    assert 'prepared statement "' not in worker.text + pooler.log
    assert "psycopg" not in worker.text
    assert worker.text.count(TAKEN) == (0 if said else 1), "who did not say so is told, once"
    if not said:
        assert "a LISTEN through it hears nothing" in worker.text
    statuses = rows(direct_url, "select status, count(*) as n from job_queue group by status")
    assert {row["status"]: row["n"] for row in statuses if row["status"] != "completed"} == {"failed": 2}

    clean = left_behind(url)
    assert len(clean) == POOL_SIZE
    assert set(map(str, clean.values())) == {"{}"}, clean
    assert_that_leaks_would_be_seen(url)


def assert_that_leaks_would_be_seen(url: str) -> None:
    """What a careless client leaves on its server connection."""
    with closing(psycopg.connect(url, autocommit=True, prepare_threshold=None)) as careless:
        careless.execute("listen something; set statement_timeout = 12345; set synchronous_commit = off; prepare p as select 1;"
                         "select pg_advisory_lock(5); create temp table t ()")
    [leaks] = [left for left in left_behind(url).values() if left]
    assert set(leaks) == {"listens", "settings", "prepared", "locks", "temporary", "synchronous_commit"}


def test_a_dead_worker_is_noticed_by_its_silence(app: Celery, direct_url: str, start: Start, tmp_path: Path) -> None:
    quick = {"heartbeat_interval": 0.5, "heartbeat_timeout": 1.5}
    dead = start("-c", "1", **quick)
    path = tmp_path / "run"
    running = app.send_task("t.run", (str(path),))
    [first] = wait_until(lambda: list(tmp_path.glob("run.*")), "it runs")
    other = start("-c", "1", **quick)
    # A long job on a live worker is never taken away, however long beyond the timeout it runs.
    wait_until(lambda: one(direct_url, "select started_at < now() - interval '3 seconds' from job_queue"), "it has run for long")
    assert (job(direct_url, running.id)["attempts"], job(direct_url, running.id)["worker"]) == (1, dead.name)
    assert one(direct_url, "select count(*) from jobqueue.worker where not holds_lock") == 2

    os.killpg(dead.process.pid, signal.SIGKILL)
    killed = one(direct_url, "select now()")
    [second] = wait_until(lambda: set(tmp_path.glob("run.*")) - {first}, "it runs again", 20)
    row = job(direct_url, running.id)
    assert 0.9 < (row["started_at"] - killed).total_seconds() < 6
    assert (row["attempts"], row["worker"], row["redelivered"]) == (2, other.name, True)
    assert "Worker lost" in row["error_message"]
    Path(f"{second}.go").touch()
    assert running.get(timeout=20) == int(second.suffix[1:])
    assert one(direct_url, "select count(*) from jobqueue.worker") == 1


def test_workers_and_clients_survive_a_restart_of_the_pooler(app: Celery, direct_url: str, pooler: PgBouncer, start: Start,
                                                             tmp_path: Path) -> None:
    worker = start("-c", "1")
    mark = tmp_path / "mark"
    running = app.tasks["t.wait"].delay(str(mark))
    wait_until(mark.exists, "the task runs")
    pooler.stop()
    Path(f"{mark}.go").touch()  # it ends while nobody can be told
    wait_until(lambda: "Connection refused" in worker.text or "onnection to broker lost" in worker.text, "the worker has noticed")
    pooler.start()
    assert running.get(timeout=30) == "went"
    assert app.tasks["t.add"].delay(1, 1).get(timeout=30) == 2
    wait_until(lambda: job(direct_url, running.id)["status"] == "completed", "the row says so too")
    assert job(direct_url, running.id)["attempts"] == 1


def test_in_session_mode_everything_is_as_without_a_pooler(server: str, database_url: str, tmp_path: Path) -> None:
    """LISTEN and session locks work there, and are used."""
    with pgbouncer(server, "session") as pooler:
        url = pooler.url(database_url)
        with (closing(make_app(url)) as app, workers.worker(url, tmp_path, "tests.support.app", TEST_RETRIES="1") as worker):
            assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
            asleep = "select idle and holds_lock from jobqueue.worker"
            wait_until(lambda: one(database_url, asleep), "the worker sleeps, and has its lock")
            began = time.monotonic()
            assert app.tasks["t.add"].delay(2, 2).get(timeout=20) == 4
            assert time.monotonic() - began < 3, "it was woken: it looks by itself every 5 s"
            assert app.tasks["t.flaky"].delay(str(tmp_path / "runs"), 1).get(timeout=20) == "at last"
            assert chord([app.tasks["t.add"].s(1, 1)] * 2, app.tasks["celery.accumulate"].s(index=0))().get(timeout=20) == [2, 2]
            assert app.control.inspect(timeout=10, limit=1).ping() == {worker.name: {"ok": "pong"}}
            assert worker.stop() == 0
            assert one(database_url, "select count(*) from jobqueue.worker") == 0
            assert TAKEN not in worker.text
            assert 'prepared statement "' not in worker.text + pooler.log
            app.backend.result_consumer.stop()


def test_a_pooler_that_is_found_out_stays_clean(url: str, direct_url: str) -> None:
    """The look for it is a LISTEN, on a connection that others use after it."""
    found = settings.from_url(url, {})
    with closing(Session(found.conninfo)) as session:
        session.connect()
        assert (session.direct, pooling.changes_hands(found, session)) == (False, True)
    assert set(map(str, left_behind(url).values())) == {"{}"}
    direct = settings.from_url(direct_url, {})
    with closing(Session(direct.conninfo)) as session:
        session.connect()
        assert (session.direct, pooling.changes_hands(direct, session)) == (True, False)


def test_who_denies_the_pooler_is_told_and_works_all_the_same(url: str, direct_url: str, tmp_path: Path) -> None:
    """`pooled` is False by mistake: prepared statements get lost, each process prepares none from then on."""
    options = json.dumps({"pooled": False})
    with (closing(make_app(direct_url)) as app,
          workers.worker(url, tmp_path, "tests.support.tuned_app", "-c", "2", TEST_OPTIONS=options) as first,
          workers.worker(url, tmp_path, "tests.support.tuned_app", "-c", "2", TEST_OPTIONS=options) as second):
        results = [app.tasks["t.add"].delay(n, 1) for n in range(100)]
        assert [result.get(timeout=60) for result in results] == [n + 1 for n in range(100)]
        wait_until(lambda: "Is there a pooler in transaction mode? Then set" in first.text + second.text, "it is said")
        assert [running.process.poll() for running in (first, second)] == [None, None]
        assert all(running.text.count("Connected to") <= 3 for running in (first, second)), "no storm"
        assert one(direct_url, "select max(total_starts) from job_queue") == 1
        app.backend.result_consumer.stop()
