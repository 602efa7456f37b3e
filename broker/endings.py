"""Jobs that end without a worker running them: results, errbacks and chords must hear of it, or somebody waits forever."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from celery._state import _get_active_apps
from celery.app.task import Context
from celery.exceptions import TaskRevokedError, WorkerLostError
from celery.states import FAILURE
from celery.states import REVOKED as REVOKED_STATE

from celery_jobqueue.broker.messages import decode_lost
from celery_jobqueue.broker.session import Row
from celery_jobqueue.broker.settlements import Failure, Lease, Settlements, describe
from celery_jobqueue.broker.usual import Columns
from celery_jobqueue.db.errors import ConfigurationError
from celery_jobqueue.db.url import libpq_dsn

__all__ = ["REVOKED", "app_of", "mark_unreadable", "result_refused", "tell_celery", "unreadable"]

logger = logging.getLogger(__name__)

#: The error of a job that was revoked while nobody had it.
REVOKED = "revoked"


def app_of(conninfo: str) -> Any | None:
    """The Celery application of this process that publishes to this database; None when there is none."""
    for app in _get_active_apps():
        if app.configured:
            with suppress(ConfigurationError):
                if libpq_dsn(str(app.conf.broker_write_url or app.conf.broker_url)) == conninfo:
                    return app
    return None


def tell_celery(app: Any, rows: list[Row]) -> None:
    """Tell Celery of the jobs that jobqueue.rescue() and jobqueue.revoke() have ended."""
    for row in rows:
        id_, lease, task_id, task_name, error, envelope, payload, binary, queue, reply_to = row
        headers, (args, kwargs, embed), properties = decode_lost(
            Columns(task_name, task_id, queue, reply_to, payload), envelope, binary)
        job = properties["job"] = {"id": id_, "lease": lease, "task": task_name, "task_id": task_id}
        logger.log(logging.INFO if error == REVOKED else logging.ERROR, "%s (%s, job %s)", error, task_name, id_,
                   extra=Lease.of(job).about)
        try:
            request = Context(headers, **{
                **embed, "id": task_id, "task": task_name, "args": args, "kwargs": kwargs, "properties": properties,
                "delivery_info": properties.get("delivery_info") or {}})
            task = app.tasks.get(task_name)
            backend = app.backend if task is None else task.backend
            stores = not headers.get("ignore_result")
            if error == REVOKED:
                backend.mark_as_revoked(task_id, REVOKED, request=request, store_result=stores)
            else:
                backend.mark_as_failure(task_id, WorkerLostError(error), request=request, store_result=stores)
        except Exception:
            logger.exception("the end of job %s could not be told to Celery", id_, extra=Lease.of(job).about)
            _store_end(app, task_id, job, error)


def _store_end(app: Any, task_id: str | None, job: dict[str, Any], error: str | None) -> None:
    """What the job's headers say of errbacks and chords means nothing; who waits for its result hears of the end all the same."""
    state, exc = (REVOKED_STATE, TaskRevokedError(error)) if error == REVOKED else (FAILURE, WorkerLostError(error))
    with suppress(Exception):
        app.backend.store_result(task_id, exc, state, request=Context(id=task_id, properties={"job": job}))


def unreadable(app: Any, settlements: Settlements, lease: Lease, task_id: str | None, error: Exception) -> None:
    """A claimed job's message cannot be read: the job fails with a reason, and the worker goes on."""
    settlements.fail(lease, Failure(f"the message cannot be read: {describe(error)}"))
    mark_unreadable(app, lease, task_id, error)


def mark_unreadable(app: Any, lease: Lease, task_id: str | None, error: BaseException) -> None:
    """Who waits for the result of an unreadable job hears that there will be none."""
    logger.error("the message of job %s cannot be read: %s", lease.id, describe(error), extra=lease.about)
    if task_id is not None:
        _mark_failed(app.backend, lease, task_id, ValueError(f"the message cannot be read: {describe(error)}"))


def result_refused(app: Any, lease: Lease, error: BaseException) -> bool:
    """A job has run, and the database does not take its result: it fails with that reason. Whether that could be said."""
    job = lease.job or {}
    logger.error("the result of job %s is refused: %s", lease.id, describe(error), extra=lease.about)
    backend = app.tasks[job["task"]].backend if job.get("task") in app.tasks else app.backend
    return getattr(backend, "has_jobs", False) and _mark_failed(backend, lease, job["task_id"], error)


def _mark_failed(backend: Any, lease: Lease, task_id: str, error: BaseException) -> bool:
    request = Context(id=task_id, properties={"job": {"id": lease.id, "lease": lease.token}})
    try:
        backend.mark_as_failure(task_id, error, request=request)
    except Exception:
        logger.exception("the end of job %s could not be told to Celery", lease.id, extra=lease.about)
        return False
    return True
