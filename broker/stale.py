"""A started job that somebody else may have by now does not run.

A start is in the database before the job goes to the pool; then it may wait: behind a running one, or with its worker, frozen or
cut off from the database. After that long others may have taken the worker for dead, run the job and settled it. So a run that
begins late asks first. Costs nothing but a look at the clock otherwise.
"""

from __future__ import annotations

import time
from functools import wraps
from typing import Any

from celery.exceptions import Ignore

from celery_jobqueue.broker.context import job_of, lease_of
from celery_jobqueue.broker.sessions import still_held
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.settlements import warn_of_loss

__all__ = ["refuse_stale"]


def refuse_stale(task: Any, settings: Settings) -> None:
    """Have runs of this task that begin late ask whether the job is still theirs; if not, they end at once and settle nothing."""
    if hasattr(task, "_run_stale"):
        return
    run = task._run_stale = task.run
    # A worker is given up when its lock was free for the grace, or some time after its last sign of life.
    options = settings.options
    safe = min(options.grace, options.heartbeat_limit - options.heartbeat)

    @wraps(run)
    def ours(*args: Any, **kwargs: Any) -> Any:
        request = task.request
        asked = None if request.called_directly else (job_of(request) or {}).get("asked")
        if asked is not None and time.time() - asked > safe:
            lease = lease_of(request)
            if lease is not None and not still_held(settings, lease):
                warn_of_loss(lease)
                raise Ignore
        return run(*args, **kwargs)

    task.run = ours
