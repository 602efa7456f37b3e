"""Publishing into a transaction that is not the channel's own.

Inside of `collecting` what this thread (or asyncio task) publishes is not sent but kept; whoever opened the block writes it
in the transaction of their choice. How that is done stands here as a script: it yields statements and is sent their rows,
so that it serves connections that wait and connections that are awaited.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from celery_jobqueue.broker.messages import encode_job
from celery_jobqueue.broker.publishing import Outgoing
from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.transient import Destination, Topology, destinations_call
from celery_jobqueue.db.errors import TransactionError

__all__ = ["Collector", "Script", "collected", "collecting", "drive", "drive_async", "refuse_dead_wait"]

#: Yields statements that belong together and is sent the rows of each.
Script: TypeAlias = Generator[list[Call], list[list[Row]], None]


@dataclass(frozen=True, slots=True)
class _Item:
    """A message that was published; `row` when it goes straight to a queue."""

    message: dict[str, Any]
    exchange: str
    routing_key: str
    kind: str
    settings: Settings
    topology: Topology
    deadletter: str | None
    row: dict[str, Any] | None


class Collector:
    """What was published in a block, in order.

    conninfo: only what goes to this database (None: to any). wake: notify workers even if none says that it sleeps: nobody
    knows who will when the transaction commits. control: keep remote control too, which otherwise goes out at once.
    check: called with every message; raises what forbids it.
    """

    def __init__(self, conninfo: str | None, wake: bool, control: bool, check: Callable[[], None],
                 outer: Collector | None) -> None:
        self.conninfo = conninfo
        self.outer = outer
        self.open = True
        self.control = control
        self.wake: bool = wake or (outer is not None and outer.open and outer.wake)
        #: Settings of the brokers that were published to, by connection string.
        self.brokers: dict[str, Settings] = {}
        self._check = check
        self._items: list[_Item] = []
        self._calls: list[Call] = []
        self._declared: list[Call] = []
        self._forget: list[Callable[[], None]] = []
        self._task_ids: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._items or self._calls)

    def publish(self, message: dict[str, Any], exchange: str, routing_key: str, kind: str, transport: Any,
                deadletter: str | None = None) -> None:
        """Keep a message. Raises InvalidJob naming what could not be stored."""
        self._check()
        settings: Settings = transport.settings
        # What goes straight to a queue is encoded now: a mistake in it belongs to this call, not to the end of the block.
        row = None if exchange else encode_job(message, routing_key, settings.priority_scale)
        self._items.append(_Item(message, exchange, routing_key, kind, settings, transport.topology, deadletter, row))
        self._task_ids.add(str(message["headers"].get("id")))
        self.brokers[settings.conninfo] = settings

    def also(self, call: Call) -> None:
        """Keep a statement that is to run before the messages are published."""
        self._check()
        self._calls.append(call)

    def declare(self, call: Call, forget: Callable[[], None]) -> None:
        """Keep a declaration; it is made when a message needs it. forget: called at the end, it may have been rolled back."""
        self._declared.append(call)
        self._forget.append(forget)

    def holds(self, task_id: str) -> bool:
        """Whether this task was published in the block."""
        return task_id in self._task_ids

    def kept(self) -> list[_Item]:
        """What was published so far."""
        return self._items

    def close(self) -> None:
        """The block is over: what a copy of its context publishes from now on is sent as ever."""
        self.open = False
        for forget in self._forget:
            forget()

    def script(self) -> Script:
        """Write everything."""
        # Only exchanges need their queues and bindings; a queue that is named directly needs no row in jobqueue.queue.
        if self._declared and any(item.exchange for item in self._items):
            yield self._declared
        routes: dict[tuple[str, str], list[Destination]] = {}
        outgoing = Outgoing()
        for item in self._items:
            route = (item.exchange, item.routing_key)
            found = routes[route] if route in routes else item.topology.known(*route)
            if found is None:
                [rows] = yield [destinations_call(*route)]
                found = item.topology.learn(*route, item.kind, rows)
            routes[route] = found
            if not found and item.exchange and item.deadletter:
                found = [(item.deadletter, False)]
            outgoing.add(item.message, found, item.settings.priority_scale, row=item.row)
        calls = [*self._calls, *outgoing.calls(wake=self.wake)]
        if calls:
            yield calls


_current: ContextVar[Collector | None] = ContextVar("celery_jobqueue_collector", default=None)


@contextmanager
def collecting(conninfo: str | None = None, *, wake: bool = False, control: bool = False,
               check: Callable[[], None] = lambda: None) -> Iterator[Collector]:
    """Keep everything that is published (to this database) in the block; see Collector."""
    collector = Collector(conninfo, wake, control, check, _current.get())
    token = _current.set(collector)
    try:
        yield collector
    finally:
        collector.close()
        _current.reset(token)


def collected(conninfo: str) -> Collector | None:
    """Where to put what is published to this database; None when it is to be sent."""
    collector = _current.get()
    while collector is not None and not (collector.open and collector.conninfo in (None, conninfo)):
        collector = collector.outer
    return collector


def refuse_dead_wait(conninfo: str, result: Any) -> None:
    """Raises TransactionError when a Celery result is waited for whose task is still being kept back here."""
    collector = collected(conninfo)
    if collector is not None and any(collector.holds(task_id) for task_id in _task_ids(result)):
        raise TransactionError("a task published in jobs_in() starts when its transaction commits: wait for its result then")


def _task_ids(result: Any) -> Iterator[str]:
    """Ids of a result, of those it consists of and of those before it."""
    yield str(getattr(result, "id", None))
    parent = getattr(result, "parent", None)
    for other in (*(getattr(result, "results", None) or ()), *([] if parent is None else [parent])):
        yield from _task_ids(other)


def drive(script: Script, run: Callable[..., list[list[Row]]]) -> None:
    """Run a script on a connection that waits."""
    calls = next(script, None)
    while calls is not None:
        rows = run(*calls)
        try:
            calls = script.send(rows)
        except StopIteration:
            return


async def drive_async(script: Script, run: Callable[..., Awaitable[list[list[Row]]]]) -> None:
    """Run a script on a connection that is awaited."""
    calls = next(script, None)
    while calls is not None:
        rows = await run(*calls)
        try:
            calls = script.send(rows)
        except StopIteration:
            return
