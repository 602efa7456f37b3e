"""What Flower's Broker asks of the database: bounded, through poolers, with few rights, and never on Flower's event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import flower.views
import psycopg
import pytest
from flower.utils import broker as flowers
from flower.utils.broker import RabbitMQ
from kombu import Connection
from tornado.web import HTTPError

from celery_jobqueue.db import migrate
from tests.support.database import fresh_database, one, rows
from tests.support.flower import flower as start_flower
from tests.support.pgbouncer import left_behind, pgbouncer
from tests.support.postgres_versions import NEWEST, OLDEST, Servers
from tests.support.waiting import wait_until
from tests.support.workers import worker

T = TypeVar("T")


async def queues(url: str, *names: str) -> dict[str, dict[str, Any]]:
    """What Flower is told, by queue."""
    with closing(Connection(url)) as connection:
        assert connection.transport  # loads our transport; nothing else makes Flower know the scheme
        told = connection.as_uri(include_password=True)
    return {queue["name"]: queue for queue in await flower.views.Broker(told, http_api=None).queues(list(names))}


async def longest_pause(working: Awaitable[T]) -> tuple[float, T | BaseException]:
    """For how many seconds the event loop stood still meanwhile, and what came out."""
    worst, task = 0.0, asyncio.ensure_future(working)
    while not task.done():
        before = monotonic()
        await asyncio.sleep(0.01)
        worst = max(worst, monotonic() - before)
    return worst, task.exception() or task.result()


def fill(url: str, queue: str, number: int, columns: str = "", values: str = "") -> None:
    rows(url, f"insert into job_queue (id, queue, task_name{columns}) "
              f"select jobqueue.new_id(), %s, 't.add'{values} from generate_series(1, %s)", (queue, number))


def test_other_schemes_stay_flowers_own(database_url: str) -> None:
    assert asyncio.run(queues(database_url, "celery"))
    assert flower.views.Broker is flowers.Broker
    assert isinstance(flowers.Broker("amqp://guest@127.0.0.1//", http_api=""), RabbitMQ)
    with pytest.raises(NotImplementedError):
        flowers.Broker("sqla+postgresql://127.0.0.1/db")


@pytest.fixture(params=[OLDEST, NEWEST])
def any_database_url(request: pytest.FixtureRequest, servers: Servers) -> Iterator[str]:
    """A migrated database of the oldest and the newest PostgreSQL: their planners differ."""
    with fresh_database(servers.url(request.param)) as url:
        migrate.migrate(url, migrate.LINES)
        yield url


def test_looking_reads_no_more_than_it_counts(any_database_url: str) -> None:
    """No scan of the table, and in its indexes no further than the cap, whatever lies there and however old its statistics."""
    database_url = any_database_url
    fill(database_url, "celery", 40_000)
    fill(database_url, "celery", 40_000, ", run_at", ", now() + interval '1 day'")
    fill(database_url, "celery", 15_000, ", status, finished_at", ", 'failed', now()")
    rows(database_url, "update job_queue set status = 'processing', owner = gen_random_uuid() "
                       "where id in (select id from job_queue where status = 'pending' order by id desc limit 12000)")
    # A session says what it has read when it has ended, and that is a moment after we have left it.
    wait_until(lambda: one(database_url, "select n_tup_upd from pg_stat_user_tables where relname = 'job_queue'") >= 12_000,
               "the server has counted what came before")

    def read() -> dict[str, int]:
        counters = rows(database_url, """
            select 'table' as name, seq_tup_read as n from pg_stat_user_tables where relname = 'job_queue'
             union all select indexrelname, idx_tup_read from pg_stat_user_indexes where relname = 'job_queue'""")
        return {row["name"]: row["n"] for row in counters}

    def used() -> dict[str, int]:
        return {name: n - before[name] for name, n in read().items() if n != before[name]}

    before = read()
    found = asyncio.run(queues(database_url))["celery"]
    assert [str(found[key]) for key in ("messages_ready", "messages_scheduled", "messages_unacknowledged")] == [
        "≥10000", "≥10000", "≥10000"]
    tuples = wait_until(used, "the server has counted")
    assert 20_000 <= tuples.pop("job_queue_claim") < 20_100
    # One more where the last row's neighbour was looked at, in PostgreSQL 14 at times.
    assert {name: n // 10 * 10 for name, n in tuples.items()} == dict.fromkeys(
        ["job_queue_owner", "job_queue_failed", "job_queue_pkey"], 10_000)


def test_a_silent_server_holds_nobody_up(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = f"postgresql://somebody:topsecret@127.0.0.1:{silent.getsockname()[1]}/nowhere"
        started = monotonic()
        pause, error = asyncio.run(longest_pause(queues(dead, "celery")))
    assert monotonic() - started < 6
    assert pause < 1, "Flower's event loop stood still"
    assert isinstance(error, HTTPError)
    assert error.status_code == 503
    assert "timeout expired" in str(error)
    assert "topsecret" not in str(error)


def test_a_locked_table_ends_in_an_error_and_nothing_stays_behind(database_url: str) -> None:
    """Many who ask at once share one look."""
    async def ask() -> tuple[list[Any], int]:
        asked = [asyncio.ensure_future(queues(database_url, "celery")) for _ in range(8)]
        await asyncio.sleep(1)
        waiting = await asyncio.to_thread(one, database_url, "select count(*) from pg_stat_activity "
                                                             "where datname = current_database() and wait_event_type = 'Lock'")
        return await asyncio.gather(*asked, return_exceptions=True), waiting

    with psycopg.connect(database_url) as conn:
        conn.execute("lock table job_queue in access exclusive mode")
        started = monotonic()
        pause, result = asyncio.run(longest_pause(ask()))
        assert monotonic() - started < 6
        assert pause < 1
        assert isinstance(result, tuple)
        errors, waiting = result
        assert [getattr(error, "status_code", error) for error in errors] == [503] * 8
        assert "lock timeout" in str(errors[0])
        assert waiting == 1
        assert one(database_url, "select count(*) from pg_stat_activity where datname = current_database()") == 2  # this and ours
    assert asyncio.run(queues(database_url, "celery"))["celery"]["messages"] == 0


def test_the_next_server_of_a_failover_list_is_asked(database_url: str) -> None:
    fill(database_url, "celery", 3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        dead = f"postgresql://a:b@127.0.0.1:{closed.getsockname()[1]}/db"
        assert asyncio.run(queues(f"{dead};{database_url}", "celery"))["celery"]["messages"] == 3
        with pytest.raises(HTTPError, match=r"503.*refused"):
            asyncio.run(queues(f"{dead};{dead}", "celery"))


@pytest.mark.needs_pgbouncer
def test_through_a_pooler_nothing_is_prepared_and_nothing_stays(server: str, database_url: str) -> None:
    fill(database_url, "celery", 3)

    async def often() -> list[int]:
        asked = [queues(pooler.url(database_url) + "?pooler=transaction", f"other {n}") for n in range(9)]
        return [(await answer)["celery"]["messages"] for answer in asked]

    with pgbouncer(server) as pooler:
        assert asyncio.run(often()) == [3] * 9
        assert {str(left) for left in left_behind(pooler.url(database_url)).values()} == {"{}"}
        assert "prepared statement" not in pooler.log


@pytest.mark.needs_pgbouncer
def test_a_whole_flower_behind_a_pooler(server: str, database_url: str, tmp_path: Path) -> None:
    with pgbouncer(server) as pooler:
        url = pooler.url(database_url) + "?pooler=transaction"
        with start_flower(url, tmp_path, database_url) as site, worker(url, tmp_path, "tests.support.app") as running:
            fill(database_url, "waiting", 2)
            # A refresh while Flower's first inspection still runs waits for that one only.
            wait_until(lambda: site.json("/api/workers?refresh=1").keys() == {running.name}, "Flower knows the worker")
            assert site.queue("celery")["consumers"] == 1
            assert site.queue("waiting")["messages_ready"] == 2
            assert site.metrics()["jobqueue_ready_jobs", "waiting"] == 2
        assert "prepared statement" not in site.log.read_text() + pooler.log


@pytest.fixture
def login(database_url: str) -> Iterator[Any]:
    """Makes the URL of a login that is a member of one role only."""
    made: list[str] = []

    def make(role: str) -> str:
        name = f"flower_{role}_{len(made)}"
        rows(database_url, f"create role {name} login password 'fl0wer' in role {role}")
        made.append(name)
        parts = urlsplit(database_url)
        return urlunsplit(parts._replace(netloc=f"{name}:fl0wer@{parts.hostname}:{parts.port}"))

    yield make
    for name in made:
        rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (name,))
        rows(database_url, f"drop role {name}")


def test_to_watch_the_broker_page_the_right_to_monitor_is_enough(database_url: str, login: Any, tmp_path: Path) -> None:
    fill(database_url, "reports", 2)
    rows(database_url, "insert into jobqueue.queue (name, transient, auto_delete) values ('letters', true, true)")
    rows(database_url, "insert into jobqueue.message (queue, payload) values ('letters', '{}')")
    assert asyncio.run(queues(database_url, "letters"))["letters"]["messages"] == 1
    url = login("jobqueue_monitor")
    # Messages may be read by publishers and workers only; the numbers of such a queue are missing then, not wrong.
    letters = asyncio.run(queues(url, "letters"))["letters"]
    assert {key: value for key, value in letters.items() if value} == {"name": "letters"}
    with start_flower(url, tmp_path, database_url, events=False) as site:
        assert site.queue("reports")["messages_ready"] == 2
        assert site.metrics()["jobqueue_ready_jobs", "reports"] == 2
        status, body = site.get("/broker")
        assert status == 200
        assert "reports" in body
        # The pages of workers and tasks stay empty: they live by remote control and events, which are messages.
        assert site.json("/api/workers") == {}
        assert site.get("/workers")[0] == 200
        assert "fl0wer" not in body + site.log.read_text()
