"""What Celery's prefork pool overlooks: processes that end, tasks that end when nobody looks, who needs the processor first."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

from celery import signals

from celery_jobqueue.broker.bundles import are_prepared, prepare_bundles
from celery_jobqueue.broker.pipes import accept_silently, knows_its_jobs, talk_tersely

#: That are in the pool at the same time; of more processes some get their jobs one by one.
_BUNDLES = 64

__all__ = ["hear", "may_bundle", "mind", "prepare_processes"]


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
        inner.on_hard_timeout = _heeding_the_done(pool, inner.on_hard_timeout)


def prepare_processes(processes: Any) -> None:
    """Have the processes of the pool that this one is going to fork be brief, and not interrupt anybody when they get a job.

    All of them wait for the worker's main process, and it waited a quarter of its time for a processor, because a process that
    wakes up takes the one that woke it: 1,590 and 1,720 jobs/s on two cores became 2,200 and 2,350, and each cost a sixth less.
    Their share of the processors stays the same, so this takes no more from a task than the slice of another process
    (https://man7.org/linux/man-pages/man7/sched.7.html, SCHED_BATCH). Programs that tasks start inherit it; a task that does not
    want it may set SCHED_OTHER. A policy that somebody chose is left alone.

    processes: how many there will be, as far as Celery knows it yet.
    """
    main = os.getpid()
    prepare_bundles(min(_BUNDLES, 2 * (processes if isinstance(processes, int) else os.cpu_count() or 1)))

    def prepare(**_: Any) -> None:
        if os.getpid() == main:  # the solo pool, too, says that it is a process of a pool
            return
        accept_silently()
        with suppress(AttributeError, OSError):  # not on Linux, or not allowed
            if os.sched_getscheduler(0) == os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    signals.worker_process_init.connect(prepare, weak=False, dispatch_uid="celery_jobqueue.prefork")


def may_bundle(pool: Any) -> bool:
    """Whether a process of this pool may get several jobs at once: where it is known which of them it has begun, where none of
    them has a time limit by the worker's options, and where processes are not counted by their jobs.
    """
    inner: Any = getattr(pool, "_pool", None)
    return bool(are_prepared() and getattr(inner, "minded", False) and knows_its_jobs(inner)
                and not (inner.timeout or inner.soft_timeout))


def hear(pool: Any, pid: int | None) -> None:
    """Read what a process of the pool has said."""
    inner = pool._pool
    for process in inner._pool:
        # Of a long message there may be a part already, and the rest of it must not be taken for the next one.
        if process.pid == pid and not inner._result_handler._finish_partial_read(process.outqR_fd, process):
            inner.process_flush_queues(process)


def _watch_again(inner: Any) -> None:
    """A process that closes its end is not watched any more, and forgotten once the system says that it has ended.

    If the connection is replaced in between, Celery stumbles over that process and the worker ends: "file descriptor is None"
    (once in 194,000 jobs of a soak that killed processes and cut connections).
    """
    for process in inner._pool:
        if getattr(process, "_sentinel_poll", 0) is None:
            del process._sentinel_poll


def _heeding_the_dead(inner: Any, give_to_another: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """A dead process's job is given to another one, unless it was begun.

    If the process dies while the end of another is dealt with, that is still to be found out: of 30 jobs that kill their process
    each time, in a pool of six, some five ran more often than they were counted.
    """
    @wraps(give_to_another)
    def heed(job: Any, process: Any) -> None:
        inner.process_flush_queues(process)
        give_to_another(job, process)

    return heed


def _heeding_the_done(pool: Any, time_is_up: Callable[[Any], None]) -> Callable[[Any], None]:
    """After a stall of the worker (a stopped container) timers fire before anything is read, and tasks that were over in time
    exceed their hard time limits.
    """
    @wraps(time_is_up)
    def heed(job: Any) -> None:
        try:
            if not job.ready():
                hear(pool, job._worker_pid)
        finally:
            time_is_up(job)

    return heed
