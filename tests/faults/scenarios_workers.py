"""Workers die and freeze."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.faults.arena import Arena
from tests.faults.scenario import scenario
from tests.support.pgbouncer import pgbouncer
from tests.support.workers import Worker

#: Seconds after which a killed worker's jobs are pending again on a direct connection.
_PROMISED = 5.0
_TIMEOUT = 3.0  # heartbeat_timeout of the scenarios that wait for it; 75 s by default
_QUICK = {"heartbeat_interval": 0.5, "heartbeat_timeout": _TIMEOUT}


@scenario(item=2)
def killed_worker(arena: Arena) -> None:
    """kill -9 of a worker's main process: within 5 s what it ran is pending again and has used an attempt, what it had only
    reserved has used none."""
    _kill_again_and_again(arena, lambda: arena.start_worker("-c", "2", "--prefetch-multiplier", "4"), _PROMISED)


@scenario(item=2, small=0)  # test_life_of_a_job.py::test_a_dead_workers_jobs_are_taken_over
def killed_worker_early(arena: Arena) -> None:
    """kill -9 of a worker whose jobs are acknowledged early: what it had started ends as failed and never runs again, what it had
    only reserved runs; nothing runs twice."""
    killed = _kill_again_and_again(
        arena, lambda: arena.start_worker("-c", "2", "--prefetch-multiplier", "4", FAULTS_ACKS="early"), _PROMISED, early=True)
    arena.may_run_twice = 0
    failed = arena.query("select error_message, attempts, total_starts from job_queue where status = 'failed'")
    arena.check(all("Worker lost" in row["error_message"] for row in failed), f"a lost job says so: {failed[:3]}")
    arena.check(len(failed) <= 2 * killed, f"{killed} workers with 2 processes were killed, and {len(failed)} jobs failed")
    again = arena.value("select count(*) from job_queue where total_starts > 1")
    arena.check(not again, f"{again} early-acknowledged jobs were started again")
    arena.note(f"{len(failed)} started jobs ended as failed: at most once is what early acknowledgement means")


@scenario(item=2, small=0, needs="pgbouncer")  # test_pgbouncer.py
def killed_worker_pooled(arena: Arena) -> None:
    """kill -9 of a worker behind PgBouncer in transaction mode, where no session lock can tell: its jobs are pending again within
    the heartbeat timeout (3 s here) and the two seconds between two looks."""
    pooler = arena.enter(pgbouncer(arena.url))
    options = json.dumps({"pooled": True, **_QUICK})
    _kill_again_and_again(arena, lambda: arena.start_worker("-c", "2", url=pooler.url(arena.url), FAULTS_OPTIONS=options),
                          _TIMEOUT + 2.0)


@scenario(item=2)
def frozen_worker(arena: Arena) -> None:
    """SIGSTOP of a worker (its main process alone, or its pool too) for longer than the heartbeat timeout (3 s here): its jobs
    run elsewhere, and when it goes on its late results are fenced off and change nothing."""
    options = json.dumps(_QUICK)
    running = [arena.start_worker("-c", "2", FAULTS_OPTIONS=options) for _ in range(3)]
    arena.publish(arena.jobs, seconds=(0.0, 0.1))
    long = arena.publish(2, seconds=(_TIMEOUT + 6, _TIMEOUT + 8), priority=1)
    freezes = 1 if arena.jobs < 100 else 6
    held = 0
    ended: dict[str, dict[str, Any]] = {}
    for number in range(freezes):
        victim = _owner_of(arena, running, long[0]) if number == 0 else arena.random.choice(running)
        arena.pause(0.0, 0.5)
        stopped = _freeze(victim, with_pool=number > 0 and arena.random.random() < 0.5)
        began = time.monotonic()
        taken = arena.query("select id from job_queue where owner = %s", (arena.owner(victim),))
        _wait_disowned(arena, [row["id"] for row in taken], arena.owner(victim), began, _TIMEOUT + 2.0)
        held += len(taken)
        arena.holds_within(lambda taken=taken: _all_ended(arena, taken), 40)  # type: ignore[misc]
        ended.update({str(row["id"]): row for row in _outcome(arena, taken)})
        for pid in stopped:
            arena.kill(pid, signal.SIGCONT)
    arena.wait_ended()
    # The long job's first run may still sleep in the worker that was frozen; its end comes later than the job's.
    arena.holds_within(lambda: len([n for n in arena.notes(long[0]) if n[0] == "end"]) > 1, 20)
    arena.may_run_twice = held
    later = {str(row["id"]): row for row in _outcome(arena, [{"id": key} for key in ended])}
    changed = [key for key, row in ended.items() if row["status"] in ("completed", "failed") and later[key] != row]
    arena.check(not changed, f"late results changed {len(changed)} settled jobs")
    arena.check(all(worker.process.poll() is None for worker in running), "a worker that was frozen goes on working")
    late = sum(len([n for n in arena.notes(job) if n[0] == "end"]) > 1 for job in long)
    arena.check(late >= 1, "no late result came at all: the scenario has shown nothing")
    arena.note(f"{freezes} freezes; {held} jobs were taken from frozen workers")


def _kill_again_and_again(arena: Arena, start: Callable[[], Worker], promised: float, early: bool = False) -> int:
    """Kill random workers' main processes while jobs run, replace them, and watch their jobs come back. How many were killed."""
    running = [start() for _ in range(3)]
    arena.publish(arena.jobs, seconds=(0.2, 0.8) if arena.jobs < 100 else (0.0, 0.3))
    limit = 2 if arena.jobs < 100 else 12
    killed = held = 0
    while arena.unfinished() and killed < limit:
        arena.pause(0.1, 1.5)
        victim = arena.random.choice(running)
        owner = arena.owner(victim)
        began = time.monotonic()
        arena.kill(victim.process.pid)
        victim.process.wait(10)
        killed += 1
        taken = arena.query("select id, status, attempts, total_starts from job_queue where owner = %s", (owner,))
        back = _wait_disowned(arena, [row["id"] for row in taken], owner, began, promised)
        held += len(taken)
        _compare(arena, taken, back, early)
        running.remove(victim)
        arena.bury(victim)
        running.append(start())
    arena.wait_ended()
    arena.may_run_twice = held
    if not early:
        failed = arena.value("select count(*) from job_queue where status = 'failed'")
        arena.check(not failed, f"{failed} jobs failed although no job was hit three times alone")
    arena.note(f"{killed} workers killed; they held {held} jobs")
    return killed


