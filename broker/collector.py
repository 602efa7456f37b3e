"""Publishing into a transaction that is not the channel's own.

Inside of `collecting` what this thread (or asyncio task) publishes to the database is not sent but handed over, as the
statements that would have been run; whoever opened the block runs them in the transaction of their choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from celery_jobqueue.broker.session import Call

__all__ = ["collected", "collecting"]

_open: ContextVar[tuple[str, list[Call]] | None] = ContextVar("celery_jobqueue_collector", default=None)


@contextmanager
def collecting(conninfo: str) -> Iterator[list[Call]]:
    """The statements of everything published to this database in the block, in order."""
    calls: list[Call] = []
    token = _open.set((conninfo, calls))
    try:
        yield calls
    finally:
        _open.reset(token)


def collected(conninfo: str) -> list[Call] | None:
    """Where to put what is published to this database; None when it is to be sent."""
    current = _open.get()
    return None if current is None or current[0] != conninfo else current[1]
