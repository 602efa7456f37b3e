"""Workers leave on purpose: warm, soft and cold shutdown, a deploy."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.faults.arena import Arena
from tests.faults.scenario import scenario
from tests.support.workers import Worker

_OPTIONS = ("-c", "2", "--prefetch-multiplier", "4")


@scenario(item=5)
def deploy(arena: Arena) -> None:
    """SIGTERM to three workers, one after the other, again and again, as a deploy does: what runs finishes, what is reserved goes
    back at once, no attempt is used."""
    _leave_again_and_again(arena, lambda: arena.start_worker(*_OPTIONS), signal.SIGTERM)


@scenario(item=5, small=0)  # the small deploy does not differ, nor does the small soft shutdown from the cold one
def deploy_early(arena: Arena) -> None:
    """The same with early acknowledgement: nothing is lost, and nothing fails."""
    _leave_again_and_again(arena, lambda: arena.start_worker(*_OPTIONS, FAULTS_ACKS="early"), signal.SIGTERM)


@scenario(item=5, small=0)
def soft_shutdown(arena: Arena) -> None:
    """SIGQUIT with `worker_soft_shutdown_timeout`: what ends in time finishes, the rest goes back at once, no attempt is used."""
    soft = json.dumps({"worker_soft_shutdown_timeout": 1.0})
    _leave_again_and_again(arena, lambda: arena.start_worker(*_OPTIONS, FAULTS_SETTINGS=soft), signal.SIGQUIT)


@scenario(item=5, small=30)
def cold_shutdown(arena: Arena) -> None:
    """SIGQUIT: what runs is stopped and goes back with what was reserved, at once, and no attempt is used."""
    _leave_again_and_again(arena, lambda: arena.start_worker(*_OPTIONS), signal.SIGQUIT)


def _leave_again_and_again(arena: Arena, start: Callable[[], Worker], number: int) -> None:
    """Tell random workers to leave while jobs run, and replace them; then look at what it has cost."""
    cuts = number == signal.SIGQUIT
    running = [start() for _ in range(3)]
    # Some take longer than a soft shutdown waits.
    arena.publish(arena.jobs - arena.jobs // 20, seconds=(0.0, 0.3))
    arena.publish(arena.jobs // 20, seconds=(1.2, 2.0), priority=4)
    limit = 3 if arena.jobs < 100 else 15
    left = held = 0
    while arena.unfinished() and left < limit:
        arena.pause(0.1, 1.0)
        victim = running.pop(0) if number == signal.SIGTERM else running.pop(arena.random.randrange(len(running)))
        owner = arena.owner(victim)
        taken = arena.query("select id, status, run_at, created_at from job_queue where owner = %s", (owner,))
        began = time.monotonic()
        code = victim.stop(number, timeout=60)
        arena.recovered(time.monotonic() - began)
        left += 1
        held += len(taken)
        arena.check(code == 0, f"a worker that leaves ends with 0, not {code}")
        still = arena.value("select count(*) from job_queue where owner = %s", (owner,))
        arena.check(not still, f"{still} jobs are still owned by a worker that has left")
        arena.check(not arena.value("select count(*) from jobqueue.worker where id = %s", (owner,)), "it has said goodbye")
        _in_their_old_place(arena, taken)
        arena.workers.remove(victim)
        running.append(start())
    arena.wait_ended()
    arena.starts_are_given_back = cuts
    # What was cut after its task had noted its end, and before anybody else knew.
    arena.may_run_twice = 2 * left if cuts else 0
    costly = arena.query("select task_id, status, attempts, errors from job_queue where attempts <> 1 or status <> 'completed'")
    arena.check(not costly, f"{len(costly)} jobs have used an attempt or failed: {costly[:3]}")
    arena.note(f"{left} workers left; they held {held} jobs")


def _in_their_old_place(arena: Arena, taken: list[dict[str, Any]]) -> None:
    now = arena.query("select id, status, run_at from job_queue where id = any (%s)", ([row["id"] for row in taken],))
    before = {row["id"]: row["run_at"] for row in taken}
    moved = [row for row in now if row["status"] == "pending" and row["run_at"] != before[row["id"]]]
    arena.check(not moved, f"{len(moved)} jobs went back to another place: {moved[:3]}")
