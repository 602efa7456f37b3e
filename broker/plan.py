"""What a consuming connection is to say next, and when what falls due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from celery_jobqueue.broker.session import Call, Row

__all__ = ["Duties", "Plan"]


@dataclass(slots=True)
class Duties:
    """When each periodic duty is due, in monotonic seconds."""

    heartbeat: float = 0.0
    lock: float = 0.0
    mail: float = 0.0
    rescue: float = 0.0
    touch: float = 0.0
    reap: float = 0.0
    retire: float = 0.0


@dataclass(slots=True)
class Plan:
    """The statements of one batch, each with the function that takes its answer."""

    calls: list[Call] = field(default_factory=list)
    takers: list[Callable[[list[Row]], None]] = field(default_factory=list)
    durable: bool = False

    def add(self, call: Call, taker: Callable[[list[Row]], None]) -> None:
        """One more statement."""
        self.calls.append(call)
        self.takers.append(taker)
