"""Which job is running here, as Celery knows it. Celery is only looked at when it has been imported."""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from typing import Any

from celery_jobqueue.broker.settlements import Lease

__all__ = ["job_of", "lease_of", "parameter_position", "running_request", "task_option"]


def running_request() -> Any | None:
    """The request of the task that runs in this thread, None outside of tasks."""
    state = sys.modules.get("celery._state")
    task = state.get_current_task() if state is not None else None
    if task is None:
        return None
    request = task.request
    return None if request.called_directly or request.is_eager else request


def job_of(request: Any) -> dict[str, Any] | None:
    """The `job` property of a request's message, None when it did not come out of a job queue."""
    properties = getattr(request, "properties", None) or {}
    return properties.get("job")


def lease_of(request: Any) -> Lease | None:
    """The lease of a request's job, None when it did not come out of a job queue."""
    job = job_of(request)
    return Lease.of(job) if job else None


def parameter_position(task_name: str, parameter: str) -> int | None:
    """Index of a positional parameter of a task that is registered in this process; None when there is none."""
    task = _registered(task_name)
    return None if task is None else _position(task, parameter)


def task_option(task_name: str, option: str) -> Any | None:
    """An attribute of a task that is registered in this process, such as max_attempts; None when it has none."""
    return getattr(_registered(task_name), option, None)


def _registered(task_name: str) -> Any | None:
    state = sys.modules.get("celery._state")
    if state is None:
        return None
    # Celery's current app is that of the thread which has made it; a web server's other threads have another, empty one.
    for app in (state.get_current_app(), *state._get_active_apps()):
        if (task := dict.get(app._tasks, task_name)) is not None:
            return task
    return None


@lru_cache(maxsize=1024)
def _position(task: Any, parameter: str) -> int | None:
    try:
        names = list(inspect.signature(getattr(task, "__wrapped__", None) or task.run).parameters)
    except (TypeError, ValueError):
        return None
    if names and names[0] == "self":
        names = names[1:]
    return names.index(parameter) if parameter in names else None
