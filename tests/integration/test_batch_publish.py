"""Producer.batch(): many jobs in one INSERT and one transaction, once each whatever happens to the connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from celery import Celery, group
from kombu import Exchange, Queue
from kombu.exceptions import BatchPublishError

from celery_jobqueue.broker import enqueue_many, jobs_in
from celery_jobqueue.db.errors import InvalidJob
from tests.support.cutting import CuttingProxy
from tests.support.database import one, rows
from tests.support.grouping import transactions
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def count(url: str) -> int:
    return int(one(url, "select count(*) from job_queue"))


def test_a_batch_is_one_transaction_and_the_worker_hears_of_it(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    wait_until(lambda: rows(database_url, "select id from jobqueue.worker where idle"), "it sleeps, and polls every 5 s only")
    add = app.tasks["t.add"]
    with app.producer_or_acquire() as producer:
        assert producer.supports_batch_publish
        with producer.batch():
            results = [add.apply_async((n, n), producer=producer, **({"max_attempts": 2} if n % 3 else {})) for n in range(30)]
            grouped = group(add.s(n, 1) for n in range(10)).apply_async(producer=producer)
            assert count(database_url) == 0
    assert transactions(database_url) == [40]
    assert [result.get(timeout=3) for result in results] == [2 * n for n in range(30)]
    assert grouped.get(timeout=3) == list(range(1, 11))
    assert rows(database_url, "select max_attempts, count(*) as n from job_queue group by 1 order by 1") == [
        {"max_attempts": 2, "n": 20}, {"max_attempts": 3, "n": 20}]


def test_a_full_batch_is_flushed_and_what_was_flushed_stays(app: Celery, database_url: str) -> None:
    add = app.tasks["t.add"]
    with app.producer_or_acquire() as producer:
        with suppress(ZeroDivisionError), producer.batch(max_size=10) as batch:
            for n in range(25):
                add.apply_async((n, n), producer=producer)
            assert count(database_url) == 20
            batch.flush()
            add.apply_async((25, 25), producer=producer)
            raise ZeroDivisionError
        assert transactions(database_url) == [10, 10, 5]
        add.apply_async((0, 0), producer=producer)  # the producer goes on as ever
    assert transactions(database_url) == [10, 10, 5, 1]


def test_the_inner_batch_belongs_to_the_outer_one(app: Celery, database_url: str) -> None:
    with app.producer_or_acquire() as producer, producer.batch():
        with producer.batch():
            app.tasks["t.add"].apply_async((1, 1), producer=producer)
        assert count(database_url) == 0
        app.tasks["t.add"].apply_async((1, 1), producer=producer)
    assert transactions(database_url) == [2]


def test_jobs_in_comes_before_the_batch(app: Celery, database_url: str) -> None:
    with psycopg.connect(database_url) as conn, app.producer_or_acquire() as producer, producer.batch():
        with jobs_in(conn):
            app.tasks["t.add"].apply_async((1, 1), producer=producer)
        conn.rollback()
    assert count(database_url) == 0


def test_events_and_exchanges_travel_in_a_batch_too(app: Celery, database_url: str) -> None:
    heard: list[Any] = []
    media = Queue("media", Exchange("media", type="topic"), routing_key="media.#")
    listener = Queue("listener", Exchange("media", type="topic"), routing_key="#.video", auto_delete=True)
    with app.connection_for_write() as connection:
        for queue in (media, listener):
            queue(connection.default_channel).declare()
        listener(connection.default_channel).consume(callback=heard.append, no_ack=True)
        producer = connection.Producer(exchange=media.exchange)
        with producer.batch():
            producer.publish({"n": 1}, routing_key="media.video")
            producer.publish({"n": 2}, routing_key="nowhere")
        assert [row["payload"] for row in rows(database_url, "select payload from job_queue")] == ['{"n": 1}']
        wait_until(lambda: heard or connection.drain_events(timeout=5), "the listener's copy comes")


def test_a_batch_is_written_whole_or_not_at_all(app: Celery, database_url: str) -> None:
    rows(database_url, "alter table job_queue add constraint not_that_one check (payload not like '%forbidden%')")
    add = app.tasks["t.add"]
    with app.producer_or_acquire() as producer:
        with pytest.raises(psycopg.errors.CheckViolation), producer.batch():  # noqa: PT012
            add.apply_async((1, 1), producer=producer)
            add.apply_async(("forbidden", 1), producer=producer)
        with producer.batch():
            with pytest.raises(InvalidJob, match="priority"):
                add.apply_async((2, 2), producer=producer, priority=11)
            add.apply_async((3, 3), producer=producer)
    assert [row["payload"][:6] for row in rows(database_url, "select payload from job_queue")] == ["[[3, 3"]


# -- once each, whatever happens to the connection -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["one by one", "batch", "full batch", "jobs_in(app)", "enqueue_many"])
def test_a_lost_reply_makes_no_second_job(way: str, client: Celery, database_url: str, proxy: CuttingProxy) -> None:
    """The server has committed, and the connection dies before it says so."""
    add = client.tasks["t.add"]
    add.delay(0, 0)
    proxy.swallow_reply_to(b"jobqueue.publish", b"publish")
    with client.producer_or_acquire() as producer:
        if way == "one by one":
            for n in range(3):
                add.apply_async((n, n), producer=producer)
        elif way == "enqueue_many":
            enqueue_many(add, [(n, n) for n in range(3)])
        elif way == "jobs_in(app)":
            with jobs_in(client):
                for n in range(3):
                    add.delay(n, n)
        else:
            with producer.batch(max_size=3 if way == "full batch" else 100):
                for n in range(3):
                    add.apply_async((n, n), producer=producer)
    assert proxy.swallowed == 1
    assert count(database_url) == 4


@pytest.mark.parametrize("lost", [b"jobqueue.publish", b"commit"])
def test_a_reply_that_is_lost_amid_thousands_makes_no_second_job(lost: bytes, client: Celery, database_url: str,
                                                                  proxy: CuttingProxy) -> None:
    """They go out in parts, one transaction in all."""
    proxy.swallow_reply_to(lost)
    results = enqueue_many(client.tasks["t.add"], [(n, n) for n in range(1100)])
    assert proxy.swallowed == 1
    assert transactions(database_url) == [1100]
    found = rows(database_url, "select task_id from job_queue order by run_at, id")
    assert [row["task_id"] for row in found] == [result.id for result in results]


def test_a_lost_reply_to_a_retry_makes_no_second_job(database_url: str, proxy: CuttingProxy, app: Celery,
                                                     start_worker: Start) -> None:
    proxy.swallow_reply_to(b"jobqueue.rearm", b"rearm")
    start_worker(DATABASE_URL=proxy.url)
    assert app.tasks["t.again"].delay(2).get(timeout=30) == 2
    assert proxy.swallowed == 1
    [job] = rows(database_url, "select status, total_starts from job_queue")
    assert job == {"status": "completed", "total_starts": 3}


def test_a_server_that_stays_away_fails_the_batch(client: Celery, database_url: str, proxy: CuttingProxy) -> None:
    add = client.tasks["t.add"]
    with client.producer_or_acquire() as producer:
        add.apply_async((0, 0), producer=producer)
        proxy.stop()
        began = time.monotonic()
        with pytest.raises(BatchPublishError, match="may or may not"), producer.batch():
            add.apply_async((1, 1), producer=producer)
        assert time.monotonic() - began < 10, "as often as task_publish_retry_policy says, and no longer"
        with pytest.raises(BatchPublishError), producer.batch(max_size=1):  # noqa: PT012
            with suppress(BatchPublishError):
                add.apply_async((1, 1), producer=producer)
            add.apply_async((2, 2), producer=producer)
    assert count(database_url) == 1
