"""Who runs against whom: a broker and where its results go, on servers that are started when somebody needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from celery_jobqueue.db import migrate
from tests.benchmarks import servers
from tests.benchmarks.servers import Missing
from tests.support.database import sibling


@dataclass(slots=True)
class Contender:
    """What a Celery application needs to know of it.

    guess: no-op tasks per second to expect; it only decides how many jobs a measurement takes.
    empty(): forget every job and result.
    """

    name: str
    broker: str
    results: str
    empty: Callable[[], None]
    guess: int
    options: dict[str, Any] = field(default_factory=dict)
    database: str | None = None  # where its tables lie, if it has some
    server: int | None = None  # process id of its broker


class Servers:
    """Starts each server once, when the first contender asks for it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._urls: dict[str, str] = {}
        self.pids: dict[str, int] = {}

    def postgresql(self, database: str | None = None) -> str:
        """URL of a database on the common server; one with that name is made anew."""
        url = self._start("postgresql", servers.postgresql, self.folder)
        if database is None:
            return url
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(f'drop database if exists "{database}" with (force)')
            conn.execute(f'create database "{database}"')
        return sibling(url, database)

    def redis(self) -> str:
        return self._start("redis", servers.redis, self.folder / "redis")

    def rabbitmq(self) -> str:
        return self._start("rabbitmq", servers.rabbitmq, self.folder / "rabbitmq")

    def _start(self, name: str, server: Any, folder: Path) -> str:
        if name not in self._urls:
            self._urls[name], self.pids[name] = self._stack.enter_context(server(folder))
        return self._urls[name]


def ours(running: Servers) -> Contender:
    """celery-jobqueue, jobs and results on the same rows."""
    url = running.postgresql("bench_ours")
    migrate.migrate(url)
    return Contender("ours", url, url, _truncate(url, "job_queue, jobqueue.result, jobqueue.message"), 4000, database=url,
                     server=running.pids["postgresql"])


def null(_running: Servers) -> Contender:
    """Celery's floor."""
    return Contender("null", "null://", "tests.benchmarks.null:Backend", lambda: None, 7000)


def redis(running: Servers) -> Contender:
    """Redis as broker and result backend."""
    url = running.redis()
    return Contender("redis", url, url, _flush(url), 1100, server=running.pids["redis"])


def rabbitmq(running: Servers) -> Contender:
    """RabbitMQ with durable queues and persistent messages; results, where they are stored, go to Redis."""
    url, results = running.rabbitmq(), running.redis()

    def empty() -> None:
        from kombu import Connection

        with Connection(url) as connection, suppress(connection.channel_errors):
            connection.default_channel.queue_purge("celery")
        _flush(results)()

    return Contender("rabbitmq", url, results, empty, 3000, server=running.pids["rabbitmq"])


def pgmq(running: Servers) -> Contender:
    """kombu's pgmq transport on the SQL-only pgmq that its client brings."""
    try:
        from pgmq.install import get_embedded_install_sql
    except ImportError as error:
        raise Missing(f"pgmq is not installed: {error}") from None
    url = running.postgresql("bench_pgmq")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(get_embedded_install_sql())

    def empty() -> None:
        with psycopg.connect(url, autocommit=True) as conn, suppress(psycopg.errors.UndefinedTable):
            conn.execute("select pgmq.purge_queue('celery')")
        _truncate(url, "celery_taskmeta", optional=True)()

    return Contender("pgmq", _with_scheme(url, "pgmq"), _with_scheme(url, "db+postgresql+psycopg"), empty, 800,
                     {"init_extension": False}, url, running.pids["postgresql"])


def sqla(running: Servers) -> Contender:
    """kombu's SQLAlchemy transport."""
    url = running.postgresql("bench_sqla")
    return Contender("sqla", _with_scheme(url, "sqla+postgresql+psycopg"), _with_scheme(url, "db+postgresql+psycopg"),
                     _truncate(url, "kombu_message, celery_taskmeta", optional=True), 250, database=url,
                     server=running.pids["postgresql"])


#: By name, in the order in which they are shown.
CONTENDERS: dict[str, Callable[[Servers], Contender]] = {
    "ours": ours, "rabbitmq": rabbitmq, "redis": redis, "pgmq": pgmq, "sqla": sqla, "null": null}


@contextmanager
def contenders(names: list[str], folder: Path) -> Iterator[list[Contender]]:
    """Those of them that can be had; says why of the others."""
    with ExitStack() as stack:
        running, found = Servers(folder, stack), []
        for name in names:
            try:
                found.append(CONTENDERS[name](running))
            except Missing as reason:
                print(f"skipped {name}: {reason}", flush=True)
        yield found


def _with_scheme(url: str, scheme: str) -> str:
    return urlsplit(url)._replace(scheme=scheme).geturl()


def _flush(url: str) -> Callable[[], None]:
    def empty() -> None:
        from redis import Redis

        with Redis.from_url(url) as client:
            client.flushall()

    return empty


def _truncate(url: str, tables: str, optional: bool = False) -> Callable[[], None]:
    def empty() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            for table in tables.split(", "):
                with suppress(*([psycopg.errors.UndefinedTable] if optional else [])):
                    conn.execute(f"truncate {table}")

    return empty
