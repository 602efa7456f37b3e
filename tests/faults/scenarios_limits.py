"""Long jobs, time limits, and processes that die each time: max_attempts holds."""

from __future__ import annotations

import json
from typing import Any

from celery.exceptions import TimeLimitExceeded, WorkerLostError

from tests.faults.arena import Arena
from tests.faults.scenario import scenario

#: A job of 20 minutes is 16 heartbeat timeouts long (75 s by default). Shortened here.
_TIMEOUT = 3.0


@scenario(item=6)
def long_job(arena: Arena) -> None:
    """A job that takes 16 heartbeat timeouts (20 minutes with the defaults) on a living worker is never taken away, in no pool,
    while thousands of others run beside it."""
    options = json.dumps({"heartbeat_interval": 0.5, "heartbeat_timeout": _TIMEOUT})
    seconds = (3 if arena.jobs < 100 else 16) * _TIMEOUT
    pools = ("prefork", "threads", "solo")
    for pool in pools:
        arena.start_worker("-P", pool, "-c", "2", "-Q", f"celery,{pool}" if pool != "solo" else pool, FAULTS_OPTIONS=options)
    long = [job for pool in pools for job in arena.publish(1, args=(seconds,), queue=pool)]
    for job in long:
        arena.wait_running(job)
    arena.publish(arena.jobs, seconds=(0.0, 0.04))
    arena.wait_ended()
    for job in long:
        row = arena.job(job)
        kept = (row["status"], row["attempts"], row["total_starts"]) == ("completed", 1, 1)
        arena.check(kept, f"a long job was taken away: {row}")
        arena.check(len(arena.notes(job)) == 2, f"a long job runs once: {arena.notes(job)}")
    arena.note(f"{len(long)} jobs of {seconds:g} s, heartbeat timeout {_TIMEOUT:g} s")


@scenario(item=6)
def time_limits(arena: Arena) -> None:
    """A job that exceeds its hard time limit, and one that kills its own process, each time: failed after max_attempts, never
    started once more, and get() raises. Others notice nothing."""
    _exceed(arena)


@scenario(item=6)
def time_limits_requeued(arena: Arena) -> None:
    """The same with `task_acks_on_failure_or_timeout = False`, where Celery itself puts such a job back without end."""
    _exceed(arena, FAULTS_SETTINGS=json.dumps({"task_acks_on_failure_or_timeout": False}))


def _exceed(arena: Arena, **env: str) -> None:
    running = [arena.start_worker("-c", "2", **env) for _ in range(2)]
    some = 2 if arena.jobs < 100 else arena.jobs // 100
    slow = arena.publish(some, args=(60.0,), time_limit=0.5)
    dying = arena.publish(some, "f.suicide")
    once = arena.publish(some, "f.suicide", max_attempts=1)
    arena.publish(arena.jobs - 3 * some, seconds=(0.0, 0.05))
    arena.wait_ended()
    limited = _judge(arena, slow, 3, ("TimeLimitExceeded", "hard time limit"), TimeLimitExceeded)
    lost = _judge(arena, dying, 3, ("WorkerLostError",), WorkerLostError)
    lost += _judge(arena, once, 1, ("WorkerLostError",), WorkerLostError)
    others = arena.query("select task_id, status, attempts, error_message from job_queue where not task_id = any (%s)"
                         " and (status <> 'completed' or attempts > 1)", (slow + dying + once,))
    arena.check(not others, f"{len(others)} others noticed: {others[:3]}")
    arena.check(all(worker.process.poll() is None for worker in running), "no worker ends")
    arena.note(f"{limited} starts ended by the time limit, {lost} by the death of their process")


def _judge(arena: Arena, jobs: list[str], attempts: int, reasons: tuple[str, ...], raised: type[BaseException]) -> int:
    starts = 0
    for job in jobs:
        row = arena.job(job)
        starts += row["total_starts"]
        told: dict[str, Any] = {name: row[name] for name in ("status", "attempts", "total_starts", "state", "error_message")}
        right = (row["status"], row["attempts"], row["total_starts"]) == ("failed", attempts, attempts)
        arena.check(right, f"failed after {attempts} attempts: {told}")
        said = any(reason in (row["error_message"] or "") for reason in reasons)
        arena.check(said, f"the error says {' or '.join(reasons)}: {told}")
        runs = [note for note in arena.notes(job) if note[0] == "start"]
        arena.check(len(runs) == attempts, f"it was run {attempts} times: {runs}")
        try:
            arena.app.AsyncResult(job).get(timeout=10)
            arena.check(False, "get() raises")
        except Exception as error:
            arena.check(isinstance(error, raised), f"get() raises {raised.__name__}, not {error!r}")
    return starts
