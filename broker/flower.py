"""Flower's Broker page, `/api/queues/length` and `/metrics`, told by the job queue. How it comes to ask: broker/flower_hook.py.

The database is asked in a thread of our own: Flower's event loop never waits for it, and its other pages keep their threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import psycopg

from celery_jobqueue.broker.claims import text_array
from celery_jobqueue.broker.flower_hook import failover_list
from celery_jobqueue.broker.gauges import Health, health_gauges, look_at_health
from celery_jobqueue.broker.session import Row, Session
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.db.url import libpq_dsn

__all__ = ["COUNTED", "AtLeast", "Broker", "Queue", "gauges"]

logger = logging.getLogger(__name__)

#: Nobody counts or searches further than this: looking must stay cheap with a million jobs in the table.
COUNTED = 10_000
_CONNECT, _ANSWER, _PATIENCE = 3, 3, 8  # seconds; Prometheus gives up after ten

T = TypeVar("T")


class AtLeast(int):
    """A count that stopped at its cap: a number for programs, `≥10000` for people."""

    def __str__(self) -> str:
        return f"≥{int(self)}"


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it is now. The counts go up to COUNTED and are AtLeast then.

    ready: due and waiting for a worker. scheduled: not due yet. reserved: claimed by a worker and not started.
    oldest: seconds the ready job that waits longest has been due, 0.0 without one. last_active: when anything last happened to
    one of the COUNTED newest jobs of all, in seconds since 1970, None when none of them is of this queue. failed: in the last
    hour. consumers and reserved are None for queues of transient messages: a fetched message is gone and nobody registers.
    """

    name: str
    ready: int | None
    scheduled: int = 0
    reserved: int | None = None
    processing: int = 0
    consumers: int | None = None
    oldest: float = 0.0
    last_active: float | None = None
    failed: int = 0

    @property
    def unacked(self) -> int | None:
        """Jobs that workers have, started or not."""
        return None if self.reserved is None else _sum(self.reserved, self.processing)

    @property
    def messages(self) -> int | None:
        """Everything that is not finished."""
        return None if self.ready is None else _sum(self.ready, self.scheduled, self.unacked or 0)

    def as_flower_shows_it(self) -> dict[str, Any]:
        """Flower's keys, which are RabbitMQ's, and two more for readers of the API."""
        idle = not self.ready and not self.unacked and self.last_active is not None
        return {
            "name": self.name,
            "messages": self.messages,
            "messages_ready": self.ready,
            "messages_unacknowledged": self.unacked,
            "consumers": self.consumers,
            "idle_since": datetime.fromtimestamp(self.last_active or 0, UTC).isoformat(" ", "seconds") if idle else None,
            "messages_scheduled": self.scheduled,
            "capped": isinstance(self.messages, AtLeast),
        }


def _sum(*counts: int) -> int:
    return (AtLeast if any(isinstance(count, AtLeast) for count in counts) else int)(sum(counts))


def _count(text: str | None) -> int:
    count = int(text or 0)
    return AtLeast(count) if count >= COUNTED else count


# -- asking the database ----------------------------------------------------------------------------------------------


def _look(urls: Sequence[str], ask: Callable[[Session], T]) -> T:
    """What `ask` finds. urls: a failover list; who answers first is asked. Raises psycopg.Error."""
    for number, url in enumerate(urls, 1):
        session = Session(libpq_dsn(url), prepare=False, timeout=_ANSWER + 1, connect_timeout=_CONNECT,
                          writes=False)
        try:
            session.connect()
        except psycopg.OperationalError:
            if number == len(urls):
                raise
            continue
        try:
            return ask(session)
        finally:
            session.close()
    raise psycopg.OperationalError("no database is named")


def _ask_health(session: Session) -> Health | None:
    """None where this login may not look at the view."""
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        return look_at_health(session)
    return None


def _ask_queues(names: Sequence[str], session: Session) -> list[Queue]:
    """These queues and all that the database knows of, by name."""
    settings = (statement("watch_settings"), (f"{_ANSWER}s",))
    _, rows, activity, failures = session.run(
        settings,
        (statement("watch_queues"), (text_array(names), str(COUNTED))),
        (statement("watch_activity"), (str(COUNTED),)),
        (statement("watch_failures"), (str(COUNTED),)),
    )
    last_active = {name: float(at or 0) for name, at in activity}
    # One of them may be all that were looked at: then there may be more among those that were not.
    looked_at = sum(int(seen or 0) for _name, _failed, seen in failures)
    failed = {name: AtLeast(count or 0) if looked_at >= COUNTED else int(count or 0) for name, count, _seen in failures}
    letters: dict[str | None, int] = {}
    if transient := [name or "" for name, is_transient, *_ in rows if is_transient == "t"]:
        # Reading messages takes more than the right to monitor; without it these queues have no numbers.
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            [counted] = session.run((statement("watch_messages"), (text_array(transient), str(COUNTED))))
            letters = {name: _count(n) for name, n in counted}
    queues = [_queue(row, last_active, failed) if row[1] != "t" else Queue(row[0] or "", letters.get(row[0])) for row in rows]
    # Never declared (enqueue_job from SQL) and empty now: only their finished jobs tell of them.
    forgotten = {name or "" for name in (*last_active, *failed)} - {queue.name for queue in queues}
    queues += [_queue((name, *[None] * 8), last_active, failed) for name in forgotten]
    return sorted(queues, key=lambda queue: queue.name)


