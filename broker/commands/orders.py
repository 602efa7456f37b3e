"""What a person orders: run it again, do not run it. Every change is conditional and says what it really changed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from celery_jobqueue.broker.claims import text_array
from celery_jobqueue.broker.commands.store import Filter, Job, JobStore
from celery_jobqueue.broker.commands.text import age
from celery_jobqueue.broker.messages import decode_lost
from celery_jobqueue.broker.results import ResultBackend
from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.usual import Columns

__all__ = ["CANCELLED", "Answer", "cancel", "retry", "retry_failed", "terminate"]

CANCELLED = "cancelled"
_PATIENCE = 1.5  # seconds for workers to answer


@dataclass(frozen=True, slots=True)
class Answer:
    """Jobs that were changed, as they are now; and the others, each with the reason."""

    changed: list[Job]
    unchanged: list[tuple[Job, str]]


# -- again ------------------------------------------------------------------------------------------------------------


def retry(store: JobStore, ids: Sequence[str], force: bool = False) -> Answer:
    """Have failed and completed jobs run again, with at least one attempt; force: processing ones too.

    Whoever has such a job can no longer finish it. Raises psycopg.Error.
    """
    jobs = store.by_id(ids)
    _let_run(store, [job.task_id for job in jobs if job.row["state"] == states.REVOKED])
    [rows] = store.run((statement("retry_jobs"), (text_array(ids), "t" if force else "f")))
    return _answer(store, ids, {str(id) for (id,) in rows}, _why_not_again)


def retry_failed(store: JobStore, wanted: Filter) -> Iterator[list[str]]:
    """Have every failed job that is meant run again, a thousand at a time; the ids of those that will. Raises psycopg.Error."""
    place = ("infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff")
    while True:
        with store.session.transaction():
            [rows] = store.run((statement("retry_failed"), (wanted.queue, wanted.task, wanted.user, *place, wanted.since)))
            _let_run(store, [str(task_id) for _, _, task_id, state, again in rows if state == states.REVOKED and again == "t"])
        if not rows:
            return
        place = (str(rows[-1][1]), str(rows[-1][0]))
        yield [str(id) for id, *_, again in rows if again == "t"]


def _why_not_again(job: Job) -> str:
    expired = job.since("expires_at")
    if job.status == "pending":
        return "waits already"
    if job.status == "processing":
        return "is running; --force takes it from its worker"
    return f"expired {age(expired)} ago and would not run" if expired is not None and expired > 0 else f"is {job.status}"


def _let_run(store: JobStore, task_ids: Sequence[str]) -> None:
    """Workers remember for hours what was revoked, and would revoke it again: have them forget these, before they get them."""
    alive = sum(worker["alive"] for worker in store.workers()) if task_ids else 0
    if alive:
        store.app.control.broadcast("unrevoke", arguments={"task_ids": list(task_ids)}, reply=True, timeout=_PATIENCE,
                                    limit=alive)


# -- no more ----------------------------------------------------------------------------------------------------------


def cancel(store: JobStore, ids: Sequence[str], running: bool = False) -> Answer:
    """End jobs as Celery's REVOKED: who waits for one gets TaskRevokedError, a chord it belongs to fails.

    Pending ones; running: processing ones too, whose workers can then no longer finish them but are not stopped by that.
    Raises psycopg.Error.
    """
    [rows] = store.run((statement("job_message"), (text_array(ids),)))
    changed = {str(row[0]) for row in rows if _cancel(store, row, running)}
    return _answer(store, ids, changed, _why_not_cancelled)


def _why_not_cancelled(job: Job) -> str:
    return "is running; --terminate stops it" if job.status == "processing" else f"is {job.status} already"


def _cancel(store: JobStore, row: Row, running: bool) -> bool:
    id, task_id, task_name, envelope, payload, binary, queue, reply_to = row
    headers, (args, kwargs, embed), properties = decode_lost(
        Columns(task_name, task_id, queue, reply_to, payload), envelope, binary)
    request = Context(headers, **{
        "id": task_id, "task": task_name, "args": args, "kwargs": kwargs, "properties": properties,
        "delivery_info": properties.get("delivery_info") or {}, **embed})
    lease, revoked = str(uuid.uuid4()), TaskRevokedError(CANCELLED)
    backend, ignored = store.app.backend, bool(headers.get("ignore_result"))
    ours = isinstance(backend, ResultBackend) and backend.settings.conninfo == store.settings.conninfo
    # Taken and settled in one transaction: no worker sees an owner that it does not know, and would rescue the job from.
    calls: list[Call] = [(statement("take_job"), (id, str(uuid.uuid4()), lease, "t" if running else "f"))]
    if ours and not ignored:
        encoded = backend._encoded(backend.encode_result(revoked, states.REVOKED))
        calls.append((statement("store_result"), (id, lease, states.REVOKED, *encoded, None, None, CANCELLED)))
    else:
        calls.append((statement("fail"), (id, lease, CANCELLED, None, "f", None)))
    if ours and request.chord:
        store.app.loader.import_default_modules()
        request.held_result = calls  # broker/chords.py runs them in the transaction that counts the part
        backend.on_chord_part_return(request, states.REVOKED, revoked)
        [rows] = store.run((statement("has_lease"), (id, lease)))
        return rows[0][0] == "t"
    taken = store.run(*calls)[0][0][0] == "t"
    if taken and not ours:
        backend.mark_as_revoked(task_id, CANCELLED, request=request, store_result=not ignored)
    return taken


def terminate(store: JobStore, jobs: Sequence[Job], signal: str) -> dict[str, str]:
    """Have the workers of these jobs kill the processes that run them. What each worker that answers has done."""
    workers = sorted({job.text("worker") for job in jobs} & {str(worker["name"]) for worker in store.workers()})
    if not workers:
        return {}
    replies = store.app.control.revoke([job.task_id for job in jobs], destination=workers, terminate=True, signal=signal,
                                       reply=True, timeout=_PATIENCE)
    said = {}
    for reply in replies or []:
        for worker, answer in reply.items():
            text = str(answer.get("ok") or answer.get("error") if isinstance(answer, dict) else answer)
            stopped = any(job.task_id in text for job in jobs if job.text("worker") == worker) and "ok" in answer
            said[worker] = "stopped" if stopped else text
    return said


def _answer(store: JobStore, ids: Sequence[str], changed: set[str], why: Any) -> Answer:
    jobs = store.by_id(ids)
    return Answer([job for job in jobs if job.id in changed], [(job, why(job)) for job in jobs if job.id not in changed])
