"""Events of a worker, which travel with its next round trip: nobody waits for them, and whatever waits goes as one statement."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

from celery_jobqueue.broker.claims import text_array
from celery_jobqueue.broker.messages import encode_transient
from celery_jobqueue.broker.session import Call
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.transient import Topology, send_call

__all__ = ["Outbox", "outbox_of"]

#: Events that may wait; the oldest are dropped beyond that. A listener is to be told within moments or not at all.
_MOST = 10_000
_PATIENCE = 0.02  # seconds that events wait for company, unless there are …
_ENOUGH = 100  # … so many

_open: dict[str, Outbox] = {}


def _keep(*_letter: Any) -> None:
    """Nothing is near."""


class Outbox:
    """What is to be sent. wake: called from other threads than the loop's, so that it looks here.

    near: queues that this process's own loop reads, a list that its owner changes. deliver: takes what goes to one of them, as
    (queue, envelope, payload, binary). A worker's heartbeat goes to its own gossip too, and for an idle worker that alone was
    a message written, notified and fetched every two seconds.
    """

    def __init__(self, near: Sequence[str] = (), deliver: Callable[..., None] = _keep) -> None:
        self._near = near
        self._deliver = deliver
        self._letters: deque[tuple[Call, float]] = deque(maxlen=_MOST)
        self._thread = self._pid = 0
        self._closed = False
        self._wake: Callable[[], None] = lambda: None
        self.topology: Any = None

    def open(self, conninfo: str, wake: Callable[[], None], topology: Topology) -> None:
        """From now on events for this database are put in here, by all connections of this process. topology: knows listeners."""
        self._thread, self._wake, self._closed, self.topology = threading.get_ident(), wake, False, topology
        self._pid = os.getpid()
        _open[conninfo] = self

    def close(self, conninfo: str) -> None:
        """The loop turns no more; who publishes sends by himself again, and what is here is to go out."""
        self._closed = True
        if _open.get(conninfo) is self:
            del _open[conninfo]

    def post(self, message: Mapping[str, Any], queues: list[str], scale: str) -> None:
        """Put in a message."""
        far = [queue for queue in queues if queue not in self._near]
        if far:
            self._letters.append((send_call(message, far, scale), monotonic()))
        if len(far) < len(queues):
            envelope, payload, binary = encode_transient(dict(message))
            for queue in set(queues).difference(far):
                self._deliver(queue, envelope, payload, None if binary is None else rf"\x{binary.hex()}")
        if threading.get_ident() != self._thread:
            self._wake()

    @property
    def is_here(self) -> bool:
        """Whether its loop turns in this process. Pool processes are forked while it does, with a copy that nobody empties."""
        return self._pid == os.getpid()

    @property
    def due(self) -> float | None:
        """When they are to go out even if nothing else does, in monotonic seconds; None when there are none."""
        if not self._letters:
            return None
        return 0.0 if self._closed or len(self._letters) >= _ENOUGH else self._letters[0][1] + _PATIENCE

    def calls(self) -> list[Call]:
        """The statements that send everything; it is gone from here then. Events that are lost with a connection are lost."""
        found: list[Call] = []
        alike: dict[tuple[Any, ...], list[tuple[str, str]]] = {}
        for _ in range(len(self._letters)):
            call, _since = self._letters.popleft()
            queues, priority, ttl, envelope, payload, binary = call[1]
            if binary is None:
                alike.setdefault((queues, priority, ttl), []).append((str(envelope), str(payload)))
            else:
                found.append(call)
        for (queues, priority, ttl), letters in alike.items():
            found.append((statement("send_all"), (queues, priority, ttl, _column(letters, 0), _column(letters, 1))))
        return found


def _column(letters: Iterable[tuple[str, str]], number: int) -> str:
    return text_array(letter[number] for letter in letters)


def outbox_of(conninfo: str) -> Outbox | None:
    """Where a worker's events for this database go; None in a process without a worker's loop, and in its pool processes."""
    found = _open.get(conninfo)
    return found if found is not None and found.is_here else None
