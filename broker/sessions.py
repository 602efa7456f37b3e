"""One connection per thread for what waits: results and retries, in clients and in pool processes."""

from __future__ import annotations

import os
import threading

from celery_jobqueue.broker.session import Session
from celery_jobqueue.broker.settings import Settings

__all__ = ["session_for"]

_local = threading.local()


def session_for(settings: Settings) -> Session:
    """This thread's connection to the database; a forked process begins with none."""
    key = (os.getpid(), settings.conninfo)
    sessions: dict[tuple[int, str], Session] = _local.__dict__.setdefault("sessions", {})
    if key not in sessions:
        sessions[key] = Session(settings.conninfo, prepare=not settings.pooled, timeout=settings.timeout,
                                connect_timeout=settings.connect_timeout)
    return sessions[key]
