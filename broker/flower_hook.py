"""Flower's way to the job queue.

Flower has no plug-in point: its `Broker` chooses a class by the URL's scheme and refuses what it does not know. `install` puts
ours before it as soon as Flower's views are loaded; the transport calls it for every connection, so nobody imports anything.
What Flower is told is in broker/flower.py, loaded when it first asks: where Flower is installed every worker has its views, by
Celery's command line, and would hold 0.13 MiB of ours for nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from importlib import import_module
from threading import Lock
from typing import Any

from celery_jobqueue.broker.register import SCHEMES

__all__ = ["failover_list", "install", "is_ours"]

logger = logging.getLogger(__name__)

_Get = Callable[[Any], Awaitable[None]]
#: First URL of a failover list → all of them. Flower's broker is told the first one only.
_failover_lists: dict[str, tuple[str, ...]] = {}
_installing = Lock()
_installed = False


def is_ours(url: str) -> bool:
    """Whether it leads to a job queue."""
    return url.partition("://")[0] in SCHEMES


def failover_list(url: str) -> tuple[str, ...]:
    """All brokers of the list that begins with this one."""
    return _failover_lists.get(url, (url,))


def install(urls: Sequence[str] = ()) -> None:
    """Teach Flower our scheme, once per process and only where Flower runs. urls: the failover list of a connection."""
    global _installed
    if "flower.views" not in sys.modules:
        return
    if len(urls) > 1:
        _failover_lists[urls[0]] = tuple(url for url in urls if is_ours(url))
    with _installing:
        if _installed:
            return
        _installed = True
        try:
            brokers: Any = import_module("flower.utils.broker")
            views: Any = import_module("flower.views")
            metrics = import_module("flower.views.monitor").Metrics
            brokers.Broker = views.Broker = _knowing_job_queues(brokers.Broker)  # the views have the name by value
            metrics.get = _after_a_look(metrics.get)
        except (ImportError, AttributeError) as error:
            logger.warning("this Flower is not known, its Broker page stays empty: %s", error)


def _knowing_job_queues(others: Any) -> Any:
    @wraps(others, updated=())
    def broker(broker_url: str, *args: Any, **kwargs: Any) -> Any:
        if not is_ours(broker_url):
            return others(broker_url, *args, **kwargs)
        from celery_jobqueue.broker.flower import Broker

        return Broker(broker_url)

    return broker


def _after_a_look(get: _Get) -> _Get:
    @wraps(get)
    async def answered(handler: Any) -> None:
        if is_ours(handler.application.broker_uri_with_password):
            from celery_jobqueue.broker.flower import gauges

            await gauges.refresh(handler)
        await get(handler)

    return answered
