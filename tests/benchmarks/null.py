"""A transport and a result backend that cost nothing: what Celery itself can do on this machine, its floor.

The queue is always full until as many jobs as asked for were delivered; publishing and acknowledging do nothing. Messages
are built from a template and delivered on Celery's event loop whenever the prefetch has room, as a perfect broker would.
"""

from __future__ import annotations

import json
import os
import uuid
from itertools import count
from typing import Any

from celery.backends.base import KeyValueStoreBackend
from kombu.transport import TRANSPORT_ALIASES, virtual

JOBS_QUEUE = "celery"
_AT_ONCE = 32  # then the loop may look at what else there is; the solo pool runs each job while it is delivered


class _Credit(virtual.QoS):
    """Counts what is unacknowledged, nothing else."""

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._on_collect.cancel()  # nothing to restore at exit
        self.out = 0

    def can_consume(self) -> bool:
        return not self.prefetch_count or self.out < self.prefetch_count

    def append(self, message: Any, delivery_tag: Any) -> None:
        self.out += 1

    def ack(self, delivery_tag: Any) -> None:
        full = not self.can_consume()
        self.out -= 1
        if full:  # the loop may be about to sleep
            self.channel.connection.wake()

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        self.out -= 1

    def restore_unacked_once(self, stderr: Any = None) -> None:
        pass


class Channel(virtual.Channel):
    """Delivers the template's copies."""

    QoS = _Credit
    supports_fanout = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = self.connection.client.transport_options
        self._left = int(options.get("jobs", 0))
        self._task = str(options.get("task", "bench.job"))
        self._numbers = count()
        self._prefix = uuid.uuid4().hex[:24]
        self._body = json.dumps([[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])

    def message(self) -> dict[str, Any]:
        """A job as Celery publishes it (protocol 2)."""
        id_ = f"{self._prefix}{next(self._numbers):012x}"
        return {
            "body": self._body, "content-type": "application/json", "content-encoding": "utf-8",
            "headers": {"lang": "py", "task": self._task, "id": id_, "shadow": None, "eta": None, "expires": None, "group": None,
                        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": id_, "parent_id": None,
                        "argsrepr": "()", "kwargsrepr": "{}", "origin": f"bench@{os.getpid()}", "ignore_result": False,
                        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {}},
            "properties": {"correlation_id": id_, "reply_to": "nobody", "delivery_mode": 2, "delivery_tag": id_,
                           "delivery_info": {"exchange": "", "routing_key": JOBS_QUEUE}, "priority": 0},
        }

    def deliver_what_fits(self) -> int:
        """Hand out messages while the prefetch has room; returns how many."""
        number = 0
        if JOBS_QUEUE in self._active_queues:
            while self._left > 0 and self.qos.can_consume():
                if number == _AT_ONCE:
                    self.connection.wake()
                    break
                self._left -= 1
                number += 1
                self.connection._deliver(self.message(), JOBS_QUEUE)
        return number

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        pass

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **kwargs: Any) -> None:
        pass

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        raise virtual.base.Empty

    def _size(self, queue: str) -> int:
        return self._left if queue == JOBS_QUEUE else 0

    def _purge(self, queue: str) -> int:
        return 0

    def _queue_bind(self, *args: Any) -> None:
        pass


class Transport(virtual.Transport):
    """`null://`."""

    Channel = Channel
    driver_type = driver_name = "null"
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"]))
    _waker: int | None = None

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self._waker = os.eventfd(0, os.EFD_NONBLOCK)
        loop.add_reader(self._waker, self._woken)
        loop.on_tick.add(self._tick)

    def wake(self) -> None:
        """Let the event loop tick once more."""
        if self._waker is not None:
            os.eventfd_write(self._waker, 1)

    def _woken(self) -> None:
        assert self._waker is not None
        os.eventfd_read(self._waker)

    def _tick(self) -> None:
        for channel in self.channels:
            channel.deliver_what_fits()

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """For pools without an event loop."""
        if not any(channel.deliver_what_fits() for channel in self.channels):
            super().drain_events(connection, timeout=timeout or 0.001)


class Backend(KeyValueStoreBackend):
    """Encodes results as every backend does, and forgets them."""

    persistent = True
    supports_native_join = True

    def get(self, key: Any) -> Any:
        return None

    def mget(self, keys: Any) -> Any:
        return [None for _ in keys]

    def set(self, key: Any, value: Any) -> None:
        pass

    def delete(self, key: Any) -> None:
        pass


def register() -> None:
    """Let kombu know `null://`."""
    TRANSPORT_ALIASES["null"] = f"{__name__}:Transport"
