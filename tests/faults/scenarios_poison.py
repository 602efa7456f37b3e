"""Jobs that kill the worker that runs them, and those beside them."""

from __future__ import annotations

import time

from celery import chord
from celery.exceptions import ChordError, WorkerLostError
from celery.result import AsyncResult

from tests.faults.arena import Arena
from tests.faults.scenario import scenario

_TASK = "f.poison"


@scenario(item=3, small=20)
def poison(arena: Arena) -> None:
    """A job that kills its worker's main process in its first instruction fails after max_attempts, as a Celery failure too:
    get() raises, errbacks and chords react. All others complete with at most their own attempts, also those with a single one."""
    running = [arena.start_worker("-c", "4") for _ in range(2 if arena.jobs < 100 else 3)]
    poisons = max(1, arena.jobs // 400)
    some, once = arena.jobs - arena.jobs // 5, arena.jobs // 5
    arena.publish(some // 2, seconds=(0.0, 0.3))
    guilty = arena.publish(poisons, _TASK, link_error=arena.app.tasks["f.mourn"].s())
    arena.publish(once, seconds=(0.0, 0.3), max_attempts=1)
    body = _chord(arena)
    arena.publish(some - some // 2, seconds=(0.0, 0.3))
    deaths = 0
    while arena.unfinished():
        for dead in [worker for worker in running if worker.process.poll() is not None]:
            deaths += 1
            running.remove(dead)
            running.append(arena.replace(dead, "-c", "4"))
        if deaths > 4 * (poisons + 1) + 4:
            arena.check(False, f"{deaths} workers have died, and it goes on")
            break
        time.sleep(0.1)
    # A job beside a poison runs again; one that had noted its end when the worker died has then done so twice.
    arena.may_run_twice = 8 * deaths
    _judge_the_guilty(arena, guilty)
    _judge_the_chord(arena, body)
    beside = arena.query("select task_id, status, attempts, max_attempts, suspect, error_message from job_queue"
                         " where task_name = 'f.work'")
    failed = [row for row in beside if row["status"] != "completed"]
    arena.check(not failed, f"{len(failed)} jobs that stood beside a poison failed: {failed[:3]}")
    # Two of them may have been started side by side: one death, an attempt of each.
    starts = arena.value("select sum(total_starts) from job_queue where task_name = %s", (_TASK,))
    arena.check(0 < deaths <= starts, f"{deaths} workers died of {starts} starts of a poison")
    arena.note(f"{len(guilty) + 1} poisons killed {deaths} workers; {sum(row['suspect'] for row in beside)} jobs beside them were"
               f" suspected, {sum(row['attempts'] > 1 for row in beside)} needed another attempt, {len(failed)} failed")


def _chord(arena: Arena) -> AsyncResult:
    """A chord with a poison in its header; the result of its body."""
    work, killer = arena.app.tasks["f.work"], arena.app.tasks[_TASK]
    header = [work.s(0.01), killer.s(), work.s(0.01)]
    body = chord(header, arena.app.tasks["f.total"].s()).apply_async()
    for part, task in zip(body.parent.results, ("f.work", _TASK, "f.work"), strict=True):
        arena.note_published(task, part.id)
    return body


def _judge_the_guilty(arena: Arena, guilty: list[str]) -> None:
    # The row fails in the rescuer's transaction; its worker tells Celery right after it.
    untold = "select count(*) from job_queue where task_name = %s and state is null"
    arena.holds_within(lambda: arena.value(untold, (_TASK,)) == 0, 30)
    for row in arena.query("select * from job_queue where task_name = %s", (_TASK,)):
        told = f"{row['status']}, attempt {row['attempts']} of {row['max_attempts']}, {row['error_message']}"
        failed = row["status"] == "failed" and row["attempts"] == row["max_attempts"]
        arena.check(failed, f"a poison fails after max_attempts: {told}")
        arena.check(row["total_starts"] == row["max_attempts"], f"a poison was started {row['total_starts']} times")
        arena.check("Worker lost" in (row["error_message"] or ""), f"a poison's error says so: {told}")
        arena.check(row["state"] == "FAILURE", f"a poison is a Celery failure: {row['state']}")
        arena.check(len(row["errors"] or ()) == row["total_starts"], f"each attempt's error is kept: {row['errors']}")
    for task_id in guilty:
        arena.check(_error(arena.app.AsyncResult(task_id)) is WorkerLostError, "get() raises WorkerLostError")
        arena.holds_within(lambda task_id=task_id: arena.notes(f"mourn {task_id}"), 30)  # type: ignore[misc]
        arena.check(len(arena.notes(f"mourn {task_id}")) == 1, "the errback runs once")


def _judge_the_chord(arena: Arena, body: AsyncResult) -> None:
    error = _error(arena.app.AsyncResult(body.id))  # with its parents it would raise theirs
    arena.check(error is ChordError, f"a chord with a poison in its header fails with ChordError, not {error}")


def _error(result: AsyncResult) -> type[BaseException] | None:
    try:
        result.get(timeout=30)
    except Exception as error:
        return type(error)
    return None