def _queue(row: Row, last_active: dict[str | None, float], failed: dict[str | None, int]) -> Queue:
    name, _transient, ready, scheduled, reserved, processing, all_held, consumers, oldest = row
    # Held jobs are counted over all queues; where that count stopped, no queue's share is known to be all of it.
    held = AtLeast if int(all_held or 0) >= COUNTED else int
    return Queue(name or "", _count(ready), _count(scheduled), held(reserved or 0), held(processing or 0), int(consumers or 0),
                 float(oldest or 0), last_active.get(name), failed.get(name, 0))


class _Looks:
    """One look at a time; who asks the same meanwhile gets the same answer."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobqueue-flower")
        self._running: dict[object, asyncio.Future[Any]] = {}

    async def queues(self, url: str, names: Sequence[str]) -> list[Queue]:
        """Raises psycopg.Error, TimeoutError."""
        return await self._look((url, *names), url, partial(_ask_queues, names))

    async def health(self, url: str) -> Health | None:
        """Raises psycopg.Error, TimeoutError."""
        return await self._look(("health", url), url, _ask_health)

    async def _look(self, key: object, url: str, ask: Callable[[Session], T]) -> T:
        running: asyncio.Future[T] | None = self._running.get(key)
        if running is None:
            look = partial(_look, failover_list(url), ask)
            running = self._running[key] = asyncio.get_running_loop().run_in_executor(self._thread, look)
            running.add_done_callback(partial(self._done, key))
        return await asyncio.wait_for(asyncio.shield(running), _PATIENCE)

    def _done(self, key: object, ended: asyncio.Future[Any]) -> None:
        self._running.pop(key, None)
        if not ended.cancelled():
            ended.exception()  # seen: everybody who waited may have gone


_looks = _Looks()


# -- what Flower asks -------------------------------------------------------------------------------------------------


class Broker:
    """Flower's idea of a broker: something with queues."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def queues(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The queues of these names and all that the database knows of. Raises tornado.web.HTTPError (503)."""
        try:
            return [queue.as_flower_shows_it() for queue in await _looks.queues(self._url, tuple(names))]
        except (psycopg.Error, TimeoutError) as error:
            from tornado.web import HTTPError

            raise HTTPError(503, "The job queue's database does not tell: %s", _reason(error)) from error


class _Gauges:
    """The latest look, as Prometheus gauges. Collected on Flower's event loop, so it never asks the database itself."""

    def __init__(self) -> None:
        self._queues: list[Queue] | None = None
        self._health: Health | None = None
        self._registered = False
        self._complained = False

    async def refresh(self, handler: Any) -> None:
        """Look before this request for the metrics is answered. Never raises: Flower's own metrics do not need us."""
        url = handler.application.broker_uri_with_password
        try:
            self._queues = await _looks.queues(url, tuple(handler.get_active_queue_names()))
            self._health = await _looks.health(url)
            self._complained = False
        except (psycopg.Error, TimeoutError) as error:
            self._queues = self._health = None
            if not self._complained:
                logger.warning("no metrics of the job queue: %s", _reason(error))
            self._complained = True
        if not self._registered:
            from prometheus_client import REGISTRY

            registry: Any = REGISTRY
            registry.register(self)
            self._registered = True

    def collect(self) -> Iterator[Any]:
        """As prometheus_client asks for it."""
        from prometheus_client.core import GaugeMetricFamily

        yield GaugeMetricFamily("jobqueue_up", "Whether the job queue's database answered", float(self._queues is not None))
        by_status = GaugeMetricFamily(
            "jobqueue_jobs", "Jobs that are not finished, by status", labels=["queue", "status"])
        gauges = {
            "ready": _gauge("ready_jobs", f"Pending jobs that are due and wait for a worker, counted up to {COUNTED}"),
            "scheduled": _gauge("scheduled_jobs", f"Pending jobs that are not due yet, counted up to {COUNTED}"),
            "reserved": _gauge("reserved_jobs", "Pending jobs that a worker has claimed and not started"),
            "consumers": _gauge("consumers", "Workers that are alive and consume the queue"),
            "oldest": _gauge("oldest_pending_seconds", "How long the ready job that waits longest has been due"),
            "failed": _gauge("failed_last_hour", f"Jobs failed in the last hour, among the {COUNTED} newest failed ones"),
        }
        for queue in self._queues or ():
            if queue.reserved is None:
                continue  # transient messages are no jobs
            pending = (queue.ready or 0) + queue.scheduled + queue.reserved
            by_status.add_metric([queue.name, "pending"], pending)
            by_status.add_metric([queue.name, "processing"], queue.processing)
            for field, gauge in gauges.items():
                gauge.add_metric([queue.name], float(getattr(queue, field)))
        yield from (by_status, *gauges.values())
        if self._health is not None:
            yield from health_gauges(self._health)


def _gauge(name: str, meaning: str) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"jobqueue_{name}", meaning, labels=["queue"])


gauges = _Gauges()


def _reason(error: BaseException) -> str:
    return (str(error).strip() or f"no answer within {_PATIENCE} s").splitlines()[0]
