"""How a worker comes back to its database: often enough to keep its running jobs, never in a busy loop.

A worker that is cut off for less than the grace (broker/sql, `rescue`) keeps the jobs that it runs. Celery waits 2, 4, 6 … s
between two tries, too long for that; and it connects at once, for ever, to a server that ends every connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import psycopg
from celery.worker import state as worker_state

from celery_jobqueue.broker.identity import identity

__all__ = ["coming_back", "leaving", "outage", "patiently"]

logger = logging.getLogger(__name__)

#: Seconds between two tries, doubling.
_FIRST, _LONGEST = 0.1, 1.0
#: A connection that lasted this long (seconds) was a good one.
_GOOD = 5.0


def coming_back(connect: Callable[[], Any]) -> Callable[[], Any]:
    """The method `connect` of a worker's consumer, remembering when it was cut off."""
    @wraps(connect)
    def connected() -> Any:
        me, now = identity(), time.monotonic()
        if me.connected_at is not None:  # not the first time
            me.cut_off_at = now
            me.pause = 0.0 if now - me.connected_at > _GOOD else min(_LONGEST, max(_FIRST, 2 * me.pause))
            _sleep(me.pause)
        try:
            return connect()
        finally:
            now = time.monotonic()
            me.outage = 0.0 if me.cut_off_at is None else now - me.cut_off_at
            me.connected_at, me.cut_off_at = now, None

    return connected


def outage() -> float:
    """For how many seconds this worker was cut off the last time; 0 when it has just begun."""
    return identity().outage


def patiently(connect: Callable[[], None], seconds: float) -> None:
    """Connect; a worker that was cut off tries it every second as long as its running jobs may still be its own.

    seconds: how long that is after the cut. Whoever else connects has a patience of their own, kombu's. Raises what connecting
    raised; only psycopg.OperationalError is tried again.
    """
    cut_off_at, pause = identity().cut_off_at, _FIRST
    while True:
        try:
            return connect()
        except psycopg.OperationalError as error:
            if cut_off_at is None or time.monotonic() > cut_off_at + seconds or leaving():
                raise
            logger.log(logging.WARNING if pause == _FIRST else logging.DEBUG, "no connection yet, trying every second: %s", error)
        _sleep(pause)
        pause = min(_LONGEST, 2 * pause)


def leaving() -> bool:
    """Whether this worker was told to shut down. Celery's orders are None, False or an exit code, which may be 0."""
    stop, terminate = worker_state.should_stop, worker_state.should_terminate
    return identity().leaving or (stop is not None and stop is not False) or (terminate is not None and terminate is not False)


def _sleep(seconds: float) -> None:
    """Celery's signal handlers only set a flag."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not leaving():
        time.sleep(min(left, 0.1))
