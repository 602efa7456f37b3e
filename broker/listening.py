"""What a consuming connection is told by NOTIFY: that there is work in a queue, and that somebody begins to listen to events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from celery_jobqueue.broker.claims import channel_of
from celery_jobqueue.broker.duties import Plan, ignore
from celery_jobqueue.broker.session import Row, Session
from celery_jobqueue.broker.sql import Statement

__all__ = ["Listening"]

#: Tells that a topic exchange's bindings have changed.
_TOPOLOGY = "jq_topology"


class Listening:
    """The channels of one connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Told when a topic exchange has other queues than before, or may have.
        self.on_topology: Callable[[], None] = _nothing
        self._listening: set[str] = set()
        self._queues: dict[str, str] = {}

    @property
    def hears_topology(self) -> bool:
        """Whether on_topology is told of every change."""
        return _TOPOLOGY in self._listening

    def plan(self, plan: Plan, jobs: Iterable[str], transient: Iterable[str], taken: Callable[[list[Row]], None]) -> bool:
        """Listen to these queues and no others from now on. taken: told when one is new. Returns whether one is."""
        self._queues = {channel_of(queue): queue for queue in (*jobs, *transient)}
        wanted = {*self._queues, _TOPOLOGY} if jobs else set(self._queues)
        new = wanted - self._listening
        for channel in new:
            # LISTEN takes no parameter; the names are ours: jq_ and an MD5 in hexadecimal, or the one above.
            plan.add((Statement("", f'LISTEN "{channel}"'.encode()), ()), taken)
        for channel in self._listening - wanted:
            plan.add((Statement("", f'UNLISTEN "{channel}"'.encode()), ()), ignore)
        self._listening = wanted
        return bool(new)

    def heard(self) -> Iterator[str]:
        """The queues of which notifications have come."""
        notified = self._session.notified
        while notified:
            channel = notified.popleft()
            if channel == _TOPOLOGY:
                self.on_topology()
            elif channel in self._queues:
                yield self._queues[channel]

    def forget(self) -> None:
        """Nothing is listened to any more: the connection is lost, or the batch that was to begin it."""
        self._listening.clear()
        self.on_topology()


def _nothing() -> None:
    """Nobody wants to know."""
