"""What the solo pool cannot do while a task runs, because it runs it in the event loop: beat, and tell what ended before it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

import psycopg

from celery_jobqueue.broker.identity import identity
from celery_jobqueue.broker.pooling import prepares
from celery_jobqueue.broker.session import Call, Session
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.settlements import Settlements

__all__ = ["Pulse"]

#: Seconds that the loop has for telling it itself, with its next claim. Quick jobs come a hundred times as often.
_GRACE = 0.05
#: Seconds that a worker that leaves waits for what is being told.
_PATIENCE = 5.0


class Pulse(threading.Thread):
    """Beats on a connection of its own until it is stopped. call: the statement of one beat."""

    def __init__(self, settings: Settings, call: Callable[[], Call], settlements: Settlements) -> None:
        super().__init__(name="jobqueue-pulse", daemon=True)
        self._interval = settings.options.heartbeat
        self._call = call
        self._settlements = settlements
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._session = Session(settings.conninfo, prepare=prepares(settings), timeout=settings.timeout,
                                connect_timeout=settings.connect_timeout)
        identity().holders.add(settlements)

    def watch(self) -> None:
        """A job begins: what is not told yet may have to wait for its end, and somebody for a result."""
        if self._settlements and not self._woken.is_set():
            self._woken.set()

    def run(self) -> None:
        """The thread."""
        beat_at = monotonic() + self._interval
        while not self._stopped.is_set():
            woken = self._woken.wait(max(0.0, beat_at - monotonic()))
            with suppress(psycopg.Error, OSError):  # the loop's own connection says so when there is no server
                if monotonic() >= beat_at:
                    beat_at = monotonic() + self._interval
                    self._session.run(self._call())
                if woken:
                    self._woken.clear()
                    self._tell()
        self._session.close()

    def _tell(self) -> None:
        takes = self._settlements.takes
        if self._stopped.wait(_GRACE) or takes != self._settlements.takes:
            return
        self._settlements.tell(self._session.run)

    def stop(self, *, wait: bool = False) -> None:
        """No more beats. Returns at once, unless it shall wait until what is being told is told."""
        self._stopped.set()
        self._woken.set()
        if wait and self.is_alive():
            self.join(_PATIENCE)
