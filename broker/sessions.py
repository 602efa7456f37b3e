"""One connection per thread for what waits: results and retries, in clients and in pool processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg

from celery_jobqueue.broker import trouble
from celery_jobqueue.broker.pooling import prepares
from celery_jobqueue.broker.session import Call, Row, Session
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.settlements import Lease, warn_of_loss
from celery_jobqueue.broker.sql import statement

__all__ = ["PATIENCE", "finished", "lending", "new_session", "run_patiently", "session_for", "still_held", "warn_if_lost"]

#: The work is done: a restart or failover of the server must not lose what came of it. Seconds to go on trying.
PATIENCE = 120.0
#: Seconds before the second attempt with a new connection; each one after it waits twice as long, up to 5 s.
_PAUSE = 0.1

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
        sessions[key] = new_session(settings)
    return sessions[key]


def new_session(settings: Settings) -> Session:
    """A connection of the caller's own, which is opened when it is needed."""
    return Session(settings.conninfo, prepare=prepares(settings), timeout=settings.timeout,
                   connect_timeout=settings.connect_timeout)


def run_patiently(settings: Settings, *calls: Call, patience: float = 0.0, locks: bool = True) -> list[list[Row]]:
    """Run statements that may be repeated: a connection that died while it lay idle is no error.

    patience: seconds to go on trying when there is no server; locks: and while somebody holds the lock of a row. Not repeated
    inside of a transaction that somebody else ends.
    Raises psycopg.Error, SchemaError, ConfigurationError.
    """
    session = session_for(settings)
    fresh, deadline, pause = not session.connected, time.monotonic() + patience, _PAUSE
    while True:
        try:
            return session.run(*calls)
        except psycopg.ProgrammingError as error:
            if session.in_transaction:  # perhaps somebody else's, who knows better what it is about
                raise
            raise trouble.explained(error) from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            refused = trouble.for_good(error) if locks else trouble.by_a_row(error)
            if session.in_transaction or refused or (fresh and time.monotonic() + pause > deadline):
                raise
            if fresh:
                if pause == _PAUSE:
                    trouble.warn(error, f"for {patience:g} s")
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
            fresh = True


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
    return _answer(settings, (statement("still_held"), (lease.id, lease.token)), unknown=True)


def finished(settings: Settings, lease: Lease) -> bool:
    """Whether this lease has completed its job. False when the database does not answer."""
    return _answer(settings, (statement("finished"), (lease.id, lease.token)), unknown=False)


def _answer(settings: Settings, question: Call, unknown: bool) -> bool:
    try:
        return session_for(settings).run(question)[0][0][0] == "t"
    except (psycopg.Error, OSError):
        return unknown


def warn_if_lost(settings: Settings, lease: Lease) -> None:
    """A result was stored to no effect: finish_in() had settled the job, or it is in other hands, and people should know."""
    if run_patiently(settings, (statement("lost_leases"), (f"{{{lease.id}}}", f"{{{lease.token}}}")), patience=PATIENCE)[0]:
        warn_of_loss(lease)
