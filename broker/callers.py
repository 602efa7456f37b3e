"""The caller's own connection: what jobs need to know of it, and how statements run on it.

psycopg's connections, and SQLAlchemy's sessions and connections over psycopg. SQLAlchemy is only looked at when the
application has imported it. Nothing here commits or rolls back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo, TransactionStatus
from psycopg.rows import tuple_row

from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.wire import rows_of
from celery_jobqueue.db.errors import TransactionError

__all__ = ["AsyncCaller", "Caller", "borrow", "borrow_async", "is_async", "plainly_the_same"]

_ACCEPTED = "a SQLAlchemy Session or Connection (postgresql+psycopg://), or a psycopg Connection"
_ANOTHER_FATE = ("a transaction or savepoint was begun or ended inside of jobs_in(), and its jobs would not share its fate: "
                 "put jobs_in() inside of the transaction or savepoint, and commit after it")
Place = Callable[[], object]


class _Borrowed:
    """What a connection that waits and one that is awaited have in common.

    place: which transaction and savepoint the connection is in; equal answers mean the same one.
    """

    def __init__(self, raw: Any, place: Place) -> None:
        self.raw = raw
        self._place = place
        _refuse_without_transaction(raw)
        self._where = place()
        self._had_begun = _status(raw) == TransactionStatus.INTRANS

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """Host, port and database."""
        info: psycopg.ConnectionInfo = self.raw.info
        return info

    def check(self) -> None:
        """Raises TransactionError unless the connection is in the transaction and savepoint that it was lent in.

        Jobs are written when the block ends: they would outlive a savepoint that began in it, and miss a commit in it.
        """
        # First of all: a session that has committed may have given its connection to somebody else.
        if self._place() != self._where:
            raise TransactionError(_ANOTHER_FATE)
        _refuse_without_transaction(self.raw)
        status = _status(self.raw)
        if self._had_begun and status == TransactionStatus.IDLE:
            raise TransactionError(_ANOTHER_FATE)
        self._had_begun = self._had_begun or status == TransactionStatus.INTRANS


class Caller(_Borrowed):
    """A connection that waits."""

    def run(self, *calls: Call) -> list[list[Row]]:
        """The rows of each call. Raises psycopg.Error."""
        with self.raw.pipeline():
            cursors = [_executed(psycopg.RawCursor(self.raw, row_factory=tuple_row), call) for call in calls]
        return [rows_of(cursor.pgresult) for cursor in cursors if cursor.pgresult is not None]


class AsyncCaller(_Borrowed):
    """A connection that is awaited."""

    async def run(self, *calls: Call) -> list[list[Row]]:
        """The rows of each call. Raises psycopg.Error."""
        return await _run_async(self.raw, calls)


class _BridgedCaller(_Borrowed):
    """An awaited connection inside of SQLAlchemy's run_sync(), which turns awaiting into waiting."""

    def __init__(self, raw: Any, place: Place, run_async: Callable[[Callable[[Any], Any]], list[list[Row]]]) -> None:
        super().__init__(raw, place)
        self._run_async = run_async

    def run(self, *calls: Call) -> list[list[Row]]:
        """The rows of each call. Raises psycopg.Error."""
        return self._run_async(lambda raw: _run_async(raw, calls))


async def _run_async(raw: psycopg.AsyncConnection[Any], calls: Sequence[Call]) -> list[list[Row]]:
    cursors = []
    async with raw.pipeline():
        for statement, params in calls:
            cursor = psycopg.AsyncRawCursor(raw, row_factory=tuple_row)
            await cursor.execute(statement.text, params or None)
            cursors.append(cursor)
    return [rows_of(cursor.pgresult) for cursor in cursors if cursor.pgresult is not None]


def _executed(cursor: psycopg.RawCursor[Any], call: Call) -> psycopg.RawCursor[Any]:
    statement, params = call
    return cursor.execute(statement.text, params or None)


def is_async(target: object) -> bool:
    """Whether this is a connection or session that is awaited."""
    return isinstance(target, psycopg.AsyncConnection) or _made_by(
        target, "sqlalchemy.ext.asyncio", "AsyncSession", "AsyncConnection", "async_scoped_session")


