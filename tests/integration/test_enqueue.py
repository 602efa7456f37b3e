"""jobs_in(): jobs appear with the application's own data, or not at all."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from celery import Celery, chain, chord, group
from kombu import Exchange, Queue

from celery_jobqueue.broker import jobs_in
from celery_jobqueue.db.errors import InvalidJob
from tests.support.database import one, rows
from tests.support.transactions import ASYNC, SYNC, opened, opened_async
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]
BROKER = "the_broker_itself"


@pytest.fixture
def url(database_url: str) -> str:
    """The test's database, with a table of the application's own."""
    rows(database_url, "create table ledger (entry text not null)")
    return database_url


@pytest.fixture
def app(make_client: Callable[..., Celery], url: str) -> Celery:
    """A client whose own connections can be told from the application's."""
    return make_client(broker_url=f"{url}?application_name={BROKER}", result_backend=f"{url}?application_name={BROKER}")


def jobs(url: str) -> list[dict[str, Any]]:
    return rows(url, "select * from job_queue order by priority, run_at, id")


def entries(url: str) -> list[str]:
    return [row["entry"] for row in rows(url, "select entry from ledger order by entry")]


def own_connections(url: str) -> int:
    return int(one(url, "select count(*) from pg_stat_activity where application_name = %s", (BROKER,)))


# -- with the commit, or never ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SYNC)
def test_jobs_appear_with_the_commit_and_no_connection_but_the_callers(kind: str, app: Celery, url: str) -> None:
    add = app.tasks["t.add"]
    with opened(kind, url) as transaction:
        with jobs_in(transaction.target):
            transaction.execute("insert into ledger values ('paid')")
            first = add.delay(1, 2)
            second = add.apply_async((3, 4), priority=9, max_attempts=7, countdown=60, user_id="u-1")
        assert jobs(url) == []
        transaction.commit()
        assert own_connections(url) == 0
    assert entries(url) == ["paid"]
    plain, urgent = jobs(url)
    assert (plain["task_id"], json.loads(plain["payload"])[:2], plain["max_attempts"]) == (first.id, [[1, 2], {}], 3)
    assert (urgent["task_id"], urgent["priority"], urgent["max_attempts"], urgent["user_id"]) == (second.id, 9, 7, "u-1")
    assert urgent["run_at"] > plain["run_at"]


@pytest.mark.parametrize("kind", ASYNC)
def test_the_same_awaited(kind: str, app: Celery, url: str) -> None:
    async def scenario() -> None:
        async with opened_async(kind, url) as transaction:
            for entry in ("kept", "lost"):
                await transaction.execute(f"insert into ledger values ('{entry}')")
                async with jobs_in(transaction.target):
                    app.tasks["t.add"].delay(entry, "")
                assert not [job for job in jobs(url) if entry in job["payload"]]
                await (transaction.commit() if entry == "kept" else transaction.rollback())

    asyncio.run(scenario())
    assert entries(url) == ["kept"]
    [job] = jobs(url)
    assert "kept" in job["payload"]
    assert own_connections(url) == 0


@pytest.mark.parametrize("kind", SYNC)
def test_a_rollback_leaves_nothing(kind: str, app: Celery, url: str) -> None:
    add = app.tasks["t.add"]
    with opened(kind, url) as transaction:
        with jobs_in(transaction.target):
            transaction.execute("insert into ledger values ('paid')")
            group(add.s(1, 1), add.s(2, 2))()
            chain(add.s(1, 1), add.s(2))()
            chord([add.s(1, 1), add.s(2, 2)])(app.tasks["celery.accumulate"].s())
        transaction.rollback()
    assert (entries(url), jobs(url)) == ([], [])
    assert one(url, "select count(*) from jobqueue.chord") == 0


@pytest.mark.parametrize("kind", SYNC)
def test_a_savepoint_takes_its_jobs_with_it(kind: str, app: Celery, url: str) -> None:
    add = app.tasks["t.add"]
    with opened(kind, url) as transaction:
        transaction.execute("insert into ledger values ('kept')")
        with jobs_in(transaction.target):
            add.delay("kept", "")
        with suppress(ZeroDivisionError), transaction.savepoint():
            with jobs_in(transaction.target):
                add.delay("lost", "")
            raise ZeroDivisionError
        with transaction.savepoint(), jobs_in(transaction.target):
            add.delay("kept too", "")
        transaction.commit()
    assert [job["payload"].split('"')[1] for job in jobs(url)] == ["kept", "kept too"]


def test_a_savepoint_of_an_awaited_session_too(app: Celery, url: str) -> None:
    async def scenario() -> None:
        async with opened_async("async session", url) as transaction:
            savepoint = await transaction.savepoint()
            async with jobs_in(transaction.target):
                app.tasks["t.add"].delay("lost", "")
            await savepoint.rollback()
            await transaction.target.run_sync(in_run_sync)
            await transaction.commit()

    def in_run_sync(session: Any) -> None:
        with jobs_in(session):
            app.tasks["t.add"].delay("kept", "")

    asyncio.run(scenario())
    [job] = jobs(url)
    assert "kept" in job["payload"]


