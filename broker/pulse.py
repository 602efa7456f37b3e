"""What a worker cannot do while its loop does not turn: beat, and tell what has ended.

The solo pool runs tasks in the loop; and a worker that leaves waits there for its threads, or for a soft shutdown.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from math import inf
from time import monotonic

import psycopg

from celery_jobqueue.broker.identity import identity
from celery_jobqueue.broker.session import Call
from celery_jobqueue.broker.sessions import new_session
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.settlements import Settlements

__all__ = ["Pulse"]

logger = logging.getLogger(__name__)

#: Seconds that the loop has for telling it itself, with its next claim. Quick jobs come a hundred times as often.
_GRACE = 0.05
#: Seconds until it tries again what has failed: the running job may be waiting for that very result.
_AGAIN = 1.0
#: Seconds that a worker that leaves waits for what is being told.
_PATIENCE = 5.0


class Pulse(threading.Thread):
    """Beats and tells on a connection of its own until it is stopped. call: the statement of one beat."""

    def __init__(self, settings: Settings, call: Callable[[], Call], settlements: Settlements) -> None:
        super().__init__(name="jobqueue-pulse", daemon=True)
        self._interval = settings.options.heartbeat
        self._call = call
        self._settlements = settlements
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._session = new_session(settings)
        identity().holders.add(settlements)

    def watch(self) -> None:
        """A job begins: what is not told yet may have to wait for its end, and somebody for a result."""
        if self._settlements and not self._woken.is_set():
            self._woken.set()

    def run(self) -> None:
        """The thread."""
        beat_at, again_at = monotonic() + self._interval, inf
        while not self._stopped.is_set():
            woken = self._woken.wait(max(0.0, min(beat_at, again_at) - monotonic()))
            try:
                if monotonic() >= beat_at:
                    beat_at = monotonic() + self._interval
                    self._session.run(self._call())
                if woken or monotonic() >= again_at:
                    self._woken.clear()
                    again_at = inf
                    self._tell()
            except Exception as error:
                again_at = monotonic() + _AGAIN
                if not isinstance(error, (psycopg.Error, OSError)):  # of those the loop's own connection hears, too
                    logger.exception("the worker's second thread goes on after an error")
        self._session.close()

    def _tell(self) -> None:
        takes = self._settlements.takes
        if not self._stopped.wait(_GRACE) and takes == self._settlements.takes:
            self._settlements.tell(self._session.run)

    def stop(self, *, wait: bool = False) -> None:
        """No more beats. Returns at once, unless it shall wait until what is being told is told."""
        self._stopped.set()
        self._woken.set()
        if wait and self.is_alive():
            self.join(_PATIENCE)
