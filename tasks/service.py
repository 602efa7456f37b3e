"""What application code calls: queue a certificate, see one's jobs, wait for the end.

Names follow the user's guide. Everything is checked at the call; what is wrong raises and writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from celery.result import AsyncResult
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from celery_jobqueue.db.errors import InvalidJob, JobQueueError
from celery_jobqueue.db.models import Event, Job
from tasks.app import app, engine
from tasks.certificate import generate_certificate
from tasks.certificates.errors import UnknownEvent
from tasks.certificates.expiry import check_expiry
from tasks.certificates.issue import check_event_id, check_key, check_name, check_user

__all__ = ["JobFailed", "JobQueueService", "JobView"]

_FIELDS = frozenset({"event_id", "recipient_name", "recipient_key", "expires_on"})


class JobFailed(JobQueueError):
    """The job ended as failed; the message is its error."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its user may see it. progress: what the task reported last, if it reports."""

    id: str
    task_id: str
    task_name: str | None
    status: str
    priority: int
    attempts: int
    max_attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_message: str | None
    result: Any
    progress: Any

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen: completed or failed."""
        return self.status in ("completed", "failed")


class JobQueueService:
    """The job queue for application code. Stateless: make one where you need one."""

    def queue_certificate_generation(self, data: Mapping[str, Any], user_id: str, priority: int = 5, *,
                                     max_attempts: int | None = None) -> str:
        """Queue one certificate and return its task id.

        data: `event_id`, `recipient_name`, optionally `recipient_key` (tells recipients of one name apart) and `expires_on`
        (the last day on which the certificate is valid, a date or YYYY-MM-DD).
        priority: 1 (first) … 10 (last). Raises InvalidJob naming the field and the fix; nothing is written then.
        """
        if not isinstance(data, Mapping):
            raise InvalidJob(f"data must be a mapping with event_id and recipient_name, not {type(data).__name__}")
        unknown = sorted(set(data) - _FIELDS, key=str)
        if unknown:
            raise InvalidJob(f"data[{unknown[0]!r}] is not known; there are: {', '.join(sorted(_FIELDS))}")
        missing = sorted({"event_id", "recipient_name"} - set(data))
        if missing:
            raise InvalidJob(f"data[{missing[0]!r}] is missing")
        if isinstance(priority, bool) or not isinstance(priority, int) or not 1 <= priority <= 10:
            raise InvalidJob(f"priority={priority!r} must be a whole number from 1 (first) to 10 (last)")
        check_user(user_id)
        name, key = check_name(data["recipient_name"]), check_key(data.get("recipient_key"))
        event_id = check_event_id(data["event_id"])
        expires_on = check_expiry(data.get("expires_on"), datetime.now(UTC).date())
        with Session(engine()) as session:
            if session.scalar(select(Event.id).where(Event.id == event_id)) is None:
                raise UnknownEvent(f"there is no event {event_id}")
        kwargs: dict[str, Any] = {"event_id": str(event_id), "recipient_name": name, "user_id": user_id}
        if key is not None:
            kwargs["recipient_key"] = key
        if expires_on is not None:
            kwargs["expires_on"] = expires_on.isoformat()
        options: dict[str, Any] = {} if max_attempts is None else {"max_attempts": max_attempts}
        result: AsyncResult[Any] = generate_certificate.apply_async(kwargs=kwargs, priority=priority, user_id=user_id, **options)
        return str(result.id)

    def get_user_jobs(self, user_id: str, limit: int = 50) -> list[JobView]:
        """The user's newest `limit` jobs, newest first."""
        if limit < 1:
            raise InvalidJob(f"limit={limit!r} must be at least 1")
        with Session(engine()) as session:
            newest_first = select(Job).where(Job.user_id == user_id).order_by(Job.created_at.desc(), Job.id.desc())
            return [_view(job) for job in session.scalars(newest_first.limit(limit))]

    def get_job(self, task_id: str) -> JobView | None:
        """The newest job with this task id; None when there is none."""
        with Session(engine()) as session:
            job = session.scalar(select(Job).where(Job.task_id == task_id).order_by(Job.created_at.desc()).limit(1))
            return None if job is None else _view(job)

    def wait_for(self, task_id: str, timeout: float = 60.0, on_progress: Callable[[JobView], None] | None = None) -> JobView:
        """Wait until the job has ended, telling `on_progress` every change of its status, attempts or progress.

        Returns the completed job. Raises JobFailed with the job's error when it failed, TimeoutError after `timeout`
        seconds, InvalidJob when there is no such job.
        """
        deadline = time.monotonic() + timeout
        seen: JobView | None = None
        result = AsyncResult(task_id, app=app)
        while True:
            job = self.get_job(task_id)
            if job is None:
                raise InvalidJob(f"there is no job with task id {task_id!r}")
            if on_progress is not None and job != seen:
                on_progress(job)
            seen = job
            if job.status == "failed":
                raise JobFailed(job.error_message or "failed without an error message")
            if job.ended:
                return job
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {task_id} is still {job.status} after {timeout:g} s")
            _nap(result, min(left, 0.5))

    def reset_stuck_jobs(self, older_than_minutes: float = 5) -> int:
        """A person's order: jobs started longer ago than this run again. Returns how many."""
        with engine().begin() as connection:
            return int(connection.execute(text("select reset_stuck_jobs(make_interval(secs => :seconds))"),
                                          {"seconds": older_than_minutes * 60}).scalar_one())


def _nap(result: AsyncResult[Any], seconds: float) -> None:
    """Sleep, but wake up at once when the result comes."""
    from celery.exceptions import TimeoutError as StillWaiting

    with contextlib.suppress(StillWaiting):
        result.get(timeout=seconds, propagate=False, disable_sync_subtasks=False)
        time.sleep(0.02)  # the result is there; its job's row may say so a moment later


def _view(job: Job) -> JobView:
    value = None
    if job.result is not None:
        try:
            value = json.loads(job.result)
        except ValueError:
            value = job.result
    ended = job.status in ("completed", "failed")
    return JobView(
        id=str(job.id), task_id=job.task_id, task_name=job.task_name, status=job.status, priority=job.priority,
        attempts=job.attempts, max_attempts=job.max_attempts, created_at=job.created_at, started_at=job.started_at,
        finished_at=job.finished_at, error_message=job.error_message, result=value if ended else None,
        progress=None if ended else value)
