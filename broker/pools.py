"""kombu's pools of connections and producers, when all are in use: an error after a while, where kombu waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from kombu.connection import ConnectionPool
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.pools import ProducerPool
from kombu.resource import Resource

from celery_jobqueue.broker.register import SCHEMES

__all__ = ["install"]

#: Seconds, unless the application says otherwise: the option `timeout`, or Celery's broker_pool_acquire_timeout.
_PATIENCE = 30.0


def install() -> None:
    """Teach the pools that lead to a job queue, once per process."""
    for pool in (ConnectionPool, ProducerPool):
        if not hasattr(pool.acquire, "__wrapped__"):
            pool.acquire = _with_an_end(Resource.acquire)


def _with_an_end(acquire: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(acquire)
    def acquired(self: Any, block: bool = False, timeout: float | None = None) -> Any:
        patience = _patience(self) if block and timeout is None else None
        try:
            return acquire(self, block, timeout if patience is None else patience)
        except LimitExceeded as error:
            if patience is None:
                raise
            raise OperationalError(f"no connection to the broker became free within {patience:g} s: all {self.limit} are in use "
                                   "(raise broker_pool_limit, or release them sooner)") from error

    return acquired


def _patience(pool: Any) -> float | None:
    """Seconds; None when the pool is none of ours."""
    connection = pool.connection if isinstance(pool, ConnectionPool) else pool.connections.connection
    if connection.transport_cls not in SCHEMES:
        return None
    seconds = (connection.transport_options or {}).get("timeout", _PATIENCE)
    return seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
