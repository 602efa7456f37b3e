"""A group's jobs go out as a batch, with what that needs of the connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from celery import Celery, chord, group
from kombu.exceptions import OperationalError

from celery_jobqueue.broker import jobs_in, transport
from celery_jobqueue.db.errors import InvalidJob
from tests.support.cutting import CuttingProxy
from tests.support.database import rows
from tests.support.workers import Worker

Start = Callable[..., Worker]


assert transport, "with it groups are sent so"


@pytest.fixture
def proxy(database_url: str) -> Iterator[CuttingProxy]:
    with CuttingProxy(database_url) as running:
        yield running


@pytest.fixture
def client(proxy: CuttingProxy, make_client: Callable[..., Celery]) -> Celery:
    """An application whose connections pass through the proxy."""
    return make_client(broker_url=proxy.url, result_backend=None)


def adding(app: Celery, numbers: range, **options: Any) -> group:
    """A group of so many additions."""
    return group([app.tasks["t.add"].si(n, n).set(**options) for n in numbers], app=app)


def published(url: str) -> list[int]:
    """The numbers of the jobs, in the order of publishing."""
    return [int(row["payload"][2:].partition(",")[0]) for row in rows(url, "select payload from job_queue order by id")]


def transactions(url: str) -> list[int]:
    """How many jobs each transaction wrote, in its order."""
    return [row["n"] for row in rows(url, "select count(*) as n from job_queue group by created_at order by created_at")]


def test_it_is_one_transaction_and_brings_its_results(app: Celery, database_url: str, start_worker: Start) -> None:
    result = adding(app, range(50)).apply_async()
    assert transactions(database_url) == [50]
    start_worker()
    assert result.get(timeout=30) == [2 * n for n in range(50)]


def test_a_large_one_is_a_thousand_at_a_time(app: Celery, database_url: str) -> None:
    adding(app, range(2500)).apply_async()
    assert transactions(database_url) == [1000, 1000, 500]
    assert published(database_url) == list(range(2500))


def test_what_is_nested_in_it_goes_with_it(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    add = app.tasks["t.add"]
    nested = group(chord([add.s(n, 1) for n in range(5)], app.tasks["celery.accumulate"].s()), *[add.s(n, 0) for n in range(5)])
    assert nested.apply_async().get(timeout=30) == [[[1, 2, 3, 4, 5]], 0, 1, 2, 3, 4]


def test_one_that_cannot_be_written_means_none_is(app: Celery, database_url: str) -> None:
    add = app.tasks["t.add"]
    with pytest.raises(InvalidJob, match="max_attempts=0"):
        group([add.s(1, 1), add.s(2, 2).set(max_attempts=0), add.s(3, 3)], app=app).apply_async()
    assert published(database_url) == []
    adding(app, range(3)).apply_async()
    assert published(database_url) == [0, 1, 2]


def test_in_somebodys_transaction_it_shares_its_fate(app: Celery, database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        with jobs_in(conn):
            adding(app, range(3)).apply_async()
        assert published(database_url) == []
        conn.rollback()
    assert published(database_url) == []


@pytest.mark.parametrize("what", ["cut off", "never connected", "known to be dead"])
def test_a_lost_connection_is_made_anew(what: str, client: Celery, proxy: CuttingProxy, database_url: str) -> None:
    if what != "never connected":
        client.tasks["t.add"].delay(100, 100)
        proxy.drop()
    if what == "known to be dead":
        with pytest.raises(OperationalError):
            client.tasks["t.add"].apply_async((101, 101), retry=False)
    adding(client, range(5)).apply_async()
    assert published(database_url)[-5:] == list(range(5))
    assert transactions(database_url)[-1] == 5


def test_a_lost_reply_makes_no_second_jobs(client: Celery, proxy: CuttingProxy, database_url: str) -> None:
    client.tasks["t.add"].delay(100, 100)
    proxy.swallow_reply_to(b"jobqueue.publish", b"publish")
    adding(client, range(5)).apply_async()
    assert proxy.swallowed == 1
    assert published(database_url) == [100, *range(5)]


def test_a_silent_server_is_the_error_that_it_is_for_a_single_job(proxy: CuttingProxy, make_client: Callable[..., Celery],
                                                                  database_url: str) -> None:
    client = make_client(broker_url=proxy.url, result_backend=None, broker_transport_options={"timeout": 1, "connect_timeout": 2})
    client.tasks["t.add"].delay(100, 100)
    proxy.cut()
    with pytest.raises(OperationalError):
        adding(client, range(5)).apply_async()
    proxy.heal()
    client.tasks["t.add"].delay(101, 101)
    assert published(database_url) in ([100, 101], [100, *range(5), 101]), "all or nothing, each at most once"


def test_other_brokers_get_theirs_one_by_one(make_client: Callable[..., Celery]) -> None:
    elsewhere = make_client(broker_url="memory://", result_backend=None)
    adding(elsewhere, range(3)).apply_async()
    with elsewhere.connection_for_read() as connection:
        assert connection.default_channel.queue_declare("celery", passive=True).message_count == 3
