"""Results of quick tasks are stored by the worker, with the completion of their jobs.

Who stores a result where the task has run waits for the disk, job by job: 1,250 jobs/s, and 2,800 with results ignored (in the
solo pool 990 and 3,900). So the result of a quick task goes back with the news that it is over, and one statement stores those of
a whole batch. Until that has happened the job counts as running, as where results are ignored: if the worker dies, it runs again,
or ends as lost where it was acknowledged early.

The process stores the result itself, before anything else happens, wherever somebody could look for it at once or would have
to hear of it: what follows in a chain or chord, callbacks and errbacks, `on_success`, `after_return`, and receivers of
`task_success` and `task_postrun`, but for Celery's own (the one that closes Django's connections).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import ReferenceType

from celery import Task, signals
from celery._state import get_current_task
from celery.app.trace import fast_trace_task, trace_task_ret

from celery_jobqueue.broker.context import job_of
from celery_jobqueue.broker.overrides import inherits
from celery_jobqueue.broker.settlements import Result

__all__ = ["bring", "carry_results", "carrying_call", "is_carried", "may_be_carried", "stays_here"]

#: Characters of a result that is carried; longer ones are not worth a second way through a pipe.
_LONGEST = 8192
_TRACES = (fast_trace_task, trace_task_ret)


# -- in the worker -----------------------------------------------------------------------------------------------------


def may_be_carried(job: dict[str, Any]) -> None:
    """The worker can store the result of this job, which is about to enter the pool."""
    job["carries"] = True


def carrying_call(trace: Callable[..., tuple[Any, ...]], args: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """How to call Celery's trace of this job in the pool, and with what: so that its result is carried, if it may be."""
    carries = ((args[2].get("properties") or {}).get("job") or {}).get("carries")
    return (_traced, (trace, *args)) if carries else (trace, args)


def carry_results(pool: Any) -> None:
    """Have the pool's callbacks get (failed, value, runtime, (result, metadata)) where a result is carried."""
    if not getattr(pool.apply_async, "carries", False):
        pool.apply_async = _carrying(pool.apply_async)


def _carrying(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(apply_async)
    def apply(target: Any, args: Any = None, *rest: Any, **options: Any) -> Any:
        return apply_async(*(carrying_call(target, args) if target in _TRACES else (target, args)), *rest, **options)

    apply.carries = True  # type: ignore[attr-defined]
    return apply


# -- in the process that runs the job ----------------------------------------------------------------------------------


def _traced(trace: Callable[..., tuple[Any, ...]], name: str, uuid: str, request: dict[str, Any],
            *message: Any) -> tuple[Any, ...]:
    job = request["properties"]["job"]
    job["carried"] = None  # who puts something here has it carried; without this nobody would take it back
    outcome = trace(name, uuid, request, *message)
    result = job.pop("carried", None)
    return outcome if outcome[0] or result is None else (*outcome, tuple(result))


def stays_here(job: dict[str, Any]) -> None:
    """This process stores the result after all."""
    job.pop("carried", None)


def is_carried(request: Any, task_id: str) -> bool:
    """Whether the result of this task, which runs here, is left to its worker."""
    if "carried" not in (job_of(request) or ()) or request.id != task_id or request.ignore_result:
        return False
    if request.chain or request.chord or request.callbacks or request.errbacks or _is_told(signals.task_success):
        return False
    task = get_current_task()
    return task is not None and inherits(task, "on_success", Task) and inherits(task, "after_return", Task) and not _is_told(
        signals.task_postrun)


def bring(request: Any, result: Result) -> bool:
    """Have the worker store it. False when it is too long."""
    if len(result.text or "") + len(result.meta or "") > _LONGEST:
        return False
    request.properties["job"]["carried"] = result
    return True


def _is_told(signal: Any) -> bool:
    for _, receiver in signal.receivers:
        function = receiver() if isinstance(receiver, ReferenceType) else receiver
        if function is not None and not str(getattr(function, "__module__", "")).startswith("celery."):
            return True
    return False
