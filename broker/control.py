"""A word of remote control that Celery lacks: `celery -A … control unrevoke <task id> …`."""

from __future__ import annotations

from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import control_command, ok

__all__ = ["unrevoke"]


@control_command(variadic="task_ids", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator,unused-ignore]
def unrevoke(state: Any, task_ids: list[str], **kwargs: Any) -> Any:  # noqa: ARG001  (as Celery calls it)
    """Forget that tasks were revoked: a job that a person has run again would be revoked again for hours."""
    for task_id in task_ids:
        worker_state.revoked.discard(task_id)
    return ok(f"tasks {', '.join(task_ids)} may run")
