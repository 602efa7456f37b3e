"""Jobs in the application's own transaction: they appear if it commits, and only then.

    with jobs_in(session):              # or a SQLAlchemy Connection, or a psycopg Connection
        session.add(order)
        send_invoice.delay(order.id)
    session.commit()                    # the worker starts now

Celery needs a producer and a channel to publish, but not a connection of the broker's: inside the block a channel keeps
what it is given (`collector`), and at the end of the block all of it is written on the caller's connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import psycopg
from celery import Celery

from celery_jobqueue.broker import settings
from celery_jobqueue.broker.callers import borrow, borrow_async, plainly_the_same
from celery_jobqueue.broker.collector import Collector, Script, collecting, drive, drive_async
from celery_jobqueue.broker.publishing import send_safely
from celery_jobqueue.broker.session import Row, Session
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.db.errors import InvalidJob, SchemaError, TransactionError
from celery_jobqueue.db.url import masked

__all__ = ["explaining", "identity_call", "jobs_in", "same_database", "script_for"]

#: Cluster and database, by connection string; with the moment after which to ask again where nobody answered.
_identities: dict[str, tuple[Row | None, float]] = {}
_ASK_AGAIN = 60.0


def jobs_in(target: Any) -> _Block:
    """A block, `with` or `async with`: jobs published in it are part of the transaction that `target` is in.

    target: a SQLAlchemy Session or Connection (driver psycopg), a psycopg Connection, or the asynchronous form of either.
    Nothing is committed here; an exception in the block writes nothing. Blocks may be nested: the innermost counts.
    With a Celery application as the target, jobs are published by itself at the end of the block, all of them or none.

    Raises TransactionError when jobs cannot travel on that connection, InvalidJob at the call for a job that cannot be stored.
    """
    return _OwnBlock(target) if isinstance(target, Celery) else _Block(target)


class _Block:
    """See jobs_in()."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._caller: Any = None
        self._stack = ExitStack()
        self._jobs: Collector | None = None

    def __enter__(self) -> None:
        self._refuse_second_use()
        self._caller = borrow(self._target)
        self._jobs = self._stack.enter_context(collecting(wake=True, check=self._caller.check))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        jobs = self._end()
        if kind is None and jobs:
            self._caller.check()
            with explaining():
                drive(script_for(jobs, self._caller.info), self._caller.run)

    async def __aenter__(self) -> None:
        self._refuse_second_use()
        self._caller = await borrow_async(self._target)
        self._jobs = self._stack.enter_context(collecting(wake=True, check=self._caller.check))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        jobs = self._end()
        if kind is not None or not jobs:
            return
        self._caller.check()
        for broker in jobs.brokers.values():
            if not plainly_the_same(self._caller.info, broker.conninfo):
                await asyncio.to_thread(_ask_identity, broker)  # so that the script below finds it remembered
        with explaining():
            await drive_async(script_for(jobs, self._caller.info), self._caller.run)

    def _refuse_second_use(self) -> None:
        if self._jobs is not None:
            raise TransactionError("this block was entered before: call jobs_in() for each")

    def _end(self) -> Collector:
        jobs = self._jobs
        assert jobs is not None
        try:
            self._stack.close()
        except ValueError as error:
            raise TransactionError("jobs_in() was left in another context (thread, task, generator) than it was entered in, so "
                                   "what was published in between was not part of it: use it where delay() is called") from error
        return jobs


class _OwnBlock(_Block):
    """Jobs of a block in one transaction of the broker's own connection."""

    def __enter__(self) -> None:
        self._refuse_second_use()
        client = self._target.connection_for_write()
        if client.transport.driver_type != "postgres":
            raise TransactionError(f"the application's broker is {client.as_uri()}: jobs_in(app) needs postgresql://")
        self._jobs = self._stack.enter_context(collecting(settings.read(client).conninfo))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        jobs = self._end()
        if kind is None and jobs:
            with self._target.pool.acquire(block=True) as connection:
                channel = connection.default_channel
                drive(jobs.script(), lambda *calls: send_safely(channel.connection, list(calls)))

    async def __aenter__(self) -> None:
        raise TransactionError("jobs_in(app) waits for the broker's own connection: use `with`")


def script_for(jobs: Collector, info: psycopg.ConnectionInfo) -> Script:
    """What is to be done on the caller's connection."""
    for broker in jobs.brokers.values():
        if not plainly_the_same(info, broker.conninfo):
            [[here]] = yield [identity_call()]
            if not same_database(here, broker):
                raise TransactionError(
                    f"the transaction is in database {info.dbname!r} at {info.host}:{info.port}, the jobs' broker is "
                    f"{masked(broker.url)}: workers would not see them")
    yield from jobs.script()


def identity_call() -> Any:
    """The statement that asks a connection which database it is in."""
    return statement("database_identity"), ()


def same_database(here: Row, broker: Settings) -> bool:
    """Whether a connection with this identity is in the broker's database. True when the broker does not answer."""
    return _ask_identity(broker) in (None, here)


def _ask_identity(broker: Settings) -> Row | None:
    """Cluster and database of a broker: asked once, over a connection of its own. None when it does not answer."""
    known = _identities.get(broker.conninfo)
    if known is not None and (known[0] is not None or time.monotonic() < known[1]):
        return known[0]
    session = Session(broker.conninfo, prepare=False, timeout=broker.timeout, connect_timeout=broker.connect_timeout)
    try:
        answer = session.run(identity_call())[0][0]
    except psycopg.OperationalError:
        answer = None
    finally:
        session.close()
    _identities[broker.conninfo] = (answer, time.monotonic() + _ASK_AGAIN)
    return answer


@contextmanager
def explaining(role: str = "jobqueue_publisher") -> Iterator[None]:
    """PostgreSQL's refusals in our words where we know better."""
    try:
        yield
    except psycopg.DataError as error:
        raise InvalidJob(f"PostgreSQL refused the jobs: {_first_line(error)}") from error
    except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable) as error:
        raise SchemaError(f"the transaction's database has no job queue, or an old one ({_first_line(error)}): "
                          "run `jobqueue migrate`") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise TransactionError(f"{_first_line(error)}: `grant {role} to` the role of this connection") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
