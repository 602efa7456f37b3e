"""Signs of life while a task runs in the solo pool: that pool runs tasks in the event loop, which cannot beat then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from celery_jobqueue.broker.pooling import prepares
from celery_jobqueue.broker.session import Call, Session
from celery_jobqueue.broker.settings import Settings

__all__ = ["Pulse"]


class Pulse(threading.Thread):
    """Beats on a connection of its own until it is stopped. call: the statement of one beat."""

    def __init__(self, settings: Settings, call: Callable[[], Call]) -> None:
        super().__init__(name="jobqueue-pulse", daemon=True)
        self._interval = settings.options.heartbeat
        self._call = call
        self._stopped = threading.Event()
        self._session = Session(settings.conninfo, prepare=prepares(settings), timeout=settings.timeout,
                                connect_timeout=settings.connect_timeout)

    def run(self) -> None:
        """The thread."""
        while not self._stopped.wait(self._interval):
            with suppress(psycopg.Error, OSError):  # the loop's own connection says so when there is no server
                self._session.run(self._call())
        self._session.close()

    def stop(self) -> None:
        """No more beats; returns at once."""
        self._stopped.set()