@pytest.mark.parametrize("kind", ["psycopg", "session"])
def test_an_exception_in_the_block_writes_no_job_and_takes_nothing_else_away(kind: str, app: Celery, url: str) -> None:
    with opened(kind, url) as transaction:
        with suppress(ZeroDivisionError), jobs_in(transaction.target):
            transaction.execute("insert into ledger values ('paid')")
            app.tasks["t.add"].delay(1, 1)
            raise ZeroDivisionError
        transaction.commit()
    assert (entries(url), jobs(url)) == (["paid"], [])


def test_a_job_that_cannot_be_stored_is_refused_at_its_own_call(app: Celery, url: str) -> None:
    add = app.tasks["t.add"]
    with opened("psycopg", url) as transaction:
        with jobs_in(transaction.target):
            with pytest.raises(InvalidJob, match="priority"):
                add.apply_async((1, 1), priority=11)
            good = add.delay(1, 1)
        transaction.commit()
    assert [job["task_id"] for job in jobs(url)] == [good.id]


def test_thousands_of_jobs_keep_their_order(app: Celery, url: str) -> None:
    add = app.tasks["t.add"]
    with opened("psycopg", url) as transaction:
        with jobs_in(transaction.target):
            ids = [add.apply_async((n, n), **({"max_attempts": 2} if n % 2 else {})).id for n in range(2500)]
        transaction.commit()
    assert [job["task_id"] for job in jobs(url)] == ids


# -- who is in the block ---------------------------------------------------------------------------------------------------


def test_the_innermost_block_counts(app: Celery, url: str) -> None:
    add = app.tasks["t.add"]
    with opened("psycopg", url) as outer, opened("session", url) as inner:
        with jobs_in(outer.target):
            add.delay("outer", "")
            with jobs_in(inner.target):
                add.delay("inner", "")
            with suppress(ZeroDivisionError), jobs_in(outer.target):
                add.delay("lost", "")
                raise ZeroDivisionError
            add.delay("outer too", "")
        inner.commit()
        assert [job["payload"].split('"')[1] for job in jobs(url)] == ["inner"]
        outer.commit()
    assert sorted(job["payload"].split('"')[1] for job in jobs(url)) == ["inner", "outer", "outer too"]


def test_other_threads_and_what_goes_on_after_the_block_publish_by_themselves(app: Celery, url: str) -> None:
    add = app.tasks["t.add"]

    async def scenario() -> None:
        over = asyncio.Event()

        async def later() -> None:
            await over.wait()
            add.delay("later", "")

        async with opened_async("async psycopg", url) as transaction:
            async with jobs_in(transaction.target):
                thread = Thread(target=add.delay, args=("thread", ""))
                thread.start()
                thread.join()
                started = asyncio.create_task(later())  # carries a copy of the block's context
            over.set()
            await started
            await transaction.rollback()

    asyncio.run(scenario())
    assert [job["payload"].split('"')[1] for job in jobs(url)] == ["thread", "later"]


def test_a_pooled_producer_publishes_as_ever_after_the_block(app: Celery, url: str) -> None:
    """The pool's connection was not opened in the block, and what it seemed to declare there was rolled back."""
    app.conf.update(broker_pool_limit=1, task_default_queue="media",
                    task_queues=[Queue("media", Exchange("media", type="direct"), routing_key="video")])
    options = {"exchange": "media", "routing_key": "video"}
    for used_before in (False, True):
        with opened("psycopg", url) as transaction:
            with jobs_in(transaction.target):
                app.tasks["t.add"].apply_async((1, 1), **options)
            transaction.rollback()
        assert (jobs(url), one(url, "select count(*) from jobqueue.binding")) == ([], 0)
        if not used_before:
            with app.pool.acquire() as connection:
                connection.default_channel.queue_declare("other")
    app.tasks["t.add"].apply_async((2, 2), **options)
    assert [job["queue"] for job in jobs(url)] == ["media"]


# -- how it gets there -----------------------------------------------------------------------------------------------------


def test_exchanges_route_in_the_transaction_and_nobody_waits_for_anybodys_commit(make_client: Callable[..., Celery],
                                                                                 url: str) -> None:
    media = Queue("media", Exchange("media", type="topic"), routing_key="media.#")
    clients = [make_client(broker_url=f"{url}?application_name=client{n}",  # a pool of its own: none knows what others declared
                           task_queues=[media], task_default_queue="media") for n in range(3)]
    options = {"exchange": "media", "routing_key": "media.video"}
    with opened("psycopg", url) as first, opened("session", url) as second:
        for client, transaction in zip(clients, (None, first, second), strict=True):
            if transaction is None:
                client.tasks["t.add"].apply_async((0, 0), **options)
                continue
            transaction.execute("set local lock_timeout = '5s'")
            with jobs_in(transaction.target):
                client.tasks["t.add"].apply_async((1, 1), **options)
        first.commit()
        second.commit()
    assert [job["queue"] for job in jobs(url)] == ["media"] * 3


