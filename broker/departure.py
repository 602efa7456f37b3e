"""A worker told to leave at once (SIGQUIT, a second Ctrl+C) does so between two turns of its loop, not in the middle of one.

Celery stops jobs and pool in the signal's handler, wherever the main thread happens to be: under a lock that the handler needs
itself, with half a batch sent, or between a claim and its delivery, to a pool that is gone when the handler returns. Of sixty
workers interrupted at random calls of their main process three hung for ever, twelve left a job behind, and eleven failed one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import platforms
from celery.worker import state as worker_state

from celery_jobqueue.broker.gate import Gate

__all__ = ["Departure"]

logger = logging.getLogger(__name__)

#: The name that Celery gives to its handlers that stop jobs; those of a warm shutdown only set a flag.
_COLD = "worker_Cold"


class Departure:
    """Puts Celery's handlers off while the consumer's loop turns."""

    def __init__(self, consumer: Any, gate: Gate) -> None:
        self._consumer, self._gate = consumer, gate
        self._turning = False
        self._order: Callable[[], Any] | None = None
        consumer.loop = self._with_orders(consumer.loop)
        if not isinstance(platforms.signals, _Signals):
            platforms.signals = _Signals()
        platforms.signals.departure = self

    def told(self, order: Callable[[], Any]) -> None:
        """The worker is to leave at once, says a signal. Who says so twice means it."""
        # The solo pool runs its tasks inside of a turn, which may be a long one.
        if not self._turning or self._order is not None or (self._gate.solo and worker_state.active_requests):
            self._order = None
            self._gate.shut()
            self._leave(order)
            return
        if self._gate.solo:  # which runs what is left of this turn
            self._gate.shut()
        self._order = order
        self._consumer.connection.transport.wake()

    def _with_orders(self, loop: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(loop)
        def turning(*args: Any) -> Any:
            hub = self._consumer.hub
            if hub is None:  # a blocking loop (gevent, eventlet)
                return loop(*args)
            hub.on_tick.add(self._obey)
            self._turning = True
            try:
                return loop(*args)
            finally:
                hub.on_tick.discard(self._obey)
                self._obey()  # the connection was lost before another turn
                self._turning = False

        return turning

    def _obey(self) -> None:
        """Leave, if that is the order; the rest of the turn would meet a worker without a pool."""
        if self._order is None:
            return
        self._turning = False
        self._gate.shut()
        self._gate.leave()
        if (order := self._taken()) is not None:  # else it was said twice, and obeyed meanwhile
            self._leave(order)
        worker_state.maybe_shutdown()

    def _taken(self) -> Callable[[], Any] | None:
        order, self._order = self._order, None
        return order

    @staticmethod
    def _leave(order: Callable[[], Any]) -> None:
        try:
            order()
        except Exception:
            logger.exception("the running jobs could not be stopped")  # pools of threads, and solo, have no means to


class _Signals(platforms.Signals):  # type: ignore[misc]
    """Celery's way to install handlers, those that it installs while it leaves included."""

    departure: Departure

    def __setitem__(self, name: str, handler: Any) -> None:
        if getattr(handler, "__name__", None) == _COLD:
            cold = handler

            def handler(*args: Any) -> None:
                self.departure.told(lambda: cold(*args))

        super().__setitem__(name, handler)
