"""A server that cannot do the work right now: it is waited for, not stormed; nothing is lost, and the log says what is wrong."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_jobqueue.broker import enqueue_many, jobs_in
from celery_jobqueue.db import migrate, needed
from celery_jobqueue.db.errors import SchemaError
from tests.support.app import make_app
from tests.support.database import fresh_database, one, rows, sibling
from tests.support.disk import Disk, small_disk
from tests.support.waiting import wait_until
from tests.support.workers import Worker, worker

Start = Callable[..., Worker]
REFUSED = "PostgreSQL refuses the queue's work"


@pytest.fixture
def disk(server: str, template: str, tmp_path: Path) -> Iterator[Disk]:
    """A database on a disk that can be filled."""
    with small_disk(server, template, tmp_path / "disk") as found:
        yield found


def set_for_database(url: str, setting: str, value: str) -> None:
    """What connections find from now on."""
    rows(url, f"alter database {urlsplit(url).path[1:]} set {setting} = '{value}'")


def connections(running: Worker) -> int:
    """How often it has connected."""
    return running.text.count("Connected to")


def statuses(url: str) -> dict[str, int]:
    return {row["status"]: row["n"] for row in rows(url, "select status, count(*) as n from job_queue group by status")}


# -- a full disk -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_loses_no_job_and_starts_no_storm(disk: Disk, tmp_path: Path) -> None:
    """Publishers get an error; workers say what is wrong, keep their connection and go on when there is room again."""
    rows(disk.url, "alter table job_queue set (fillfactor = 100)")  # no page has room for a row's next version
    options = json.dumps({"heartbeat_interval": 0.5})
    with (closing(make_app(disk.url)) as app,
          worker(disk.url, tmp_path, "tests.support.tuned_app", TEST_OPTIONS=options) as running):
        mark = tmp_path / "mark"
        held = app.tasks["t.wait"].delay(str(mark))
        wait_until(mark.exists, "a job runs")
        record, published = app.tasks["t.record"], [held.id]
        arguments = [(str(tmp_path / "ran"), str(n)) for n in range(3000)]
        with psycopg.connect(disk.url) as conn:
            with jobs_in(conn):
                published += [record.delay(*each).id for each in arguments[:400]]
            disk.fill()  # before the worker may see one of them
        with pytest.raises(psycopg.errors.DiskFull):
            enqueue_many(record, arguments)
        wait_until(lambda: REFUSED in running.text, "the worker says so")
        assert "No space left" in running.text
        Path(f"{mark}.go").touch()  # its result cannot be stored now
        began, before = time.monotonic(), running.text.count(REFUSED)
        wait_until(lambda: time.monotonic() - began > 3, "it stays full for a while")
        said = running.text.count(REFUSED) - before
        assert (said <= 3, connections(running)) == (True, 1), "a word of each process at most, and no storm of connections"
        disk.free()
        assert held.get(timeout=40) == "went"
        wait_until(lambda: set(statuses(disk.url)) == {"completed"}, "all end", 60)
        assert {row["task_id"] for row in rows(disk.url, "select task_id from job_queue")} == set(published)
        assert len((tmp_path / "ran").read_text().split()) == len(published) - 1, "each ran once"
        app.backend.result_consumer.stop()


# -- settings and locks ----------------------------------------------------------------------------------------------------


def test_a_timeout_of_the_server_is_waited_out(app: Celery, database_url: str, start_worker: Start) -> None:
    set_for_database(database_url, "statement_timeout", "300ms")
    running = start_worker("-c", "1")
    with psycopg.connect(database_url) as somebody:
        somebody.execute("lock table job_queue in share mode")  # as CREATE INDEX does
        wait_until(lambda: REFUSED in running.text, "the worker says so")
        began = one(database_url, "select now()")
        wait_until(lambda: one(database_url, "select now() - %s > interval '3 seconds'", (began,)), "it goes on for a while")
        somebody.rollback()
    results = [app.tasks["t.add"].delay(n, 1) for n in range(5)]
    assert [result.get(timeout=20) for result in results] == [n + 1 for n in range(5)]
    assert (connections(running), running.text.count(REFUSED)) == (1, 1)


def test_a_deadlock_costs_a_moment(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    """Somebody locks two rows the other way round than the worker that completes them in one batch."""
    set_for_database(database_url, "deadlock_timeout", "3s")
    running = start_worker("-c", "2", TEST_IGNORE="1")
    app.conf.task_ignore_result = True
    jobs = [app.tasks["t.wait"].delay(str(tmp_path / f"mark{n}")).id for n in range(2)]
    wait_until(lambda: all((tmp_path / f"mark{n}").exists() for n in range(2)), "both run")
    lock = "select from job_queue where task_id = %s for update"
    waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    with psycopg.connect(database_url) as first, psycopg.connect(database_url) as second:
        first.execute("lock table jobqueue.worker in access exclusive mode")
        wait_until(lambda: one(database_url, waits) == 1, "the worker's batch waits for its heartbeat")
        for n in range(2):
            (tmp_path / f"mark{n}.go").touch()
            wait_until(lambda n=n: f"Task t.wait[{jobs[n]}] succeeded" in running.text, "its end waits for the next batch")
        second.execute("set deadlock_timeout = '1h'")  # so it is the worker that is told
        second.execute(lock, (jobs[1],))
        first.rollback()
        wait_until(lambda: one(database_url, waits) == 1, "the worker has the one and waits for the other")
        second.execute(lock, (jobs[0],))  # as soon as the worker has given up
        second.rollback()
    wait_until(lambda: statuses(database_url) == {"completed": 2}, "both are completed")
    assert one(database_url, "select sum(attempts) from job_queue") == 2
    assert "deadlock detected" in running.text
    assert connections(running) == 1


def test_an_isolation_that_makes_transactions_fail_loses_nothing(app: Celery, database_url: str, start_worker: Start,
                                                                 tmp_path: Path) -> None:
    set_for_database(database_url, "default_transaction_isolation", "serializable")
    workers = [start_worker("-c", "2") for _ in range(2)]
    record = app.tasks["t.record"]
    with app.producer_or_acquire() as producer, producer.batch():
        for n in range(200):
            record.apply_async((str(tmp_path / "ran"), str(n)), producer=producer)

    def done() -> bool:
        try:
            return statuses(database_url) == {"completed": 200}
        except psycopg.errors.SerializationFailure:
            return False

    wait_until(done, "all are completed", 60)
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(200)), "each ran once"
    assert [connections(running) for running in workers] == [1, 1]


# -- schemas and versions --------------------------------------------------------------------------------------------------


def test_a_missing_schema_stops_worker_and_publisher_with_the_remedy(empty_database_url: str, tmp_path: Path) -> None:
    with closing(make_app(empty_database_url)) as app, pytest.raises(SchemaError, match=r"is missing in .*jobqueue migrate"):
        app.tasks["t.add"].delay(1, 1)
    with worker(empty_database_url, tmp_path, "tests.support.app", ready=False) as running:
        assert running.process.wait(30) != 0
        assert "schema is missing" in running.text
        assert "run `jobqueue migrate`" in running.text
        assert ":**@" in running.text


def test_an_older_schema_stops_too(app: Celery, database_url: str) -> None:
    rows(database_url, "delete from jobqueue.migration where line = 'queue' and version = %s", (needed.newest("queue"),))
    with pytest.raises(SchemaError, match=rf"is version \d+, this code needs {needed.newest('queue')} .*jobqueue migrate"):
        app.tasks["t.add"].delay(1, 1)


def test_a_newer_schema_is_told_of_once_and_works_as_long_as_it_can(app: Celery, database_url: str, start_worker: Start) -> None:
    """While a deployment is under way the schema is ahead of the workers that are still to be replaced."""
    newest = needed.newest("queue")
    rows(database_url, "insert into jobqueue.migration (line, version, name, sha256) values ('queue', %s, 'future', '')",
         (newest + 1,))
    running = start_worker()
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    told = f"is version {newest + 1}, newer than this code ({newest}): upgrade celery-jobqueue"
    rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                       " and pid <> pg_backend_pid()")
    assert app.tasks["t.add"].delay(2, 1).get(timeout=20) == 3
    assert running.text.count(told) == 1


def test_a_schema_that_vanishes_under_a_worker_stops_it_with_the_remedy(app: Celery, database_url: str,
                                                                      start_worker: Start) -> None:
    running = start_worker()
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    rows(database_url, "drop function jobqueue.claim, jobqueue.publish_one")
    assert running.process.wait(30) != 0
    assert "Unrecoverable error: SchemaError" in running.text
    assert "run `jobqueue migrate`, or upgrade celery-jobqueue" in running.text
    with pytest.raises(SchemaError, match=r"jobqueue\.publish_one.*run `jobqueue migrate`"):
        app.tasks["t.add"].delay(1, 1)


def test_a_server_that_is_too_old_is_named(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "OLDEST_SERVER", 99)
    with pytest.raises(SchemaError, match=r"PostgreSQL \d+ in .* is too old: this needs 99 or newer"):
        app.tasks["t.add"].delay(1, 1)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_is_not_utf_8_is_named_with_the_remedy(encoding: str, server: str, tmp_path: Path) -> None:
    """Whoever comes first: the migration, a publisher, a worker. The remedy works."""
    named = rf"encoding of the database.* is {encoding}, .* CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
    with fresh_database(server, encoding=encoding) as url:
        with pytest.raises(SchemaError, match=named):
            migrate.migrate(url)
        assert one(url, "select to_regnamespace('jobqueue') is null")
        with closing(make_app(url)) as app, pytest.raises(SchemaError, match=named):
            app.tasks["t.add"].delay(1, 1)
        with worker(url, tmp_path, "tests.support.app", ready=False) as running:
            assert running.process.wait(30) != 0
            assert re.search(f"Unrecoverable error: SchemaError.*{named}", running.text)
        name = urlsplit(url).path[1:] + "_anew"
        rows(server, f"create database {name} encoding 'UTF8' template template0 locale 'C'")
        try:
            assert migrate.migrate(sibling(url, name))
        finally:
            rows(server, f"drop database {name}")


def test_a_role_with_another_client_encoding_migrates(empty_database_url: str) -> None:
    """Comments of the schema hold characters that LATIN1 has not."""
    set_for_database(empty_database_url, "client_encoding", "LATIN1")
    assert migrate.migrate(empty_database_url)


def test_a_server_that_takes_no_writes_says_so(app: Celery, database_url: str, start_worker: Start) -> None:
    """A standby that nobody has promoted yet, and the URL names no other host."""
    running = start_worker("-c", "1")
    set_for_database(database_url, "default_transaction_read_only", "on")
    rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity"
                       " where datname = current_database() and pid <> pg_backend_pid()")
    wait_until(lambda: "takes no writes, as a standby does" in running.text, "the worker says so")
    with pytest.raises(OperationalError, match="takes no writes"):
        app.tasks["t.add"].delay(1, 1)
    began = one(database_url, "select now()")
    wait_until(lambda: one(database_url, "select now() - %s > interval '3 seconds'", (began,)), "it stays so for a while")
    assert running.text.count("takes no writes") < 3
    set_for_database(f"{database_url}?options=-cdefault_transaction_read_only%3Doff", "default_transaction_read_only", "off")
    assert app.tasks["t.add"].delay(2, 2).get(timeout=20) == 4
    assert running.process.poll() is None


def test_workers_of_a_pool_without_event_loop_wait_too(app: Celery, database_url: str) -> None:
    """Consumers that block (gevent, synloop): refused is not lost, and not busy."""
    set_for_database(database_url, "lock_timeout", "100ms")
    result = app.tasks["t.add"].delay(1, 1)
    with ExitStack() as stack:
        connection = stack.enter_context(app.connection_for_read())
        consumer = stack.enter_context(app.amqp.TaskConsumer(
            connection, accept=["json"], callbacks=[lambda _body, message: message.ack()]))
        somebody = stack.enter_context(psycopg.connect(database_url))
        somebody.execute("lock table jobqueue.worker in access exclusive mode")
        trouble = consumer.channel.connection.cycle_.trouble
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=2)
        assert trouble.until > 0
        somebody.rollback()
        connection.drain_events(timeout=10)
        wait_until(lambda: one(database_url, "select status from job_queue") == "completed", "it is settled")
        assert result.id