def test_events_and_broadcast_tasks_go_out_with_the_commit(app: Celery, url: str) -> None:
    app.conf.task_send_sent_event = True
    heard: list[str] = []
    everybody = Queue("everybody.1", Exchange("everybody", type="fanout"), auto_delete=True)
    with app.connection_for_read() as connection, opened("psycopg", url) as transaction, connection.channel() as channel:
        events = Queue("listener", app.events.Receiver(connection).exchange, routing_key="task.sent", auto_delete=True)
        for queue in (everybody, events):
            queue(channel).declare()
            queue(channel).consume(callback=lambda message: heard.append(message.queue), no_ack=True)
        with jobs_in(transaction.target):
            app.tasks["t.add"].apply_async((1, 1), exchange=everybody.exchange, routing_key="everybody")
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)
        transaction.commit()
        wait_until(lambda: len(heard) == 2 or connection.drain_events(timeout=5), "both come")
    assert sorted(heard) == ["everybody.1", "listener"]
    assert jobs(url) == []


def test_one_notification_per_transaction_and_queue(app: Celery, url: str) -> None:
    add = app.tasks["t.add"]
    with psycopg.connect(url, autocommit=True) as listener, opened("session", url) as transaction:
        for queue in ("one", "two"):
            listener.execute(f"listen jq_{one(url, 'select md5(%s)', (queue,))}")
        for _ in range(3):
            with jobs_in(transaction.target):
                for queue in ("one", "two", "two"):
                    add.apply_async((1, 1), queue=queue)
        assert list(listener.notifies(timeout=0.2)) == []
        transaction.commit()
        heard = [notice.channel for notice in listener.notifies(timeout=5, stop_after=2)]
        assert len(set(heard)) == 2
        assert list(listener.notifies(timeout=0.2)) == []


def test_a_worker_sees_nothing_before_the_commit_and_starts_at_once_after_it(app: Celery, url: str, start_worker: Start) -> None:
    start_worker()
    add = app.tasks["t.add"]
    waited: list[float] = []
    with opened("session", url) as transaction:
        for _ in range(5):
            with jobs_in(transaction.target):
                held = add.delay(1, 1)
                assert app.control.ping(timeout=5, limit=1), "remote control is not part of the transaction"
            assert add.delay(2, 2).get(timeout=20) == 4  # the worker has looked
            assert held.state == "PENDING"
            wait_until(lambda: rows(url, "select id from jobqueue.worker where idle"), "it sleeps, and polls every 5 s only")
            transaction.commit()
            committed = time.monotonic()
            assert held.get(timeout=20) == 2
            waited.append(time.monotonic() - committed)
    assert min(waited) < 0.5, waited


def test_a_canvas_of_each_kind_runs_after_the_commit(app: Celery, url: str, start_worker: Start) -> None:
    start_worker()
    add = app.tasks["t.add"]
    for kind in ("psycopg", "session", "connection"):
        with opened(kind, url) as transaction:
            with jobs_in(transaction.target):
                grouped = group(add.s(n, n) for n in range(5))()
                chained = chain(add.s(1, 1), add.s(2), group(add.s(3), add.s(4)))()
                chorded = chord([add.s(n, n) for n in range(3)])(app.tasks["celery.accumulate"].s())
            transaction.commit()
            assert grouped.get(timeout=30) == [0, 2, 4, 6, 8]
            assert chained.get(timeout=30) == [7, 8]
            assert chorded.get(timeout=30) == [[0, 2, 4]]
    wait_until(lambda: one(url, "select count(*) from job_queue where status <> 'completed'") == 0, "all are completed")


def test_a_task_may_enqueue_and_retry_in_the_same_breath(app: Celery, url: str, start_worker: Start) -> None:
    """Task.retry publishes the running job anew: that is no part of a transaction that its exception rolls back."""
    start_worker(app="tests.support.finishing_app")
    result = app.send_task("f.retry_in_block")
    assert result.get(timeout=30) == 1
    assert entries(url) == ["second run"]
    assert [(job["task_name"], job["status"], job["total_starts"]) for job in jobs(url)] == [("f.retry_in_block", "completed", 2)]


# -- many at once, without a transaction of the application's ------------------------------------------------------------------


def test_the_application_itself_sends_all_or_nothing(app: Celery, url: str) -> None:
    add = app.tasks["t.add"]
    with jobs_in(app):
        group(add.s(n, n) for n in range(20))()
        add.apply_async((1, 1), max_attempts=2)
    assert one(url, "select count(*) from job_queue") == 21
    assert one(url, "select count(distinct created_at) from job_queue") == 1, "one transaction"
    with suppress(ZeroDivisionError), jobs_in(app):
        add.delay(1, 1)
        raise ZeroDivisionError
    assert one(url, "select count(*) from job_queue") == 21


def sibling_name(url: str) -> str:
    """The same database by another host name."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.replace("127.0.0.1", "localhost")))


def test_the_database_may_have_several_names(app: Celery, url: str) -> None:
    with opened("psycopg", sibling_name(url)) as transaction:
        with jobs_in(transaction.target):
            app.tasks["t.add"].delay(1, 1)
        transaction.commit()
    assert len(jobs(url)) == 1
    assert own_connections(url) == 0, "asked once who it is, and closed"
