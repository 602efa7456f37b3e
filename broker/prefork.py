"""What Celery's prefork pool overlooks of processes that end, and of tasks that end when nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from celery_jobqueue.broker.pipes import talk_tersely

__all__ = ["mind"]


def mind(pool: Any) -> None:
    """Mend the pool's ways; those of other pools are left alone. Once per connection."""
    inner: Any = getattr(pool, "_pool", None)
    if not (hasattr(inner, "on_partial_read") and hasattr(inner, "on_hard_timeout")):  # nor is it the one for an event loop
        return
    _watch_again(inner)
    if not hasattr(inner, "minded"):
        inner.minded = True
        talk_tersely(inner)
        inner.on_partial_read = _heeding_the_dead(inner, inner.on_partial_read)
        inner.on_hard_timeout = _heeding_the_done(inner, inner.on_hard_timeout)


def _watch_again(inner: Any) -> None:
    """A process that closes its end is not watched any more, and forgotten once the system says that it has ended.

    If the connection is replaced in between, Celery stumbles over that process and the worker ends: "file descriptor is None"
    (once in 194,000 jobs of a soak that killed processes and cut connections).
    """
    for process in inner._pool:
        if getattr(process, "_sentinel_poll", 0) is None:
            del process._sentinel_poll


def _heeding_the_dead(inner: Any, give_to_another: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """A dead process's job is given to another one, unless it was read that it was begun.

    If the process dies while the end of another is dealt with, that is still to be read: of 30 jobs that kill their process each
    time, in a pool of six, some five ran more often than they were counted.
    """
    @wraps(give_to_another)
    def heed(job: Any, process: Any) -> None:
        if not job._accepted:
            inner.process_flush_queues(process)
        give_to_another(job, process)

    return heed


def _heeding_the_done(inner: Any, time_is_up: Callable[[Any], None]) -> Callable[[Any], None]:
    """After a stall of the worker (a stopped container) timers fire before anything is read, and tasks that were over in time
    exceed their hard time limits.
    """
    @wraps(time_is_up)
    def heed(job: Any) -> None:
        try:
            for process in inner._pool:
                if process.pid == job._worker_pid and not job.ready():
                    inner.process_flush_queues(process)
        finally:
            time_is_up(job)

    return heed