def _compare(arena: Arena, taken: list[dict[str, Any]], back: dict[Any, dict[str, Any]], early: bool) -> None:
    for row in taken:
        now = back.get(row["id"])
        if now is None or now["status"] == "completed":  # its orphaned process has finished it meanwhile, with the lease it held
            continue
        if row["status"] == "pending":
            kept = now["attempts"] >= row["attempts"] and (now["status"] != "pending" or now["attempts"] == row["attempts"])
            arena.check(kept, f"a reserved job has used no attempt: {row}, then {now}")
        elif early:
            arena.check(now["status"] == "failed", f"a started early-acknowledged job ends: {now}")
        else:
            arena.check(now["attempts"] >= row["attempts"], f"a started job has used its attempt: {row}, then {now}")


def _wait_disowned(arena: Arena, ids: list[Any], owner: str, began: float, promised: float) -> dict[Any, dict[str, Any]]:
    """Return the rows once none of them belongs to the owner any more; later than promised is a broken promise."""
    while True:
        found = arena.query("select id, owner, status, attempts from job_queue where id = any (%s)", (ids,))
        if not any(str(row["owner"]) == owner for row in found):
            break
        if time.monotonic() - began > promised + 60:
            arena.check(False, f"a dead worker's jobs were never taken back: {found[:3]}")
            break
        time.sleep(0.02)
    took = time.monotonic() - began
    if ids:
        arena.recovered(took)
        late = 5.0 if arena.jobs < 100 else 0.0  # `make test` runs beside others, and proves other things
        arena.check(took <= promised + late, f"a dead worker's jobs came back after {took:.1f} s, {promised:g} s were promised")
    return {row["id"]: row for row in found}


def _owner_of(arena: Arena, running: list[Worker], job: str) -> Worker:
    arena.wait_running(job)
    owner = str(arena.job(job)["owner"])
    return next(worker for worker in running if arena.owner(worker) == owner)


def _freeze(worker: Worker, with_pool: bool) -> list[int]:
    process = psutil.Process(worker.process.pid)
    pids = [process.pid, *([child.pid for child in process.children()] if with_pool else [])]
    for pid in pids:
        Arena.kill(pid, signal.SIGSTOP)
    return pids


def _outcome(arena: Arena, taken: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return arena.query("select id, status, state, result, attempts, total_starts, finished_at, error_message, errors"
                       " from job_queue where id = any (%s::uuid[])", ([str(row["id"]) for row in taken],))


def _all_ended(arena: Arena, taken: list[dict[str, Any]]) -> bool:
    return all(row["status"] in ("completed", "failed") for row in _outcome(arena, taken))
