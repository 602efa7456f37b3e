"""Results of quick tasks are stored by the worker, with the completion of their jobs.

A process of the pool that stores its result itself waits for the disk, job by job: 1,250 jobs/s, and 2,800 with results ignored.
So the result of a quick task goes back with the news that it is over, and one statement stores those of a whole batch. Until
that has happened the job counts as running, as it does where results are ignored: if the worker dies, it runs again.

The process stores the result itself, before anything else happens, wherever somebody could look for it at once or would have to
hear of it: what follows in a chain or chord, callbacks and errbacks, `on_success` and receivers of `task_success`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import Task, signals
from celery._state import get_current_task
from celery.app.trace import fast_trace_task, trace_task_ret

from celery_jobqueue.broker.settlements import Result

__all__ = ["bring", "carrying", "is_carried", "may_be_carried", "stays_here"]

#: Characters of a result that is carried; longer ones are not worth a second way through a pipe.
_LONGEST = 8192
_TRACES = (fast_trace_task, trace_task_ret)


def may_be_carried(job: dict[str, Any]) -> None:
    """In the worker: say to the process that will run this job that the worker can store the result."""
    job["carries"] = True


def stays_here(job: dict[str, Any]) -> None:
    """In the process that runs the job: it stores the result itself after all."""
    job.pop("carries", None)


def is_carried(request: Any, task_id: str) -> bool:
    """Whether the result of this task, which runs here, is left to its worker."""
    job = (getattr(request, "properties", None) or {}).get("job") or {}
    if not job.get("carries") or request.id != task_id or request.ignore_result:
        return False
    if request.chain or request.chord or request.callbacks or request.errbacks or signals.task_success.receivers:
        return False
    task = get_current_task()
    return task is not None and getattr(task.on_success, "__func__", None) is Task.on_success


def bring(request: Any, result: Result) -> bool:
    """Have the worker store it. False when it is too long."""
    if len(result.text or "") + len(result.meta or "") > _LONGEST:
        return False
    request.properties["job"]["carried"] = result
    return True


def carrying(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    """A pool's apply_async. Where a result is carried its callback gets (failed, value, runtime, (result, metadata))."""
    @wraps(apply_async)
    def apply(target: Any, args: Any = None, *rest: Any, **options: Any) -> Any:
        if target in _TRACES and ((args[2].get("properties") or {}).get("job") or {}).get("carries"):
            return apply_async(_traced, (target, *args), *rest, **options)
        return apply_async(target, args, *rest, **options)

    return apply


def _traced(trace: Callable[..., tuple[Any, ...]], name: str, uuid: str, request: dict[str, Any],
            *message: Any) -> tuple[Any, ...]:
    outcome = trace(name, uuid, request, *message)
    result = request["properties"]["job"].pop("carried", None)
    return outcome if outcome[0] or result is None else (*outcome, tuple(result))
