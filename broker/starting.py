"""Outside of a worker nobody else starts jobs: being delivered is being started."""

from __future__ import annotations

from time import time
from typing import Any

from celery_jobqueue.broker.cycle import Cycle
from celery_jobqueue.broker.settlements import Failure, Lease

__all__ = ["start_now", "start_undelivered"]


def start_undelivered(cycle: Cycle) -> None:
    """Start what is about to be delivered; what must not run is delivered no more."""
    ready = cycle.ready
    while True:
        held = len(ready)
        dropped = start_now(cycle, [message for _, message in ready])
        arrived = len(ready) > held  # while these were started: a claim that was on its way
        for delivery in [delivery for delivery in ready if delivery[1] in dropped]:
            ready.remove(delivery)
        if not arrived:
            return


def start_now(cycle: Cycle, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Start these claimed jobs. Returns those that must not be delivered: lost meanwhile, or come too late."""
    settlements = cycle.settlements
    dropped: list[dict[str, Any]] = []
    for message in messages:
        job = message["properties"].get("job")
        if job is None or job.get("start"):
            continue
        lease = Lease.of(job)
        if job["expires"] is not None and job["expires"] < time():
            settlements.fail(lease, Failure("expired"))
            dropped.append(message)
            continue

        def started(attempts: int, max_attempts: int, start: int, message: dict[str, Any] = message) -> None:
            message["properties"]["job"].update(attempts=attempts, max_attempts=max_attempts, start=start)
            if not attempts:
                dropped.append(message)

        settlements.start(lease, False, started)
    if settlements:
        cycle.settle()
    return dropped
