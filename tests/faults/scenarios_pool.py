"""Pool processes die."""

from __future__ import annotations

import time
from itertools import pairwise

from tests.faults.arena import Arena
from tests.faults.scenario import scenario


@scenario(item=1)
def killed_child(arena: Arena) -> None:
    """kill -9 of a pool process: the job it ran is tried again, an attempt is used, and nobody else notices."""
    running = [arena.start_worker("-c", "2") for _ in range(2)]
    arena.publish(arena.jobs, seconds=(0.0, 0.05))
    killed: dict[int, float] = {}
    limit = max(3, arena.jobs // 50)
    while arena.unfinished() and len(killed) < limit:
        arena.pause(0.05, 0.6)
        children = [pid for worker in running for pid in arena.pool(worker)]
        victim = arena.random.choice(children)
        if arena.kill(victim):
            killed[victim] = time.time()
    arena.wait_ended()
    arena.may_run_twice = len(killed)
    rows = arena.query("select task_id, status, attempts, errors from job_queue where attempts <> 1 or status <> 'completed'")
    arena.check(len(rows) <= len(killed), f"{len(killed)} processes were killed, and {len(rows)} jobs noticed")
    arena.check(all(row["status"] == "completed" for row in rows), f"every job completes: {rows[:3]}")
    arena.check(all("WorkerLostError" in error["error"] for row in rows for error in row["errors"] or ()),
                f"every error names the lost process: {rows[:3]}")
    arena.check(all(worker.process.poll() is None for worker in running), "no worker ends")
    for row in rows:
        runs = [(pid, at) for what, pid, at in arena.notes(row["task_id"]) if what == "start"]
        for (pid, _), (_, again) in pairwise(runs):
            if pid in killed:
                arena.recovered(again - killed[pid])
    arena.note(f"{len(killed)} pool processes killed; {len(rows)} jobs were tried again")