def borrow(target: Any) -> Caller | _BridgedCaller:
    """The connection behind a session or connection. Begins SQLAlchemy's transaction as its first statement would.

    Raises TransactionError when jobs cannot travel on it.
    """
    if is_async(target):
        raise TransactionError(f"a {type(target).__name__} is awaited: use `async with jobs_in(…)`, `await afinish_in(…)`")
    if isinstance(target, psycopg.Connection):
        return Caller(target, lambda: _depth(target))
    if _made_by(target, "sqlalchemy.orm", "scoped_session"):
        target = target()
    if _made_by(target, "sqlalchemy.orm", "Session"):
        connection = target.connection()
    elif _made_by(target, "sqlalchemy.engine", "Connection"):
        connection = target
    else:
        raise TransactionError(f"{type(target).__name__} is not {_ACCEPTED}")
    fairy = connection.connection
    raw = fairy.driver_connection
    _refuse_without_transaction(raw)
    if not connection.in_transaction():
        connection.begin()
    if isinstance(raw, psycopg.AsyncConnection):
        return _BridgedCaller(raw, _transactions_of(target), fairy.dbapi_connection.run_async)
    return Caller(raw, _transactions_of(target))


async def borrow_async(target: Any) -> AsyncCaller:
    """As `borrow`, for what is awaited."""
    if not is_async(target):
        raise TransactionError(f"a {type(target).__name__} is not awaited: use `with jobs_in(…)`, `finish_in(…)`")
    if isinstance(target, psycopg.AsyncConnection):
        return AsyncCaller(target, lambda: _depth(target))
    if _made_by(target, "sqlalchemy.ext.asyncio", "async_scoped_session"):
        target = target()
    if _made_by(target, "sqlalchemy.ext.asyncio", "AsyncSession"):
        connection = await target.connection()
        inner = target.sync_session
    else:
        connection, inner = target, target.sync_connection
    raw = (await connection.get_raw_connection()).driver_connection
    _refuse_without_transaction(raw)
    if not connection.in_transaction():
        await connection.begin()
    return AsyncCaller(raw, _transactions_of(inner))


def _made_by(target: object, module: str, *names: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(target, tuple(getattr(loaded, name) for name in names))


def _transactions_of(target: Any) -> Place:
    return lambda: (target.get_transaction(), target.get_nested_transaction())


def _depth(raw: Any) -> int:
    # psycopg tells nobody how many `transaction()` blocks are open. Should it stop to count them this check is off, no more.
    return getattr(raw, "_num_transactions", 0)


def _status(raw: Any) -> TransactionStatus:
    status: TransactionStatus = raw.info.transaction_status
    return status


def _refuse_without_transaction(raw: Any) -> None:
    if not isinstance(raw, (psycopg.Connection, psycopg.AsyncConnection)):
        raise TransactionError(f"the driver is {type(raw).__module__.partition('.')[0]}, and jobs need psycopg: "
                               "make the engine with postgresql+psycopg://")
    if raw.closed:
        raise TransactionError("the connection is closed")
    status = _status(raw)
    if status == TransactionStatus.INERROR:
        raise TransactionError("the transaction has failed: roll it back first")
    if raw.autocommit and status == TransactionStatus.IDLE:
        raise TransactionError("the connection is in autocommit mode and no transaction has begun, so there is nothing that "
                               "jobs could be part of: begin one, or call delay() without jobs_in()")


def plainly_the_same(info: psycopg.ConnectionInfo, conninfo: str) -> bool:
    """Whether a connection goes where the connection string says, as far as can be told without asking."""
    said = {option.keyword.decode(): option.val.decode() for option in Conninfo.get_defaults() if option.val is not None}
    said.update({key: str(value) for key, value in conninfo_to_dict(conninfo).items() if value is not None})
    hosts = said.get("host", "").split(",")
    ports = said.get("port", "").split(",")
    places = zip(hosts, ports if len(ports) == len(hosts) else ports * len(hosts), strict=False)
    return (info.host, str(info.port)) in places and info.dbname == (said.get("dbname") or said.get("user"))
