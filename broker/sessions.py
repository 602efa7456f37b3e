"""One connection per thread for what waits: results and retries, in clients and in pool processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg

from celery_jobqueue.broker.session import Session
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.settlements import Lease
from celery_jobqueue.broker.sql import statement

__all__ = ["lending", "session_for", "still_held"]

_local = threading.local()
_lent: ContextVar[tuple[str, Any] | None] = ContextVar("celery_jobqueue_lent_session", default=None)


def session_for(settings: Settings) -> Session:
    """This thread's connection to the database; a forked process begins with none."""
    lent = _lent.get()
    if lent is not None and lent[0] == settings.conninfo:
        session: Session = lent[1]
        return session
    key = (os.getpid(), settings.conninfo)
    sessions: dict[tuple[int, str], Session] = _local.__dict__.setdefault("sessions", {})
    if key not in sessions:
        sessions[key] = Session(settings.conninfo, prepare=not settings.pooled, timeout=settings.timeout,
                                connect_timeout=settings.connect_timeout)
    return sessions[key]


@contextmanager
def lending(conninfo: str, session: Any) -> Iterator[None]:
    """In the block, session_for() gives this one for the database."""
    token = _lent.set((conninfo, session))
    try:
        yield
    finally:
        _lent.reset(token)


def still_held(settings: Settings, lease: Lease) -> bool:
    """Whether the job is still this lease's to finish. True when the database does not answer."""
    try:
        return session_for(settings).run((statement("still_held"), (lease.id, lease.token)))[0][0][0] == "t"
    except (psycopg.Error, OSError):
        return True
