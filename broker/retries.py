"""Automatic retries: a task that raises runs again, with backoff, until its job's max_attempts.

Opted into with `broker_transport_options = {"automatic_retries": True}`. Works like Celery's own `autoretry_for`, by
wrapping the task's run(), so that Celery, its events and Flower see a RETRY; but it counts attempts on the job's row.
"""

from __future__ import annotations

import traceback
from datetime import timedelta
from functools import wraps
from typing import Any

from celery.exceptions import Ignore, Reject, Retry
from celery.utils.time import get_exponential_backoff_interval

from celery_jobqueue.broker.context import lease_of
from celery_jobqueue.broker.sessions import PATIENCE, run_patiently
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.settlements import Failure, Settlements, describe
from celery_jobqueue.db.errors import FinalError

__all__ = ["pause", "retry_automatically"]


def retry_automatically(task: Any, settings: Settings) -> None:
    """Have this task retried when it raises, unless the error is final: FinalError, or in its `dont_autoretry_for`.

    `retry_backoff` (seconds of the first wait), `retry_backoff_max` and `retry_jitter` of the task are honoured;
    otherwise the database's backoff holds (2, 4, 8 … seconds, ±20 %).
    """
    if task.name.startswith("celery.") or hasattr(task, "_run_once"):
        return
    run = task._run_once = task.run
    final = (FinalError, *getattr(task, "dont_autoretry_for", ()))

    @wraps(run)
    def attempt(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except (Ignore, Reject, Retry):
            raise
        except final:
            raise
        except Exception as error:
            again = _try_again(task, settings, error)
            if again is None:
                raise
            raise again from error

    task.run = attempt


def _try_again(task: Any, settings: Settings, error: Exception) -> Exception | None:
    """Put the job back for another attempt; None when none is left, or there is no job."""
    request = task.request
    lease = lease_of(request)
    if lease is None or request.called_directly:
        return None
    job = request.properties["job"]
    if job["attempts"] >= job["max_attempts"]:
        return None
    failure = Failure(describe(error), "".join(traceback.format_exception(error)), retry=True,
                      delay=pause(task, job["attempts"]))
    buffer = Settlements()
    buffer.fail(lease, failure)
    # Told twice after a lost reply, the second finds the lease gone and changes nothing.
    [rows] = run_patiently(settings, *buffer.calls(buffer.take()), patience=PATIENCE)
    status = rows[0][0]
    if status == "failed":  # max_attempts was lowered by hand meanwhile
        return None
    if status is None:
        ignore: Exception = Ignore()
        return ignore  # the lease is lost: whatever this run has to say, nobody asked for it
    job["republished"] = True
    later: Exception = Retry(exc=error, when=None if failure.delay is None else failure.delay.total_seconds())
    return later


def pause(task: Any, attempts: int) -> timedelta | None:
    """How long this task's next attempt waits; None: as long as the database says."""
    factor = getattr(task, "retry_backoff", None)
    if not factor:
        return None
    seconds = get_exponential_backoff_interval(
        factor=int(max(1, factor)), retries=attempts - 1, maximum=getattr(task, "retry_backoff_max", 600),
        full_jitter=getattr(task, "retry_jitter", True))
    return timedelta(seconds=seconds)
