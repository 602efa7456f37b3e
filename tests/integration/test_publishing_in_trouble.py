"""`delay()` when the broker is down, silent, full or forgetful: an error within the configured time, and never two jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from random import Random
from typing import Any

import psycopg
import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from tests.support.app import make_app
from tests.support.cutting import CuttingProxy
from tests.support.database import one, rows
from tests.support.waiting import wait_until

#: Seconds. One connection attempt may take 2, one answer 2: see `longest`.
SHORT = {"timeout": 2, "connect_timeout": 2}
NOWHERE = "postgresql://u:p@127.0.0.1:1/db"


@pytest.fixture
def client(proxy: CuttingProxy) -> Iterator[Celery]:
    """Publishes through the proxy."""
    with closing(make_app(proxy.url, broker_transport_options=SHORT)) as app:
        yield app


def longest(policy: dict[str, Any]) -> float:
    """What docs/faults.md says a publish may take: an answer, a first connection, then one for each retry and the pauses."""
    retries = policy["max_retries"]
    return float(SHORT["timeout"] + (2 + retries) * SHORT["connect_timeout"] + retries * policy["interval_max"])


def test_a_server_that_is_not_there_is_an_error_within_seconds() -> None:
    with closing(make_app(NOWHERE)) as app:
        began = time.monotonic()
        with pytest.raises(OperationalError, match="Connection refused"):
            app.tasks["t.add"].delay(1, 1)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(("connected", "retry"), [(False, False), (True, True)])
def test_a_silent_server_is_an_error_within_the_configured_time(connected: bool, retry: bool, client: Celery,
                                                               proxy: CuttingProxy, database_url: str) -> None:
    """The network is cut: nothing is refused, nothing is answered."""
    client.conf.task_publish_retry = retry
    add = client.tasks["t.add"]
    if connected:
        add.delay(0, 0)
    proxy.cut()
    began = time.monotonic()
    with pytest.raises(OperationalError):
        add.delay(1, 1)
    took = time.monotonic() - began
    policy = client.conf.task_publish_retry_policy if retry else {"max_retries": 0, "interval_max": 0}
    assert took < longest(policy) + 2, "and what a busy machine adds"
    proxy.heal()
    add.delay(2, 2)
    args = sorted(row["payload"][1:7] for row in rows(database_url, "select payload from job_queue"))
    assert args in (["[0, 0]", "[2, 2]"][not connected:], ["[0, 0]", "[1, 1]", "[2, 2]"][not connected:]), "each at most once"


def test_celerys_own_connection_timeout_holds(proxy: CuttingProxy) -> None:
    proxy.cut()
    with closing(make_app(proxy.url, broker_connection_timeout=2, task_publish_retry=False)) as app:
        began = time.monotonic()
        with pytest.raises(OperationalError, match="timeout"):
            app.tasks["t.add"].delay(1, 1)
        assert 1.5 < time.monotonic() - began < 3.9, "not the 5 s of ours"


def test_replies_that_get_lost_again_and_again_make_one_job_each(client: Celery, proxy: CuttingProxy, database_url: str) -> None:
    add = client.tasks["t.add"]
    for n in range(30):
        if n % 3:
            proxy.swallow_reply_to(b"jobqueue.publish", b"publish")
        add.delay(n, n)
    assert proxy.swallowed == 20
    published = rows(database_url, "select payload from job_queue")
    assert sorted(int(row["payload"][2:].partition(",")[0]) for row in published) == list(range(30))


def test_a_publisher_whose_connections_are_ended_all_the_time_loses_and_doubles_nothing(client: Celery, proxy: CuttingProxy,
                                                                                      database_url: str) -> None:
    """Whatever the moment: before the statement, in it, or between commit and reply."""
    over, moments, drops = threading.Event(), Random(time.time_ns()), []

    def disturb() -> None:
        while not over.wait(moments.uniform(0.02, 0.15)):
            proxy.drop()
            drops.append(proxy)

    client.conf.task_publish_retry_policy = {"max_retries": 20, "interval_start": 0, "interval_step": 0.01, "interval_max": 0.05}
    disturber = threading.Thread(target=disturb)
    disturber.start()
    published = 0
    try:
        while len(drops) < 30:
            client.tasks["t.add"].delay(published, 0)
            published += 1
    finally:
        over.set()
        disturber.join()
    stored = [int(row["payload"][2:].partition(",")[0]) for row in rows(database_url, "select payload from job_queue")]
    assert sorted(stored) == list(range(published))


def test_a_server_without_free_connections_is_an_error_and_then_none(database_url: str) -> None:
    database = database_url.rpartition("/")[2]
    rows(database_url, f"create role r_{database} login password 'r' connection limit 1")
    try:
        rows(database_url, f"grant jobqueue_publisher to r_{database}")
        url = database_url.replace(database_url.partition("://")[2].partition("@")[0], f"r_{database}:r")
        with closing(make_app(url)) as app, psycopg.connect(url):
            began = time.monotonic()
            with pytest.raises(OperationalError, match="too many connections"):
                app.tasks["t.add"].delay(1, 1)
            assert time.monotonic() - began < 15
        with closing(make_app(url)) as app:
            connected = "select count(*) from pg_stat_activity where usename = %s"
            wait_until(lambda: one(database_url, connected, (f"r_{database}",)) == 0, "the other connection has ended")
            app.tasks["t.add"].delay(1, 1)
        assert one(database_url, "select count(*) from job_queue") == 1
    finally:
        rows(database_url, f"drop owned by r_{database}; drop role r_{database}")


@pytest.mark.parametrize("pool", ["producers", "connections"])
def test_a_pool_whose_connections_are_all_in_use_is_an_error(pool: str, make_client: Callable[..., Celery]) -> None:
    app = make_client(broker_pool_limit=2, broker_transport_options={"timeout": 1})
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(app.producer_or_acquire() if pool == "producers" else app.pool.acquire(block=True))
        began = time.monotonic()
        with pytest.raises(OperationalError, match="all 2 are in use"):
            app.tasks["t.add"].delay(1, 1)
        assert time.monotonic() - began < 5
    app.tasks["t.add"].delay(1, 1)


def test_threads_that_outnumber_the_pool_wait_for_their_turn(make_client: Callable[..., Celery], database_url: str) -> None:
    app = make_client(broker_pool_limit=2)
    assert app.amqp.producer_pool.limit == 2  # made here: Celery makes it without a lock, and shrinks one that is in use already
    failed: list[Exception] = []

    def publish() -> None:
        try:
            for n in range(10):
                app.tasks["t.add"].delay(n, n)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=publish) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert one(database_url, "select count(*) from job_queue") == 120
