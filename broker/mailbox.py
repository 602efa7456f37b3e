"""Transient messages for one connection: events, remote control and its replies. Which queues it reads, and when."""

from __future__ import annotations

import logging
from collections import deque
from itertools import count
from math import inf
from time import monotonic
from typing import Any, TypeAlias

from celery_jobqueue.broker.claims import Claims, text_array
from celery_jobqueue.broker.duties import Plan
from celery_jobqueue.broker.messages import decode_transient
from celery_jobqueue.broker.options import Options
from celery_jobqueue.broker.session import Row
from celery_jobqueue.broker.settlements import describe
from celery_jobqueue.broker.sql import statement

__all__ = ["Delivery", "Mailbox"]

logger = logging.getLogger(__name__)

#: One (queue name, message) ready to be delivered.
Delivery: TypeAlias = tuple[str, dict[str, Any]]
_MOST = 100  # messages in one look
#: Seconds that gossip may wait for more of it. Fifty workers send a heartbeat every two seconds to each of fifty, and read each
#: by itself they ran a thousand statements per second with nothing to do. Celery's gossip expires after two seconds.
_LEISURE = 0.5


class Mailbox:
    """Puts what it reads into `ready`. claims: tells whether its owner consumes jobs too."""

    def __init__(self, options: Options, claims: Claims, ready: deque[Delivery]) -> None:
        self.options = options
        self.queues: list[str] = []
        #: How the names of queues begin whose messages nobody is waiting for.
        self.leisurely: str | None = None
        self._claims = claims
        self._ready = ready
        self._serials = count(1)
        self._waiting = True  # a message may be
        self._look_at = 0.0

    def add(self, queue: str) -> None:
        """Read this queue too, from now on."""
        if queue not in self.queues:
            self.queues.append(queue)
        self._waiting = True

    def look(self) -> None:
        """Something may have come."""
        self._waiting = True

    def heard(self, queue: str) -> None:
        """Something has come."""
        if self.leisurely is not None and queue.startswith(self.leisurely):
            self._look_at = min(self._look_at, monotonic() + _LEISURE)
        else:
            self._waiting = True

    @property
    def next(self) -> float:
        """When to look, in monotonic seconds."""
        if not self.queues:
            return inf
        return 0.0 if self._waiting else self._look_at

    def plan(self, plan: Plan, now: float) -> None:
        """Look if it is time."""
        if now >= self.next:
            self._waiting = False
            self._look_at = now + self._interval
            plan.add((statement("fetch"), (text_array(self.queues), str(_MOST))), self._take)

    @property
    def _interval(self) -> float:
        if not self.options.pooled:
            return self.options.poll  # NOTIFY tells; this is for the case that it does not
        # Without LISTEN: a client of remote control waits one second in all, a worker may take its time.
        return min(self.options.poll, 0.5) if self._claims.queues else 0.05

    def _take(self, rows: list[Row]) -> None:
        for id_, queue, envelope, payload, binary in rows:
            assert queue is not None
            try:
                self.take_letter(queue, envelope, payload, binary, f"t{id_}")
            except Exception as error:  # sent by hand, with jobqueue.send()
                logger.error("a message in queue %r cannot be read and is dropped: %s", queue, describe(error))
        if len(rows) == _MOST:
            self._waiting = True

    def take_letter(self, queue: str, envelope: str | None, payload: str | None, binary: str | None, id_: str = "own") -> None:
        """One message is here. Raises ValueError and its like when it cannot be read."""
        self._ready.append((queue, decode_transient(queue, envelope, payload, binary, f"{id_}.{next(self._serials)}")))
